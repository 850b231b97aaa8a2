"""The qwen2vl engines on a GPU, with random weights of the published sizes of Qwen2.5-VL.

    python tests/benchmarks/gpu.py [3b] [7b] [tiny]

The trials are those that `generate` runs by default for 128 queries (7b: 64; two shots), with the
answers of all annotators to score, but with JPEG images of 640 x 480. Random weights do not stop by
themselves, so each trial takes 10 tokens where a trained model takes 2 or 3. Nothing is downloaded.
Without a GPU, `tiny` shows that the script runs.

A first window of other queries warms up; the figure that counts is that of the second one, whose
shapes are partly new, as in a long run.

The loop runs one prompt at a time, and a forward pass for each answer; plain is engine=plain. Both
are measured on some of the trials.

The limit is the sum of three times: the distinct tokens of all prompts and answers at the speed of
the bare language model (its best of several batches, without a prefix); the distinct images at the
best speed of the vision tower; and the longest trial's decoding steps, each the time of reading all
weights and all keys and values once at the card's measured bandwidth.

In the breakdown, the device is waited for before and after each part, so that the parts are slower
in sum than the run that is timed. "rest" is what neither the model nor the images take.
"""

from __future__ import annotations

import copy
import gc
import io
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from bench_engine import session, trials
from engine_limit import Needed
from PIL import Image

from pointer_rl.types import Request, Response
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import Checkpoint, load_checkpoint
from pointer_rl_qwen2vl.keyvalues import HeadShape
from pointer_rl_qwen2vl.language import LanguageModel
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.patches import ImagePatches, PatchCache
from pointer_rl_qwen2vl.steps import FixedSteps, GrowingSteps
from pointer_rl_qwen2vl.tower import VisionTower

GOALS = {"shared": 48, "of the limit": 0.8, "to loop": 45, "to plain": 8}
"""For 3b on an H100 or H200."""
QUERIES = {"tiny": 2, "3b": 128, "7b": 64}
"""In a window; 7b has fewer, so that all fits into 8 minutes."""
IMAGE = (640, 480)
LOOPED, PLAIN = 12, 48
"""Number of trials for the loop and for engine=plain."""
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 0},
        {"depth": 2, "hidden_size": 96, "intermediate_size": 190, "num_heads": 4}
        | {"fullatt_block_indexes": [1]},
    ),
    "3b": (
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
        | {"num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936},
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {"fullatt_block_indexes": [7, 15, 23, 31]},
    ),
    "7b": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
        | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {"fullatt_block_indexes": [7, 15, 23, 31]},
    ),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Median time after a warm-up."""
    run()
    found = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def photograph(image: Image.Image) -> bytes:
    """A JPEG file of smooth noise with the image in it."""
    rng = np.random.default_rng(len(image.tobytes()) + sum(image.tobytes()[:999]))
    noise = rng.integers(0, 256, (IMAGE[1] // 20, IMAGE[0] // 20, 3), dtype=np.uint8)
    canvas = Image.fromarray(noise).resize(IMAGE, Image.Resampling.BICUBIC)
    canvas.paste(image.resize((IMAGE[1] // 2, IMAGE[1] // 2)), (20, 20))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=90)
    return file.getvalue()


def random_model(small: Checkpoint, size: str) -> Checkpoint:
    """A checkpoint of this size with random weights and the small one's tokenizer."""
    config = copy.deepcopy(small.model.config)
    text, vision = (dict(each) for each in SIZES[size])
    if not text["vocab_size"]:
        del text["vocab_size"]
    head = text["hidden_size"] // text["num_attention_heads"]
    sections = [head // 8, head * 3 // 16, head * 3 // 16]
    rope = {**config.text_config.rope_parameters, "mrope_section": sections, "rope_theta": 1e6}
    layers = ["full_attention"] * text["num_hidden_layers"]
    config.text_config.update({**text, "layer_types": layers, "rope_parameters": rope})
    config.vision_config.update({**vision, "out_hidden_size": text["hidden_size"]})
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPE)
    with DEVICE:
        model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config = small.model.generation_config
    processor = copy.deepcopy(small.image_processor)
    processor.size["longest_edge"], processor.size["shortest_edge"] = 12845056, 3136
    return replace(small, model=model, image_processor=processor, fingerprint=size)


def ask(backend: Qwen2VLBackend, requests: Sequence[Request]) -> tuple[list[Response], float]:
    """The responses, and the seconds that they took."""
    wait()
    start = time.perf_counter()
    found = dict(backend.run(requests))
    wait()
    took = time.perf_counter() - start
    responses = []
    for index in range(len(requests)):
        response = found[index]
        assert isinstance(response, Response), response
        responses.append(response)
    return responses, took


