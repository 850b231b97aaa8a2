"""Plain aligned tables, and numbers of things."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "format_table"]


def counted(number: int, one: str, many: str = "") -> str:
    """`1 query`, `1,200 queries`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_table(rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """Rows (the first is the header) in columns; those in `numeric` are aligned on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
