"""How much memory the shared engine takes for what it keeps during a call."""

from __future__ import annotations

import logging
import math

import torch

logger = logging.getLogger(__name__)

FEATURES_SHARE = 0.25
"""Vision features may take this share of what the keys and values of rows may take."""
_CPU_GIB = 0.25
_LEAST_GIB = 0.25
_LEAST_RESERVE = 4 * 2**30


def choose_cache_gib(device: torch.device) -> float:
    """GiB for the keys and values of the rows that are decoded together.

    Shared prefixes may take as much again, and features a quarter of it. On a GPU it is the largest
    power of two with which all three fit into the free memory, less a reserve for activations and
    logits: an eighth of the GPU's memory, but at least 4 GiB.
    """
    if device.type == "cpu":
        return _CPU_GIB
    return max(_LEAST_GIB, _largest_power(_room(device) / _needed(1)))


def check_cache_gib(cache_gib: float, device: torch.device) -> None:
    """Warn if this much does not fit."""
    room = _room(device) if device.type == "cuda" else math.inf
    if _needed(cache_gib) > room:
        logger.warning(
            "cache_gib=%g needs %.1f GiB, and %.1f GiB are free; where memory runs out, batches are"
            " halved, and the last digits of scores may then differ",
            cache_gib,
            _needed(cache_gib) / 2**30,
            max(0.0, room / 2**30),
        )


def _needed(cache_gib: float) -> float:
    """Bytes for rows, shared prefixes and features."""
    return cache_gib * (2 + FEATURES_SHARE) * 2**30


def _room(device: torch.device) -> float:
    """Bytes of the device's memory that may be kept during a call."""
    if device.type != "cuda":
        return 8 * 2**30  # What is free is unknown.
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused - max(_LEAST_RESERVE, total / 8)


def _largest_power(number: float) -> float:
    """The largest power of two that is at most `number`; 0 for a number that is not positive."""
    return 2.0 ** math.floor(math.log2(number)) if number > 0 else 0.0
