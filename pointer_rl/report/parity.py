"""Report a parity measurement in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from pointer_rl.evaluate.parity import Pair, Parity
from pointer_rl.types import BackendError, Response

_SHOWN = 5
"""Number of differing answers to show."""


def parity_in_words(parity: Parity) -> str:
    """Say what was asked, how much differs, and show the first answers that do."""
    return "\n".join(_lines(parity))


def _lines(parity: Parity) -> Iterator[str]:
    queries = len({pair.trial.query.id for pair in parity.pairs})
    shots = len(parity.pairs[0].trial.demonstrations)
    how = "all together, and then one at a time"
    if parity.backends is not None:
        how = "of the backends {} and {}".format(*parity.backends)
    elif parity.engine is not None:
        how += f" with engine={parity.engine}"
    yield (
        f"{len(parity.pairs)} trials of {queries} random queries, {shots} random demonstrations "
        f"each, were asked {how}."
    )
    yield _answers(parity)
    if parity.accuracies:
        yield _accuracies(parity)
    if parity.logprobs:
        yield _logprobs(parity)
    if failed := len(parity.pairs) - len(parity.answered):
        yield f"{failed} trials failed both times and are not counted: {_why(parity)}"
    for pair in parity.differing[:_SHOWN]:
        yield _format_pair(pair, _names(parity))
    if len(parity.differing) > _SHOWN:
        yield f"  … and {len(parity.differing) - _SHOWN} more"


def _answers(parity: Parity) -> str:
    number, every = len(parity.differing), len(parity.answered)
    if not number:
        return f"No answer differs, of {every}."
    return f"{number} of {every} answers differ ({number / every:.1%}), as shown below."


def _accuracies(parity: Parity) -> str:
    changed = sum(one != other for one, other in parity.accuracies)
    one, other = _names(parity)
    means = [statistics.fmean(each) for each in zip(*parity.accuracies, strict=True)]
    if not changed:
        return f"No accuracy differs, nor a reward made of it; the mean is {means[0]:.4f}."
    return (
        f"{changed} accuracies differ, and with them the rewards; the mean is {means[0]:.4f} "
        f"{one} and {means[1]:.4f} {other}."
    )


def _logprobs(parity: Parity) -> str:
    changed = [both for both in parity.logprobs if both[0] != both[1]]
    if not changed:
        return f"The log-probabilities of {len(parity.logprobs)} scored answers are the same."
    nats = max(abs(one - other) for one, other in changed)
    chance = max(abs(math.exp(one) - math.exp(other)) for one, other in changed)
    return (
        f"The log-probabilities of {len(parity.logprobs)} scored answers differ by at most "
        f"{nats:.1e} nats, their probabilities by at most {chance:.1e}."
    )


def _why(parity: Parity) -> str:
    return next(_format_result(pair.together) for pair in parity.pairs if pair.failed)


def _names(parity: Parity) -> tuple[str, str]:
    """What to call the two results of a pair."""
    return parity.backends or ("together", "alone")


def _format_pair(pair: Pair, names: tuple[str, str]) -> str:
    results = zip(names, map(_format_result, (pair.together, pair.other)), strict=True)
    return f"  query {pair.trial.query.id}: " + ", ".join(map(" ".join, results))


def _format_result(result: Response | BackendError) -> str:
    return f"failed ({result.message})" if isinstance(result, BackendError) else repr(result.text)
