"""The qwen2vl engines: engine=shared against one prompt at a time, and against a limit.

    python tests/benchmarks/bench_engine.py [QUERIES]

The trials are those that `generate` runs by default (two shots), in windows of its size, on the
glyph model; then a few on a random Qwen2.5-VL of about 100M parameters with images of 224 pixels a
side. Images are PNG files in memory (a glyph's own `open` draws it anew). Preprocessed images are
dropped before each round.

The loop runs one prompt at a time, opens its images for it alone, and takes a forward pass for each
distinct answer to score. It is engine=plain with a budget of one token.

The limit is the time of the bare `model.forward` for the work that cannot be avoided, each kind at
the batch size at which it is fastest: the distinct tokens of each window's prompts and answers,
which attend to a prefix of average length; the distinct images of each window; and a forward pass
for each further generated token, which reads the keys and values of its prompt. Opening images,
tokenising, planning, padding and copying are not counted. (Also printed: the share of a limit whose
distinct tokens attend to no prefix, and the ratio of the limit itself to the loop.)

The overhead is the time outside the model's language model, vision tower and head.

Everything is measured in turn in each round. Ratios are computed within a round, and their median
is printed. On one thread, CPU time is measured, which other work on the machine hardly changes.
"""

from __future__ import annotations

import copy
import io
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import transformers
from engine_limit import Bare, Needed, clock, one_thread, seconds_of
from PIL import Image

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.devices import default_window
from pointer_rl.registry import registry
from pointer_rl.session.proposing import propose
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.types import Decoding, Example, QueryBatch, Request, Response
from pointer_rl_qwen2vl import patches
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import Checkpoint, load_checkpoint
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.keyvalues import PrefixStore, RowCache
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.patches import PatchCache
from pointer_rl_qwen2vl.tower import VisionTower

WINDOW = default_window("cpu")
SHOTS = 2
SIDE = 224
"""Pixels along a side of an enlarged image."""
GOALS = {"scored": 15, "not scored": 6}
LIMIT_GOAL, OVERHEAD_GOAL = 0.7, 0.1
PARTS = {
    "forward": (VisionTower, "encode"),
    "images": (patches, "_open"),
    "text": (PromptEncoder, "tokenise"),
    "prefixes in": (PrefixStore, "write"),
    "prefixes out": (PrefixStore, "read"),
    "rows moved": (RowCache, "keep"),
}
"""What is timed separately: a class or module and its function. "forward" is no overhead."""


# --- trials ---


@dataclass(frozen=True)
class World:
    """A model, and trials for it."""

    name: str
    checkpoint: Checkpoint
    windows: list[list[Request]]
    """Requests of each window, with answers to score."""
    looped: int
    """Number of trials that the loop runs in a round."""
    rounds: int


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def enlarged(image: Image.Image) -> bytes:
    return png(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def trials(
    bench: Session, to_file: Callable[[Image.Image], bytes] = png, window: int = WINDOW
) -> list[list[Request]]:
    """The default trials of `generate` by window, with the annotators' answers to score.

    `to_file` makes the image files.
    """
    files: dict[str, ImageBytes] = {}

    def on_file(example: Example) -> Example:
        key = example.image.key
        if key not in files:
            files[key] = ImageBytes(to_file(example.image.open()), example.id)
        return replace(example, image=files[key])

    embeddings, pool = bench.embeddings(bench.queries)
    policy = bench.policy(None, pool, 0)
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
                    builder.build(
                        on_file(query), [on_file(pool.examples[row]) for row in candidate.pointer]
                    ),
                    Decoding(),
                    tuple(dict.fromkeys(map(bench.metric.normalise, query.answers))),
                )
                for query, candidates in zip(queries, proposed, strict=True)
                for candidate in candidates
            ]
        )
    return windows


def session(queries: int) -> Session:
    """A session of the embedded world."""
    return Session(
        SessionOptions(
            dataset=PluginRef("glyphs", {"split": "test"}),
            backend=PluginRef("qwen2vl"),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
            limit=queries,
        )
    )


def larger(checkpoint: Checkpoint) -> Checkpoint:
    """A random model of about 100M parameters with this one's tokenizer, for `enlarged` images."""
    config = copy.deepcopy(checkpoint.model.config)
    text, vision = config.text_config, config.vision_config
    text.update(
        {
            "hidden_size": 640,
            "intermediate_size": 2560,
            "num_hidden_layers": 12,
            "num_attention_heads": 10,
            "num_key_value_heads": 2,
            "layer_types": ["full_attention"] * 12,
            "rope_parameters": {**text.rope_parameters, "mrope_section": [8, 12, 12]},
        }
    )
    vision.update(
        {
            **{"depth": 8, "hidden_size": 512, "intermediate_size": 1536, "num_heads": 8},
            **{"out_hidden_size": 640, "fullatt_block_indexes": [3, 7]},
        }
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config = checkpoint.model.generation_config
    processor = copy.deepcopy(checkpoint.image_processor)
    processor.size["longest_edge"] = SIDE**2
    return replace(checkpoint, model=model, image_processor=processor, fingerprint="larger")


# --- measurements ---


def ask(backend: Qwen2VLBackend, windows: Sequence[Sequence[Request]]) -> list[Response]:
    found = [dict(backend.run(window)) for window in windows]
    return [each[index] for each in found for index in range(len(each))]


def loop(checkpoint: Checkpoint, requests: Sequence[Request]) -> list[Response]:
    """Run one prompt at a time, each in a new backend, so that nothing is cached in between."""
    return [
        response
        for request in requests
        for _, response in Qwen2VLBackend(
            checkpoint, engine="plain", batch_tokens=1, threads=torch.get_num_threads()
        ).run([request])
    ]


@contextmanager
def timed_parts(checkpoint: Checkpoint) -> Iterator[Counter[str]]:
    """Measure the seconds in the model ("forward") and in PARTS."""
    spent: Counter[str] = Counter()
    started: list[float] = []
    base = checkpoint.model.model
    hooks = []
    for module in (base.language_model, checkpoint.model.lm_head):
        hooks += [
            module.register_forward_pre_hook(lambda *_: started.append(clock())),
            module.register_forward_hook(
                lambda *_: spent.update({"forward": clock() - started.pop()})
            ),
        ]
    originals = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}

    def timed(name: str, *arguments: object) -> object:
        start = clock()
        try:
            return originals[name](*arguments)
        finally:
            spent[name] += clock() - start

    for name, (owner, method) in PARTS.items():
        setattr(owner, method, lambda *arguments, name=name: timed(name, *arguments))
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, originals[name])


