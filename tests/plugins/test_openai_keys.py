"""The API key is found in a reply, whatever form the server gives it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl_openai.keys import holds_key

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
KEYS = st.builds(
    "{}-{}{}".format,
    st.sampled_from(["sk", "sk-proj", "token"]),
    st.text(LETTERS + "-_.+/=%&\\", max_size=30),
    st.text(LETTERS, min_size=8, max_size=20),
)


def in_base64(key: str, draw: st.DrawFn) -> str:
    data = draw(st.binary(max_size=4)) + key.encode() + draw(st.binary(max_size=4))
    digits = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]))(data).decode()
    at = draw(st.integers(0, len(digits)))
    return f"{digits[:at]}\n{digits[at:]}".rstrip(draw(st.sampled_from(["", "="])))


def in_other_case(key: str, draw: st.DrawFn) -> str:
    return "".join(draw(st.sampled_from([each.upper(), each.lower()])) for each in key)


def with_gaps(key: str, draw: st.DrawFn) -> str:
    gaps = st.sampled_from(["", "", " ", "\n", "\r\n", "\t", "-", "\0", "\u200b", "\x1b", "'", "*"])
    return "".join(each + draw(gaps) for each in key)


def escaped(write: Callable[[str], str]) -> Callable[[str, st.DrawFn], str]:
    def escape(key: str, draw: st.DrawFn) -> str:
        return "".join(write(each) if draw(st.booleans()) else quote_only(each) for each in key)

    def quote_only(each: str) -> str:
        """A letter may stay as it is, but not what the escape itself is made of."""
        return each if each in LETTERS else write(each)

    return escape


FORMS = {
    "plain": lambda key, draw: key,
    "base64": in_base64,
    "hex": lambda key, draw: key.encode().hex(draw(st.sampled_from(" :"))),
    "case": in_other_case,
    "gaps": with_gaps,
    "full width": lambda key, draw: key.translate({each: each + 0xFEE0 for each in range(33, 127)}),
    "URL": escaped(lambda each: f"%{ord(each):02x}"),
    "JSON": escaped(lambda each: f"\\u{ord(each):04x}"),
    "Python": escaped(lambda each: f"\\x{ord(each):02X}"),
    "HTML": escaped(lambda each: f"&#{ord(each)};"),
    "URL in HTML": lambda key, draw: html.escape(quote(key)),
    "JSON in JSON": lambda key, draw: json.dumps(json.dumps(with_gaps(key, draw))),
    "JSON in URLs": lambda key, draw: quote(quote(json.dumps(with_gaps(key, draw)))),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40)
@given(data=st.data(), key=KEYS)
def test_it_is_found_in_every_form(form, data, key):
    around = st.text(st.characters(exclude_characters="%\\&"), max_size=10)
    text = data.draw(around) + FORMS[form](key, data.draw) + data.draw(around)
    for reply in (text, [1, {"a": [text]}], {text: None}):
        assert holds_key(reply, key)
    assert holds_key(json.loads(json.dumps({"content": text})), key)


@given(KEYS, st.text(max_size=60))
def test_other_text_does_not_hold_it(key, text):
    letters = "".join(each for each in key if each.isalnum())
    assert not holds_key({"content": text, "logprobs": [1, None, 2.5]}, key + letters * 2)


@given(KEYS)
def test_parts_of_it_in_several_texts_are_not_it(key):
    assert not holds_key([key[:-4], key[-4:]], key)


@pytest.mark.parametrize("key", [None, "EMPTY", "none", "abc-123"])
def test_a_placeholder_is_not_looked_for(key):
    assert not holds_key("an empty bottle, none; abc-123", key)
