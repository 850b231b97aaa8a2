"""A plugin of one module as an installed distribution: for programs that get the folder's path."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, source: str) -> None:
    """Write module `{name}_plugin`, registered as the plugin `name` of the distribution `name`."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_plugin.py").write_text(source)
    info = folder / f"{name}_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pointer_rl]\n{name} = {name}_plugin\n")
