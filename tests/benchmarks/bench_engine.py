"""The qwen2vl engines on glyphs: engine=shared against one prompt at a time, and against a limit.

    python tests/benchmarks/bench_engine.py [QUERIES]

Asked are the trials that `generate` asks by default (two shots), in windows of its size and of four
times that. The loop takes one prompt at a time, opens its images for it alone, and computes a pass
for each distinct answer to score: engine=plain with a budget of one token.

The limit is what the model itself takes for what cannot be left out: the distinct tokens of each
window's trie and of the answers, the distinct images, and a pass for each further token that is
generated, each at the batch size at which the bare model is fastest. It opens no image, tokenises
nothing and reads no prefix. (The second limit, for comparison: its tokens come after a prefix whose
keys and values are in a cache already, as a shared prefix' are.)
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pointer_rl.generate.pipeline import WINDOW
from pointer_rl.generate.proposing import AllowedRows, propose
from pointer_rl.registry import registry
from pointer_rl.trials.workbench import Named, TrialOptions, Workbench
from pointer_rl.types import Decoding, QueryBatch, Request, Response
from pointer_rl_qwen2vl import Qwen2VLOptions, patches
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import Checkpoint, load_checkpoint
from pointer_rl_qwen2vl.continuations import AnswerTree
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.prefixes import find_prefixes

SHOTS = 2
REPEATS = 5
LOOPED = 60
"""Trials that the loop takes in a repeat."""
GOALS = {"scored": 15, "not scored": 6}
LIMIT_GOAL = 0.7
IMAGE_TOKENS, IMAGE_GRID = 4, (1, 4, 4)
"""Of a glyph."""


def trials(bench: Workbench, window: int) -> list[list[Request]]:
    """A list a window: what `generate` asks by default, the annotators' answers to be scored."""
    embeddings, pool = bench.embeddings(bench.queries)
    policy = bench.policy(None, pool.embeddings.shape[1], 0)
    names = {"beam": {}, "retrieval": {"num": 1}, "sample": {}}
    generators = {name: registry().create("generator", name, o) for name, o in names.items()}
    builder = registry().create("prompt", "short-answer")
    allowed = AllowedRows(pool.examples)
    windows = []
    for start in range(0, len(bench.queries), window):
        queries = bench.queries[start : start + window]
        rows = embeddings[start : start + window]
        batch = QueryBatch(queries, rows, allowed.mask(queries), SHOTS)
        proposed = propose(policy, batch, pool, generators, 0, "ordered")
        windows.append(
            [
                Request(
                    builder.build(query, [pool.examples[row] for row in candidate.pointer]),
                    Decoding(),
                    tuple(dict.fromkeys(map(bench.metric.normalise, query.answers))),
                )
                for query, candidates in zip(queries, proposed, strict=True)
                for candidate in candidates
            ]
        )
    return windows


