"""The functions of the original guide, on top of what the command line runs.

Shapes: B queries, K pool rows, S shots, d embedding size.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch

from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.selectors import Selector, SelectorPolicy, initial_state
from pointer_rl.session.judge import Judge, Trial
from pointer_rl.session.proposing import propose
from pointer_rl.types import (
    Candidate,
    Decoding,
    Example,
    Generator,
    ImageRef,
    Metric,
    Outcome,
    Pool,
    Prompt,
    PromptBuilder,
    QueryBatch,
    VQABackend,
)

if TYPE_CHECKING:
    from torch import Tensor


_NO_IMAGE = ImageBytes(b"", "no image")
"""The image of an example that has none."""


def compute_step_logits(
    selector: Selector,
    query_emb: Tensor,
    cand_emb: Tensor,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """Logits of the next row, -inf at rows already chosen: [K], or [B, K] for a batch.

    The logit of stopping, if the selector can stop, is not among them.

    query_emb: [d] or [B, d]; cand_emb: [K, d] or [B, K, d]; chosen: the rows so far, in order, the
    same for a whole batch. Differentiable; the selector stays in its mode (train or eval).
    """
    single = query_emb.ndim == 1
    query = query_emb[None] if single else query_emb
    state = initial_state(selector, query, cand_emb)
    for row in chosen or ():
        rows = torch.full((len(query), 1), int(row), device=query.device)
        state = selector.advance(state, rows)
    logits = selector.step_logits(state).squeeze(1)
    return logits[0] if single else logits


def sample_pointer_with_temperature(
    selector: Selector,
    query_emb: Tensor,
    cand_emb: Tensor,
    temperature: float = 1.0,
    shots: int = 2,
    rng: np.random.Generator | None = None,
) -> tuple[list[int], float]:
    """One draw for a query [d] from a pool [K, d]: the rows in order, and their log-probability.

    A selector that can stop may draw fewer than `shots` rows. The log-probability is under this
    temperature. Without `rng`, the draw is not reproducible.
    """
    queries, pool = _alone(query_emb, cand_emb, shots)
    policy = SelectorPolicy(selector, query_emb.device)
    drawn = policy.sample(queries, pool, 1, [rng or np.random.default_rng()], temperature)
    return list(drawn.pointers()[0][0]), float(drawn.logprobs[0, 0])


def generate_pointer_candidates_for_query(
    selector: Selector,
    query_emb: Tensor,
    cand_emb: Tensor,
    *,
    num_beams: int = 5,
    temps: Sequence[float] = (1.0, 1.3),
    num_samples_per_temp: int = 2,
    num_random: int = 1,
    num_retrieval: int = 0,
    shots: int = 2,
    seed: int = 0,
) -> list[Candidate]:
    """Candidates for one query [d] from a pool [K, d], without repeats.

    Beams, retrieved, sampled and random pointers; of two equal ones the first is kept. For a query
    of a dataset, with its masks, use `pointer-rl generate`.
    """
    asked: dict[str, tuple[int, dict[str, object]]] = {
        "beam": (num_beams, {"width": num_beams}),
        "retrieval": (num_retrieval, {"num": num_retrieval}),
        "sample": (
            num_samples_per_temp if temps else 0,
            {"temperatures": tuple(temps), "num_samples": num_samples_per_temp},
        ),
        "random": (num_random, {"num": num_random}),
    }
    generators: dict[str, Generator] = {
        name: registry().create("generator", name, options)
        for name, (count, options) in asked.items()
        if count
    }
    queries, pool = _alone(query_emb, cand_emb, shots)
    policy = SelectorPolicy(selector, query_emb.device)
    return propose(policy, queries, pool, generators, seed, "ordered")[0]


def _alone(query_emb: Tensor, cand_emb: Tensor, shots: int) -> tuple[QueryBatch, Pool]:
    if query_emb.ndim != 1 or cand_emb.ndim != 2:
        raise InputError(
            f"one query is [d] and its pool [K, d]; these are {list(query_emb.shape)} and "
            f"{list(cand_emb.shape)}"
        )
    query = Example(id="query", row=0, image=_NO_IMAGE, question="", answers=())
    allowed = torch.ones(1, len(cand_emb), dtype=torch.bool)
    return QueryBatch([query], query_emb[None], allowed, shots), Pool([], cand_emb)


def load_vqa_model(
    model_name: str, device: str | torch.device = "auto", **options: object
) -> VQABackend:
    """The backend registered as `model_name` (an alias such as qwen2.5_vl_3B will do), on a device.

    `options` are the backend's own; `pointer-rl plugins show NAME` lists them.
    """
    if registry().find("backend", model_name).has_option("device"):
        options = {"device": str(device), **options}
    backend: VQABackend = registry().create("backend", model_name, options)
    return backend


def build_vqa_prompt(
    image: PIL.Image.Image | ImageRef | str | Path | None,
    question: str,
    *demonstrations: Example | Mapping[str, Any],
    ex1: Example | Mapping[str, Any] | None = None,
    ex2: Example | Mapping[str, Any] | None = None,
) -> Prompt:
    """The `short-answer` prompt of a query after any number of demonstrations.

    A demonstration is an Example, or a mapping with question, answer and image; without an image
    it is shown as text alone. `ex1` and `ex2` are the guide's names for two demonstrations. The
    guide's string is the text of the last message:
    `Prompt(build_vqa_prompt(…).messages[-1:]).text`.
    """
    given = [*demonstrations, *(each for each in (ex1, ex2) if each is not None)]
    query = Example(id="query", row=0, image=_as_image(image), question=question, answers=())
    builder = _TextWithoutImage(registry().create("prompt", "short-answer"))
    return builder.build(query, [_as_example(each, "demonstration") for each in given])


@dataclass(frozen=True)
class _TextWithoutImage:
    """A prompt builder that shows examples without an image as text alone."""

    builder: PromptBuilder

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        messages = self.builder.build(query, demonstrations).messages
        return Prompt(
            tuple(
                replace(each, parts=tuple(part for part in each.parts if part is not _NO_IMAGE))
                for each in messages
            )
        )

    def parse(self, text: str) -> str:
        return self.builder.parse(text)


def _as_example(given: Example | Mapping[str, Any], what: str) -> Example:
    """An example that a mapping describes; `what` it is, for messages."""
    if isinstance(given, Example):
        return given
    if not isinstance(given, Mapping):
        raise InputError(f"a {what} is an Example or a mapping, not {given!r}")
    unknown = sorted(given.keys() - {"image", "question", "answer", "answers"})
    if unknown:  # a misspelt image would otherwise be a question without one
        raise InputError(f"a {what} has no {unknown[0]!r}: give question, answers and image")
    answers = given.get("answers", [given["answer"]] if "answer" in given else None)
    missing = "question" if "question" not in given else "answer" if answers is None else None
    if missing is not None:
        raise InputError(
            f"a {what} has no {missing!r}: give question, answer (or a list, answers) and image"
        )
    if not isinstance(answers, (list, tuple)) or not all(isinstance(e, str) for e in answers):
        raise InputError(
            f"a {what}: answers is a list, one string for each annotator; this is {answers!r}"
        )
    return Example(
        id=what,
        row=0,
        image=_as_image(given.get("image")),
        question=given["question"],
        answers=tuple(answers),
    )


def _as_image(image: PIL.Image.Image | ImageRef | str | Path | None) -> ImageRef:
    if image is None:
        return _NO_IMAGE
    if isinstance(image, (str, Path)):
        return ImageFile(Path(image))
    if not isinstance(image, PIL.Image.Image):
        return image
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return ImageBytes(buffer.getvalue(), "an image in memory")


def compute_vqa_accuracy(
    pred_answer: str, ground_truth_answers: Sequence[str]
) -> tuple[int, float]:
    """(correct, accuracy) by the official VQA evaluation; correct is 1 if accuracy is above 0.

    `ground_truth_answers` are the annotators', one string each, at least two. Raises InputError for
    fewer, and for a string in their place.
    """
    metric: Metric = registry().create("metric", "vqa")
    judgement = metric.judge(pred_answer, ground_truth_answers)
    return int(judgement.correct), judgement.accuracy


def evaluate_pointer_candidate(
    vqa_model: VQABackend,
    query: Example | Mapping[str, Any],
    demonstrations: Sequence[Example | Mapping[str, Any]],
    *,
    prompt: str = "short-answer",
    metric: str = "vqa",
    decoding: Decoding = Decoding(),
) -> Outcome:
    """Ask the backend the query with these demonstrations, and judge the answer.

    Each is an Example, or a mapping as in `build_vqa_prompt`; the query's has the annotators'
    `answers`. If that fails, the outcome says why in `failure`; it is never a wrong answer.
    """
    judge = Judge(
        prompt=_TextWithoutImage(registry().create("prompt", prompt)),
        backend=vqa_model,
        metric=registry().create("metric", metric),
        decoding=decoding,
    )
    shown = [_as_example(each, "demonstration") for each in demonstrations]
    ((_, outcome),) = judge.judge([Trial(_as_example(query, "query"), shown)])
    return outcome


def compute_reward_for_candidate(
    *,
    beam_score: float | None = None,
    logprob_score: float | None = None,
    vqa_correct: int | None = None,
    vqa_acc_score: float | None = None,
    vqa_gt_prob: float | None = None,
    vqa_rel_score: float | None = None,
    reward_mode: str = "hard_plus_soft",
    **weights: object,
) -> float:
    """The reward `reward_mode` of a candidate's fields, in [-5, 5]; a missing field counts as 0.

    `weights` are the reward's options: the guide's `alpha` and `beta` are those of the mode
    "legacy". Raises InputError for an option that the mode does not have.
    """
    outcome = Outcome(
        correct=None if vqa_correct is None else bool(vqa_correct),
        accuracy=vqa_acc_score,
        gt_prob=vqa_gt_prob,
        rel_score=vqa_rel_score,
    )
    candidate = Candidate(
        pointer=(), gen_method="", beam_score=beam_score, logprob_score=logprob_score
    )
    return float(registry().create("reward", reward_mode, weights)(outcome, candidate))
