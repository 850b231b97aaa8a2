"""What local backends share: chats, padding, the LRU cache, halving, stop strings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.local.chat import chat_messages, render_chat
from pointer_rl.local.lru import LRUCache
from pointer_rl.local.memory import run_in_halves
from pointer_rl.local.padding import left_pad
from pointer_rl.local.stop_strings import find_stop
from pointer_rl.types import Message, Prompt

IMAGE = ImageBytes(b"-", "image")
PROMPT = Prompt(
    (
        Message("system", ("Be ", "brief.")),
        Message("user", ("a", "b", IMAGE, "c", "d")),
        Message("assistant", ()),
        Message("user", (IMAGE,)),
    )
)

# --- chats ---


def test_a_chat_keeps_texts_and_images_in_order():
    assert chat_messages(PROMPT)[1] == {
        "role": "user",
        "content": [
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b"},
            {"type": "image"},
            {"type": "text", "text": "c"},
            {"type": "text", "text": "d"},
        ],
    }
    assert chat_messages(PROMPT)[2] == {"role": "assistant", "content": []}


def test_texts_are_merged_and_a_message_without_images_is_a_string():
    part = {"type": "image_url"}
    assert [m["content"] for m in chat_messages(PROMPT, lambda image: part, merge_text=True)] == [
        "Be brief.",
        [{"type": "text", "text": "ab"}, part, {"type": "text", "text": "cd"}],
        "",
        [part],
    ]


def test_images_can_be_left_out():
    messages = chat_messages(PROMPT, lambda image: None, merge_text=True)
    assert [message["content"] for message in messages] == ["Be brief.", "abcd", "", ""]


class Tokenizer:
    def apply_chat_template(self, messages, *, chat_template, tokenize, add_generation_prompt):
        return chat_template.format(len(messages), add_generation_prompt) + 0 * messages[0]["role"]


def test_what_a_template_refuses_is_an_input_error():
    assert render_chat(Tokenizer(), chat_messages(PROMPT), "{} {}") == "4 True"
    with pytest.raises(InputError, match=r"the chat template refuses the prompt: .*NoneType"):
        render_chat(Tokenizer(), [{"role": None}], "")


# --- padding ---


def test_rows_are_padded_on_the_left():
    padded = left_pad([[1, 2, 3], [4]], 9, torch.device("cpu"))
    assert padded["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


# --- the cache ---


def test_the_least_recently_used_values_are_dropped_first():
    cache: LRUCache[str, bytes] = LRUCache(6, len)
    for key in "abc":
        cache.put({key: b"xx"})
    assert cache.get("a") == b"xx"
    cache.put({"d": b"xxxx"})
    assert [cache.get(key) for key in "abcd"] == [b"xx", None, None, b"xxxx"]
    cache.put({"a": b"xxxxxx"})  # a larger value for the same key
    assert [cache.get(key) for key in "abcd"] == [b"xxxxxx", None, None, None]
    cache.clear()
    cache.put({"a": b"xxx", "b": b"xxx"})
    assert [cache.get(key) for key in "ab"] == [b"xxx", b"xxx"]


def test_values_added_together_are_kept_whatever_their_size():
    cache: LRUCache[int, bytes] = LRUCache(3, len)
    cache.put({0: b"x"})
    cache.put({1: b"xxxx", 2: b"xxxx"})
    assert [cache.get(key) for key in range(3)] == [None, b"xxxx", b"xxxx"]
    cache.put({3: b""})
    assert [cache.get(key) for key in range(4)] == [None, None, None, b""]


# --- memory ---


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_items_that_do_not_fit_together_are_run_in_halves(sizes, memory):
    splits: list[list[int]] = []
    runs: list[list[int]] = []

    def run(items: list[int]) -> list[str]:
        if sum(items) > memory:
            raise torch.OutOfMemoryError("out of memory\nand more")
        runs.append(items)
        return [str(item) for item in items]

    results = list(
        run_in_halves(
            sizes,
            run,
            on_split=splits.append,
            on_failure=lambda item, message: f"{item}: {message}",
        )
    )
    assert results == [str(s) if s <= memory else f"{s}: out of memory" for s in sizes]
    assert [item for items in runs for item in items] == [s for s in sizes if s <= memory]
    assert all(sum(items) > memory and len(items) > 1 for items in splits)
    assert bool(splits) == (sum(sizes) > memory and len(sizes) > 1)


# --- stop strings ---


@given(st.text("ab,"), st.lists(st.text("ab,", min_size=1), max_size=3))
def test_the_first_stop_string_is_found(text, stop):
    naive = [at for at in range(len(text)) if any(text.startswith(each, at) for each in stop)]
    assert find_stop(text, stop) == (naive[0] if naive else None)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 'a' * 10**7 }}",
    ],
    ids=["loops", "allocates", "writes"],
)
def test_a_template_without_end_is_refused(template):
    class Tokenizer:
        chat_template = template

    with pytest.raises(InputError, match="loops, or makes a text without end"):
        render_chat(Tokenizer(), chat_messages(PROMPT))


def test_a_trial_that_cannot_run_refuses_no_template(tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    template = "{# tried nowhere else #}"

    class Tokenizer:
        chat_template = template

        def apply_chat_template(self, chat, **options):
            return "rendered"

    assert render_chat(Tokenizer(), chat_messages(PROMPT)) == "rendered"
