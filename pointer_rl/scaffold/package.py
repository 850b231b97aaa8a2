"""A plugin's package from templates: the files in `templates/`, `$placeholders` filled in."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from pointer_rl.errors import InputError
from pointer_rl.registry import KINDS, registry

__all__ = ["write_package"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_USAGE = {
    "backend": "pointer-rl generate --backend $name --output-path rl.json --limit 3",
    "prompt": "pointer-rl generate --prompt $name --output-path rl.json --limit 3",
    "metric": "pointer-rl generate --metric $name --output-path rl.json --limit 3",
    "generator": "pointer-rl generate --generator $name --output-path rl.json --limit 3",
    "reward": "pointer-rl train --reward-mode $name …",
    "dataset": "pointer-rl generate --dataset $name --dataset-opt path=FILE …",
    "encoder": (
        "pointer-rl embed --dataset glyphs --encoder $name --split queries "
        "--output-path query_emb.safetensors"
    ),
}
"""Kind → how it is used on the command line, in the package's README."""
_NEEDS = {"dataset": " --opt path=FILE"}
"""Kind → what its example must be told."""


def write_package(name: str, kind: str, folder: Path) -> None:
    """Write a package whose plugin registers `name` as this kind: module, tests, pyproject, README.

    Raises InputError for a kind that there is not, a name that cannot be used or is taken, and a
    folder that exists.
    """
    _check_name(name, kind)
    try:
        folder.mkdir(parents=True)
        (folder / "tests").mkdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot make it ({error.strerror})") from error
    module = _module(name)
    names = {
        "name": name,
        "kind": kind,
        "module": module,
        "distribution": f"pointer-rl-{name}",
        "class_name": "".join(map(str.capitalize, name.split("-"))),
        "pointer_rl": version("pointer-rl"),
        "usage": Template(_USAGE[kind]).substitute(name=name),
        "check_options": _NEEDS.get(kind, ""),
    }
    for template, file in {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{kind}.py": f"{module}.py",
        f"test_{kind}.py": f"tests/test_{name.replace('-', '_')}.py",
    }.items():
        content = files(__package__).joinpath("templates", f"{template}.template")
        filled = Template(content.read_text(encoding="utf-8")).substitute(names)
        (folder / file).write_text(filled, encoding="utf-8")


def _module(name: str) -> str:
    return f"pointer_rl_{name.replace('-', '_')}"


def _check_name(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"no kind {kind!r}: choose one of {', '.join(KINDS)}")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the name {name!r} cannot be used: write it in lower-case letters and digits, "
            "parts joined by hyphens, as in my-model"
        )
    for entry in registry().entries(kind):
        if name in (entry.name, *entry.aliases):
            raise InputError(f"the {kind} {name} is there already, from {entry.plugin.origin}")
    if importlib.util.find_spec(_module(name)) is not None:
        raise InputError(f"the module {_module(name)} is installed already: choose another name")