def median_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """The first run warms up and does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def ask(backend: Qwen2VLBackend, windows: Sequence[Sequence[Request]]) -> list[Response]:
    found = [dict(backend.run(window)) for window in windows]
    return [each[index] for each in found for index in range(len(each))]


def loop(checkpoint: Checkpoint, requests: Sequence[Request]) -> list[Response]:
    """One prompt at a time; a backend each, so that nothing is kept from one to the next."""
    return [
        response
        for request in requests
        for _, response in Qwen2VLBackend(checkpoint, engine="plain", batch_tokens=1).run([request])
    ]


@dataclass(frozen=True)
class Needed:
    """What cannot be left out."""

    tokens: int
    images: int
    steps: int

    @classmethod
    def of(
        cls,
        encoder: PromptEncoder,
        checkpoint: Checkpoint,
        windows: Sequence[Sequence[Request]],
        responses: Sequence[Response],
    ) -> Needed:
        tokens = images = 0
        for window in windows:
            numbers: dict[str, int] = {}
            prompts = []
            token_ids = encoder.encode([request.prompt for request in window])
            answers = encoder.encode_answers([request.score for request in window])
            for request, prompt, scored in zip(window, token_ids, answers, strict=True):
                shown = iter(request.prompt.images)
                prompts.append(
                    [
                        numbers.setdefault(next(shown).key, -1 - len(numbers))
                        if token == checkpoint.image_token_id
                        else token
                        for token in prompt
                    ]
                )
                tokens += len(AnswerTree.merge(scored, checkpoint.turn_end_id).token_ids)

            def width(element: int) -> int:
                return 1 if element >= 0 else IMAGE_TOKENS

            prompts.sort()
            plan = find_prefixes(prompts, width, 1)
            tokens += sum(sum(map(width, prompts[n.row][n.start : n.end])) for n in plan.nodes)
            for prompt, parent in zip(prompts, plan.parents, strict=True):
                start = 0 if parent is None else plan.nodes[parent].end
                tokens += sum(map(width, prompt[start:]))
            images += len(numbers)
        steps = sum(response.usage.generated_tokens - 1 for response in responses)
        return cls(tokens, images, steps)


@dataclass(frozen=True)
class Speeds:
    """Of the bare model: so many a second."""

    tokens: float
    tokens_after_prefix: float
    images: float
    steps: float

    def seconds(self, needed: Needed, tokens: float) -> float:
        """For what is needed, at so many tokens a second."""
        return needed.tokens / tokens + needed.images / self.images + needed.steps / self.steps


@torch.inference_mode()
def bare_speeds(model: torch.nn.Module, length: int, prompt: int) -> Speeds:
    """Each at its best batch size, for so many own tokens of prompts of such a length."""
    tokens, after_prefix, images, steps = [], [], [], []
    for rows in (4, 8, 16, 32, 64):
        ids = torch.randint(0, 500, (rows, length))
        seconds = median_seconds(lambda i=ids: model(i, use_cache=False, logits_to_keep=1))
        tokens.append(rows * length / seconds)
        start = torch.randint(0, 500, (rows, prompt - length))
        cache = model(start, use_cache=True, logits_to_keep=1).past_key_values

        def follow(ids: torch.Tensor = ids, cache: object = cache) -> None:
            model(ids, past_key_values=cache, logits_to_keep=1)
            cache.crop(-ids.shape[1])

        after_prefix.append(rows * length / median_seconds(follow))
    frames, height, width = IMAGE_GRID
    for number in (16, 64, 256):
        pixels = torch.randn(number * frames * height * width, 1176)
        grids = torch.tensor([IMAGE_GRID] * number)
        images.append(
            number / median_seconds(lambda p=pixels, g=grids: model.get_image_features(p, g))
        )
    for rows in (32, 64, 128, 256):
        ids = torch.randint(0, 500, (rows, prompt))
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values

        def step(ids: torch.Tensor = ids, cache: object = cache) -> None:
            model(ids[:, :1], past_key_values=cache, logits_to_keep=1)
            cache.crop(-1)

        steps.append(rows / median_seconds(step))
    return Speeds(max(tokens), max(after_prefix), max(images), max(steps))


def main() -> None:
    """Measure, print."""
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else 4 * WINDOW
    options = TrialOptions(
        dataset=Named("glyphs", {"split": "test"}),
        backend=Named("qwen2vl"),
        prompt=Named("short-answer"),
        metric=Named("vqa"),
        limit=queries,
    )
    bench = Workbench(options)
    assert bench.dataset.companions is not None
    checkpoint = load_checkpoint(Qwen2VLOptions(model=bench.dataset.companions.model, device="cpu"))
    encoder = PromptEncoder(checkpoint)
    patches._CAPACITY_BYTES = 0  # images are opened in each window, not remembered
    backend = Qwen2VLBackend(checkpoint)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {queries} queries, {SHOTS} shots"
    )
    speeds: Speeds | None = None
    for window in (WINDOW, 4 * WINDOW):
        for name, goal in GOALS.items():
            windows = trials(bench, window)
            if name == "not scored":
                windows = [[replace(each, score=()) for each in part] for part in windows]
            number = sum(map(len, windows))
            some = windows[0][:: max(1, len(windows[0]) // LOOPED)][:LOOPED]
            slow = median_seconds(lambda s=some: loop(checkpoint, s), 3) / len(some)
            # A backend each time: images are opened, not remembered.
            fast = median_seconds(lambda w=windows: ask(backend, w)) / number
            found = ask(backend, windows)
            check(loop(checkpoint, some), found[: len(windows[0])], some, windows[0])
            needed = Needed.of(encoder, checkpoint, windows, found)
            if speeds is None:
                prompt = round(statistics.mean(each.usage.prompt_tokens for each in found))
                speeds = bare_speeds(checkpoint.model, round(needed.tokens / number), prompt)
                print(
                    f"bare model: {speeds.tokens:,.0f} tokens ({speeds.tokens_after_prefix:,.0f}"
                    f" after a prefix), {speeds.images:,.0f} images, {speeds.steps:,.0f} decoding"
                    f" steps a second; prompts of {prompt} tokens"
                )
            limit = speeds.seconds(needed, speeds.tokens) / number
            second = speeds.seconds(needed, speeds.tokens_after_prefix) / number
            print(
                f"window {window:3} queries, {name:>10}: loop {1 / slow:5.1f} trials/s, shared"
                f" {1 / fast:4.0f}: {slow / fast:4.1f}x (goal {goal}x); limit {1 / limit:4.0f}:"
                f" {limit / fast:.2f} of it (goal {LIMIT_GOAL}), after prefixes {1 / second:4.0f}:"
                f" {second / fast:.2f}; a trial {needed.tokens / number:.0f} tokens,"
                f" {needed.images / number:.2f} images, {needed.steps / number:.1f} steps"
            )


def check(
    slow: Sequence[Response],
    fast: Sequence[Response],
    some: Sequence[Request],
    window: Sequence[Request],
) -> None:
    """Both say the same."""
    places = {id(request): place for place, request in enumerate(window)}
    for request, one in zip(some, slow, strict=True):
        other = fast[places[id(request)]]
        assert one.text == other.text, (one.text, other.text)
        for mine, theirs in zip(one.score_logprobs, other.score_logprobs, strict=True):
            assert abs(mine - theirs) < 1e-3 * max(1, abs(theirs)), (mine, theirs)


if __name__ == "__main__":
    main()
