"""The base of all test classes: a registered plugin with its options, and what every kind promises.

The tests need no pytest: they are methods with plain asserts, so `pointer-rl plugins check` can
call them too. A test that does not apply raises `unittest.SkipTest`, which pytest understands.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar
from unittest import SkipTest

from pointer_rl.errors import PointerRLError, first_line
from pointer_rl.options import convert_text, describe_options
from pointer_rl.registry import GROUP, ConfiguredEntry, registry

Made = TypeVar("Made")
T = TypeVar("T")

_HEAVY = ("torch", "transformers", "datasets", "tensorflow", "jax", "numpy", "PIL")
"""Packages that no plugin may import before one of its factories is called."""
_LOAD = """
import json, sys
from pointer_rl.registry import registry
registry()
print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))
"""
_shared: dict[tuple[object, ...], dict[str, Any]] = {}
"""What the tests of the class that ran last have in common: only one plugin stays in memory."""


class Result(NamedTuple):
    """How one check went."""

    check: str
    state: Literal["ok", "skipped", "broken"]
    message: str = ""
    """What is wrong and how to fix it, or why the check was skipped."""


class PluginTests(Generic[Made]):
    """Tests of every plugin. Inherit from the class of its kind:

        class TestTint(BackendTests):
            name = "tint"
            options = {"names": "rot,grün,blau"}

    The plugin is found by its registered name, so its package has to be installed (`pip install -e`
    will do). It is built once for all tests of a class. Where options depend on a fixture, set them
    in one: `self.options = {"path": str(tmp_path)}`.
    """

    kind: ClassVar[str]
    name: str
    """The name or alias under which it is registered."""
    options: Mapping[str, object] = {}
    """Its options, as a user gives them or already converted."""

    def configure(self, **changes: object) -> ConfiguredEntry:
        """The registered plugin with its options, of which these are changed."""
        return registry().configure(self.kind, self.name, {**self.options, **changes})

    def make(self, **changes: object) -> Made:
        """Build the plugin, with these options changed."""
        made: Made = self.configure(**changes).create()
        return made

    @property
    def made(self) -> Made:
        """The plugin, built once."""
        return self.once("made", self._make_first)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Compute something once for all tests of a class with the same options.

        If that fails, the first test fails and the others that need it are skipped.
        """
        owner = (type(self), self.name, repr(self.options))
        if owner not in _shared:
            _shared.clear()
            _shared[owner] = {}
        shared = _shared[owner]
        if name not in shared:
            try:
                shared[name] = compute()
            except Exception as error:
                shared[name] = error
                raise
        elif isinstance(shared[name], Exception):
            raise SkipTest("an earlier check failed on what this one needs")
        kept: T = shared[name]
        return kept

    def run_checks(self) -> Iterator[Result]:
        """Run every test, in the order of definition; none but the first if it cannot be built.

        Raises PointerRLError if the factory does: options are missing, or cannot be used.
        """
        _shared.clear()
        names = (name for cls in reversed(type(self).__mro__) for name in vars(cls))
        for name in dict.fromkeys(name for name in names if name.startswith("test_")):
            title = name.removeprefix("test_").replace("_", " ")
            result = Result(title, "ok")
            try:
                getattr(self, name)()
            except SkipTest as reason:
                result = Result(title, "skipped", str(reason))
            except AssertionError as finding:
                result = Result(title, "broken", first_line(finding))
            except Exception as error:
                if isinstance(error, PointerRLError) and name == "test_is_made":
                    raise
                raised = f"it raised {type(error).__name__} ({first_line(error)})"
                result = Result(title, "broken", raised)
            yield result
            if name == "test_is_made" and result.state == "broken":
                return  # every other test would report the same

    def _make_first(self) -> Made:
        try:
            return self.make()
        except PointerRLError:
            raise
        except Exception as error:
            raise AssertionError(
                f"the factory raised {type(error).__name__} ({first_line(error)}): raise "
                "InputError or MissingExtraError with a sentence that says what to do"
            ) from error

    def _configured_options(self) -> Any:
        """An instance of its options class. Raises SkipTest if it has none."""
        options = self.configure().options
        if options is None:
            raise SkipTest("it has no options")
        return options

    def test_is_made(self) -> None:
        """The factory builds the plugin from its options."""
        _ = self.made

    def test_loading_imports_nothing_heavy(self) -> None:
        """Listing the plugins stays fast: heavy packages are imported by the factory."""
        plugin = registry().find(self.kind, self.name).plugin
        if not entry_points(group=GROUP, name=plugin.name):
            raise SkipTest("it is not installed")
        environment = {
            **os.environ,
            "POINTER_RL_PLUGINS": plugin.name,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, *_HEAVY], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"loading it in a new process failed: {done.stderr[-500:]}"
        heavy = json.loads(done.stdout.splitlines()[-1])
        assert not heavy, (
            f"loading {plugin.module} imports {', '.join(heavy)}, and every command loads it, even "
            "--help: import them inside the factory, or in a module that only the factory imports"
        )

    def test_options_are_a_documented_dataclass(self) -> None:
        """Options are a frozen keyword-only dataclass that a command line can fill."""
        cls = type(self._configured_options())
        fields = dataclasses.fields(cls)
        assert cls.__dataclass_params__.frozen, (
            f"{cls.__name__} is not frozen: write @dataclass(frozen=True, kw_only=True)"
        )
        positional = [field.name for field in fields if not field.kw_only]
        assert not positional, (
            f"{cls.__name__} takes {', '.join(positional)} by position: "
            "write @dataclass(frozen=True, kw_only=True)"
        )
        hints = typing.get_type_hints(cls)
        for option in describe_options(cls):
            try:
                convert_text("1", hints[option.name])
            except ValueError:
                pass  # the type is fine, only this value is not
            except TypeError as error:
                raise AssertionError(
                    f"the option {option.name} cannot be given as {option.name}=… ({error}): make "
                    "it a str, int, float, bool, Literal, a tuple of one of these, or optional"
                ) from error
            assert option.help or not _has_source(cls), (
                f"the option {option.name} has no docstring under its field: "
                "`plugins show` has nothing to print"
            )

    def test_options_can_be_pickled(self) -> None:
        """Another process can build the same plugin."""
        assert_pickles(self._configured_options(), "its options")


