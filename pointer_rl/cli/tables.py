"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from pointer_rl.escaping import printable


def counted(number: int, one: str, many: str = "") -> str:
    """`1 query`, `1,200 queries`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_bytes(count: float) -> str:
    """`582 kB`, `1.07 MB`, `1,234.5 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def format_table(rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """Align rows in columns; the first row is the header.

    The columns in `numeric` (counted from 0) are aligned on the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
