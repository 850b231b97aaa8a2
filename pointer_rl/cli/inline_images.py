"""Images in the terminal, by kitty's graphics protocol or iTerm2's.

https://sw.kovidgoyal.net/kitty/graphics-protocol/ and https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pointer_rl.cli.output import echo_escapes, echo_wrapped
from pointer_rl.errors import InputError

if TYPE_CHECKING:
    from pointer_rl.cli.trials import ShowImage
    from pointer_rl.types import ImageRef

LINES = 8
"""Height of an image in the terminal."""
_PIXELS = 400
"""Longest side of what is sent."""
_CHUNK = 4096
"""Longest piece of data that kitty takes at once."""
Protocol = Callable[[bytes], str]


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """The protocol of the terminal that the environment variables name; None: of no known one."""
    program, terminal = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if "TMUX" in environment or terminal.startswith("screen"):
        return None  # it would swallow the codes
    if program in ("iTerm.app", "WezTerm"):
        return iterm_codes
    if "KITTY_WINDOW_ID" in environment or "kitty" in terminal or program == "ghostty":
        return kitty_codes
    return None


def kitty_codes(png: bytes) -> str:
    """Transmit and display a PNG, in pieces; the terminal does not reply (q=2)."""
    data = base64.b64encode(png).decode()
    pieces = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    codes = []
    for index, piece in enumerate(pieces):
        more = int(index + 1 < len(pieces))
        keys = f"f=100,a=T,r={LINES},q=2,m={more}" if index == 0 else f"m={more}"
        codes.append(f"\x1b_G{keys};{piece}\x1b\\")
    return "".join(codes)


def iterm_codes(png: bytes) -> str:
    """Display an image file."""
    data = base64.b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};height={LINES}:{data}\a"


def image_printer(protocol: Protocol) -> ShowImage:
    """Shows images by this protocol. One that cannot be read is a line that says why."""
    return partial(_show, protocol)


def _show(protocol: Protocol, image: ImageRef, indent: int) -> None:
    try:
        opened = image.open()
    except InputError as error:
        echo_wrapped(error, indent=indent, hanging=indent, fg="red")
        return
    opened.thumbnail((_PIXELS, _PIXELS))
    target = io.BytesIO()
    opened.save(target, "png")
    echo_escapes(" " * indent + protocol(target.getvalue()))
