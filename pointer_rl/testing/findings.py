"""How the kit reports: a result for each check, and one error for all that was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

__all__ = [
    "Broken",
    "ContractError",
    "NotApplicable",
    "Result",
    "Subject",
    "raise_findings",
    "require",
]

Made = TypeVar("Made")


class ContractError(AssertionError):
    """A plugin breaks its contract: a sentence for each finding, which says what to mend."""

    def __init__(self, subject: str, findings: Sequence[str]) -> None:
        super().__init__("\n- ".join([f"{subject} breaks its contract:", *findings]))
        self.findings = tuple(findings)


class Broken(Exception):  # noqa: N818 (a message within the kit)
    """What a check found, as a sentence that says what is wrong and what to mend."""


class NotApplicable(Exception):  # noqa: N818
    """Why a check has nothing to look at."""


@dataclass(frozen=True)
class Result:
    """What a check came to."""

    check: str
    state: Literal["ok", "broken", "skipped"]
    message: str = ""
    """The finding, or why it was skipped."""
    cause: Exception | None = None
    """What the plugin raised, where it raised."""


@dataclass
class Subject(Generic[Made]):
    """What is examined: a factory, as it is handed to `register`, and its options."""

    kind: str
    factory: Callable[..., Made]
    options: Any = None
    """An instance of the options class; None where there is none."""
    variants: Sequence[Any] = ()
    """Options with which another result comes out."""

    @property
    def name(self) -> str:
        """What a reader knows it by."""
        function = getattr(self.factory, "func", self.factory)  # of a functools.partial
        return f"{self.kind} {getattr(function, '__name__', repr(function))}"

    def make(self, options: Any = None) -> Made:
        """A new one, with these options or its own."""
        options = self.options if options is None else options
        return self.factory() if options is None else self.factory(options)

    @cached_property
    def made(self) -> Made:
        """The one that most checks share."""
        return self.make()


def raise_findings(subject: Subject[Any], results: Iterator[Result]) -> None:
    """Raise ContractError if there is any finding."""
    __tracebackhide__ = True
    broken = [result for result in results if result.state == "broken"]
    if broken:
        cause = next((result.cause for result in broken if result.cause is not None), None)
        findings = [f"{result.check}: {result.message}" for result in broken]
        raise ContractError(subject.name, findings) from cause


def require(condition: bool, sentence: str) -> None:
    """Raise Broken with the sentence unless the condition holds."""
    if not condition:
        raise Broken(sentence)
