"""Make foreign text (ids, answers, file names, servers' messages) safe to print and to publish.

Text from a file or a server may contain escape codes that move a terminal's cursor, rewrite lines
or set the clipboard, marks that reverse the reading direction, line ends that forge a line of
ours, or Markdown.
"""

from __future__ import annotations

import json
import re

_CONTROL = re.compile(
    # C0 without the tab, DEL and C1; marks of direction; other line ends; surrogates; the BOM.
    "[\x00-\x08\n-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_INLINE = re.compile(
    # An underscore before a letter ends no emphasis; `://` and `www.` make links of plain text.
    r"[\\`*\[\]<>&|~#$]|_(?![^\W_])|(?<=:)/(?=/)|(?<=[Ww]{3})\."
)
_LIST = re.compile(r"^(\d*)([-+.)])(?=[-\s]|$)")


def printable(text: object) -> str:
    """The text on one line, with control characters as JSON writes them: `\\u001b`.

    A line of a JSON document keeps its meaning: it has them in strings only.
    """
    return _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], str(text))


def printable_lines(text: str) -> str:
    """The same for a block of lines: line ends stay. Foreign text in it must not have any."""
    return "\n".join(map(printable, text.split("\n")))


def markdown(text: object) -> str:
    """The text for a line of Markdown that shows it as it is: no link, no HTML, no emphasis."""
    return _LIST.sub(r"\1\\\2", _INLINE.sub(r"\\\g<0>", printable(text).strip()))
