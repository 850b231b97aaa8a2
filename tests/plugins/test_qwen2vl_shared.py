"""What prompts share is computed once, and nothing comes out differently for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from qwen_reference import Reference, ask, make_image

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.types import BackendError, Count, Decoding, Message, Prompt, Request, Response
from pointer_rl_qwen2vl import chunk, create_backend, patches, tower, vision
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.patches import PatchCache

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GREEDY = Decoding(max_new_tokens=5)
ANSWERS = ("red cat", "red dog", "red", "", "a", "red cat")

ONE, OTHER = make_image(1), make_image(2)  # of one size: as tokens they are alike
WIDE, TALL = make_image(3, 120, 50), make_image(4, 31, 90)
SYSTEM = Message("system", ("Answer the question.",))


def chat(*parts: ImageBytes | str) -> Prompt:
    return Prompt((SYSTEM, Message("user", parts)))


SHARING = [
    # The first demonstration is the same, and what follows; then the query alone differs.
    chat(ONE, "what? red\n", WIDE, "what? cat\n", TALL, "this?"),
    chat(ONE, "what? red\n", WIDE, "what? cat\n", OTHER, "this?"),
    chat(ONE, "what? red\n", TALL, "what? dog\n", WIDE, "this?"),
    # Another image of the same size: the same tokens, but no common prefix from there on.
    chat(OTHER, "what? red\n", WIDE, "what? cat\n", TALL, "this?"),
    # They part right after an image; and one ends where another goes on.
    chat(ONE, "is this a dog?"),
    chat(ONE, "is this a dog? red\n", ONE, "is this a dog?"),
    # The same prompt twice, no image at all, and no message before the user's.
    chat(ONE, "what? red\n", WIDE, "what? cat\n", TALL, "this?"),
    chat("what is a dog?"),
    ask(ONE, "what? red\n", WIDE, "a dog?"),
]


def results(backend: Qwen2VLBackend, requests: list[Request]) -> list[Response | BackendError]:
    found = dict(backend.run(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def requests(prompts: list[Prompt] = SHARING) -> list[Request]:
    return [Request(prompt, GREEDY, ANSWERS) for prompt in prompts]


@pytest.fixture(autouse=True)
def _share_whatever_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "MIN_SAVING", 1)


@pytest.fixture
def checkpoint(tiny_qwen):
    return load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu"))


# --- equal to one prompt at a time ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [None, 60])
def test_sharing_changes_no_answer(tiny_qwen, family, batch_tokens):
    folder = tiny_qwen(family)
    options = Qwen2VLOptions(model=str(folder), device="cpu", batch_tokens=batch_tokens)
    reference = Reference(folder, family)
    for result, prompt in zip(results(create_backend(options), requests()), SHARING, strict=True):
        assert result.text == reference.text(reference.greedy(prompt, 5))
        naive = {answer: reference.score(prompt, answer) for answer in set(ANSWERS)}
        wanted = [naive[answer] for answer in ANSWERS]
        assert result.score_logprobs == pytest.approx(wanted, rel=1e-4)
        assert result.usage.prompt_tokens == reference.inputs(prompt)["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_generates_the_same(tiny_qwen, family):
    """Against `generate` itself, and against engine=plain."""
    folder = str(tiny_qwen(family))
    ours = results(create_backend(Qwen2VLOptions(model=folder, device="cpu")), requests())
    plain = Qwen2VLOptions(model=folder, device="cpu", engine="plain", batch_tokens=1)
    theirs = results(create_backend(plain), requests())
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.text, mine.usage) == (other.text, other.usage)
        assert mine.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)


def test_what_is_generated_may_be_one_of_the_answers(checkpoint):
    """Then it is read off the scored tree: wholly, in part, and not at all."""
    backend = Qwen2VLBackend(checkpoint)
    plain = results(backend, [Request(prompt, GREEDY) for prompt in SHARING])
    for cut in (5, 2, 1, 0):
        scored = [
            Request(prompt, GREEDY, ("z", one.text[:cut] + "Q", one.text[:cut]))
            for prompt, one in zip(SHARING, plain, strict=True)
        ]
        for result, one in zip(results(backend, scored), plain, strict=True):
            assert (result.text, result.usage) == (one.text, one.usage)


def test_stop_strings_end_what_is_read_off_the_tree(checkpoint):
    backend = Qwen2VLBackend(checkpoint)
    [whole] = results(backend, [Request(SHARING[0], GREEDY)])
    stopping = replace(GREEDY, stop=(whole.text[1:3],))
    [result] = results(backend, [Request(SHARING[0], stopping, (whole.text,))])
    assert result.text == whole.text[:1]


def test_answers_that_fill_many_rows_are_put_together(checkpoint):
    scored = tuple(f"red {number}" for number in range(25))
    asked = [Request(prompt, GREEDY, scored) for prompt in SHARING]
    whole = results(Qwen2VLBackend(checkpoint, engine="plain"), asked)
    parted = results(Qwen2VLBackend(checkpoint, batch_tokens=40), asked)
    for mine, other in zip(parted, whole, strict=True):
        assert (mine.text, mine.usage) == (other.text, other.usage)
        assert mine.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)


# --- once ---


def test_each_image_and_each_shared_token_is_computed_once(checkpoint, monkeypatch):
    images: list[int] = []
    tokens: list[int] = []
    encode = tower.VisionTower.encode

    def count(self: tower.VisionTower, pixels: torch.Tensor, grids: list[tower.Grid]) -> object:
        images.append(len(grids))
        return encode(self, pixels, grids)

    monkeypatch.setattr(tower.VisionTower, "encode", count)
    checkpoint.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["inputs_embeds"][..., 0].numel()),
        with_kwargs=True,
    )
    asked = [Request(prompt, None, ("a",)) for prompt in SHARING[:3]]
    found = results(Qwen2VLBackend(checkpoint, batch_tokens=1), asked)  # nothing is padded
    assert sum(images) == 4
    alone = sum(result.usage.prompt_tokens for result in found)
    common = len(
        checkpoint.tokenizer(  # to the first demonstration's end, but for its image
            "<|im_start|>system\nAnswer the question.<|im_end|>\n<|im_start|>user\n"
            "<|vision_start|><|vision_end|>what? red\n<|vision_start|>"
        )["input_ids"]
    )
    second = len(checkpoint.tokenizer("<|vision_end|>what? cat\n<|vision_start|>")["input_ids"])
    sizes = {image.key: 0 for image in (ONE, WIDE)}
    for image in (ONE, WIDE):
        cut = PatchCache(checkpoint).get(image.key, image)
        sizes[image.key] = cut.tokens
    saved = 2 * (common + sizes[ONE.key]) + second + sizes[WIDE.key]
    assert sum(tokens) == alone - saved + len(SHARING[:3])  # and an answer of one token each


def test_features_that_do_not_fit_are_encoded_again(checkpoint, monkeypatch):
    expected = results(Qwen2VLBackend(checkpoint), requests())
    monkeypatch.setattr(vision, "_BLOCKS", {"cpu": (1, 4096)})
    backend = Qwen2VLBackend(checkpoint, batch_tokens=64, cache_gib=1e-9)
    for mine, other in zip(results(backend, requests()), expected, strict=True):
        assert mine.text == other.text
        assert mine.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)


@pytest.mark.parametrize("threads", [0, 3])
def test_images_may_be_opened_ahead(checkpoint, monkeypatch, threads):
    monkeypatch.setattr(vision, "_BLOCKS", {"cpu": (2, 4096)})
    monkeypatch.setattr(patches, "_AHEAD", 3)
    broken = ImageBytes(b"no image", "broken.png")
    images = [(each.key, each) for each in (ONE, broken, WIDE, OTHER, TALL)]
    cache = PatchCache(checkpoint)
    if threads:
        cache._threads = ThreadPoolExecutor(threads)
    store = vision.FeatureStore(checkpoint, cache, 0)
    for _ in range(2):
        store.begin(images)
        assert len(store.get(0).embeds) == 4
        with pytest.raises(InputError, match=r"broken\.png"):
            store.get(1)
        sizes = [len(store.get(index).embeds) for index in (2, 3, 4, 0)]
        assert sizes == [8, 4, 3, 4]
        store.end()
        store.begin(images)
        store.get(0)
        store.end()  # a window that is left before its end


# --- apart ---


def test_a_row_has_nothing_of_its_neighbours(checkpoint):
    """Other prompts of the same shape change not a bit, whatever memory was used before."""
    backend = Qwen2VLBackend(checkpoint)
    others = [chat(OTHER, "is that a cat?"), chat(OTHER, "a b c d e f g h i j k l")]
    mine = [chat(ONE, "is this a dog?"), chat(WIDE, "what? red\n", TALL, "this?")]

    def ask_with(third: ImageBytes, text: str) -> list[Response | BackendError]:
        return results(backend, requests([*mine, chat(third, text)]))[:2]

    first = ask_with(OTHER, "who am I not?")
    results(backend, requests(SHARING))
    results(backend, requests(others))
    assert ask_with(make_image(9), "who am I not?") == first
    assert (
        results(Qwen2VLBackend(checkpoint), requests([*mine, chat(OTHER, "who am I not?")]))[:2]
        == first
    )


def test_numbers_that_overflow_stay_in_their_row(checkpoint):
    """Keys and values that are not numbers would reach others through masked places."""
    token = checkpoint.tokenizer("Z", add_special_tokens=False)["input_ids"][0]
    # Small batches in one group: the columns of short rows have gaps, with what was there before.
    backend = Qwen2VLBackend(checkpoint, batch_tokens=60)
    expected = results(backend, requests())
    with torch.no_grad():
        checkpoint.model.get_input_embeddings().weight[token] = float("nan")
    bad = [
        chat("Z", prompt.images[0], "a dog?" * 3) if prompt.images else chat("Z a dog?")
        for prompt in SHARING
    ]
    for asked in (requests(bad), [Request(prompt, GREEDY) for prompt in bad]):
        mixed = results(backend, [*asked, *requests()])
        for each in mixed[: len(bad)]:
            assert isinstance(each, BackendError)
            assert "overflows" in each.message
        for mine, other in zip(mixed[len(bad) :], expected, strict=True):
            assert mine.text == other.text
            assert mine.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)
        assert results(backend, requests()) == expected


def test_an_image_that_fails_takes_only_its_own_prompts_along(checkpoint):
    broken = ImageBytes(b"no image", "broken.png")
    bad = [
        chat(ONE, "what? red\n", broken, "what? cat\n", TALL, "this?"),
        chat(ONE, "what? red\n", WIDE, "what? cat\n", broken, "this?"),
    ]
    found = results(Qwen2VLBackend(checkpoint), requests([*bad, *SHARING]))
    for failure in found[:2]:
        assert isinstance(failure, BackendError)
        assert "broken.png" in failure.message
    assert found[2:] == results(Qwen2VLBackend(checkpoint), requests())


def test_what_was_asked_before_changes_nothing(checkpoint):
    backend = Qwen2VLBackend(checkpoint)
    results(backend, requests([chat(WIDE, "a dog?"), chat(ONE, OTHER, "red?")]))
    assert results(backend, requests()) == results(Qwen2VLBackend(checkpoint), requests())


def test_a_window_that_is_left_early_leaves_nothing_behind(checkpoint):
    backend = Qwen2VLBackend(checkpoint)
    next(iter(backend.run(requests())))
    assert results(backend, requests()) == results(Qwen2VLBackend(checkpoint), requests())


def test_sliding_windows_are_refused(checkpoint):
    checkpoint.model.config.get_text_config().layer_types = ["sliding_attention"]
    with pytest.raises(InputError, match="engine=plain"):
        Qwen2VLBackend(checkpoint)
    Qwen2VLBackend(checkpoint, engine="plain")


def test_tokens_are_counted_as_distinct_beginnings(checkpoint):
    """Against sets of beginnings: an image is as many tokens as its features are."""
    backend = Qwen2VLBackend(checkpoint)
    asked = requests()
    encoder = PromptEncoder(checkpoint)
    cache = PatchCache(checkpoint)
    whole = unique = 0
    beginnings: set[tuple[object, ...]] = set()
    for request in asked:
        images = iter(request.prompt.images)
        elements = [
            next(images) if token == checkpoint.image_token_id else token
            for token in encoder.encode(request.prompt)
        ]
        widths = [
            1 if isinstance(each, int) else cache.get(each.key, each).tokens for each in elements
        ]
        answers = [encoder.encode_answer(answer) for answer in request.score]
        whole += sum(widths) + sum(map(len, answers))
        unique += len({tuple(a[: end + 1]) for a in answers for end in range(len(a))})
        unique += widths[-1]  # the last element is each prompt's own
        for end in range(1, len(elements)):
            beginning = tuple(e if isinstance(e, int) else e.key for e in elements[:end])
            unique += widths[end - 1] * (beginning not in beginnings)
            beginnings.add(beginning)
    assert backend.count(asked) == Count(whole, unique)
    plain = Qwen2VLBackend(checkpoint, engine="plain")
    assert plain.count(asked) == Count(whole, whole)
    broken = Request(chat(ImageBytes(b"none", "none.png"), "this?"), GREEDY)
    assert backend.count([*asked, broken]) == Count(whole, unique)
    assert backend.count([]) == Count(0, 0)


@pytest.mark.parametrize("min_saving", [1, 16, 1000])
def test_tokens_are_counted_as_the_model_is_fed_them(checkpoint, monkeypatch, min_saving):
    """A piece a pass: nothing is padded; one token each: no decoding step."""
    monkeypatch.setattr(chunk, "MIN_SAVING", min_saving)
    asked = [Request(prompt, Decoding(max_new_tokens=1), ("red cat",)) for prompt in SHARING]
    fed = 0

    def count(module: object, arguments: object, options: dict[str, torch.Tensor]) -> None:
        nonlocal fed
        rows, length, _ = options["inputs_embeds"].shape
        fed += rows * length

    checkpoint.model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    backend = Qwen2VLBackend(checkpoint, batch_tokens=1)
    counted = backend.count(asked)
    results(backend, asked)
    assert fed == counted.unique_tokens
    assert (fed == counted.prompt_tokens) == (min_saving == 1000)
