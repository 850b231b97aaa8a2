"""Selectors, the models that choose demonstrations: the interface, decoding, checkpoints, policies.

Each name is imported when it is first used, so that plugins can register a selector and its options
without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointer_rl.selectors.checkpoints import load_selector, save_selector
    from pointer_rl.selectors.decoding import beam_search, greedy, highest, log_prob, sample
    from pointer_rl.selectors.options import PointerConfig, SequentialConfig
    from pointer_rl.selectors.pointer import PointerSelector, PointerState
    from pointer_rl.selectors.policy import SelectorPolicy
    from pointer_rl.selectors.selector import (
        EncodedPool,
        Selector,
        State,
        create_selector,
        initial_state,
        take_hypotheses,
    )
    from pointer_rl.selectors.sequential import SequentialSelector

__all__ = [
    "EncodedPool",
    "PointerConfig",
    "PointerSelector",
    "PointerState",
    "Selector",
    "SelectorPolicy",
    "SequentialConfig",
    "SequentialSelector",
    "State",
    "beam_search",
    "create_selector",
    "greedy",
    "highest",
    "initial_state",
    "load_selector",
    "log_prob",
    "sample",
    "save_selector",
    "take_hypotheses",
]

_HOME = {
    "PointerSelector": "pointer",
    "PointerConfig": "options",
    "SelectorPolicy": "policy",
    "SequentialConfig": "options",
    "SequentialSelector": "sequential",
    "PointerState": "pointer",
    "beam_search": "decoding",
    "greedy": "decoding",
    "highest": "decoding",
    "load_selector": "checkpoints",
    "log_prob": "decoding",
    "sample": "decoding",
    "save_selector": "checkpoints",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'selector')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