def unscored(requests: Sequence[Request]) -> list[Request]:
    return [replace(request, score=()) for request in requests]


# --- the limit ---


def bandwidth() -> float:
    """Bytes a second that a large copy reads and writes."""
    one = torch.ones(2**30 if DEVICE.type == "cuda" else 2**24, dtype=torch.uint8, device=DEVICE)
    other = torch.empty_like(one)
    return 2 * one.nbytes / seconds(lambda: other.copy_(one), 9)


@torch.inference_mode()
def token_rate(checkpoint: Checkpoint) -> float:
    """Tokens a second of the bare language model, at the best of several batch sizes."""
    model = checkpoint.model.model.language_model
    hidden = checkpoint.model.config.text_config.hidden_size
    rates = []
    for rows, length in ((40, 400), (80, 400), (16, 1024)) if DEVICE.type == "cuda" else ((1, 64),):
        embeds = torch.randn(rows, length, hidden, dtype=DTYPE, device=DEVICE)
        took = seconds(partial(model, inputs_embeds=embeds, use_cache=False))
        rates.append(rows * length / took)
    return max(rates)


def image_rate(checkpoint: Checkpoint, patches: ImagePatches) -> tuple[float, float]:
    """Images a second of the tower at its best, and of transformers' own."""
    tower, cache = VisionTower(checkpoint.model), PatchCache(checkpoint)
    rates = []
    for number in (20, 40, 80, 160) if DEVICE.type == "cuda" else (1,):
        pixels = cache.pixels([patches] * number)
        rates.append(number / seconds(partial(tower.encode, pixels, [patches.grid] * number)))
    pixels, number = cache.pixels([patches] * 8), 8
    grids = torch.tensor([patches.grid] * number, device=DEVICE)
    with torch.inference_mode():
        official = seconds(partial(checkpoint.model.get_image_features, pixels, grids), 1)
    return max(rates), number / official


# --- the breakdown ---


@contextmanager
def timed() -> Iterator[Counter[str]]:
    """Seconds in each part, with the device waited for."""
    parts: list[tuple[str, Any, str]] = [
        ("vision", VisionTower, "encode"),
        ("images", PatchCache, "_finish"),
        ("images", PatchCache, "pixels"),
        ("prefill", LanguageModel, "prefill"),
        ("prefill", LanguageModel, "predict"),
        ("decode", GrowingSteps, "run"),
        ("decode", FixedSteps, "run"),
    ]
    spent: Counter[str] = Counter()
    originals = [getattr(owner, method) for _, owner, method in parts]
    running: list[str] = []

    def measured(part: str, original: Callable[..., object], *arguments: object) -> object:
        if running:  # A part of a part.
            return original(*arguments)
        running.append(part)
        wait()
        start = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            wait()
            spent[part] += time.perf_counter() - start
            running.pop()

    for (part, owner, method), original in zip(parts, originals, strict=True):
        setattr(owner, method, lambda *a, p=part, o=original: measured(p, o, *a))
    try:
        yield spent
    finally:
        for (_, owner, method), original in zip(parts, originals, strict=True):
            setattr(owner, method, original)


