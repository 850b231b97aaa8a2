"""Find plugins, load them, and keep what they register.

A plugin is a module. Installed plugins are named by entry points of the group `pointer_rl`; a
single file can be a plugin too (`--plugin FILE`). A plugin implements hooks (`hookspecs`), in which
it calls `register`. A plugin that fails to load is kept with its error, so that it only affects
commands that use it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from pointer_rl import hookspecs
from pointer_rl.errors import InputError, MissingExtraError, PluginError, did_you_mean
from pointer_rl.options import build_options

if TYPE_CHECKING:
    import click

log = logging.getLogger(__name__)

GROUP = "pointer_rl"
BUILT_IN = "pointer-rl"
"""The distribution of the built-in plugins, which POINTER_RL_PLUGINS does not restrict."""
HOOK_PREFIX = "pointer_rl_register_"
_PATIENCE = 5.0
"""Seconds until a plugin that is still being loaded is named."""

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
"""Each kind of thing that can be registered, and the hook that registers it."""


@dataclass
class PluginRecord:
    """A plugin and where it came from; if it failed to load, also its error and traceback."""

    name: str
    distribution: str
    """The installed distribution, or the path of a plugin file."""
    version: str
    module: str
    error: str | None = None
    traceback: str | None = None

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def code(self) -> str | None:
        """SHA-256 of the files of its module or package; None for a built-in plugin.

        A built-in one changes with the version of pointer-rl.
        """
        file = getattr(sys.modules.get(self.module), "__file__", None)
        return None if self.distribution == BUILT_IN or file is None else _hash_code(Path(file))

    def fail(self, error: BaseException) -> None:
        """Record the exception that is being handled."""
        self.error = _one_line(error)
        self.traceback = traceback.format_exc()


@dataclass(frozen=True)
class Entry:
    """What one call of `register` registered."""

    kind: str
    name: str
    factory: Callable[..., Any] | str
    options_source: type | str | None
    """As registered; see `options`."""
    summary: str
    plugin: PluginRecord
    aliases: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Other names, each with the option values that it stands for."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Packages that only this entry needs: the name to import, and what to install with pip."""

    @cached_property
    def options(self) -> type | None:
        """The options class. Raises PluginError if the plugin names one that cannot be imported."""
        if not isinstance(self.options_source, str):
            return self.options_source
        try:
            with redirect_stdout(sys.stderr):
                found: type = resolve_name(self.options_source)
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            raise PluginError(
                f"{self.kind} {self.name}: its options {self.options_source!r} cannot be imported "
                f"({_one_line(error)})"
            ) from error
        if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
            raise PluginError(
                f"{self.kind} {self.name}: its options {self.options_source!r} are no dataclass"
            )
        return found

    def missing(self) -> MissingExtraError | None:
        """The error for the first needed package that is not installed. Imports nothing."""
        for package, install in self.needs.items():
            if find_spec(package) is None:
                return MissingExtraError(package, f"{self.kind} {self.name}", install)
        return None

    def requires(self, name: str) -> bool:
        """Whether there is an option of that name without a default."""
        return any(
            each.name == name and each.default is dataclasses.MISSING for each in self._fields()
        )

    def has_option(self, name: str) -> bool:
        """Whether there is an option of that name."""
        return any(each.name == name for each in self._fields())

    def _fields(self) -> tuple[dataclasses.Field[Any], ...]:
        return () if self.options is None else dataclasses.fields(self.options)


@dataclass(frozen=True)
class ConfiguredEntry:
    """An entry with validated options."""

    entry: Entry
    options: Any
    """An instance of `entry.options`, or None if the entry takes no options."""

    def create(self) -> Any:
        """Call the factory. Raises MissingExtraError if a needed package is not installed."""
        missing = self.entry.missing()
        if missing is not None:
            raise missing
        try:
            factory = self.entry.factory
            with redirect_stdout(sys.stderr):
                if isinstance(factory, str):
                    factory = resolve_name(factory)
                return factory(*([] if self.options is None else [self.options]))
        except (ImportError, RuntimeError):
            # transformers hides the cause when torchvision does not match torch.
            from pointer_rl.devices import check_torchvision

            check_torchvision()
            raise

    def describe(self) -> dict[str, Any]:
        """Name and options including defaults, for `_meta`."""
        options = {} if self.options is None else dataclasses.asdict(self.options)
        return {"name": self.entry.name, "options": options}


