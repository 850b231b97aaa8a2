"""The types of parameters that name plugins and their options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pointer_rl.files import check_name

if TYPE_CHECKING:
    from pointer_rl.registry import Entry


class PluginName(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """The name of a registered plugin. It is looked up later, when the plugin is needed."""

    name = "name"

    def __init__(self, kind: str) -> None:
        """kind: one of `registry.KINDS`."""
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def find(self, name: str) -> Entry:
        """What is registered by that name. Raises PluginError for an unknown one."""
        from pointer_rl.registry import registry

        return registry().find(self.kind, name)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names and aliases."""
        from pointer_rl.registry import registry

        return [
            CompletionItem(name, help=entry.summary)
            for entry in registry().entries(self.kind)
            for name in (entry.name, *entry.aliases)
            if name.startswith(incomplete)
        ]


class KeyValue(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """KEY=VALUE, an option of a plugin: text, or an `Assignment` of a configuration file."""

    name = "key=value"

    def __init__(self, kind: str, plugin: str | None = None) -> None:
        """kind: one of `registry.KINDS`, or "decoding".

        plugin: the parameter that names the plugin. Without it, unless for decoding, it is
        NAME.KEY=VALUE.
        """
        self.kind = kind
        self.plugin = plugin

    @property
    def has_names(self) -> bool:
        """Whether it is NAME.KEY=VALUE."""
        return self.plugin is None and self.kind != "decoding"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "NAME.KEY=VALUE" if self.has_names else "KEY=VALUE"

    def options(self, name: object) -> type | None:
        """The options class of the plugin of that name; None if it takes no options.

        Raises PluginError for an unknown name.
        """
        from pointer_rl.registry import registry
        from pointer_rl.types import Decoding

        if self.kind == "decoding":
            return Decoding
        return registry().find(self.kind, str(name)).options

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """`KEY=`, with the beginning of its help."""
        from pointer_rl.errors import PointerRLError
        from pointer_rl.options import describe_options

        name, dot, key = incomplete.rpartition(".") if self.has_names else ("", "", incomplete)
        plugin = name if self.has_names else self.plugin and ctx.params.get(self.plugin)
        if "=" in key or (plugin is None and self.kind != "decoding"):
            return []
        try:
            options = self.options(plugin)
        except PointerRLError:
            return []
        return [
            CompletionItem(f"{name}{dot}{each.name}=", help=each.help.partition("\n")[0])
            for each in (describe_options(options) if options else ())
            if each.name.startswith(key.replace("-", "_"))
        ]


class FilePath(click.Path):
    """A path that is not empty: pathlib takes an empty one for the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail("is empty: name a file or a folder", param, ctx)
        super().convert(value, param, ctx)
        path = Path(value)
        check_name(path)
        return path


HUB = "hub:"
"""Prefix of a bundle's repository on the Hugging Face Hub."""


class BundlePath(FilePath):
    """A policy bundle, or a checkpoint; `hub:OWNER/NAME` is downloaded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value).startswith(HUB):
            return super().convert(value, param, ctx)
        from pointer_rl.selectors.bundle import pull_bundle

        return pull_bundle(str(value).removeprefix(HUB))


BUNDLE = BundlePath(path_type=Path)


class NamedBundle(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """NAME=BUNDLE."""

    name = "name=bundle"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            self.fail(f"{value}: write NAME=BUNDLE", param, ctx)
        return name, BUNDLE.convert(path, param, ctx)


def long_name(option: click.Option) -> str:
    """`max-calls` of `--max-calls`: the first of its long names."""
    return next((each[2:] for each in option.opts if each.startswith("--")), str(option.name))