def check(slow: Sequence[Response], fast: Sequence[Response]) -> None:
    """Assert that both give the same responses."""
    for one, other in zip(slow, fast, strict=True):
        assert one.text == other.text, (one.text, other.text)
        for mine, theirs in zip(one.score_logprobs, other.score_logprobs, strict=True):
            assert abs(mine - theirs) < 1e-3 * max(1, abs(theirs)), (mine, theirs)


def measure(world: World, name: str, bare: Bare | None) -> Bare:
    """Print one line of figures, and one on the parts of the overhead.

    `bare` comes from an earlier call for the same world, whose tokens per prompt are nearly equal.
    """
    checkpoint, windows = world.checkpoint, world.windows
    if name == "not scored":
        windows = [[replace(each, score=()) for each in window] for window in windows]
    every = [request for window in windows for request in window]
    number = len(every)
    places = range(0, number, max(1, number // world.looped))[: world.looped]
    some = [every[place] for place in places]
    image = PatchCache(checkpoint).get("", some[0].prompt.images[0])
    backend = Qwen2VLBackend(checkpoint, threads=torch.get_num_threads())
    found = ask(backend, windows)  # Warm up.
    check(loop(checkpoint, some), [found[place] for place in places])
    needed = Needed.of(checkpoint, windows, found, image.tokens)
    prompt = round(statistics.mean(each.usage.prompt_tokens for each in found))
    if bare is None:
        bare = Bare(checkpoint, list(image.grid), round(needed.tokens / number), prompt)

    rounds: list[dict[str, float]] = []
    spent: Counter[str] = Counter()
    for _ in range(world.rounds):
        slow = seconds_of(lambda: loop(checkpoint, some)) / len(some)
        backend._patches.__init__(checkpoint)  # Drop preprocessed images.
        with timed_parts(checkpoint) as parts:
            fast = seconds_of(lambda: ask(backend, windows)) / number
        speeds = bare.speeds()
        rest = needed.images / speeds["images"] + needed.steps / speeds["steps"]
        limit = (needed.tokens / speeds["tokens"] + rest) / number
        strict = (needed.tokens / speeds["fresh tokens"] + rest) / number
        overhead = 1 - parts["forward"] / (fast * number)
        spent.update({part: parts[part] / (fast * number) for part in PARTS if part != "forward"})
        rounds.append(
            {
                **{"loop": 1 / slow, "shared": 1 / fast, "limit": 1 / limit, **speeds},
                **{"ratio": slow / fast, "of the limit": limit / fast, "overhead": overhead},
                **{"of the other": strict / fast, "attainable": slow / limit},
            }
        )
    of = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    print(
        f"{world.name}, {name}: loop {of['loop']:.3g} trials/s, shared {of['shared']:.3g}:"
        f" {of['ratio']:.1f}x (goal {GOALS[name]}x; the limit itself {of['attainable']:.1f}x);"
        f" limit {of['limit']:.3g}: {of['of the limit']:.2f} of it (goal {LIMIT_GOAL}), of the one"
        f" without prefixes {of['of the other']:.2f}; own overhead {of['overhead']:.1%}"
        f" (goal {OVERHEAD_GOAL:.0%})"
    )
    shares = ", ".join(f"{part} {share / len(rounds):.1%}" for part, share in spent.items())
    print(
        f"    of the overhead: {shares}; a trial: {needed.tokens / number:.0f} distinct of"
        f" {prompt} tokens, {needed.images / number:.2f} images, {needed.steps / number:.1f} steps;"
        f" bare model: {of['tokens']:,.0f} tokens ({of['fresh tokens']:,.0f} without a prefix),"
        f" {of['images']:,.0f} images, {of['steps']:,.0f} steps a second",
        flush=True,
    )
    return bare


def main() -> None:
    """Measure, print."""
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else WINDOW
    bench = session(queries)
    assert bench.dataset.companions is not None
    options = Qwen2VLOptions(model=bench.dataset.companions.model, device="cpu")
    small = load_checkpoint(options)
    large = larger(small)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        f" ({'CPU' if one_thread else 'wall'} time), torch {torch.__version__}; {queries} queries"
        f" in windows of {WINDOW}, {SHOTS} shots"
    )
    glyphs = World("glyphs", small, trials(bench), looped=40, rounds=3)
    millions = sum(each.numel() for each in large.model.parameters()) / 1e6
    few = World(
        f"{millions:.0f}M parameters", large, trials(session(1), enlarged), looped=2, rounds=3
    )
    for world in (glyphs, few):
        bare = None
        for name in GOALS:
            bare = measure(world, name, bare)


if __name__ == "__main__":
    main()