class Registry:
    """Plugins and what they registered.

    `points` are the entry points to load. `only` restricts those that are not built in to these
    names; plugins named in `blocked` are not loaded.
    """

    def __init__(
        self,
        points: Iterable[EntryPoint],
        only: frozenset[str] | None = None,
        blocked: frozenset[str] = frozenset(),
    ) -> None:
        self._manager = pluggy.PluginManager("pointer_rl")
        self._manager.add_hookspecs(hookspecs)
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self._modules: list[tuple[PluginRecord, object]] = []
        self.plugins: list[PluginRecord] = []
        self.files: list[Path] = []
        """Plugin files that were loaded. Another process loads them with `load_file`."""
        points = list(points)
        for name in sorted((only or frozenset()) - {point.name for point in points}):
            log.warning("POINTER_RL_PLUGINS: no plugin %s is installed", name)
        for point in sorted(points, key=_built_in_first):
            distribution = point.dist.name if point.dist else ""
            if point.name in blocked or (
                only is not None and distribution != BUILT_IN and point.name not in only
            ):
                continue
            version = point.dist.version if point.dist else ""
            plugin = PluginRecord(point.name, distribution, version, point.module)
            try:
                with _loading(plugin):
                    self._load(plugin, point.load)
            except (Exception, SystemExit) as error:  # a plugin may raise anything
                plugin.fail(error)
            self.plugins.append(plugin)

    # --- loading ---

    def load_file(self, path: Path) -> None:
        """Load a .py file as a plugin, as if it were installed. Does nothing if it is loaded.

        Raises PluginError if it fails, with the line of the file that failed.
        """
        path = path.absolute()
        if path in self.files:
            return
        if not path.is_file():
            raise PluginError(f"--plugin {path}: no such file")
        if path.suffix != ".py":
            raise PluginError(f"--plugin {path}: not a .py file")
        plugin = PluginRecord(path.stem, str(path), "", f"pointer_rl_plugin_file_{path.stem}")
        for other in self.files:
            if other.stem == path.stem:
                raise PluginError(f"--plugin {path}: {other} has the same name; rename one")
        try:
            with _loading(plugin):
                self._load(plugin, partial(_import_file, plugin.module, path))
        except (Exception, SystemExit) as error:
            sys.modules.pop(plugin.module, None)
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(path)]
            line = f", line {lines[-1]}" if lines else ""
            raise PluginError(
                f"--plugin {path}{line}: cannot be loaded ({_one_line(error)})"
            ) from error
        self.plugins.append(plugin)
        self.files.append(path)

    def _load(self, plugin: PluginRecord, load: Callable[[], object]) -> None:
        """Register all that a plugin registers; nothing if anything raises."""
        module = load()
        self._check_markers(module)
        if self._manager.is_registered(module):
            raise PluginError(f"the module {plugin.module} is a plugin already")
        before = {kind: dict(entries) for kind, entries in self._entries.items()}
        try:
            self._manager.register(module, f"{plugin.distribution}:{plugin.name}")
            self._manager.check_pending()
            for kind, hook in KINDS.items():
                self._call(module, hook, register=partial(self._register, kind, plugin))
        except BaseException:
            if self._manager.is_registered(module):
                self._manager.unregister(module)
            self._entries = before
            raise
        self._modules.append((plugin, module))

    def _check_markers(self, module: object) -> None:
        """Raise PluginError for a function with a hook's name that pluggy would ignore."""
        for name in dir(module):
            marked = self._manager.parse_hookimpl_opts(module, name) is not None
            if name.startswith(HOOK_PREFIX) and not marked:
                raise PluginError(f"{name} is not marked with @hookimpl")

    def _call(self, module: object, hook: str, **arguments: object) -> None:
        """Call a hook of one plugin only, so that it is known which plugin failed."""
        others = [each for each in self._manager.get_plugins() if each is not module]
        self._manager.subset_hook_caller(hook, others)(**arguments)

    def _register(
        self,
        kind: str,
        plugin: PluginRecord,
        name: str,
        factory: Callable[..., Any],
        *,
        options: type | str | None = None,
        summary: str,
        aliases: Mapping[str, Mapping[str, object]] | None = None,
        needs: Mapping[str, str] | None = None,
    ) -> None:
        """`pointer_rl.types.Register`, once `kind` and `plugin` are bound."""
        entry = Entry(kind, name, factory, options, summary, plugin, aliases or {}, needs or {})
        for each in (name, *entry.aliases):
            other = self._entries[kind].get(each)
            if other is not None:
                raise PluginError(
                    f"{kind} {each} is registered twice: by {other.plugin.origin} "
                    f"({other.plugin.name}) and by {plugin.origin} ({plugin.name})"
                )
        for each in (name, *entry.aliases):
            self._entries[kind][each] = entry

    # --- lookup ---

    def entries(self, kind: str) -> list[Entry]:
        """All entries of a kind, sorted by name."""
        return [entry for name, entry in sorted(self._entries[kind].items()) if name == entry.name]

    def find(self, kind: str, name: str) -> Entry:
        """The entry with that name or alias. Raises PluginError, which suggests the nearest."""
        entry = self._entries[kind].get(name)
        if entry is not None:
            return entry
        hint = "".join(
            f"; the plugin {plugin.name} ({plugin.origin}) failed to load: {plugin.error}"
            for plugin in self.plugins
            if plugin.error
        )
        raise PluginError(f"unknown {kind} {name!r}{did_you_mean(name, self._entries[kind])}{hint}")

    def configure(
        self, kind: str, name: str, values: Mapping[str, object] | None = None
    ) -> ConfiguredEntry:
        """Find an entry and validate option values for it; strings are converted.

        `values` override those that an alias stands for. Raises InputError for options that do not
        fit and PluginError for an unknown name.
        """
        entry = self.find(kind, name)
        given = {**entry.aliases.get(name, {}), **(values or {})}
        owner = f"{kind} {name}"
        if entry.options is None:
            if given:
                raise InputError(f"{owner} takes no options (given: {', '.join(given)})")
            return ConfiguredEntry(entry, None)
        for option in given:
            if not entry.has_option(option) and (
                having := self._having(entry.plugin, kind, option)
            ):
                raise InputError(f"{owner} has no option {option!r}, which is one of {having}")
        return ConfiguredEntry(entry, build_options(entry.options, given, owner))

    def _having(self, plugin: PluginRecord, kind: str, option: str) -> str:
        """What of this kind the plugin registers with that option."""
        beside = [each for each in self.entries(kind) if each.plugin is plugin]
        return ", ".join(each.name for each in beside if each.has_option(option))

    def create(self, kind: str, name: str, values: Mapping[str, object] | None = None) -> Any:
        """`configure(…).create()`."""
        return self.configure(kind, name, values).create()

    def add_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands to `cli`.

        A plugin that fails, or adds a command whose name is taken, adds none and is recorded as
        failed.
        """
        for plugin, module in self._modules:
            before = dict(cli.commands)
            try:
                with _loading(plugin):
                    self._call(module, "pointer_rl_register_commands", cli=cli)
                for name, command in before.items():
                    if cli.commands.get(name) is not command:
                        raise PluginError(f"the command {name} already exists")
            except (Exception, SystemExit) as error:
                cli.commands.clear()
                cli.commands.update(before)
                plugin.fail(error)


@contextmanager
def _loading(plugin: PluginRecord) -> Iterator[None]:
    """Keep what the plugin prints out of our output, and name it if it takes long."""
    late = threading.Timer(
        _PATIENCE, log.warning, ("still loading the plugin %s (%s)", plugin.name, plugin.origin)
    )
    late.daemon = True
    late.start()
    log.debug("loading the plugin %s (%s)", plugin.name, plugin.origin)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        late.cancel()


def _built_in_first(point: EntryPoint) -> tuple[bool, str, str]:
    distribution = point.dist.name if point.dist else ""
    return (distribution != BUILT_IN, distribution, point.name)


def code_of(entries: Iterable[Entry]) -> dict[str, str]:
    """Name of each plugin that these come from → hash of its code, except built-in ones."""
    plugins = {each.plugin.name: each.plugin for each in entries}
    codes = ((name, plugin.code) for name, plugin in sorted(plugins.items()))
    return {name: code for name, code in codes if code is not None}


def _hash_code(file: Path) -> str:
    """SHA-256 of a module or, if it is in a package, of all files of the outermost package."""
    folder = file.parent
    inside = (folder / "__init__.py").exists()
    while (folder.parent / "__init__.py").exists():
        folder = folder.parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if inside else [file]:
        name = path.relative_to(folder)
        if path.is_file() and not any(
            part[0] == "." or part == "__pycache__" for part in name.parts
        ):
            digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _import_file(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    spec.loader.exec_module(module)
    return module


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    # pluggy names the offending argument in the last line, other libraries the fault in the first.
    text = " ".join(lines) if isinstance(error, pluggy.PluginValidationError) else lines[0]
    return f"{type(error).__name__}: {text}"


def _names(variable: str) -> frozenset[str] | None:
    value = os.environ.get(variable)
    return None if value is None else frozenset(filter(None, value.replace(",", " ").split()))


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process. The first call loads the installed plugins.

    POINTER_RL_PLUGINS names the third-party plugins to load ("" for none).
    POINTER_RL_BLOCK_PLUGINS names plugins not to load, built-in ones included.
    """
    return Registry(
        entry_points(group=GROUP),
        only=_names("POINTER_RL_PLUGINS"),
        blocked=_names("POINTER_RL_BLOCK_PLUGINS") or frozenset(),
    )
