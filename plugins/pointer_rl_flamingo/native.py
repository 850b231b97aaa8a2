"""OpenFlamingo as a `LocalModel`.

Each image goes through the vision tower and the resampler once and alone. Its latents therefore
depend on nothing else, and they are cached.

Shapes: B rows, L tokens of the longest row, T images of a row at most, n latents of an image, D
their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from pointer_rl.errors import InputError
from pointer_rl.local.loading import set_end_tokens
from pointer_rl.local.lru import LRUCache
from pointer_rl.local.padding import PaddedModel, PaddedPrompt
from pointer_rl.types import ImageRef, Prompt
from pointer_rl_flamingo.model import OpenFlamingoModel
from pointer_rl_flamingo.pixels import pixels
from pointer_rl_flamingo.prompts import IMAGE, check_images, render

_CACHE_BYTES = 256 * 2**20
"""Size of the cache of latents: 2,000 images of the published models in bfloat16."""


class OpenFlamingo(PaddedModel[tuple[Tensor, ...]]):
    """An OpenFlamingo model on its device, with its tokenizer.

    A prompt has one <image> for each image, and the latents [n, D] of each, in reading order.
    """

    def __init__(self, model: OpenFlamingoModel, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        config = model.config
        self._end_id: int = config.eoc_token_id
        self._image_id: int = config.media_token_id
        self.pad_id = self._end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Only <|endofchunk|> ends an answer, as in OpenFlamingo's own evaluation. The language
        # model's end of text does not.
        model.generation_config = GenerationConfig()
        self.stop_ids = set_end_tokens(model, [self._end_id], self.pad_id)
        model.generation_config.suppress_tokens = [self._image_id]
        text = config.text_config
        self.max_tokens = getattr(text, "max_seq_len", None) or text.max_position_embeddings
        self._no_latents = torch.zeros(
            *(0, config.num_latents, config.vision_config.hidden_size),
            dtype=model.dtype,
            device=model.device,
        )
        self._latents: LRUCache[str, Tensor] = LRUCache(_CACHE_BYTES, lambda each: each.nbytes)

    def encode(self, prompt: Prompt) -> PaddedPrompt[tuple[Tensor, ...]]:
        """See `LocalModel`. Encodes the prompt's images, too."""
        token_ids: list[int] = self.tokenizer(render(prompt))["input_ids"]
        check_images(token_ids.count(self._image_id), prompt)
        return PaddedPrompt(token_ids, tuple(map(self._encode_image, prompt.images)))

    def encode_answer(self, answer: str) -> list[int]:
        """See `LocalModel`. An answer ends with <|endofchunk|>."""
        token_ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if self._image_id in token_ids:
            raise InputError(f"an answer to be scored contains the token {IMAGE}")
        return [*token_ids, self._end_id]

    @torch.inference_mode()
    def _encode_image(self, image: ImageRef) -> Tensor:
        """[n, D]"""
        cached = self._latents.get(image.key)
        if cached is not None:
            return cached
        side = self.model.config.vision_config.image_size
        batch = pixels(image.open(), side)[None].to(self.model.device)
        try:
            latents: Tensor = self.model.encode(batch)[0]
        except torch.OutOfMemoryError as error:
            raise InputError(
                "out of memory on a single image; use a smaller batch_tokens"
            ) from error
        self._latents.put({image.key: latents})
        return latents

    @torch.inference_mode()
    def image_arguments(
        self, images: Sequence[tuple[Tensor, ...]], input_ids: Tensor
    ) -> dict[str, Tensor]:
        """See `PaddedModel`: the model's projection of the images, if there are any.

        Rows with fewer images are padded with zeros, which no token sees.
        """
        latents = [torch.stack(row) if row else self._no_latents for row in images]
        latents_BTnD = pad_sequence(latents, batch_first=True)
        return {"media": self.model.project(latents_BTnD)} if latents_BTnD.shape[1] else {}
