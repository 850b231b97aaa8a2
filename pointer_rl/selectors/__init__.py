"""The policy: a pointer selector, its decoding, its checkpoints."""

from pointer_rl.selectors.checkpoints import load_selector, save_selector
from pointer_rl.selectors.decoding import beam_search, greedy, log_prob, sample
from pointer_rl.selectors.pointer import PointerSelector, SelectorConfig, SelectorState
from pointer_rl.selectors.policy import SelectorPolicy

__all__ = [
    "PointerSelector",
    "SelectorConfig",
    "SelectorPolicy",
    "SelectorState",
    "beam_search",
    "greedy",
    "load_selector",
    "log_prob",
    "sample",
    "save_selector",
]
