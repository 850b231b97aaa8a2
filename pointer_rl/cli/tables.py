"""Numbers and tables as text."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from pointer_rl.escaping import printable

_GAP = "  "


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


def format_table(
    rows: Sequence[Sequence[str]],
    numeric: frozenset[int] = frozenset(),
    *,
    keys: int = 1,
    whole: frozenset[int] = frozenset(),
    width: int | None = None,
) -> str:
    """Align rows in columns; the first row is the header.

    numeric: the columns, counted from 0, that are aligned on the right. width: the most characters
    in a line; by default a terminal's width, and no limit elsewhere. In a wider table, text is
    wrapped at spaces, but not that in the columns of `whole`. If that is not enough, it becomes
    several tables below one another, which all have the first `keys` columns.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    narrow = [
        length
        if column in numeric | whole
        else max(len(w) for row in rows for w in row[column].split(" "))
        for column, length in enumerate(widths)
    ]
    parts: list[list[int]] = []
    for column in range(keys, len(widths)):
        last = parts[-1] if parts else list(range(keys))
        fits = _total(narrow[each] for each in (*last, column)) <= width
        if parts and fits:
            last.append(column)
        else:
            parts.append([*range(keys), column])
    return "\n\n".join(
        _aligned(
            [[row[column] for column in part] for row in rows],
            _fitted([widths[each] for each in part], [narrow[each] for each in part], width),
            [column in numeric for column in part],
        )
        for part in parts or [list(range(keys))]
    )


def _total(widths: Iterable[int]) -> int:
    each = list(widths)
    return sum(each) + len(_GAP) * (len(each) - 1)


def _fitted(widths: list[int], least: list[int], width: int) -> list[int]:
    """The widths, the widest of them reduced until they fit, if they can."""
    widths = list(widths)
    while _total(widths) > width:
        spare = [each if each > low else 0 for each, low in zip(widths, least, strict=True)]
        if not any(spare):
            break
        widths[spare.index(max(spare))] -= 1
    return widths


def _aligned(rows: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool]) -> str:
    lines: list[str] = []
    for row in rows:
        wrapped = [
            textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""]
            if len(cell) > width
            else [cell]
            for cell, width in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*wrapped, fillvalue=""):
            cells = (
                cell.rjust(width) if on_right else cell.ljust(width)
                for cell, width, on_right in zip(line, widths, right, strict=True)
            )
            lines.append(_GAP.join(cells).rstrip())
        if row is rows[0]:
            lines.append(_GAP.join("-" * width for width in widths))
    return "\n".join(lines)
