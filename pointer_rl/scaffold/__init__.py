"""Writes a package that holds a plugin, for a third party to start from."""

from __future__ import annotations

from pointer_rl.scaffold.package import write_package

__all__ = ["write_package"]
