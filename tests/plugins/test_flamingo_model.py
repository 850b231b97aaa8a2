"""OpenFlamingo's arithmetic, against float64 loops, and what an image may and may not change."""

from __future__ import annotations

import flamingo_reference as naive
import pytest
import tiny_flamingo as tiny
import torch
import transformers
from torch import Tensor
from transformers import CLIPVisionConfig, GenerationConfig, GPTNeoXConfig, MptConfig

from pointer_rl_flamingo.attention import GatedCrossAttention, PerceiverResampler
from pointer_rl_flamingo.language import MptLanguageModel
from pointer_rl_flamingo.model import OpenFlamingoConfig, OpenFlamingoModel
from pointer_rl_flamingo.openflamingo import assemble

IMAGE = 7
"""<image>, in token sequences of this file."""


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Numbers that let nothing hide: open gates, norms that are not the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.3 if parameter.ndim < 2 else 0.0, 0.4)
    return module.eval()


# --- the parts ---


def test_the_resampler_is_the_naive_one():
    torch.manual_seed(0)
    module = randomise(PerceiverResampler(12, depth=2, num_latents=3, heads=2, head_dim=4).double())
    patches = torch.randn(2, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        latents = module(patches)
        for image, ours in zip(patches, latents, strict=True):
            expected = torch.stack(naive.resample(module.state_dict(), image, heads=2))
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_gated_cross_attention_is_the_naive_one():
    torch.manual_seed(0)
    module = randomise(GatedCrossAttention(10, 12, heads=2, head_dim=4).double())
    hidden = torch.randn(2, 6, 10, dtype=torch.float64)
    latents = torch.randn(2, 2, 3, 12, dtype=torch.float64)
    numbers = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        ours = module(hidden, module.project(latents), numbers)
        without = module(hidden, None, torch.zeros_like(numbers))
    for row in range(2):
        for place in range(6):
            number = int(numbers[row, place])
            image = list(latents[row, number - 1]) if number else None
            arguments = (module.state_dict(), hidden[row, place])
            for result, seen in ((ours, image), (without, None)):
                expected = naive.gated_cross_attention(*arguments, seen, heads=2)
                torch.testing.assert_close(result[row, place], expected, rtol=1e-10, atol=1e-10)


def test_closed_gates_leave_the_language_model_alone():
    module = GatedCrossAttention(10, 12, heads=2, head_dim=4)
    hidden = torch.randn(1, 3, 10)
    media = module.project(torch.randn(1, 1, 2, 12))
    assert torch.equal(module(hidden, media, torch.ones(1, 3)), hidden)


@pytest.mark.parametrize(("qk_ln", "clip_qkv"), [(True, None), (False, None), (True, 0.3)])
def test_mpt_normalises_queries_and_keys_where_it_should(qk_ln, clip_qkv):
    torch.manual_seed(0)
    attention = {"qk_ln": qk_ln, "clip_qkv": clip_qkv}
    config = MptConfig(
        d_model=12, n_heads=2, n_layers=2, max_seq_len=16, vocab_size=9, attn_config=attention
    )
    model = randomise(MptLanguageModel(config).double())
    tensors = {
        name.replace("attn.Wqkv.q_ln", "attn.q_ln").replace("attn.Wqkv.k_ln", "attn.k_ln"): each
        for name, each in model.state_dict().items()
    }
    assert ("transformer.blocks.1.attn.q_ln.weight" in tensors) == qk_ln
    token_ids = [3, 1, 8, 2, 2]
    hidden = [tensors["transformer.wte.weight"][token] for token in token_ids]
    for layer in range(2):
        block = naive.below(tensors, f"transformer.blocks.{layer}.")
        hidden = naive.mpt_layer(block, hidden, heads=2, clip=clip_qkv)
    norm = tensors["transformer.norm_f.weight"]
    expected = [tensors["transformer.wte.weight"] @ naive.layer_norm(x, norm) for x in hidden]
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0]
    # transformers' softmax is float32 whatever the dtype.
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_the_published_model_of_3b_has_as_many_trained_parameters_as_it_should():
    config = OpenFlamingoConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        ),
        text_config=MptConfig(vocab_size=50280, attn_config={"qk_ln": True}),
    )
    with torch.device("meta"):
        model = OpenFlamingoModel(config)
    published = tiny.published_tensors(
        layers="transformer.blocks",
        embeddings="lang_encoder.transformer.wte.weight",
        layer_count=24,
        every=1,
        text_width=2048,
        media_width=1024,
        depth=6,
        latents=64,
        heads=8,
        vocab_size=50280,
        device="meta",
    )
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("perceiver.") or "gated_cross_attn_layer." in name or ".wte." in name
    }
    assert len(published) == 334
    assert {n: p.shape for n, p in trained.items()} == {n: p.shape for n, p in published.items()}
    assert sum(parameter.numel() for parameter in trained.values()) == 1_046_992_944


