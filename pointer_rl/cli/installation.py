"""Check what is installed, and whether it can be used."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from pointer_rl.cli.tables import counted, format_bytes
from pointer_rl.errors import InputError, first_line
from pointer_rl.files import cache_folder
from pointer_rl.registry import registry
from pointer_rl.session.cache import ResponseCache, default_store
from pointer_rl.validate.schema import SchemaChecker

_DISTRIBUTION = "pointer-rl"
_OWN_EXTRAS = {"dev"}
"""Extras for people who change pointer-rl, not for those who use it."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. Something optional that is not installed is not broken."""

    subject: str
    text: str
    broken: bool = False


def check_installation() -> Iterator[Finding]:
    """Yield each finding as soon as it is known. Loads torch, but no model."""
    version = metadata.version(_DISTRIBUTION)
    yield Finding(
        "python", f"{_DISTRIBUTION} {version}, Python {platform.python_version()} on {_machine()}"
    )
    yield from _packages()
    yield from _devices()
    yield from _plugins()
    yield from _extras()
    yield from _cache()
    yield from _schemas()


def _packages() -> Iterator[Finding]:
    """The required dependencies and their versions."""
    needed = [each for each in _requirements() if each.marker is None]
    fitting = []
    for each in needed:
        found = _version(each.name)
        if found is not None and each.specifier.contains(found, prereleases=True):
            fitting.append(each)
        else:
            state = "is missing" if found is None else f"is needed, and {found} is installed"
            yield Finding("packages", f"{each} {state}: pip install '{each}'", broken=True)
    named = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers"))
    yield Finding("packages", f"{len(fitting)} of {len(needed)} needed are installed ({named})")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", f"torch cannot be loaded: {first_line(error)}", broken=True)
        return
    from pointer_rl.devices import check_torchvision

    try:
        check_torchvision()
    except InputError as error:
        yield Finding("devices", str(error), broken=True)
    memory = format_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    yield Finding("devices", f"cpu: {torch.get_num_threads()} threads, {memory}, dtype float32")
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps: used where device=mps is given")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield Finding("devices", "no CUDA device: everything runs on the CPU")
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float16 (it has no bfloat16)"
        name, memory = torch.cuda.get_device_name(index), format_bytes(total)
        yield Finding(
            "devices", f"cuda:{index}: {name}, {format_bytes(free)} of {memory} free, dtype {dtype}"
        )


def _plugins() -> Iterator[Finding]:
    loaded = [each.name for each in registry().plugins if not each.error]
    yield Finding("plugins", f"{len(loaded)} loaded ({', '.join(loaded) or 'none'})")
    for each in registry().plugins:
        if each.error:
            yield Finding(
                "plugins",
                f"{each.name} of {each.origin} cannot be loaded: {each.error} "
                f"(its traceback: pointer-rl plugins show {each.name})",
                broken=True,
            )


def _extras() -> Iterator[Finding]:
    names = metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
    for name in sorted(set(names) - _OWN_EXTRAS):
        missing = [
            each.name
            for each in _requirements()
            if each.marker is not None
            and each.marker.evaluate({"extra": name})
            and _version(each.name) is None
        ]
        if missing:
            command = f"pip install '{_DISTRIBUTION}[{name}]'"
            yield Finding("extras", f"{name} lacks {', '.join(missing)}: {command}")
        else:
            yield Finding("extras", f"{name} is installed")


def _cache() -> Iterator[Finding]:
    folder, path = cache_folder(), default_store()
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        fault = f"{folder} cannot be written: name another folder in POINTER_RL_CACHE"
        yield Finding("cache", fault, broken=True)
    if not path.exists():
        yield Finding("cache", f"{folder}: no response is stored yet")
        return
    try:
        cache = ResponseCache(path, must_exist=True)
        cached = sum(each.responses for each in cache.summaries())
    except InputError as error:
        yield Finding("cache", str(error), broken=True)
    else:
        size = format_bytes(cache.size())
        yield Finding("cache", f"{path}: {counted(cached, 'response')}, {size}")


def _schemas() -> Iterator[Finding]:
    for name in ("pointer_candidates", "beams"):
        try:
            SchemaChecker(name, "record")
        except (OSError, ValueError, KeyError) as error:
            fault = f"{name} cannot be loaded ({first_line(error)}): install {_DISTRIBUTION} again"
            yield Finding("schemas", fault, broken=True)
        else:
            yield Finding("schemas", f"{name} is loaded")


def _requirements() -> list[Requirement]:
    return [Requirement(each) for each in metadata.requires(_DISTRIBUTION) or ()]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}"
