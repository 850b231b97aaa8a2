"""Configuration files: TOML, whose values stand in for options of the command line.

A key at the top is an option of every command that has it. A table holds a plugin and its options,
or the options of one command. The values become click's `default_map`; a plugin's options are
checked once it is known which plugin the command uses.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pointer_rl.cli.output import echo
from pointer_rl.cli.params import HUB, BundlePath, KeyValue, NamedBundle, PluginName, long_name
from pointer_rl.errors import InputError, PointerRLError
from pointer_rl.options import (
    Assignment,
    convert_options,
    parse_assignments,
    relative_to,
    secret_routes,
)

AUTOMATIC = Path("pointer-rl.toml")
"""Read without being named, if it is in the current folder."""
PLUGIN_FILES = "plugin"
"""The key at the top that names plugin files."""
_NOT_IN_FILES = {"plugin", "config", "help", "version"}
_INPUTS = {"beam-data", "cand-emb", "image", "img-emb", "queries", "query-emb", "rl-data"}
_INPUTS |= {"sft-ckpt"}
"""The paths that a file may name that is read without being named: a folder that someone else made
must not decide what is written."""
_NEVER_AUTOMATIC = {"overwrite", "record", "accept-changed", "all", "embeddings"}
"""Flags that such a file may not set either: they delete, write or disable a check."""
_ALTERNATIVES = [("store", "no_store"), ("no_store", "store")]
"""If the first is given on the command line, the second of a file does not count."""
_OF_THEIR_FILE = {"rescore", "show", "select", "answer"}
"""Commands whose file says with what it was made. Shared tables do not replace that, and fill in
only what has another default."""
_PATH, _READ = "pointer_rl.config", "pointer_rl.configuration"


@dataclass(frozen=True)
class Configuration:
    """A configuration file, checked as far as the commands alone decide."""

    path: Path
    content: Mapping[str, Any]
    root: click.Group
    automatic: bool = False
    """Whether it was read without being named."""

    @classmethod
    def read(cls, path: Path, root: click.Group, *, automatic: bool = False) -> Configuration:
        """Read a file and load the plugin files that it names.

        Raises InputError if it cannot be read, for unknown tables and keys, for values of another
        type and, if it is automatic, for plugin files and what is to be written.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not in UTF-8, which TOML needs") from error
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"{path}: not TOML: {error}") from error
        plugins = content.pop(PLUGIN_FILES, [])
        found = cls(path, content, root, automatic)
        found._load_plugins(plugins)
        for name, value in content.items():
            found._check_top(name, value)
        return found

    def fault(self, place: str, message: object) -> InputError:
        """An error that says where in the file."""
        return InputError(f"{self.path}: {place}: {message}")

    # --- checks ---

    def _load_plugins(self, files: object) -> None:
        if not isinstance(files, list) or not all(isinstance(each, str) for each in files):
            raise self.fault(PLUGIN_FILES, "must be a list of .py files")
        if files and self.automatic:
            raise self.fault(PLUGIN_FILES, f"only a file given as --config may load code; {_GIVE}")
        if files:
            from pointer_rl.registry import registry

            for file in files:
                registry().load_file(self.path.parent / file)

    def _check_top(self, key: str, value: object) -> None:
        if key in self.root.commands:
            self._check_table(self.root.commands[key], f"[{key}]", value)
            return
        commands = list(_commands(self.root))
        plugins = {each for command in commands for each in plugin_tables(command)}
        if key in plugins:
            self._check_plugin(f"[{key}]", value)
            return
        options = [found for each in commands if (found := options_of(each).get(key)) is not None]
        for option in options:
            self._check_option(key, option, value)
        if options:
            return
        if isinstance(value, dict):
            raise self.fault(
                f"[{key}]", f"unknown table{_nearest(key, {*plugins, *self.root.commands})}"
            )
        names = {each for command in commands for each in options_of(command)}
        raise self.fault(key, f"no command has this option{_nearest(key, names)}")

    def _check_table(self, command: click.Command, place: str, table: object) -> None:
        """The options of one command."""
        if not isinstance(table, dict):
            raise self.fault(place, "must be a table")
        options, plugins = options_of(command), plugin_tables(command)
        below = command.commands if isinstance(command, click.Group) else {}
        for key, value in table.items():
            inside = f"{place[:-1]}.{key}]"
            if key in below:
                self._check_table(below[key], inside, value)
            elif key in plugins and (isinstance(value, dict) or key not in options):
                self._check_plugin(inside, value)
            elif key in options:
                self._check_option(f"{place} {key}", options[key], value)
            elif isinstance(value, dict) and (option := named_option(command)) is not None:
                try:
                    option.type.options(key)  # type: ignore[attr-defined]
                except PointerRLError as error:
                    raise self.fault(inside, error) from error
            else:
                known = {*options, *plugins, *below}
                raise self.fault(f"{place} {key}", f"no such option{_nearest(key, known)}")

    def _check_plugin(self, place: str, table: object) -> None:
        if not isinstance(table, dict):
            raise self.fault(place, 'must be a table, with plugin = "NAME"')
        if not isinstance(table.get("plugin", ""), str):
            raise self.fault(f"{place} plugin", "must be text")

    def _check_option(self, place: str, option: click.Option, value: object) -> None:
        key = long_name(option)
        if self.automatic and (
            key in _NEVER_AUTOMATIC or (isinstance(option.type, click.Path) and key not in _INPUTS)
        ):
            raise self.fault(
                place, f"only a file given as --config may say what is written; {_GIVE}"
            )
        wanted = _mismatch(option, value)
        if wanted is not None:
            raise self.fault(place, f"must be {wanted}")
        bundle = isinstance(option.type, (BundlePath, NamedBundle))
        if self.automatic and bundle and HUB in str(value):
            raise self.fault(
                place, f"only a file given as --config may say what is downloaded; {_GIVE}"
            )

    # --- values ---

    def defaults(self, command: click.Command, names: Sequence[str]) -> dict[str, Any]:
        """The values for a command, as its `default_map`. names: of it and of its parents."""
        own: Mapping[str, Any] = self.content
        for name in names:
            own = own.get(name, {})
        shared = {key: each for key, each in self.content.items() if key not in self.root.commands}
        options, plugins = options_of(command), plugin_tables(command)
        if command.name in _OF_THEIR_FILE:
            shared = {
                key: each
                for key, each in shared.items()
                if key in plugins and (by := plugins[key][0]) and isinstance(by.default, str)
            }
        values: dict[str, Any] = {}
        for key, option in options.items():
            value = own.get(key, shared.get(key))
            if value is not None and not (key in plugins and isinstance(value, dict)):
                values[str(option.name)] = self._value(option, value)
        for key, (chooses, option) in plugins.items():
            table = _merged(
                *(each for one in (shared, own) if isinstance(each := one.get(key), dict))
            )
            name = table.pop("plugin", None)
            if name is not None and chooses is not None:
                values[str(chooses.name)] = name
            if table:
                values[str(option.name)] = [
                    *values.get(str(option.name), []),
                    *_assignments(table),
                ]
        more = named_option(command)
        if more is not None:
            pairs = [
                Assignment(f"{name}.{key}", value)
                for name, table in own.items()
                if isinstance(table, dict) and name not in options and name not in plugins
                for key, value in table.items()
            ]
            values[str(more.name)] = [*values.get(str(more.name), []), *pairs]
        if isinstance(command, click.Group):
            for name, each in command.commands.items():
                values[name] = self.defaults(each, [*names, name])
        return {key: each for key, each in values.items() if each not in ({}, [])}

    def _value(self, option: click.Option, value: Any) -> Any:
        def placed(path: str) -> str:
            return path if path.startswith(HUB) else str(self.path.parent / path)

        if isinstance(option.type, KeyValue):
            return _assignments(value) if isinstance(value, dict) else value
        if isinstance(option.type, NamedBundle):
            pairs = value.items() if isinstance(value, dict) else (e.split("=", 1) for e in value)
            return [f"{name}={placed(path)}" for name, path in pairs]
        if isinstance(option.type, click.Path):
            return [placed(each) for each in value] if option.multiple else placed(value)
        return value