# --- the whole ---


def fresh(text_config: object, every: int) -> OpenFlamingoModel:
    torch.manual_seed(1)
    config = OpenFlamingoConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=text_config,
        media_token_id=IMAGE,
        eoc_token_id=6,
        cross_attn_every_n_layers=every,
        resampler_depth=1,
        num_latents=3,
        num_heads=2,
        head_dim=8,
    )
    return randomise(OpenFlamingoModel(config))


@pytest.fixture(scope="module", params=("mpt", "gpt_neox"))
def model(request: pytest.FixtureRequest) -> OpenFlamingoModel:
    if request.param == "mpt":
        text = MptConfig(
            d_model=16,
            n_heads=2,
            n_layers=3,
            max_seq_len=64,
            vocab_size=20,
            attn_config={"qk_ln": True},
        )
        return fresh(text, 1)
    text = GPTNeoXConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=20,
        max_position_embeddings=64,
    )
    return fresh(text, 2)


PROMPT = [2, 3, IMAGE, 4, 5, IMAGE, 8, 9]
IMAGE_PLACES = [2, 5]


@torch.no_grad()
def media_of(model: OpenFlamingoModel, *seeds: int) -> Tensor:
    """[1, …] of images drawn from seeds."""
    pixels = [torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return model.project(model.encode(torch.stack(pixels))[None])


@torch.no_grad()
def logits_of(model: OpenFlamingoModel, media: Tensor | None, *rows: list[int]) -> Tensor:
    ids = torch.tensor(rows)
    return model(ids, attention_mask=torch.ones_like(ids), media=media).logits


@pytest.mark.parametrize("kind", ["mosaic_gpt", "mpt"])
def test_logits_are_the_naive_ones(tmp_path, kind):
    parts = tiny.make_parts(tmp_path, kind)
    checkpoint = parts.checkpoint / "checkpoint.pt"
    model, tokenizer = assemble(checkpoint, parts.language, parts.vision, torch.float32)
    model = model.double().eval()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    token_ids = [40, 41, image_id, 42, 43, image_id, 44]
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE, dtype=torch.float64)
    with torch.no_grad():
        patches = parts.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
        resampler = naive.below(parts.trained, "perceiver.")
        images = [naive.resample(resampler, each, tiny.MEDIA_HEADS) for each in patches]
        ours = logits_of(model, model.project(model.encode(pixels)[None]), token_ids)[0]
    expected = naive.logits(
        parts.trained,
        parts.language_tensors,
        token_ids,
        images,
        image_id=image_id,
        media_heads=tiny.MEDIA_HEADS,
        text_heads=tiny.TEXT_HEADS,
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_an_image_changes_what_follows_it_and_nothing_else(model):
    before = logits_of(model, media_of(model, 1, 2), PROMPT)[0]
    for changed, seeds in ((0, (9, 2)), (1, (1, 9))):
        after = logits_of(model, media_of(model, *seeds), PROMPT)[0]
        place = IMAGE_PLACES[changed]
        assert torch.equal(after[:place], before[:place])
        assert ((after[place:] - before[place:]).abs().amax(-1) > 1e-3).all()


def test_a_token_attends_to_the_last_image_alone(model):
    """With one gated layer nothing of earlier images comes by way of other tokens."""
    gated = model._gated[0]
    hidden = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([[1, 2]])
    with torch.no_grad():
        first, second = (
            gated(hidden, media_of(model, *seeds)[:, 0], numbers) for seeds in ((1, 2), (9, 2))
        )
    assert torch.equal(first[0, 1], second[0, 1])
    assert not torch.allclose(first[0, 0], second[0, 0])


def test_text_without_images_is_the_same_beside_a_row_that_has_some(model):
    text = [2, 3, 4, 5]
    alone = logits_of(model, None, text)[0]
    both = logits_of(model, media_of(model, 1).expand(2, -1, -1, -1, -1), text, [2, IMAGE, 4, 5])
    torch.testing.assert_close(both[0], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[1], alone, atol=1e-2)


def test_a_mask_of_ones_is_no_mask(model):
    ids = torch.tensor([PROMPT])
    media = media_of(model, 1, 2)
    with torch.no_grad():
        plain = model(ids, media=media).logits
    torch.testing.assert_close(logits_of(model, media, PROMPT), plain, rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_changes_nothing(model):
    short = [2, IMAGE, 4]
    ids = torch.tensor([PROMPT, [0] * 5 + short])
    mask = torch.tensor([[1] * 8, [0] * 5 + [1] * 3])
    one = media_of(model, 3)
    media = torch.cat([media_of(model, 1, 2), torch.cat([one, torch.zeros_like(one)], dim=2)])
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, media=media).logits
    alone = logits_of(model, one, short)[0]
    torch.testing.assert_close(padded[1, -3:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_changes_nothing(model, beams):
    config = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 6, "num_beams": beams}
    ids = torch.tensor([PROMPT, [0] * 3 + PROMPT[1:6]])
    mask = (torch.arange(8) >= torch.tensor([[0], [3]])).long()
    media = torch.cat([media_of(model, 1, 2), media_of(model, 3, 4)])
    passes: list[int] = []
    hook = model.lang_encoder.register_forward_pre_hook(
        lambda module, args, named: passes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    with_cache, without = (
        model.generate(
            ids,
            attention_mask=mask,
            media=media,
            generation_config=GenerationConfig(use_cache=use_cache, **config),
        )
        for use_cache in (True, False)
    )
    hook.remove()
    assert torch.equal(with_cache, without)
    assert passes.count(1) >= 1
    assert max(passes) > 8  # without the cache, all tokens each time
    if beams == 1:  # and each token is the likeliest after those before
        row = with_cache[0].tolist()
        for place in range(8, len(row)):
            if row[place - 1] not in (0, 6) or place == 8:
                assert row[place] == int(logits_of(model, media[:1], row[:place])[0, -1].argmax())


def test_as_many_beams_as_tokens_find_the_best_pair_of_tokens(model):
    vocabulary = range(20)
    media = media_of(model, 1, 2)
    first = logits_of(model, media, PROMPT)[0, -1].log_softmax(-1)
    rows = [[*PROMPT, token] for token in vocabulary]
    second = logits_of(model, media.expand(20, -1, -1, -1, -1), *rows)[:, -1].log_softmax(-1)
    best = divmod(int((first[:, None] + second).argmax()), 20)
    ids = torch.tensor([PROMPT])
    config = GenerationConfig(max_new_tokens=2, num_beams=20, pad_token_id=0, length_penalty=0.0)
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), media=media, generation_config=config
    )
    assert tuple(found[0, -2:].tolist()) == best


def test_gradients_reach_the_pixels_and_every_trained_tensor(model):
    pixels = torch.randn(2, 3, 28, 28, requires_grad=True)
    media = model.project(model.encode(pixels)[None])
    ids = torch.tensor([PROMPT])
    model.zero_grad()
    model(ids, attention_mask=torch.ones_like(ids), media=media).logits[0, -1].sum().backward()
    # The last token sees the second image; the first one by way of the tokens between.
    assert (pixels.grad.abs().amax((1, 2, 3)) > 0).all()
    for name, parameter in model.named_parameters():
        if "perceiver" in name or "gated_cross_attn_layer" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_a_model_is_saved_and_read_back(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, report = OpenFlamingoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    media = media_of(model, 1, 2)
    assert torch.equal(logits_of(again.eval(), media, PROMPT), logits_of(model, media, PROMPT))
    assert isinstance(again.config.vision_config, transformers.CLIPVisionConfig)
