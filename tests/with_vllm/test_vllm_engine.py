"""The vllm backend over vLLM itself, against the local engine, on the embedded glyph model.

`make test-vllm` runs this folder. (It is not named vllm: with tests/ on the import path, a folder
of that name would look like the package.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from bench_engine import session, trials
from click.testing import CliRunner
from local_backend_checks import ANSWERS, GREEDY, PROMPTS, answers
from qwen_reference import ask, make_image

from pointer_rl.cli.main import cli
from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.testing import find_tests
from pointer_rl.types import (
    BackendError,
    Decoding,
    ImageRef,
    Message,
    Prompt,
    Request,
    Response,
    VQABackend,
)
from pointer_rl_glyphs.dataset import MODEL_DIR
from pointer_rl_vllm.engine import _scoring, start

OPTIONS = {"model": str(MODEL_DIR), "enforce_eager": True, "max_model_len": 2048}
PIXELS = {"min_pixels": 784, "max_pixels": 3136}
CLOSE = 1e-4
"""Largest difference of a log-probability, in nats."""


def sized(prompt: Prompt) -> Prompt:
    """The prompt with images of sizes that the model takes as they are."""
    sizes = iter([(56, 84), (112, 112), (84, 56)])

    def image(part: ImageRef | str) -> ImageRef | str:
        return part if isinstance(part, str) else make_image(7, *next(sizes))

    return Prompt(
        tuple(Message(each.role, tuple(map(image, each.parts))) for each in prompt.messages)
    )


SIZED = [sized(prompt) for prompt in PROMPTS]


def create(name: str = "vllm", **options: object) -> VQABackend:
    made: VQABackend = registry().create("backend", name, options)
    return made


@pytest.fixture(scope="module")
def backend() -> VQABackend:
    return create(**OPTIONS)


@pytest.fixture(scope="module")
def local() -> VQABackend:
    return create("qwen2vl", model=str(MODEL_DIR), device="cpu")


@pytest.fixture(scope="module")
def windows() -> list[list[Request]]:
    return trials(session(32))


def check_equal(mine: Sequence[Response], theirs: Sequence[Response], close: float = CLOSE) -> None:
    """Long answers add up to hundreds of nats, of which float32 has seven digits."""
    for one, other in zip(mine, theirs, strict=True):
        assert one.text == other.text
        assert one.usage == other.usage
        assert one.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-6, abs=close)


# --- parity ---


def test_prompts_of_all_kinds_are_answered_as_by_the_local_engine(backend, local):
    """None to three images of different sizes, with and without generation."""
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in SIZED]
    requests += [Request(prompt, None, ANSWERS[::-1]) for prompt in SIZED]
    requests += [Request(prompt, GREEDY) for prompt in SIZED]
    check_equal(answers(backend, requests), answers(local, requests))


def test_images_that_are_resized_differ_by_their_rounding(backend, local):
    """vLLM resizes with torchvision, the local engine with Pillow."""
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in PROMPTS]
    check_equal(answers(backend, requests), answers(local, requests), close=0.05)


def test_the_trials_of_generate_are_answered_as_by_the_local_engine(backend, local, windows):
    """Twice: the second time from vLLM's prefix cache."""
    for window in windows:
        expected = answers(local, window)
        for _ in range(2):
            check_equal(answers(backend, window), expected)


@pytest.mark.slow
def test_generate_writes_what_it_writes_with_the_local_engine(tmp_path):
    """All candidates of 128 queries."""
    found = {}
    for name, options in (("qwen2vl", {}), ("vllm", OPTIONS)):
        path = tmp_path / f"{name}.json"
        given = [f"--backend-opt={key}={value}" for key, value in options.items()]
        command = ["generate", "--limit", "128", "--score-answers", "--no-store"]
        done = CliRunner().invoke(
            cli, [*command, "--backend", name, *given, "--output-path", str(path)]
        )
        assert done.exit_code == 0, done.output
        found[name] = outcomes(path)
    assert found["vllm"].keys() == found["qwen2vl"].keys()
    assert len(found["vllm"]) > 1300
    for key, mine in found["vllm"].items():
        theirs = found["qwen2vl"][key]
        assert "eval_failed" not in mine
        for field in ("vqa_raw_generation", "vqa_pred_answer", "vqa_acc_score"):
            assert mine.get(field) == theirs.get(field)
        assert mine["vqa_gt_prob"] == pytest.approx(theirs["vqa_gt_prob"], rel=CLOSE, abs=1e-12)


def outcomes(path: Path) -> dict[Any, dict[str, Any]]:
    """(query, pointer, method, rank) → the candidate."""
    records = json.loads(path.read_text())
    return {
        (query, tuple(each["pointer"]), each["gen_method"], each.get("beam_rank"), place): each
        for query, record in records.items()
        if query != "_meta"
        for place, each in enumerate(record["pointer_candidates"])
    }


# --- scores and the prefix cache ---


