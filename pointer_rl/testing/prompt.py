"""What a prompt builder promises: `pointer_rl.types.PromptBuilder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.testing.examine import Check, examine
from pointer_rl.testing.findings import (
    Broken,
    NotApplicable,
    Result,
    Subject,
    raise_findings,
    require,
)
from pointer_rl.testing.plugin import check_pickles
from pointer_rl.testing.tiny import tiny_dataset
from pointer_rl.types import Example, Prompt, PromptBuilder

__all__ = ["check_prompt_builder", "examine_prompt_builder"]

Builders = Subject[PromptBuilder]

_SECRET = "chartreuse"
"""The query's answer: a word that stands nowhere else."""
_SHOWN = ("crimson", "turquoise", "maroon")
"""The demonstrations' answers."""
_GENERATIONS = (
    *("", " ", "red", " Red.\n", "the answer is red, I think", "Answer: red\nQuestion: what?"),
    *('{"answer": "red"}', "rot 🟥 \x00 \ud83d", "[", "red " * 500),
)


def check_prompt_builder(factory: Callable[..., PromptBuilder], options: Any = None) -> None:
    """Raise ContractError unless the builder that `factory(options)` makes keeps its contract."""
    __tracebackhide__ = True
    subject = Subject("prompt", factory, options)
    raise_findings(subject, examine(subject, _FOUNDATIONS, _FURTHER))


def examine_prompt_builder(factory: Callable[..., PromptBuilder], options: Any) -> Iterator[Result]:
    """Likewise, a result for each check."""
    return examine(Subject("prompt", factory, options), _FOUNDATIONS, _FURTHER)


def _query() -> Example:
    return replace(tiny_dataset().queries[0], answers=(_SECRET,) * 10)


def _demonstrations(number: int) -> list[Example]:
    """Their answer is what most of their annotators say, not what the first does."""
    pool = tiny_dataset().pool
    return [replace(pool[row], answers=("plaid", *(_SHOWN[row],) * 9)) for row in range(number)]


def _builds(subject: Builders) -> None:
    for number in range(len(_SHOWN) + 1):
        prompt = subject.made.build(_query(), _demonstrations(number))
        require(
            isinstance(prompt, Prompt) and bool(prompt.messages),
            f"build gave {type(prompt).__name__} with {number} demonstrations: return a Prompt "
            "with at least one message",
        )
        again = subject.make().build(_query(), _demonstrations(number))
        require(
            prompt == again,
            "built again the prompt is another: let it depend on the query, the demonstrations "
            "and the options alone, or no stored answer is ever found",
        )
        check_pickles(prompt, "its prompts")


def _asks_last(subject: Builders) -> None:
    query = _query()
    prompt = subject.made.build(query, _demonstrations(2))
    require(
        prompt.messages[-1].role != "system",
        "the last message is the system's: end with the user's question",
    )
    require(
        bool(prompt.images) and prompt.images[-1].key == query.image.key,
        "the last picture is not the query's: put the query's picture after the demonstrations'",
    )
    other = subject.made.build(replace(query, question="how many bars are there?"), [])
    require(
        other != subject.made.build(query, []),
        "another question gives the same prompt: put query.question into it",
    )


def _hides_the_answer(subject: Builders) -> None:
    for number in (0, 2):
        text = subject.made.build(_query(), _demonstrations(number)).text.casefold()
        require(
            _SECRET not in text,
            "the prompt shows the query's own answer: leave query.answer and query.answers out, "
            "or every measured accuracy is false",
        )


def _shows_demonstrations(subject: Builders) -> None:
    shown = _demonstrations(3)
    for order in (shown, shown[::-1]):
        prompt = subject.made.build(_query(), order)
        text = prompt.text.casefold()
        places = [text.find(each.answer) for each in order]
        for example, place in zip(order, places, strict=True):
            require(
                place >= 0,
                f"a demonstration's answer {example.answer!r} is not in the prompt: show "
                "Example.answer, what most annotators say",
            )
        keys = [image.key for image in prompt.images]
        pictures = [keys.index(each.image.key) for each in order if each.image.key in keys]
        require(
            places == sorted(places) and pictures == sorted(pictures),
            "the demonstrations are not shown in the order given: keep it, for a pointer is an "
            "ordered choice",
        )


def _without_answers(subject: Builders) -> None:
    try:
        subject.made.build(_query(), [replace(_demonstrations(1)[0], answers=())])
    except InputError:
        return
    except Exception as error:
        raise Broken(
            f"a demonstration without answers raised {type(error).__name__}: raise InputError "
            "that names the example, so that its trial alone fails"
        ) from error


def _parses(subject: Builders) -> None:
    for text in _GENERATIONS:
        try:
            answer = subject.made.parse(text)
        except Exception as error:
            raise Broken(
                f"parse({text[:40]!r}) raised {type(error).__name__}: return what can be read, or "
                "an empty string; models write anything"
            ) from error
        require(
            isinstance(answer, str),
            f"parse({text[:40]!r}) gave a {type(answer).__name__}: return a str",
        )
        require(
            subject.make().parse(text) == answer,
            f"parse({text[:40]!r}) gave another answer when asked again: let it depend on the "
            "text and the options alone",
        )
    answers = {subject.made.parse(text) for text in ("red", "blue", "two dogs")}
    if answers == {""}:
        raise NotApplicable("it reads no plain answer: it expects a form of its own")
    require(
        len(answers) == 3,
        "parse gives one answer for 'red', 'blue' and 'two dogs': cut the answer out of the text",
    )


_FOUNDATIONS: dict[str, Check[Builders]] = {
    "builds the same prompt each time": _builds,
}
_FURTHER: dict[str, Check[Builders]] = {
    "asks the query last": _asks_last,
    "hides the query's answer": _hides_the_answer,
    "shows demonstrations in order": _shows_demonstrations,
    "takes or refuses an unanswered demonstration": _without_answers,
    "reads an answer from any text": _parses,
}
