"""Foreign text in a terminal and in Markdown."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pointer_rl.escaping import markdown, printable, printable_lines

MARKS = "\u061c\u200e\u200f\u2028\u2029\u202a\u202d\u202e\u2066\u2069\ufeff"
"""Of direction, and invisible ones."""
TEXT = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("\x1b\x07\x9b\x9d\r\n\t" + MARKS)
)


@given(TEXT)
def test_printable_text_is_one_line_that_controls_nothing(text):
    shown = printable(text)
    assert not any(unicodedata.category(each) in ("Cc", "Cs") for each in shown.replace("\t", ""))
    assert not set(shown) & set(MARKS)
    assert len(shown.splitlines()) <= 1
    if text.isprintable():
        assert shown == text


@given(st.dictionaries(TEXT, TEXT, max_size=3))
def test_a_json_document_keeps_its_meaning(value):
    for indent in (None, 2):
        document = json.dumps(value, ensure_ascii=False, indent=indent)
        assert json.loads(printable_lines(document)) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\u001b[31mred\u001b]0;title\u0007"),
        ("a\nb\r", r"a\nb\r"),
        ("tab\tand ünïcode 猫", "tab\tand ünïcode 猫"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("code", [*range(9), *range(10, 32), *range(127, 160), *map(ord, MARKS)])
def test_each_mark_is_escaped(code):
    assert printable(f"a{chr(code)}b") in (f"a\\u{code:04x}b", f"a{json.dumps(chr(code))[1:-1]}b")


LINES = st.text(
    st.sampled_from("ab1 .\n\t\\`*_{}[]()<>#+-=.!|~&$:/\"'^@\u00a0é")
    | st.characters(codec="utf-8"),
    max_size=20,
)


@given(LINES)
@example("](http://evil) [x](http://evil) <http://evil> http://evil www.evil.org")
@example("<script>alert(1)</script> &lt; ![image](x)")
@example("`code` **bold** __bold__ _a_ ~~no~~ | a | $x$")
@example("1. one\n2. two\n- - -\n===\n# heading")
@example("\\")
@example("+\t1")
@example("12)")
def test_markdown_shows_the_text_as_it_is(text):
    expected = printable(text).strip()
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for block, words in (("- ", ""), ("- ", "key: "), ("# ", "A policy: ")):
        if not words + expected:
            continue
        line = block + words + markdown(text)
        [inline] = [token for token in parser.parse(line) if token.type == "inline"]
        assert {token.type for token in inline.children} <= {"text", "text_special"}
        shown = "".join(token.content for token in inline.children)
        assert shown.strip() == (words + expected).strip()
        assert not re.search(r"://|www\.", line, re.IGNORECASE)


def test_ordinary_text_stays_readable():
    for text in ("max_new_tokens", "RL, 2 shots: better by -9.0 (p = 0.1).", "rl-v2.json", "0.5"):
        assert markdown(text) == text
