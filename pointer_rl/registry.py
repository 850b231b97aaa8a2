"""The plugin manager: the only reader of entry points.

A plugin is a module named by an entry point of the group `pointer_rl`. Its hook implementations
call `register`; what they register is kept by kind and name, with the distribution it came from.
A plugin that cannot be loaded is kept as a failure: it matters only to who asks for what it has.
"""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pluggy

from pointer_rl import hookspecs
from pointer_rl.errors import InputError, MissingExtraError, PluginError, did_you_mean
from pointer_rl.options import build_options

if TYPE_CHECKING:
    import click

    from pointer_rl.types import Register

__all__ = ["KINDS", "Configured", "Entry", "Loaded", "Registry", "registry"]

GROUP = "pointer_rl"
BUILT_IN = "pointer-rl"
"""The distribution whose plugins stay when POINTER_RL_PLUGINS says which may load."""

KINDS = {
    "backend": "pointer_rl_register_backends",
    "prompt": "pointer_rl_register_prompt_builders",
    "metric": "pointer_rl_register_metrics",
    "generator": "pointer_rl_register_generators",
    "reward": "pointer_rl_register_rewards",
    "dataset": "pointer_rl_register_datasets",
    "encoder": "pointer_rl_register_encoders",
    "selector": "pointer_rl_register_selectors",
    "executor": "pointer_rl_register_executors",
    "arm": "pointer_rl_register_arms",
}
"""What can be registered → the hook that registers it."""


@dataclass(frozen=True)
class Loaded:
    """A plugin that was found: loaded, or failed with its traceback."""

    name: str
    distribution: str
    version: str
    module: str
    error: str | None = None
    traceback: str | None = None

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class Entry:
    """One registered name."""

    kind: str
    name: str
    factory: Callable[..., Any]
    options: type | None
    summary: str
    plugin: Loaded
    aliases: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Other names → option values that they stand for."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Packages that only this needs, by the name that is imported → what pip installs."""

    def missing(self) -> MissingExtraError | None:
        """What it cannot be built without, in words. Imports nothing."""
        for package, install in self.needs.items():
            if find_spec(package) is None:
                return MissingExtraError(package, f"{self.kind} {self.name}", install)
        return None

    def requires(self, name: str) -> bool:
        """Whether it has an option of that name without a default."""
        return self.options is not None and any(
            each.name == name and each.default is dataclasses.MISSING
            for each in dataclasses.fields(self.options)
        )

    def has_option(self, name: str) -> bool:
        """Whether its options have a field of that name."""
        return self.options is not None and name in {
            each.name for each in dataclasses.fields(self.options)
        }


@dataclass(frozen=True)
class Configured:
    """A registered name with its options, checked: ready to be built."""

    entry: Entry
    options: Any
    """An instance of `entry.options`; None where it takes none."""

    def create(self) -> Any:
        """Build it. Raises MissingExtraError for a package that it needs."""
        missing = self.entry.missing()
        if missing is not None:
            raise missing
        try:
            return self.entry.factory(*([] if self.options is None else [self.options]))
        except (ImportError, RuntimeError):
            from pointer_rl.devices import check_torchvision

            check_torchvision()
            raise

    def describe(self) -> dict[str, Any]:
        """Name and options, defaults included, for `_meta`."""
        options = {} if self.options is None else dataclasses.asdict(self.options)
        return {"name": self.entry.name, "options": options}


