"""Find the API key in what a server returns, in whatever form.

A reply that holds it is not used, and nothing of it is quoted: to cut the key out of an answer
would make another answer of it.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote

_SHORTEST = 8
"""Letters and digits of a key that is looked for. A shorter one is a placeholder (EMPTY, none), or
a word that an answer may contain."""
_ROUNDS = 4
"""How often a text is decoded, for a key that was escaped more than once."""
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|[nrtbfv0])")
_OTHERS = bytes(each for each in range(128) if not chr(each).isalnum())


def holds_key(value: object, key: str | None) -> bool:
    """Whether a text in a JSON value holds the key.

    Letter case and everything between its letters and digits (spaces, line ends, hyphens) are
    ignored. The key may be escaped as in JSON, a URL or HTML, or be part of something in base64 or
    hexadecimal digits.
    """
    if key is None or len(_bare(key)) < _SHORTEST:
        return False
    forms = _forms(key)
    return any(
        form in bare
        for text in _texts(value)
        if len(text) >= _SHORTEST
        for bare in map(_bare, _decodings(text))
        for form in forms
    )


def _texts(value: object) -> Iterator[str]:
    """All strings in a JSON value, with the names of its members."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            left += (*each, *each.values())


def _bare(text: str) -> bytes:
    """Letters and digits in lower case; full-width ones are the same as plain ones."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return plain.encode("ascii", "ignore").translate(None, _OTHERS)


@lru_cache(maxsize=8)
def _forms(key: str) -> tuple[bytes, ...]:
    """What to look for: the key, and the digits that it becomes at any place in base64, and hex."""
    data = key.encode()
    encoded = (_in_base64(data, before) for before in range(3))
    return tuple(map(_bare, (key, *encoded, data.hex())))


def _in_base64(data: bytes, before: int) -> str:
    """The digits that depend on the data alone, if so many other bytes precede it."""
    digits = base64.b64encode(bytes(before) + data).decode().rstrip("=")
    # A digit has 6 bits. The last one may share its bits with what follows.
    last = len(digits) - ((before + len(data)) % 3 > 0)
    return digits[-(-8 * before // 6) : last]


def _decodings(text: str) -> Iterator[str]:
    """The text, and what its escapes stand for, decoded again and again."""
    yield text
    for _ in range(_ROUNDS):
        decoded = html.unescape(unquote(_ESCAPE.sub(_unescape, text)))
        if decoded == text:
            return
        text = decoded
        yield text


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else " "