def test_scores_of_answers_that_are_cached_are_computed_and_not_read(backend, local):
    """A long answer is asked for again and again: blocks of it are then in the cache."""
    long = " ".join(["red cat, light blue dog"] * 6)
    scored = tuple(long[:length] for length in range(0, len(long), 9))
    requests = [Request(prompt, None, scored) for prompt in SIZED]
    expected = answers(local, requests)
    for _ in range(3):
        check_equal(answers(backend, requests), expected)


def test_rows_of_cached_tokens_are_not_log_probabilities(backend):
    """Why scores are checked: should vLLM return sound rows one day, this can be simplified."""
    llm = start_again()
    tokens = [*backend._encoder.encode(PROMPTS[1]), *range(100, 200)]
    outputs = []
    for _ in range(2):
        params = _scoring()
        params.skip_reading_prefix_cache = False
        [output] = llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)
        outputs.append(output)
    first, again = outputs
    assert first.num_cached_tokens < 100 <= again.num_cached_tokens
    rows = [output.prompt_logprobs[50] for output in outputs]
    assert tokens[50] in rows[0]
    assert tokens[50] not in rows[1] or rows[0] != rows[1]


def start_again() -> Any:
    """The engine of `backend`, which is kept by its arguments."""
    from pointer_rl_vllm.loading import _arguments
    from pointer_rl_vllm.options import VLLMOptions

    return start(model=str(MODEL_DIR), **_arguments(VLLMOptions(**OPTIONS)))


# --- failures ---


def test_what_fails_fails_alone(backend, local):
    broken = ask(ImageBytes(b"no image", "broken.png"), "this?")
    too_long = ask("cat dog " * 1500)
    failing = [
        (Request(broken, GREEDY, ("a",)), "broken.png"),
        (Request(too_long, GREEDY), "2048"),
        (Request(PROMPTS[0], Decoding(num_beams=2)), "num_beams=1"),
        (Request(ask("an <|image_pad|>?"), GREEDY), "<|image_pad|>"),
        (Request(PROMPTS[0], GREEDY, ("a <|im_end|>",)), "<|im_end|>"),
    ]
    sound = [Request(prompt, GREEDY, ANSWERS) for prompt in SIZED]
    results = answers(backend, [sound[0], *(each for each, _ in failing), *sound[1:]])
    for result, (_, why) in zip(results[1 : len(failing) + 1], failing, strict=True):
        assert isinstance(result, BackendError)
        assert why in result.message
        assert "\n" not in result.message
    check_equal([results[0], *results[len(failing) + 1 :]], answers(local, sound))


def test_an_answer_without_room_is_a_failure_and_not_a_shorter_answer(backend):
    tokens = len(backend._encoder.encode(ask("")))
    room = ask("a" * (2048 - tokens - 3))
    [result] = answers(backend, [Request(room, Decoding(max_new_tokens=64))])
    if isinstance(result, Response):  # It ended by itself within the three tokens.
        assert result.usage.generated_tokens <= 3
    else:
        assert "max_model_len" in result.message
    with pytest.raises(InputError, match="vLLM cannot run it"):
        create(**OPTIONS | {"quantization": "no such method"})


def test_stop_strings_cut_as_in_the_local_engine(backend, local):
    whole = answers(local, [Request(PROMPTS[0], Decoding(max_new_tokens=8))])[0].text
    decoding = Decoding(max_new_tokens=8, stop=("never", whole[1:3]))
    requests = [Request(prompt, decoding) for prompt in PROMPTS]
    check_equal(answers(backend, requests), answers(local, requests))


def test_an_interrupted_call_leaves_nothing_behind(backend, local, monkeypatch):
    requests = [Request(prompt, GREEDY) for prompt in PROMPTS]

    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backend._engine._llm, "wait_for_completion", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answers(backend, requests)
    check_equal(answers(backend, requests[::-1]), answers(local, requests[::-1]))


# --- the fingerprint, and the rest of the contract ---


def test_the_fingerprint_covers_what_decides_answers(backend, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text((MODEL_DIR / "chat_template.jinja").read_text() + " ")
    changes: list[dict[str, object]] = [
        {"dtype": "bfloat16"},
        PIXELS,
        {"chat_template": str(template)},
    ]
    prints = {create(**OPTIONS | change).fingerprint for change in changes}
    assert len(prints | {backend.fingerprint}) == len(changes) + 1
    assert backend.fingerprint.startswith("vllm-qwen2_5_vl-float32-")


def test_larger_images_are_reduced_as_by_the_local_engine():
    mine = create(**OPTIONS | PIXELS)
    theirs = create("qwen2vl", model=str(MODEL_DIR), device="cpu", **PIXELS)
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in PROMPTS]
    check_equal(answers(mine, requests), answers(theirs, requests), close=0.05)


def test_counting_is_the_local_engines_with_the_ends_of_answers(backend, local, windows):
    ends = sum(len(request.score) for request in windows[0])
    counted = local.count(windows[0]).prompt_tokens + ends
    assert backend.count(windows[0]).prompt_tokens == counted


def test_it_keeps_the_contract_of_a_backend():
    results = list(find_tests("backend", "vllm", OPTIONS).run_checks())
    assert [each for each in results if each.state == "broken"] == []
    assert sum(each.state == "ok" for each in results) >= 12
