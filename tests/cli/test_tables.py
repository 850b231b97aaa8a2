"""Tables: aligned, and within the width of a terminal without broken words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.cli.tables import format_table

WORDS = st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=8).map(" ".join)


def test_a_table_that_fits_is_one_line_a_row():
    rows = [("name", "n"), ("a b", "1"), ("c", "12")]
    assert format_table(rows, numeric=frozenset({1}), width=80).splitlines() == [
        "name   n",
        "----  --",
        "a b    1",
        "c     12",
    ]


def test_text_is_wrapped_at_spaces():
    rows = [("name", "text"), ("a", "one two three four")]
    assert format_table(rows, width=16).splitlines() == [
        "name  text",
        "----  ----------",
        "a     one two",
        "      three four",
    ]


def test_a_table_with_too_many_columns_becomes_several_with_the_same_keys():
    rows = [("arm", "accuracy", "calls", "interval"), ("rl", "50.0", "10", "1.0 to 2.0")]
    assert format_table(rows, numeric=frozenset({1, 2, 3}), width=20).splitlines() == [
        "arm  accuracy  calls",
        "---  --------  -----",
        "rl       50.0     10",
        "",
        "arm    interval",
        "---  ----------",
        "rl   1.0 to 2.0",
    ]


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=2, max_size=5), st.integers(22, 90))
def test_no_word_is_broken_or_lost_and_no_line_is_wider(rows, width):
    text = format_table(rows, width=width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for row in rows:
        for cell in row:
            assert all(word in words for word in cell.split(" "))
