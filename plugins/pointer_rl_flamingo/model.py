"""OpenFlamingo: CLIP's vision tower, a perceiver resampler, a language model with gated layers.

As `transformers` models are: `from_pretrained`, `save_pretrained`, `generate`. What the model sees
of images goes in as keys and values (`project`), computed once for a batch: no decoding step
computes them again.

Shapes: B rows, L tokens of this pass, T images of a row at most, N images, n latents an image, D
the vision tower's width, X gated layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationMixin,
    GPTNeoXConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from pointer_rl_flamingo.cross_attention import FlamingoLayer, GatedCrossAttention, Seen
from pointer_rl_flamingo.language import LAYERS, language_model
from pointer_rl_flamingo.resampler import PerceiverResampler

__all__ = ["OpenFlamingoConfig", "OpenFlamingoModel"]

_CONFIGS = {
    "clip_vision_model": CLIPVisionConfig,
    "mpt": MptConfig,
    "gpt_neox": GPTNeoXConfig,
}


@strict
class OpenFlamingoConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types
    """The parts' configurations, and what lies between them."""

    model_type = "open_flamingo"
    sub_configs: ClassVar[Any] = {
        "vision_config": CLIPVisionConfig,
        "text_config": PreTrainedConfig,
    }

    vision_config: Any = None
    text_config: Any = None
    """Of an MPT or a GPT-NeoX model."""
    media_token_id: int = 50278
    """<image>"""
    eoc_token_id: int = 50277
    """<|endofchunk|>"""
    cross_attn_every_n_layers: int = 1
    """Gated cross-attention stands before every n-th layer of the language model."""
    resampler_depth: int = 6
    num_latents: int = 64
    num_heads: int = 8
    """Of the resampler and of the gated layers."""
    head_dim: int = 64
    tie_word_embeddings: bool = False
    """Of the language model this is in its own configuration."""

    def __post_init__(self, **values: Any) -> None:
        self.vision_config = _config(self.vision_config, "clip_vision_model")
        self.text_config = _config(self.text_config, "mpt")
        super().__post_init__(**values)


def _config(given: Any, default: str) -> Any:
    if isinstance(given, PreTrainedConfig):
        return given
    values = dict(given or {})
    return _CONFIGS[values.pop("model_type", default)](**values)


class OpenFlamingoModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Text with images in, logits out. Fresh from its configuration, or by `from_pretrained`.

    Below `perceiver` and `gated_cross_attn_layer`, names are a published checkpoint's.
    """

    config_class = OpenFlamingoConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ("FlamingoLayer", "CLIPEncoderLayer")
    _supports_sdpa = True

    def __init__(self, config: OpenFlamingoConfig) -> None:
        super().__init__(config)
        self.vision_encoder = CLIPVisionModel._from_config(config.vision_config)
        media_width = config.vision_config.hidden_size
        heads = {"heads": config.num_heads, "head_dim": config.head_dim}
        self.perceiver = PerceiverResampler(
            media_width, depth=config.resampler_depth, num_latents=config.num_latents, **heads
        )
        self.lang_encoder: Any = language_model(config.text_config)
        layers = self.lang_encoder.get_submodule(LAYERS[config.text_config.model_type])
        assert isinstance(layers, nn.ModuleList)
        self._seen = Seen()
        self._gated: list[GatedCrossAttention] = []
        every = config.cross_attn_every_n_layers
        for index in range(every - 1, len(layers), every):
            gated = GatedCrossAttention(config.text_config.hidden_size, media_width, **heads)
            layers[index] = FlamingoLayer(layers[index], gated, len(self._gated), self._seen)
            self._gated.append(gated)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.lang_encoder.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.lang_encoder.get_output_embeddings()
        return embeddings

    def encode(self, pixels: Tensor) -> Tensor:
        """Images to latents: [N, 3, height, width] → [N, n, D]"""
        # Patches as they leave the last layer: post_layernorm is for the class token alone.
        patches = self.vision_encoder(pixel_values=pixels).last_hidden_state[:, 1:]
        latents: Tensor = self.perceiver(patches)
        return latents

    def project(self, latents: Tensor) -> Tensor:
        """Latents to what `forward` takes: [B, T, n, D] → [B, X, T, n, keys and values]"""
        return torch.stack([gated.project(latents) for gated in self._gated], dim=1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        media: Tensor | None = None,
        image_number: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> Any:
        """transformers' `CausalLMOutputWithPast`.

        input_ids: [B, L]. attention_mask: [B, past and L] 1 where there is no padding. media: from
        `project`; None where no row has an image. image_number: [B, L] the number of images up to
        each token, from the row's beginning; counted in `input_ids` where that is the beginning.
        logits_to_keep: of how many last tokens; 0 for all.
        """
        if image_number is None:
            assert past_key_values is None or past_key_values.get_seq_length() == 0
            image_number = self._count_images(input_ids)
        if position_ids is None and attention_mask is not None:
            places = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = places[:, -input_ids.shape[1] :]
        self._seen.media, self._seen.image_number = media, image_number
        try:
            return self.lang_encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,  # (MPT has none, and passes over them.)
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            )
        finally:
            self._seen.media = self._seen.image_number = None

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """For `generate`: the images are counted in all tokens, and passed for the next ones."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, **kwargs
        )
        length = inputs["input_ids"].shape[1]
        inputs["image_number"] = self._count_images(input_ids)[:, -length:]
        return inputs

    def _count_images(self, input_ids: Tensor) -> Tensor:
        is_image: Tensor = input_ids == self.config.media_token_id
        return is_image.long().cumsum(-1)