class Registry:
    """Plugins and what they registered.

    `points` are the entry points to load; `only` (names) restricts those that are not built in,
    and `blocked` names are not loaded at all.
    """

    def __init__(
        self,
        points: Iterable[EntryPoint],
        only: frozenset[str] | None = None,
        blocked: frozenset[str] = frozenset(),
    ) -> None:
        self._manager = pluggy.PluginManager("pointer_rl")
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Loaded] = []
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        for point in sorted(points, key=_built_in_first):
            distribution = point.dist.name if point.dist else ""
            if point.name in blocked or (
                only is not None and distribution != BUILT_IN and point.name not in only
            ):
                continue
            self.plugins.append(self._load(point, distribution))

    # --- loading ---

    def _load(self, point: EntryPoint, distribution: str) -> Loaded:
        version = point.dist.version if point.dist else ""
        plugin = Loaded(point.name, distribution, version, point.module)
        module: object | None = None
        added: list[Entry] = []
        try:
            module = point.load()
            self._manager.register(module, name=f"{distribution}:{point.name}")
            self._manager.check_pending()
            for kind, hook in KINDS.items():
                implementation = getattr(module, hook, None)
                if implementation is not None:
                    implementation(register=self._register(kind, plugin, added))
        except (Exception, SystemExit) as error:  # whatever a plugin raises is its own matter
            if module is not None and self._manager.is_registered(module):
                self._manager.unregister(module)
            for entry in added:
                for name in (entry.name, *entry.aliases):
                    self._entries[entry.kind].pop(name, None)
            summary = str(error).strip().splitlines() or [""]
            return replace(
                plugin,
                error=f"{type(error).__name__}: {summary[0]}",
                traceback=traceback.format_exc(),
            )
        return plugin

    def _register(self, kind: str, plugin: Loaded, added: list[Entry]) -> Register:
        def register(
            name: str,
            factory: Callable[..., Any],
            *,
            options: type | None = None,
            summary: str,
            aliases: Mapping[str, Mapping[str, object]] | None = None,
            needs: Mapping[str, str] | None = None,
        ) -> None:
            entry = Entry(kind, name, factory, options, summary, plugin, aliases or {}, needs or {})
            for each in (name, *entry.aliases):
                other = self._entries[kind].get(each)
                if other is not None:
                    raise PluginError(
                        f"{kind} {each} is registered twice: by {other.plugin.origin} "
                        f"({other.plugin.name}) and by {plugin.origin} ({plugin.name})"
                    )
            added.append(entry)
            for each in (name, *entry.aliases):
                self._entries[kind][each] = entry

        return register

    # --- asking ---

    def entries(self, kind: str) -> list[Entry]:
        """What is registered under a kind, by name, aliases left out."""
        return [entry for name, entry in sorted(self._entries[kind].items()) if name == entry.name]

    def find(self, kind: str, name: str) -> Entry:
        """The entry of that name or alias. Raises PluginError, naming the nearest."""
        entry = self._entries[kind].get(name)
        if entry is not None:
            return entry
        failed = [plugin for plugin in self.plugins if plugin.error]
        hint = "".join(
            f"; the plugin {plugin.name} ({plugin.origin}) failed to load: {plugin.error}"
            for plugin in failed
        )
        raise PluginError(f"unknown {kind} {name!r}{did_you_mean(name, self._entries[kind])}{hint}")

    def configure(
        self, kind: str, name: str, values: Mapping[str, object] | None = None
    ) -> Configured:
        """What is registered as `name`, with these option values (strings are converted).

        The values that an alias stands for come first. Raises InputError for options that do not
        fit, PluginError for an unknown name.
        """
        entry = self.find(kind, name)
        given = {**entry.aliases.get(name, {}), **(values or {})}
        owner = f"{kind} {name}"
        if entry.options is None:
            if given:
                raise InputError(f"{owner} takes no options (given: {', '.join(given)})")
            return Configured(entry, None)
        return Configured(entry, build_options(entry.options, given, owner))

    def create(self, kind: str, name: str, values: Mapping[str, object] | None = None) -> Any:
        """`configure(…).create()`."""
        return self.configure(kind, name, values).create()

    def add_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands; one that fails is recorded, not fatal.

        It fails, too, if it adds one of a name that is taken.
        """
        for implementation in self._manager.hook.pointer_rl_register_commands.get_hookimpls():
            before = dict(cli.commands)
            try:
                implementation.function(cli=cli)
                for name, command in before.items():
                    if cli.commands.get(name) is not command:
                        raise PluginError(f"the command {name} is there already")
            except Exception as error:  # as in _load
                cli.commands.clear()
                cli.commands.update(before)
                self._fail(implementation.plugin_name, error)

    def _fail(self, manager_name: str, error: Exception) -> None:
        for index, plugin in enumerate(self.plugins):
            if f"{plugin.distribution}:{plugin.name}" == manager_name:
                self.plugins[index] = replace(
                    plugin,
                    error=f"{type(error).__name__}: {error}",
                    traceback=traceback.format_exc(),
                )


def _built_in_first(point: EntryPoint) -> tuple[bool, str, str]:
    distribution = point.dist.name if point.dist else ""
    return (distribution != BUILT_IN, distribution, point.name)


def _names(variable: str) -> frozenset[str] | None:
    value = os.environ.get(variable)
    return None if value is None else frozenset(filter(None, value.replace(",", " ").split()))


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process, loaded from the installed entry points when first asked for.

    POINTER_RL_PLUGINS: names of the plugins to load beside the built-in ones ("" for none).
    POINTER_RL_BLOCK_PLUGINS: names of plugins not to load at all.
    """
    return Registry(
        entry_points(group=GROUP),
        only=_names("POINTER_RL_PLUGINS"),
        blocked=_names("POINTER_RL_BLOCK_PLUGINS") or frozenset(),
    )
