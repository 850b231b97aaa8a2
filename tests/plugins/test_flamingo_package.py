"""OpenFlamingo against the published package's own code, where that is installed.

    pip install --no-deps open-flamingo==2.0.1 einops einops-exts

It wants open_clip only to build a vision tower, for which an empty module stands in.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import tiny_flamingo as tiny
import torch
import transformers

from pointer_rl_flamingo.openflamingo import assemble

if importlib.util.find_spec("open_flamingo") is None:
    pytest.skip("the package open-flamingo is not installed", allow_module_level=True)
sys.modules.setdefault("open_clip", ModuleType("open_clip"))


class Tower(torch.nn.Module):
    """As open_clip's with output_tokens: (pooled, patches)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, self.model(pixel_values=pixels).last_hidden_state[:, 1:]


@pytest.mark.parametrize("kind", ["mpt", "gpt_neox"])
def test_logits_are_those_of_the_published_code(tmp_path, kind, monkeypatch):
    from open_flamingo.src import flamingo, flamingo_lm, helpers, utils

    sizes = {"heads": tiny.MEDIA_HEADS, "num_latents": tiny.LATENTS, "depth": tiny.DEPTH}
    resampler = partial(helpers.PerceiverResampler, **sizes)
    gated = partial(helpers.GatedCrossAttentionBlock, heads=tiny.MEDIA_HEADS)
    monkeypatch.setattr(flamingo, "PerceiverResampler", resampler)
    monkeypatch.setattr(flamingo_lm, "GatedCrossAttentionBlock", gated)

    parts = tiny.make_parts(tmp_path, kind, seed=4)
    checkpoint = parts.checkpoint / "checkpoint.pt"
    ours, tokenizer = assemble(checkpoint, parts.language, parts.vision, torch.float32)
    language = transformers.AutoModelForCausalLM.from_pretrained(parts.language)
    utils.extend_instance(language, flamingo_lm.FlamingoLMMixin)
    language.set_decoder_layers_attr_name(tiny.LAYERS[kind])
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    image, end = (tokenizer.convert_tokens_to_ids(each) for each in ("<image>", "<|endofchunk|>"))
    theirs = flamingo.Flamingo(
        SimpleNamespace(visual=Tower(parts.vision_model.float())),
        language,
        end,
        image,
        vis_dim=tiny.MEDIA_WIDTH,
        cross_attn_every_n_layers=tiny.EVERY[kind],
    )
    report = theirs.load_state_dict(torch.load(checkpoint, weights_only=True), strict=False)
    assert report.unexpected_keys == []

    pad = tokenizer.pad_token_id
    ids = torch.tensor([[40, 41, image, 42, 43, image, 44], [pad, pad, 50, image, 51, 52, 53]])
    mask = (ids != pad).long()
    pixels = torch.randn(2, 2, 3, tiny.SIDE, tiny.SIDE)
    pixels[1, 1] = 0  # a missing image, as the package pads
    with torch.no_grad():
        expected = theirs.eval()(
            vision_x=pixels[:, :, None], lang_x=ids, attention_mask=mask
        ).logits
        media = ours.project(ours.encode(pixels.flatten(0, 1)).unflatten(0, (2, 2)))
        logits = ours.eval()(ids, attention_mask=mask, media=media).logits
    seen = mask.bool()
    torch.testing.assert_close(logits[seen], expected[seen], rtol=1e-5, atol=1e-4)
