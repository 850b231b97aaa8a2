"""The base of all test classes: a registered plugin with its options, and what every kind promises.

The tests need no pytest: they are methods with plain asserts, so `pointer-rl plugins check` can
call them too. A test that does not apply raises `unittest.SkipTest`, which pytest understands.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast
from unittest import SkipTest

import numpy as np
import torch

from pointer_rl.errors import PluginError, PointerRLError, first_line
from pointer_rl.options import convert_text, describe_options
from pointer_rl.registry import GROUP, ConfiguredEntry, registry

Made = TypeVar("Made")

_HEAVY = ("torch", "transformers", "datasets", "tensorflow", "jax", "numpy", "PIL")
"""Packages that no plugin may import before one of its factories is called."""
_LOAD = """
import json, sys
from pointer_rl.registry import registry
registry()
print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))
"""
_shared: dict[str, Any] = {}
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
    how_to_repeat: ClassVar[str] = "let it depend on its arguments and the options alone"
    """What to do if results differ from one time to the next."""

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
        fix = "raise InputError or MissingExtraError with a sentence that says what to do"
        with explain("the factory", fix, PointerRLError):
            return cast(Made, self._once("made", self.make))

    def use(self, made: Made) -> dict[str, Any]:
        """Use the plugin as the engine does: each call and its result. Fails if one is unsound."""
        raise NotImplementedError

    @property
    def results(self) -> dict[str, Any]:
        """The results of `made`, computed once, under another seed than those of repetitions."""
        made = self.made

        def use() -> dict[str, Any]:
            with global_randomness(0):
                return self.use(made)

        return cast(dict[str, Any], self._once("results", use))

    def same(self, one: Any, other: Any) -> bool:
        """Whether a repeated result counts as the same. Kinds may override it with a tolerance."""
        return bool(one == other)

    def show(self, result: Any) -> str:
        """A result as text, for a message."""
        plain = result.tolist() if isinstance(result, torch.Tensor) else result
        return textwrap.shorten(repr(plain), 120)

    def compare(
        self,
        given: Mapping[str, Any],
        how: str,
        fix: str,
        same: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        """Fail unless results that were obtained in another way (`how`) are the usual ones."""
        same = same or self.same
        assert given.keys() == self.results.keys(), (
            f"{how} it gives {len(given)} results instead of {len(self.results)}: {fix}"
        )
        for what, expected in self.results.items():
            assert same(expected, given[what]), (
                f"{what}: {how} it gives {self.show(given[what])} instead of "
                f"{self.show(expected)}: {fix}"
            )

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
            except (Exception, SystemExit) as error:
                if isinstance(error, PointerRLError) and name == "test_is_made":
                    raise
                raised = f"it raised {type(error).__name__} ({first_line(error)})"
                result = Result(title, "broken", raised)
            yield result
            if name == "test_is_made" and result.state == "broken":
                return  # every other test would report the same

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Compute something once for all tests of a class with the same options.

        If that fails, the first test fails and the others that need it are skipped.
        """
        owner = (type(self), self.name, repr(self.options))
        if _shared.get("owner") != owner:
            _shared.clear()
            _shared["owner"] = owner
        if name not in _shared:
            try:
                _shared[name] = compute()
            except Exception as error:
                _shared[name] = error
                raise
        elif isinstance(_shared[name], Exception):
            raise SkipTest("an earlier check failed on what this one needs")
        return _shared[name]

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
        positional = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
        assert cls.__dataclass_params__.frozen and not positional, (
            f"{cls.__name__} is not frozen or not keyword-only: "
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
            assert option.help, (
                f"the option {option.name} has no docstring under its field: "
                "`plugins show` has nothing to print"
            )

    def test_options_can_be_pickled(self) -> None:
        """Another process can build the same plugin."""
        check_pickles(self._configured_options(), "its options")

    def test_gives_sound_results(self) -> None:
        """It can be used as the engine does, and gives results of the right form."""
        _ = self.results

    def test_gives_the_same_again(self) -> None:
        """Results do not depend on the process's random state, or on what was asked before."""
        _ = self.results
        with global_randomness(1):
            self.compare(self.use(self.made), "asked again", self.how_to_repeat)
        with global_randomness(2):
            self.compare(self.use(self.make()), "built again", self.how_to_repeat)


class BatchTests(PluginTests[Made]):
    """Tests of plugins that take a batch: its members must not affect each other."""

    item: ClassVar[str]
    """What a batch consists of: "request"."""
    how_to_separate: ClassVar[str]
    """What to do if a result depends on the rest of the batch."""

    @property
    def inputs(self) -> Sequence[Any]:
        """A batch."""
        raise NotImplementedError

    def ask(self, made: Made, inputs: Sequence[Any]) -> Sequence[Any]:
        """The results of a batch. Fails unless there is a sound one for each input."""
        raise NotImplementedError

    def close(self, one: Any, other: Any) -> bool:
        """Whether results from two different batches count as the same."""
        return self.same(one, other)

    def use(self, made: Made) -> dict[str, Any]:
        return self._by_input(self.ask(made, self.inputs))

    def _by_input(self, results: Sequence[Any]) -> dict[str, Any]:
        return {f"{self.item} {index}": result for index, result in enumerate(results)}

    def test_gives_the_same_alone_as_in_a_batch(self) -> None:
        """What shares a batch does not matter."""
        _ = self.results
        alone = [self.ask(self.made, [each])[0] for each in self.inputs]
        self.compare(self._by_input(alone), "alone", self.how_to_separate, self.close)

    def test_gives_the_same_in_any_order(self) -> None:
        """Each result belongs to its own input."""
        _ = self.results
        results = list(self.ask(self.made, self.inputs[::-1]))
        self.compare(
            self._by_input(results[::-1]),
            f"if each {self.item} comes in reverse order",
            f"give each result with its own {self.item}",
            self.close,
        )


class FingerprintTests(BatchTests[Made]):
    """Tests of plugins whose results are cached under a fingerprint.

    The plugin is built again for every other value of its `bool` and `Literal` options.
    """

    variants: Sequence[Mapping[str, object]] = ()
    """Changes of options that change results, so that the fingerprint must change too."""

    def test_fingerprint_covers_what_decides_results(self) -> None:
        """Different results never share a fingerprint; the same configuration always does."""
        mine = _fingerprint(self.made)
        assert isinstance(mine, str) and mine, (
            f"its fingerprint is {mine!r}: make it a string of everything besides the input that "
            "decides a result (model, revision, precision, options, versions)"
        )
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
            assert _fingerprint(other) != mine or self._equals(other), (
                f"with {field}={value} it gives other results under the same fingerprint: include "
                "that option, or cached results of one are returned for the other"
            )

    def _finite_options(self) -> Iterator[tuple[str, object]]:
        """Every other value of each option with finitely many values (bool, Literal)."""
        options = self.configure().options
        hints = {} if options is None else typing.get_type_hints(type(options))
        for name, hint in hints.items():
            values: tuple[object, ...] = (True, False) if hint is bool else ()
            if typing.get_origin(hint) is Literal:
                values = typing.get_args(hint)
            yield from ((name, value) for value in values if value != getattr(options, name))

    def _equals(self, other: Made) -> bool:
        given = self.use(other)
        return all(self.same(expected, given[what]) for what, expected in self.results.items())


@contextmanager
def explain(what: str, fix: str, *allowed: type[Exception]) -> Iterator[None]:
    """Let an exception fail the test: `what` raised it, and how to fix that.

    PluginError is what the engine's own checks raise, and says what it found. Failed and skipped
    tests and exceptions of the `allowed` types pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (AssertionError, SkipTest, *allowed)):
            raise
        found = f"{what} raised {type(error).__name__} ({first_line(error)})"
        if isinstance(error, PluginError):
            found = first_line(error)
        raise AssertionError(f"{found}: {fix}") from error


def check_type(value: object, cls: type, what: str, fix: str = "") -> None:
    """Fail unless `what` gave a value of that type."""
    assert isinstance(value, cls), (
        f"{what} gave a {type(value).__name__}: return {fix or f'a {cls.__name__}'}"
    )


def check_pointer(pointer: object) -> None:
    """Fail unless a pointer is a tuple of Python integers."""
    assert isinstance(pointer, tuple) and all(type(row) is int for row in pointer), (
        f"it proposes the pointer {pointer!r}: make it a tuple of Python integers, by tolist()"
    )


def check_pickles(value: object, what: str) -> None:
    """Fail unless a value survives pickling; `what` names it in the message."""
    fix = (
        "another process has to receive them, so hold plain values, and classes and functions at "
        "the top of a module"
    )
    with explain(f"pickle cannot copy {what}: it", fix):
        copied = pickle.loads(pickle.dumps(value))
    assert copied == value, f"{what} do not equal their copies after pickling: define __eq__"


@contextmanager
def global_randomness(seed: int) -> Iterator[None]:
    """Seed the random states of this process, and restore them afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _fingerprint(made: object) -> object:
    return getattr(made, "fingerprint", None)
