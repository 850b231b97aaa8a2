"""The ray plugin: runs the windows of queries on this machine's GPUs, or on a Ray cluster.

Importing this module does not import Ray; the first run does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    from pointer_rl.types import Register

__all__ = ["pointer_rl_register_executors"]


@hookimpl
def pointer_rl_register_executors(register: Register) -> None:
    """Register the executor."""
    register(
        "ray",
        "pointer_rl_ray.executor:RayExecutor",
        options="pointer_rl_ray.options:RayOptions",
        summary="Windows on every GPU of this machine, or of a Ray cluster",
        needs={"ray": "pointer-rl[ray]"},
    )
