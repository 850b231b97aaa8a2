"""Compare the `_meta` of two files, or of a run and a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

CHOICES = "backend_choices"
"""Key of the options that the backend chose itself, by its machine; absent if there are none."""
PLUGINS = "plugins"
"""Key of the hashes of the code of plugins that are not built in; absent if there are none."""
INPUTS = "inputs"
"""Key of what a run was made of: hashes of its examples and embeddings, and the encoder."""
EARLIER = "earlier"
"""Key of the plugins and inputs before a change that was accepted: a list, first to last."""
Change = Literal["plugins", "inputs"]
"""What may differ if the user accepts it: the key of both."""


def changeable(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `_meta` in which a change can be accepted."""
    return {key: meta[key] for key in (PLUGINS, INPUTS) if key in meta}


def earlier_of(meta: Mapping[str, Any]) -> list[Any]:
    """What was different before each change that was accepted."""
    earlier = meta.get(EARLIER)
    return earlier if isinstance(earlier, list) else []


def choices_of(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that the backend of a run chose, as its `_meta` states them."""
    choices = meta.get(CHOICES)
    return choices if isinstance(choices, dict) else {}


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, first value, second value) of each difference; None for a missing value.

    It makes no difference on which device a plugin ran, what a backend chose by its machine, nor
    whether it was given instead, nor what was different before a change that was accepted.
    """
    chosen = {f"backend.options.{name}" for each in (first, second) for name in choices_of(each)}
    for change in _differences(first, second):
        name = change[0]
        of_machine = name in chosen or name.endswith(".options.device")
        if not of_machine and name.partition(".")[0] not in (CHOICES, EARLIER):
            yield change


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], inside: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*first, *second]):
        one, other = first.get(key), second.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{inside}{key}.")
        elif json.dumps(one) != json.dumps(other):  # where 1, 1.0 and true are three values
            yield f"{inside}{key}", one, other
