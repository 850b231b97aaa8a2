"""A plugin file with the backend `first-answer`: it gives the first demonstration's answer."""

from __future__ import annotations

from pointer_rl.hookspecs import hookimpl
from pointer_rl.testing import FakeBackend


def first_answer() -> FakeBackend:
    return FakeBackend(lambda text: text.split("Short answer:")[1].split(" Question:")[0])


@hookimpl
def pointer_rl_register_backends(register) -> None:
    register("first-answer", first_answer, summary="gives the first demonstration's answer")