_GIVE = "give it on the command line, or this file as --config"


def read_configuration(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    """The callback of `--config`: take defaults from the file, or from the folder's own."""
    if context.resilient_parsing:
        return
    if context.parent is None:
        context.meta[_PATH] = path
        return
    path = path or context.meta.get(_PATH)
    automatic = path is None
    if path is None and not AUTOMATIC.is_file():
        return
    root = context.find_root().command
    assert isinstance(root, click.Group)
    found = Configuration.read(path or AUTOMATIC, root, automatic=automatic)
    context.meta[_READ] = found
    context.default_map = found.defaults(context.command, [str(context.info_name)])
    if automatic and context.default_map:
        echo(f"pointer-rl: options from {found.path} (other ones: --config FILE)", err=True)


def configuration_of(context: click.Context) -> Configuration | None:
    """The file that the command's defaults come from, if there is one."""
    found: Configuration | None = context.meta.get(_READ)
    return found


def apply_configuration(context: click.Context) -> None:
    """After parsing: join options of plugins from the file and the command line, which wins.

    Options for a plugin that the command line replaced do not count. Raises InputError for options
    that the plugin does not have, and for values of another type.
    """
    found = configuration_of(context)
    if found is None:
        return
    params, source = context.params, context.get_parameter_source
    for chosen, other in _ALTERNATIVES:
        if source(chosen) is ParameterSource.COMMANDLINE and source(other) is (
            ParameterSource.DEFAULT_MAP
        ):
            params[other] = None
    for option in options_of(context.command).values():
        name = str(option.name)
        if isinstance(option.type, PluginName) and source(name) is ParameterSource.DEFAULT_MAP:
            names = params[name] if option.multiple else [params[name]]
            try:
                for each in names:
                    option.type.find(each)
            except PointerRLError as error:
                raise found.fault(long_name(option), error) from error
        pairs: Any = context.lookup_default(name)
        if isinstance(option.type, KeyValue) and pairs:
            flag = f"--{long_name(option)}"
            given: Any = params[name] if source(name) is ParameterSource.COMMANDLINE else ()
            try:
                values = _of_plugin(context, option.type, parse_assignments(pairs, flag), found)
            except PointerRLError as error:
                raise found.fault(flag.removeprefix("--").removesuffix("-opt"), error) from error
            taken = set(parse_assignments(given, flag))
            if source("device") is ParameterSource.COMMANDLINE:
                taken.add("device")
            mine = [Assignment(key, each) for key, each in values.items() if key not in taken]
            params[name] = (*mine, *given)


def _of_plugin(
    context: click.Context, kind: KeyValue, values: Mapping[str, object], found: Configuration
) -> dict[str, object]:
    """The values for the plugin that the command uses, with their types, and paths resolved."""
    if kind.has_names:
        done: dict[str, object] = {}
        for each in dict.fromkeys(key.rpartition(".")[0] for key in values):
            own = {
                k.removeprefix(f"{each}."): v for k, v in values.items() if k.startswith(f"{each}.")
            }
            done |= {f"{each}.{k}": v for k, v in _checked(kind, each, own, found).items()}
        return done
    plugin = None
    if kind.plugin is not None:
        plugin = context.params[kind.plugin]
        parameter = next(each for each in context.command.params if each.name == kind.plugin)
        replaced = context.get_parameter_source(kind.plugin) is ParameterSource.COMMANDLINE
        expected = parameter.get_default(context)
        if replaced and isinstance(expected, str) and plugin != expected:
            return {}
        if plugin is None:
            raise InputError('give plugin = "NAME", whose options these are')
    return _checked(kind, plugin, values, found)


def _checked(
    kind: KeyValue, plugin: str | None, values: Mapping[str, object], found: Configuration
) -> dict[str, object]:
    options, owner = kind.options(plugin), f"{kind.kind} {plugin or ''}".strip()
    if options is None:
        raise InputError(f"{owner} takes no options (given: {', '.join(values)})")
    barred = secret_routes(options) & set(values) if found.automatic else ()
    for each in barred:
        raise InputError(f"{each}: only a file given as --config may say where keys go; {_GIVE}")
    return convert_options(options, relative_to(found.path.parent, options, values), owner)


def blame(context: click.Context, error: click.BadParameter) -> Exception:
    """The error; one that names the file if the value comes from it."""
    found, option = configuration_of(context), error.param
    if found is None or not isinstance(option, click.Option):
        return error
    if context.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT_MAP:
        return error
    return found.fault(f"{long_name(option)} (of {context.command.name})", error.message)


# --- what commands have -----------------------------------------------------------------------


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Long name → option, of those that a configuration file may set."""
    return {
        long_name(option): option
        for option in command.params
        if isinstance(option, click.Option) and long_name(option) not in _NOT_IN_FILES
    }


def plugin_tables(command: click.Command) -> dict[str, tuple[click.Option | None, click.Option]]:
    """Table → the option that names its plugin, if any, and the one that takes its options."""
    by_parameter = {str(each.name): each for each in options_of(command).values()}
    tables = {}
    for name, option in by_parameter.items():
        table = name.removesuffix("_opt")
        if isinstance(option.type, KeyValue) and not option.type.has_names:
            plugin = option.type.plugin
            if plugin is None or plugin.startswith(table):  # not `train_opt` of `dataset`
                tables[table] = (by_parameter.get(plugin or ""), option)
    return tables


def named_option(command: click.Command) -> click.Option | None:
    """The option of a command that takes NAME.KEY=VALUE, if it has one."""
    for option in options_of(command).values():
        if isinstance(option.type, KeyValue) and option.type.has_names:
            return option
    return None


def _commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from _commands(command)


def _mismatch(option: click.Option, value: object) -> str | None:
    """What the value must be, if it is something else."""
    if option.is_flag:
        return None if isinstance(value, bool) else "true or false"
    if isinstance(option.type, KeyValue) and isinstance(value, dict):
        return None
    if isinstance(option.type, NamedBundle):
        if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()):
            return None
        texts = isinstance(value, list) and all("=" in str(each) for each in value)
        return None if texts else 'a table of paths, or a list of "NAME=PATH"'
    wanted = "text"
    types: set[type] = {str}
    if isinstance(option.type, click.types.IntParamType):
        wanted, types = "an integer", {int}
    elif isinstance(option.type, click.types.FloatParamType):
        wanted, types = "a number", {int, float}
    elif isinstance(option.type, click.types.StringParamType):
        types = {str, int, float}
    if not option.multiple:
        return None if type(value) in types else wanted
    fits = isinstance(value, list) and all(type(each) in types for each in value)
    return None if fits else f"a list, each {wanted}"


def _merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """A later table adds to an earlier one, or replaces it if it names another plugin."""
    merged: dict[str, Any] = {}
    for each in tables:
        table = {key.replace("-", "_"): value for key, value in each.items()}
        before = merged.get("plugin")
        other = before is not None and table.get("plugin", before) != before
        merged = table if other else {**merged, **table}
    return merged


def _assignments(table: Mapping[str, object]) -> list[Assignment]:
    return [Assignment(key, value) for key, value in table.items()]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(known))})"
