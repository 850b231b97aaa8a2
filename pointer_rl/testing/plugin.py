"""What is asked of every kind of plugin: options, a light module, results of its own options."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pointer_rl.errors import PointerRLError, first_line
from pointer_rl.options import convert_text, describe_options
from pointer_rl.registry import PluginRecord, registry
from pointer_rl.testing.findings import Broken, NotApplicable, Subject, require

__all__ = ["EVERY_PLUGIN", "check_fingerprint", "check_pickles", "with_finite_options"]

_HEAVY = ("torch", "transformers", "datasets", "tensorflow", "jax", "numpy", "PIL")
"""Packages that no plugin may need before one of its factories is called."""
_LOAD = (
    "import json, sys\n"
    "from pointer_rl.registry import registry\n"
    "registry()\n"
    "print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))"
)


def _options(subject: Subject[Any]) -> None:
    """A frozen, keyword-only dataclass, documented, that a command line can fill."""
    options = subject.options
    if options is None:
        raise NotApplicable("it has no options")
    cls = type(options)
    require(
        dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen,  # type: ignore[attr-defined]
        f"{cls.__name__} is no frozen dataclass: write @dataclass(frozen=True, kw_only=True)",
    )
    positional = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
    require(
        not positional,
        f"{cls.__name__} takes {', '.join(positional)} by position: "
        "write @dataclass(frozen=True, kw_only=True)",
    )
    hints = typing.get_type_hints(cls)
    for option in describe_options(cls):
        _can_be_written(hints[option.name], option.name)
        require(
            bool(option.help) or not _has_source(cls),
            f"the option {option.name} has no docstring under its field: "
            "`plugins show` has nothing to say about it",
        )


def _can_be_written(hint: Any, name: str) -> None:
    try:
        convert_text("1", hint)
    except ValueError:
        pass  # not that value
    except TypeError as error:
        raise Broken(
            f"the option {name} cannot be given as {name}=… ({error}): make it a str, int, "
            "float, bool, Literal, a tuple of one of these, or one of these or None"
        ) from error


def _has_source(cls: type) -> bool:
    try:
        return bool(inspect.getsource(cls))
    except (OSError, TypeError):
        return False


def _options_pickle(subject: Subject[Any]) -> None:
    """Another process can be told to make the same."""
    if subject.options is None:
        raise NotApplicable("it has no options")
    check_pickles(subject.options, "its options")


def check_pickles(value: object, what: str) -> None:
    """Raise Broken where a value does not come back equal from pickle."""
    try:
        copied = pickle.loads(pickle.dumps(value))
    except Exception as error:
        raise Broken(
            f"{what} cannot be pickled ({first_line(error)}), so that no other process can be "
            "handed them: hold plain values, and classes and functions at the top of a module"
        ) from error
    require(copied == value, f"{what} are not equal to what comes back from pickle: define __eq__")


def _light(subject: Subject[Any]) -> None:
    """Listing the plugins imports nothing heavy."""
    plugins = _plugins_of(subject.factory)
    if not plugins:
        raise NotApplicable("its factory is not of an installed plugin")
    environment = {
        **os.environ,
        "POINTER_RL_PLUGINS": ",".join(plugin.name for plugin in plugins),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, *_HEAVY], env=environment, capture_output=True, text=True
    )
    require(done.returncode == 0, f"loading it in a new process failed: {done.stderr[-500:]}")
    heavy = json.loads(done.stdout.splitlines()[-1])
    modules = " or ".join(sorted({plugin.module for plugin in plugins}))
    require(
        not heavy,
        f"loading {modules} imports {', '.join(heavy)}, and every command loads it, --help too: "
        "import them inside the factory, or in a module that only the factory imports",
    )


def _plugins_of(factory: Callable[..., Any]) -> list[PluginRecord]:
    """The installed plugins of the package that the factory is defined in."""
    function = getattr(factory, "func", factory)  # of a functools.partial
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    return [each for each in registry().plugins if each.module.partition(".")[0] == package]


EVERY_PLUGIN: dict[str, Callable[[Subject[Any]], None]] = {
    "loading imports nothing heavy": _light,
    "options are a documented dataclass": _options,
    "options can be pickled": _options_pickle,
}


# --- fingerprints -----------------------------------------------------------------------------


def with_finite_options(options: Any) -> Iterator[tuple[str, Any]]:
    """Each other value of each option that has finitely many (bool, Literal): (`key=value`, all).

    Those that the options class refuses are left out.
    """
    if options is None:
        return
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        hint, now = hints[field.name], getattr(options, field.name)
        values = (True, False) if hint is bool else ()
        if typing.get_origin(hint) is Literal:
            values = typing.get_args(hint)
        for value in values:
            if value == now:
                continue
            try:
                changed = dataclasses.replace(options, **{field.name: value})
            except ValueError:
                continue
            yield f"{field.name}={value}", changed


def check_fingerprint(subject: Subject[Any], differs: Callable[[Any], bool]) -> None:
    """Whether the fingerprint tells apart what gives different results.

    `differs(made)` says whether something that other options made gives other results than
    `subject.made`. For `subject.variants` the author says that it does.
    """
    mine = subject.made.fingerprint
    require(
        subject.make().fingerprint == mine,
        "made again with the same options, it has another fingerprint: leave out what changes "
        "by itself (addresses, times, random numbers), or nothing stored is ever found again",
    )
    for variant in subject.variants:
        require(
            subject.make(variant).fingerprint != mine,
            f"{variant!r} has the fingerprint of {subject.options!r}: put every option that "
            "decides a result into it, or one is given the other's stored results",
        )
    for written, options in with_finite_options(subject.options):
        try:
            other = subject.make(options)
        except PointerRLError:
            continue  # not on this machine
        if other.fingerprint == mine:
            require(
                not differs(other),
                f"with {written} it gives other results under the same fingerprint: put that "
                "option into it, or one is given the other's stored results",
            )
