"""OpenFlamingo: CLIP's vision tower, a perceiver resampler, a language model with gated layers.

It is a `transformers` model with `from_pretrained`, `save_pretrained` and `generate`. The images'
keys and values are an input (see `project`), so that they are computed once for a batch and not in
every decoding step.

Shapes: B rows, L tokens of the pass, T images of a row at most, N images, n latents per image, D
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

from pointer_rl_flamingo.attention import (
    FlamingoLayer,
    GatedCrossAttention,
    PerceiverResampler,
    Seen,
)
from pointer_rl_flamingo.language import LAYERS, language_model

_CONFIGS = {
    "clip_vision_model": CLIPVisionConfig,
    "mpt": MptConfig,
    "gpt_neox": GPTNeoXConfig,
}


@strict
class OpenFlamingoConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types
    """The configurations of the parts and of the layers that connect them."""

    model_type = "open_flamingo"
    sub_configs: ClassVar[Any] = {
        "vision_config": CLIPVisionConfig,
        "text_config": PreTrainedConfig,
    }

    vision_config: Any = None
    text_config: Any = None
    """Configuration of an MPT or a GPT-NeoX model."""
    media_token_id: int = 50278
    """The token <image>."""
    eoc_token_id: int = 50277
    """The token <|endofchunk|>."""
    cross_attn_every_n_layers: int = 1
    """Every n-th layer of the language model is preceded by gated cross-attention."""
    resampler_depth: int = 6
    num_latents: int = 64
    num_heads: int = 8
    """Number of heads of the resampler and of the gated layers."""
    head_dim: int = 64
    tie_word_embeddings: bool = False
    """Always False here; the language model has a setting of its own."""

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
    """The model. Parameters of `perceiver` and `gated_cross_attn_layer` are named as published."""

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
        """Encode images: [N, 3, height, width] → [N, n, D]."""
        # The output of the last layer: post_layernorm only applies to the class token.
        patches = self.vision_encoder(pixel_values=pixels).last_hidden_state[:, 1:]
        latents: Tensor = self.perceiver(patches)
        return latents

    def project(self, latents: Tensor) -> Tensor:
        """Compute keys and values for `forward`: [B, T, n, D] → [B, X, T, n, keys and values]."""
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
        """Returns transformers' `CausalLMOutputWithPast`. Arguments not listed are transformers'.

        Args:
            input_ids: [B, L]
            attention_mask: [B, past and L], 0 at padding.
            media: The images' keys and values from `project`; None if no row has an image.
            image_number: [B, L] number of images up to each token, from the start of the row.
                Counted in `input_ids` if nothing came before them.
            logits_to_keep: Number of last tokens whose logits are computed; 0 for all.
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
                position_ids=position_ids,  # MPT ignores them.
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            )
        finally:
            self._seen.media = self._seen.image_number = None

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """See transformers. Counts images in all tokens and passes the counts of the next ones."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, **kwargs
        )
        length = inputs["input_ids"].shape[1]
        inputs["image_number"] = self._count_images(input_ids)[:, -length:]
        return inputs

    def _count_images(self, input_ids: Tensor) -> Tensor:
        is_image: Tensor = input_ids == self.config.media_token_id
        return is_image.long().cumsum(-1)
