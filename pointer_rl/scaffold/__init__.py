"""Writes a package that holds a plugin, from templates, for a third party to start from.

`templates/KIND.template` and `templates/package.template` hold several files each: a line
`=== PATH` begins a file. `$placeholders` are filled in, in paths too.
"""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from pointer_rl.errors import InputError
from pointer_rl.files import new_folder
from pointer_rl.registry import KINDS, registry

__all__ = ["write_package"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FILE = re.compile(r"^=== (.+)\n", re.MULTILINE)

_GENERATE = "pointer-rl generate --$kind $name --output-path rl.json --limit 3"
_USAGE = {
    "reward": "pointer-rl train --reward-mode $name …",
    "dataset": "pointer-rl generate --dataset $name --dataset-opt path=FILE …",
    "encoder": (
        "pointer-rl embed --dataset glyphs --encoder $name --split queries "
        "--output-path query_emb.safetensors"
    ),
    "selector": "pointer-rl train --selector $name …",
    "arm": "pointer-rl evaluate --arm $name …",
}
"""Kind → how the README shows it in use, if not by `generate`."""
_NEEDS = {"dataset": " --opt path=FILE"}
"""Kind → the options that its example needs."""


def write_package(name: str, kind: str, folder: Path) -> None:
    """Write a package whose plugin registers `name` as this kind: module, tests, pyproject, README.

    The folder appears when it is whole. Raises InputError for an unknown kind, a name that is
    malformed or taken, a folder that is not empty, and one that cannot be written.
    """
    _check_name(name, kind)
    names = {
        "name": name,
        "kind": kind,
        "module": _module(name),
        "test": f"test_{name.replace('-', '_')}",
        "distribution": f"pointer-rl-{name}",
        "class_name": "".join(map(str.capitalize, name.split("-"))),
        "pointer_rl": version("pointer-rl"),
        "usage": Template(_USAGE.get(kind, _GENERATE)).substitute(name=name, kind=kind),
        "check_options": _NEEDS.get(kind, ""),
    }
    with new_folder(folder) as made:
        (made / "tests").mkdir()
        for template in ("package", kind):
            source = files(__name__).joinpath("templates", f"{template}.template")
            filled = Template(source.read_text(encoding="utf-8")).substitute(names)
            _, *parts = _FILE.split(filled)
            for path, content in zip(parts[::2], parts[1::2], strict=True):
                (made / path).write_text(content, encoding="utf-8")


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
            raise InputError(f"the {kind} {name} already exists, from {entry.plugin.origin}")
    if importlib.util.find_spec(_module(name)) is not None:
        raise InputError(f"the module {_module(name)} is installed already: choose another name")