class FingerprintTests(PluginTests[Made]):
    """Tests of plugins whose results are cached under a fingerprint."""

    variants: Sequence[Mapping[str, object]] = ()
    """Changes of options that change results, so that the fingerprint must change too."""

    def differs(self, other: Made) -> bool:
        """Whether another instance gives other results than `made`."""
        raise NotImplementedError

    def test_fingerprint_covers_what_decides_results(self) -> None:
        """Different results never share a fingerprint; the same configuration always does."""
        mine = _fingerprint(self.made)
        assert isinstance(mine, str), f"its fingerprint is {mine!r}: make it a string"
        assert mine, "its fingerprint is empty: name what decides a result"
        assert _fingerprint(self.make()) == mine, (
            "built again with the same options, it has another fingerprint: leave out what "
            "changes by itself (addresses, times, random numbers), or the cache is never hit"
        )
        for changes in self.variants:
            assert _fingerprint(self.make(**changes)) != mine, (
                f"with {dict(changes)} the fingerprint stays {mine!r}: include every option that "
                "decides a result, or cached results of one are returned for the other"
            )
        for field, value in self._finite_options():
            try:
                other = self.make(**{field: value})
            except PointerRLError:
                continue  # refused, or not possible on this machine
            assert _fingerprint(other) != mine or not self.differs(other), (
                f"with {field}={value} it gives other results under the same fingerprint: include "
                "that option, or cached results of one are returned for the other"
            )

    def _finite_options(self) -> Iterator[tuple[str, object]]:
        """Every other value of each option with finitely many values (bool, Literal)."""
        options = self.configure().options
        if options is None:
            return
        hints = typing.get_type_hints(type(options))
        for field in dataclasses.fields(options):
            hint = hints[field.name]
            values: tuple[object, ...] = (True, False) if hint is bool else ()
            if typing.get_origin(hint) is Literal:
                values = typing.get_args(hint)
            for value in values:
                if value != getattr(options, field.name):
                    yield field.name, value


def assert_pickles(value: object, what: str) -> None:
    """Fail unless a value survives pickling; `what` names it in the message."""
    try:
        copied = pickle.loads(pickle.dumps(value))
    except Exception as error:
        raise AssertionError(
            f"{what} cannot be pickled ({first_line(error)}), so no other process can receive "
            "them: hold plain values, and classes and functions at the top of a module"
        ) from error
    assert copied == value, f"{what} do not equal their copies after pickling: define __eq__"


def _fingerprint(made: object) -> object:
    return getattr(made, "fingerprint", None)


def _has_source(cls: type) -> bool:
    try:
        return bool(inspect.getsource(cls))
    except (OSError, TypeError):
        return False
