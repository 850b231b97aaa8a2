"""Tests of a prompt builder: `pointer_rl.types.PromptBuilder`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest import SkipTest

from pointer_rl.errors import InputError
from pointer_rl.testing.fakes import tiny_dataset
from pointer_rl.testing.plugin import PluginTests, check_pickles, check_type, explain
from pointer_rl.types import Example, Prompt, PromptBuilder

_SECRET = "chartreuse"
"""The query's answer: a word that occurs nowhere else."""
_SHOWN = ("crimson", "turquoise", "maroon")
"""The demonstrations' answers."""
_GENERATIONS = (
    *("", " ", "red", " Red.\n", "the answer is red, I think", "Answer: red\nQuestion: what?"),
    *('{"answer": "red"}', "rot 🟥 \x00 \ud83d", "[", "red " * 500, "blue", "two dogs"),
)


class PromptTests(PluginTests[PromptBuilder]):
    """Builds prompts from up to three demonstrations, and parses a few generations."""

    kind = "prompt"
    how_to_repeat = (
        f"{PluginTests.how_to_repeat}, or the response cache is never hit"  # its key is the prompt
    )

    def use(self, made: PromptBuilder) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for number in range(len(_SHOWN) + 1):
            what = f"build with {number} demonstrations"
            prompt = made.build(_query(), _demonstrations(number))
            check_type(prompt, Prompt, what)
            assert prompt.messages, f"{what} gave no messages: give at least one"
            check_pickles(prompt, "its prompts")
            results[what] = prompt
        for text in _GENERATIONS:
            what = f"parse({text[:40]!r})"
            fix = "return what can be read, or an empty string; models write anything"
            with explain(what, fix):
                results[what] = made.parse(text)
            check_type(results[what], str, what)
        return results

    def test_asks_the_query_last(self) -> None:
        """The query's image and question end the prompt."""
        query = _query()
        prompt = self.made.build(query, _demonstrations(2))
        assert prompt.messages[-1].role != "system", (
            "the last message is the system's: end with the user's question"
        )
        assert prompt.images and prompt.images[-1].key == query.image.key, (
            "the last image is not the query's: put the query's image after the demonstrations'"
        )
        other = self.made.build(replace(query, question="how many bars are there?"), [])
        assert other != self.made.build(query, []), (
            "another question gives the same prompt: put query.question into it"
        )

    def test_hides_the_answer_of_the_query(self) -> None:
        """Nothing of the query's answers is shown."""
        for number in (0, 2):
            text = self.made.build(_query(), _demonstrations(number)).text.casefold()
            assert _SECRET not in text, (
                "the prompt shows the query's own answer: leave query.answer and query.answers "
                "out, or every measured accuracy is false"
            )

    def test_shows_demonstrations_in_order(self) -> None:
        """Demonstrations come in the order given, each with its answer."""
        shown = _demonstrations(3)
        for order in (shown, shown[::-1]):
            prompt = self.made.build(_query(), order)
            text = prompt.text.casefold()
            places = [text.find(each.answer) for each in order]
            for demonstration, place in zip(order, places, strict=True):
                assert place >= 0, (
                    f"a demonstration's answer {demonstration.answer!r} is not in the prompt: "
                    "show Example.answer, which most annotators gave"
                )
            keys = [image.key for image in prompt.images]
            images = [keys.index(each.image.key) for each in order if each.image.key in keys]
            assert places == sorted(places) and images == sorted(images), (
                "the demonstrations are not shown in the order given: keep it, because a pointer "
                "is an ordered choice"
            )

    def test_takes_or_refuses_a_demonstration_without_answers(self) -> None:
        """A demonstration without answers is shown, or refused with InputError."""
        fix = "raise InputError that names the example, so that only its trial fails"
        unanswered = replace(_demonstrations(1)[0], answers=())
        with suppress(InputError), explain("a demonstration without answers", fix, InputError):
            self.made.build(_query(), [unanswered])

    def test_tells_plain_answers_apart(self) -> None:
        """Answers of one or two words are read as different ones."""
        answers = {self.results[f"parse({text!r})"] for text in ("red", "blue", "two dogs")}
        if answers == {""}:
            raise SkipTest("it reads no plain answer: it expects a form of its own")
        assert len(answers) == 3, (
            "parse gives one answer for 'red', 'blue' and 'two dogs': cut the answer out of the "
            "text"
        )


def _query() -> Example:
    return replace(tiny_dataset().queries[0], answers=(_SECRET,) * 10)


def _demonstrations(number: int) -> list[Example]:
    """Examples whose answer most of their annotators gave, but not the first."""
    pool = tiny_dataset().pool
    return [replace(pool[row], answers=("plaid", *(_SHOWN[row],) * 9)) for row in range(number)]
