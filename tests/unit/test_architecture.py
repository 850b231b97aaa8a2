"""The rules of docs/explanation/architecture.md, held by reading the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("pointer_rl", "plugins", "schemas")
    for path in (ROOT / folder).rglob("*.py")
)
EXPORTED = {
    *("types", "costs", "errors", "devices", "examples", "hookspecs", "hub", "images", "options"),
    *("registry", "fingerprints", "generation", "local_backend", "pretrained"),
}
"""Modules of the engine that plugins may import."""
LAYERS = [
    {"types", "costs", "errors"},
    {"devices", "examples", "fingerprints", "generation", "hub", "images", "options"},
    {"local_backend", "pretrained"},
    {"hookspecs"},
    {"registry"},
    {"data", "policy"},
    {"trials"},
    {"generate", "validate"},
    {"train", "evaluate"},
    {"testing", "scaffold"},
    {"report"},
    {"api", "installation"},
    {"cli"},
]
"""Parts of the engine, lowest first: each may import what is lower, or its own."""


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            if node.module == "pointer_rl":
                found |= {f"pointer_rl.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_have_at_most_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if "plugins" in path.relative_to(ROOT).parts[0]],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_plugins_import_only_what_the_engine_exports(path):
    own = path.relative_to(ROOT / "plugins").parts[0]
    for name in imports(path):
        head, _, rest = name.partition(".")
        if head == "pointer_rl" and rest:
            assert rest.split(".")[0] in EXPORTED, name
        if head.startswith("pointer_rl_"):
            assert head == own, f"imports the plugin {head}"


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "pointer_rl"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_engine_knows_no_plugin_and_depends_downwards(path):
    part = path.relative_to(ROOT / "pointer_rl").with_suffix("").parts[0]
    level = next((i for i, layer in enumerate(LAYERS) if part in layer), None)
    assert level is not None or part == "__init__", f"{part} has no layer"
    for name in imports(path):
        head, _, rest = name.partition(".")
        assert not head.startswith("pointer_rl_") or head == "pointer_rl_schemas", name
        target = rest.split(".")[0]
        if head == "pointer_rl" and rest and part != "__init__" and target != part:
            below = set().union(*LAYERS[: level + 1])
            assert target in below, f"{part} imports {name}"


def test_types_and_errors_are_leaves():
    for name in ("types", "errors"):
        found = imports(ROOT / "pointer_rl" / f"{name}.py")
        assert not any(each.startswith("pointer_rl") for each in found)