def measure(
    name: str, small: Checkpoint, windows: Sequence[Sequence[Request]], copy_rate: float
) -> None:
    """Print the table of one size."""
    first, requests = windows
    if DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    checkpoint = random_model(small, name)
    weights = sum(each.nbytes for each in checkpoint.model.parameters())
    billions = sum(each.numel() for each in checkpoint.model.parameters()) / 1e9
    number = len(requests)
    patches = PatchCache(checkpoint).get("", requests[0].prompt.images[0])

    def say(row: str, responses: Sequence[object], took: float, more: str = "") -> float:
        print(f"{row:34}{len(responses) / took:8.2f} trials/s{more}", flush=True)
        return len(responses) / took

    images = len({image.key for request in requests for image in request.prompt.images})
    print(
        f"\n{name}: {billions:.2f} billion parameters; {number} trials of {QUERIES[name]} queries,"
        f" {images} images of {IMAGE}, {patches.tokens} tokens each"
    )

    # Shared, with its parts.
    backend = Qwen2VLBackend(checkpoint)
    say("shared, scored, a first window", *ask(backend, first))
    found, took = ask(backend, requests)
    shared = say("shared, scored, another window", found, took, f"   {memory(backend)}")
    backend._patches._cache.clear()
    say("shared, scored, that window again", *ask(backend, requests))
    say("shared, not scored", *ask(backend, unscored(requests)))
    backend._patches._cache.clear()
    with timed() as spent:
        _, took = ask(backend, requests)
    spent["rest"] = took - sum(spent.values())
    parts = ", ".join(f"{part} {share:.2f}" for part, share in spent.items())
    print(f"  parts in seconds ({took:.2f} with waits): {parts}", flush=True)
    del backend

    # The limit.
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    needed = Needed.of(checkpoint, [requests], found, patches.tokens)
    tokens_a_second = token_rate(checkpoint)
    images_a_second, official = image_rate(checkpoint, patches)
    steps = max(response.usage.generated_tokens for response in found) - 1
    whole = sum(response.usage.prompt_tokens for response in found)
    kept = whole * HeadShape.of(checkpoint.model).token_bytes
    times = {
        "tokens": needed.tokens / tokens_a_second,
        "images": needed.images / images_a_second,
        "steps": steps * (weights + kept) / copy_rate,
    }
    limit = number / sum(times.values())
    print(
        f"  limit {limit:.1f} trials/s: {needed.tokens:,} distinct of {whole:,} tokens at"
        f" {tokens_a_second:,.0f}/s {times['tokens']:.2f} s; {needed.images} images at"
        f" {images_a_second:.0f}/s (transformers {official:.0f}) {times['images']:.2f} s;"
        f" {steps} steps {times['steps']:.2f} s",
        flush=True,
    )

    # What it is compared with.
    if DEVICE.type == "cuda":
        eager = Qwen2VLBackend(checkpoint, cuda_graphs=False)
        ask(eager, requests)
        eager._patches._cache.clear()
        say("the same without graphs", *ask(eager, requests))
        del eager
        torch.cuda.empty_cache()
    plain = Qwen2VLBackend(checkpoint, engine="plain")
    some = unscored(requests[:PLAIN])
    ask(plain, some[:2])
    plain_rate = say("plain, not scored", some, ask(plain, some)[1])
    alone = Qwen2VLBackend(checkpoint, engine="plain", batch_tokens=1)
    places = range(0, number, max(1, number // LOOPED))[:LOOPED]
    few = [requests[place] for place in places]
    ask(alone, few[:1])
    slow, took = ask(alone, few)
    loop_rate = say("loop, scored", slow, took)
    same = 0
    differences = []
    for one, other in zip(slow, (found[place] for place in places), strict=True):
        same += one.text == other.text
        pairs = zip(one.score_logprobs, other.score_logprobs, strict=True)
        differences += [abs(mine - theirs) for mine, theirs in pairs]
    print(
        f"  against the loop: {same} of {len(few)} texts the same; scores differ by"
        f" {statistics.median(differences):.2g} (median), {max(differences):.2g} (most)"
    )
    results = {
        "shared": shared,
        "of the limit": shared / limit,
        "to loop": shared / loop_rate,
        "to plain": shared / plain_rate,
    }
    goals = {key: f" (goal {goal})" if name == "3b" else "" for key, goal in GOALS.items()}
    print("  " + ", ".join(f"{key} {results[key]:.3g}{goals[key]}" for key in GOALS))


def memory(backend: Qwen2VLBackend) -> str:
    """Peak memory, and the budget that the backend chose."""
    if DEVICE.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated() / 2**30
    model = backend._shared._model._model
    attention = "in place" if model._attention.usable else "with copies"
    return f"peak {peak:.1f} GiB, cache_gib={backend.chosen['cache_gib']:g}, attention {attention}"


def main() -> None:
    """Measure, print."""
    names = sys.argv[1:] or (["3b", "7b"] if DEVICE.type == "cuda" else ["tiny"])
    card = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine()
    copy_rate = bandwidth()
    print(
        f"{card}, {copy_rate / 1e12:.2f} TB/s, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, {str(DTYPE).removeprefix('torch.')}"
    )
    bench = session(2 * max(QUERIES[name] for name in names))
    assert bench.dataset.companions is not None
    model = bench.dataset.companions.model
    dtype = "bfloat16" if DEVICE.type == "cuda" else "float32"
    small = load_checkpoint(Qwen2VLOptions(model=model, device=DEVICE.type, dtype=dtype))
    for name in names:
        windows = trials(bench, photograph, QUERIES[name])
        measure(name, small, windows[:2], copy_rate)


if __name__ == "__main__":
    main()
