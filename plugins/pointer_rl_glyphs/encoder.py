"""Embeddings from the glyph model's vision tower and token embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from pointer_rl.errors import InputError
from pointer_rl.types import Example
from pointer_rl_glyphs.dataset import MODEL_DIR
from pointer_rl_glyphs.options import GlyphsEncoderOptions

if TYPE_CHECKING:
    from torch import Tensor


class GlyphsEncoder:
    """Image: mean of the merged vision tokens. Text: mean of the question's token embeddings.

    Each is a unit vector; `both` concatenates them, image first.
    """

    def __init__(self, options: GlyphsEncoderOptions) -> None:
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        weights = MODEL_DIR / "model.safetensors"
        if not weights.exists():
            raise InputError(f"{weights}: the glyph model is missing: install pointer-rl again")
        self._mode = options.mode
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            MODEL_DIR, dtype=torch.float32
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(MODEL_DIR)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        self.fingerprint = f"glyphs:{digest}:{options.mode}"
        width = self._model.config.text_config.hidden_size
        self.dim = 2 * width if options.mode == "both" else width

    @torch.no_grad()
    def encode(self, examples: Sequence[Example]) -> Tensor:
        """[N, 256] float32 (128 for mode image or text), of concatenated unit vectors."""
        parts = []
        if self._mode != "text":
            parts.append(normalize(self._images(examples), dim=-1))
        if self._mode != "image":
            parts.append(normalize(self._questions(examples), dim=-1))
        return torch.cat(parts, dim=-1)

    def _images(self, examples: Sequence[Example]) -> Tensor:
        pixels = self._processor(
            images=[example.image.open() for example in examples], return_tensors="pt"
        )
        counts = pixels["image_grid_thw"].prod(-1) // self._processor.merge_size**2
        merged = self._model.model.visual(
            pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]
        ).pooler_output
        return torch.stack([tokens.mean(0) for tokens in merged.split(counts.tolist())])

    def _questions(self, examples: Sequence[Example]) -> Tensor:
        table = self._model.get_input_embeddings().weight
        return torch.stack(
            [table[self._tokenizer.encode(example.question)].mean(0) for example in examples]
        )
