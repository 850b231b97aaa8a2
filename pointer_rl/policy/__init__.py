"""The policy: a pointer selector, its decoding, its checkpoints."""

from pointer_rl.policy.checkpoints import load_selector, save_selector
from pointer_rl.policy.decoding import beam_search, greedy, log_prob, sample
from pointer_rl.policy.policy import SelectorPolicy
from pointer_rl.policy.selector import PointerSelector, SelectorConfig, SelectorState

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
