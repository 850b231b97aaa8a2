"""Which torch device and dtype a name means, and whether torch's companion can be used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch

from pointer_rl.errors import InputError, first_line

__all__ = ["check_torchvision", "dtype_name", "resolve_device", "resolve_dtype"]


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


def check_torchvision() -> None:
    """Raises InputError for a torchvision that cannot be imported: transformers then cannot, too.

    It is built for one torch, and pip may bring another's.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"torchvision is installed, but cannot be imported ({first_line(error)}); install the"
            f" one that is built for torch {torch.__version__}, or pip uninstall torchvision"
        ) from error
