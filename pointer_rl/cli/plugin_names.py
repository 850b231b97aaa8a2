"""Find entries by what a user writes: NAME, or KIND:NAME."""

from __future__ import annotations

from collections.abc import Iterator

from pointer_rl.errors import PluginError, did_you_mean
from pointer_rl.registry import KINDS, Entry, registry


def entries() -> Iterator[Entry]:
    """All entries, kind by kind."""
    for kind in KINDS:
        yield from registry().entries(kind)


def find_all(name: str) -> list[Entry]:
    """The entries with that name or alias, of every kind or of the one written before it."""
    kind, _, rest = name.rpartition(":")
    return [
        entry
        for entry in entries()
        if (not kind or entry.kind == kind) and rest in (entry.name, *entry.aliases)
    ]


def find_one(name: str) -> tuple[Entry, str]:
    """The entry of that name, and the name or alias. Raises PluginError for none or several."""
    rest = name.rpartition(":")[2]
    found = find_all(name)
    if len(found) == 1:
        return found[0], rest
    if found:
        choices = " or ".join(f"{entry.kind}:{rest}" for entry in found)
        raise PluginError(f"{rest} is registered for several kinds: write {choices}")
    for plugin in registry().plugins:
        if plugin.error and plugin.name == rest:
            raise PluginError(
                f"the plugin {plugin.name} of {plugin.origin} failed to load ({plugin.error}): "
                f"see `pointer-rl plugins show {plugin.name}`"
            )
    raise unknown(name)


def unknown(name: str) -> PluginError:
    """The error for a name that nothing has."""
    known = {each for entry in entries() for each in (entry.name, *entry.aliases)}
    known |= {plugin.name for plugin in registry().plugins if plugin.error}
    rest = name.rpartition(":")[2]
    return PluginError(f"nothing is registered as {name!r}{did_you_mean(rest, known)}")
