"""Which torch device and dtype a name means."""

from __future__ import annotations

import torch

from pointer_rl.errors import InputError

__all__ = ["dtype_name", "resolve_device", "resolve_dtype"]


def resolve_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises InputError for what torch cannot use."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:1, … or mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(
                f"no device {name!r}: torch sees {count} CUDA devices; try device=auto"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("no device mps: torch sees no Metal device; try device=auto")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, else bfloat16; otherwise torch's name of a dtype."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of a dtype: float32, bfloat16, …"""
    return str(dtype).removeprefix("torch.")
