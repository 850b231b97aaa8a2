"""Reports: the page of `pointer-rl report`, and its figures one at a time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointer_rl.report.drawing import figure

__all__ = ["figure"]


def __getattr__(name: str) -> object:
    if name != "figure":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pointer_rl.report.drawing import figure  # lazy: `show` imports this package

    return figure
