"""Turn the names of devices and dtypes into torch's; check that torchvision matches torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch

from pointer_rl.errors import InputError, first_line


def resolve_device(name: str) -> torch.device:
    """Return the named device; `auto` is cuda if available, else cpu.

    Raises InputError for a name that is unknown and for a device that torch cannot use.
    """
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


def default_window(name: str) -> int:
    """Queries that a run asks together on a device: 128 on a CPU; a GPU needs more to be filled.

    Raises InputError as `resolve_device` does.
    """
    return 128 if resolve_device(name).type == "cpu" else 1024


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the named dtype; `auto` is float32 on a CPU, else bfloat16."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name: float32, bfloat16, …"""
    return str(dtype).removeprefix("torch.")


def check_torchvision() -> None:
    """Raise InputError if torchvision is installed but cannot be imported.

    Each torchvision is built for one version of torch, and pip may install one that does not match.
    transformers then fails with errors that do not name the cause.
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
