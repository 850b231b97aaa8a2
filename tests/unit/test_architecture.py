"""The dependency rules of docs/explanation/architecture.md, checked against the source."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PUBLIC = {
    *("types", "errors", "files", "hookspecs", "options", "registry", "devices", "json_stream"),
    *("datasets", "local", "selectors", "session", "evaluate"),
}
"""Parts of the engine that plugins may import."""
LAYERS = [
    {"types", "errors", "escaping"},
    {"files", "json_stream", "options", "devices", "hookspecs", "hub"},
    {"registry"},
    {"local", "datasets"},
    {"records", "selectors", "validate"},
    {"session"},
    {"generate", "beams", "evaluate"},
    {"train"},
    {"testing", "scaffold", "report", "export"},
    {"route"},
    {"api", "runs"},
    {"cli", "__main__"},
]
"""Parts of the engine, lowest first. Each may import lower parts, its own, and parts beside it."""


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


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


def test_plugins_import_only_public_parts_of_the_engine_and_no_other_plugin():
    wrong = []
    for path in sources("plugins"):
        own = path.relative_to(ROOT / "plugins").parts[0]
        for name in imports(path):
            head, _, rest = name.partition(".")
            foreign = head.startswith("pointer_rl_") and head != own
            private = head == "pointer_rl" and rest and rest.split(".")[0] not in PUBLIC
            if foreign or (private and rest != "hookimpl"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_engine_imports_no_plugin_and_depends_downwards():
    level = {part: index for index, layer in enumerate(LAYERS) for part in layer}
    wrong = []
    for path in sources("pointer_rl"):
        part = path.relative_to(ROOT / "pointer_rl").with_suffix("").parts[0]
        if part == "__init__":
            continue
        for name in imports(path):
            head, _, rest = name.partition(".")
            target = rest.split(".")[0]
            plugin = head.startswith("pointer_rl_") and head != "pointer_rl_schemas"
            upwards = head == "pointer_rl" and rest and level.get(target, 99) > level[part]
            if plugin or (upwards and rest != "hookimpl"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []
