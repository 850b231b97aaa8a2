"""Prompt builders: the layout, and reading the answer back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.types import Example, Message
from pointer_rl_standard.options import ChatOptions, ShortAnswerOptions
from pointer_rl_standard.prompts import ChatPromptBuilder, ShortAnswerPromptBuilder


def example(name: str, question: str, *answers: str) -> Example:
    return Example(name, 0, ImageBytes(name.encode(), name), question, answers)


QUERY = example("q", "What is it?", "never shown")
FIRST = example("d1", "What colour?", "red", "dark red", "dark red")
SECOND = example("d2", "How many?", "2")
UNANSWERED = example("d3", "Why?")

short_answer = ShortAnswerPromptBuilder(ShortAnswerOptions())
bare = ShortAnswerPromptBuilder(ShortAnswerOptions(instructions=""))
chat = ChatPromptBuilder(ChatOptions())


def test_short_answer_text_is_the_guides_string() -> None:
    assert bare.build(QUERY, [FIRST, SECOND]).text == (
        "Question:What colour? Short answer:dark red "
        "Question:How many? Short answer:2 "
        "Question:What is it? Short answer:"
    )


def test_short_answer_is_one_user_message_with_each_image_before_its_block() -> None:
    prompt = short_answer.build(QUERY, [SECOND, FIRST])
    system, user = prompt.messages
    assert system == Message("system", (ShortAnswerOptions().instructions,))
    assert user.role == "user"
    assert user.parts == (
        SECOND.image,
        "Question:How many? Short answer:2",
        FIRST.image,
        "Question:What colour? Short answer:dark red",
        QUERY.image,
        "Question:What is it? Short answer:",
    )


def test_without_demonstrations_there_is_the_query_alone() -> None:
    assert bare.build(QUERY, []).messages == (
        Message("user", (QUERY.image, "Question:What is it? Short answer:")),
    )
    assert ChatPromptBuilder(ChatOptions(instructions="")).build(QUERY, []).messages == (
        Message("user", (QUERY.image, "What is it?")),
    )


def test_chat_takes_turns() -> None:
    prompt = chat.build(QUERY, [FIRST, SECOND])
    assert [message.role for message in prompt.messages] == [
        "system",
        *["user", "assistant"] * 2,
        "user",
    ]
    assert prompt.messages[1:4] == (
        Message("user", (FIRST.image, "What colour?")),
        Message("assistant", ("dark red",)),
        Message("user", (SECOND.image, "How many?")),
    )
    assert prompt.images == (FIRST.image, SECOND.image, QUERY.image)


@pytest.mark.parametrize("builder", [short_answer, chat])
def test_a_demonstration_without_answers_is_named(
    builder: ShortAnswerPromptBuilder | ChatPromptBuilder,
) -> None:
    with pytest.raises(InputError, match="example d3: it has no answers"):
        builder.build(QUERY, [FIRST, UNANSWERED])


@pytest.mark.parametrize("builder", [short_answer, chat])
def test_the_querys_answers_are_not_shown(
    builder: ShortAnswerPromptBuilder | ChatPromptBuilder,
) -> None:
    assert "never shown" not in builder.build(QUERY, [FIRST]).text
    assert builder.build(UNANSWERED, [FIRST]).images[-1] == UNANSWERED.image


@pytest.mark.parametrize("instructions", [ShortAnswerOptions(), ChatOptions()])
def test_default_instructions_name_no_number_of_demonstrations(
    instructions: ShortAnswerOptions | ChatOptions,
) -> None:
    words = instructions.instructions.lower().split()
    assert not {"two", "three", "four", "examples", "sets"} & set(words)


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("red", "red"),
        (" red \n", "red"),
        ("red Question:What is next? Short answer:x", "red"),
        ("red\nQuestion", "red"),
        ("red Short answer:blue", "red"),
        ("redAnswer: blue", "red"),
        ("red, blue", "red"),
        ("1,000", "1,000"),
        ("red.", "red."),
        ("question mark", "question mark"),
        ("Question", ""),
        ("", ""),
    ],
)
def test_short_answer_parse(generated: str, answer: str) -> None:
    assert short_answer.parse(generated) == answer


@pytest.mark.parametrize(
    ("generated", "answer"),
    [("red", "red"), ("\n red \nbecause", "red"), ("red, blue", "red, blue"), ("", "")],
)
def test_chat_parse(generated: str, answer: str) -> None:
    assert chat.parse(generated) == answer


@given(st.text())
def test_parsing_twice_is_parsing_once(text: str) -> None:
    for builder in (short_answer, chat):
        answer = builder.parse(text)
        assert answer in text
        assert builder.parse(answer) == answer


@given(st.lists(st.text(min_size=1), max_size=5), st.text())
def test_every_part_of_the_examples_is_there_in_order(answers: list[str], question: str) -> None:
    shown = [example(f"d{i}", f"{i}?", answer) for i, answer in enumerate(answers)]
    prompt = bare.build(example("q", question), shown)
    assert prompt.text == " ".join(
        [f"Question:{each.question} Short answer:{each.answer}" for each in shown]
        + [f"Question:{question} Short answer:"]
    )
    assert len(prompt.images) == len(answers) + 1
