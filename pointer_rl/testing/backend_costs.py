"""What a backend may have besides (`pointer_rl.types`): a count before it runs, and prices."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from pointer_rl.testing.findings import NotApplicable, require
from pointer_rl.types import (
    BackendError,
    Count,
    CountingBackend,
    PricedBackend,
    Request,
    Response,
    Usage,
    VQABackend,
)

__all__ = ["check_cost", "check_count"]


def check_count(backend: VQABackend, requests: Sequence[Request]) -> None:
    """Whether `count` gives what requests would cost, and runs nothing for it.

    Raises Broken, and NotApplicable where it has no `count`.
    """
    if not isinstance(backend, CountingBackend):
        raise NotApplicable("it has no method count")
    with _nothing_runs(backend):
        whole = backend.count(requests)
        each = [backend.count([request]) for request in requests]
    for count in (whole, *each):
        _check_numbers(count)
    singly = [count.prompt_tokens or 0 for count in each]
    require(
        whole.prompt_tokens is None or whole.prompt_tokens == sum(singly),
        f"it counts {whole.prompt_tokens} prompt tokens in all and {sum(singly)} one by one: "
        "count each prompt whole, without padding, whatever it shares with others",
    )


def _check_numbers(count: object) -> None:
    require(
        isinstance(count, Count),
        f"count gave a {type(count).__name__}: return pointer_rl.types.Count(…)",
    )
    assert isinstance(count, Count)
    known = [each for each in (count.prompt_tokens, count.unique_tokens) if each is not None]
    require(
        all(type(each) is int and each >= 0 for each in known),
        f"{count} are no counts: give each as an int, or None where it cannot be known",
    )
    require(
        len(known) < 2 or known[1] <= known[0],
        f"{count} has more unique_tokens than prompt_tokens: what prompts have in common counts "
        "once among the unique ones, and each time among the others",
    )


@contextmanager
def _nothing_runs(backend: VQABackend) -> Iterator[None]:
    """Raises Broken where the backend is run meanwhile, or a model of torch."""
    ran: list[str] = []
    answer = backend.run

    def run(requests: Sequence[Request]) -> Iterator[tuple[int, Response | BackendError]]:
        ran.append("run")
        return answer(requests)

    def forward(module: Any, _: Any) -> None:
        if any(True for _ in module.parameters()):  # not so: image transforms
            ran.append(type(module).__name__)

    with ExitStack() as watched:
        if torch := sys.modules.get("torch"):
            hook = torch.nn.modules.module.register_module_forward_pre_hook(forward)
            watched.callback(hook.remove)
        with suppress(AttributeError):  # it is frozen, or has slots
            backend.run = run  # type: ignore[method-assign]
            watched.callback(setattr, backend, "run", answer)
        yield
    require(not ran, f"count ran {ran[:1]}: let it look at the requests, and compute nothing")


def check_cost(backend: VQABackend) -> None:
    """Whether `cost` gives a price, or None where none is known.

    Raises Broken, and NotApplicable where it has no `cost`.
    """
    if not isinstance(backend, PricedBackend):
        raise NotApplicable("it has no method cost")
    usage = Usage(prompt_tokens=1000, generated_tokens=10, images=3)
    once, twice = backend.cost(usage), backend.cost(usage + usage)
    for cost in (once, twice):
        require(
            cost is None or (type(cost) is float and math.isfinite(cost) and cost >= 0),
            f"cost gave {cost!r}: return a float of at least 0, or None where no price is known",
        )
    require(
        (once is None) == (twice is None) and (twice or 0.0) >= (once or 0.0),
        f"it asks {once} for some usage and {twice} for twice as much",
    )
