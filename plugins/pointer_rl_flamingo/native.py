"""OpenFlamingo as a `LocalModel`: prompts to tokens and latents, padded batches through the model.

An image goes through the vision tower and the resampler once, and alone: so what comes of it
depends on nothing else, and may be kept.

Shapes: B rows, L tokens of the longest row, T images of a row at most, n latents an image, D their
width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from pointer_rl.errors import InputError
from pointer_rl.local import decoding as generation
from pointer_rl.local.decoding import Generation
from pointer_rl.local.loading import set_end_tokens
from pointer_rl.types import Decoding, ImageRef, Prompt
from pointer_rl_flamingo.model import OpenFlamingoModel
from pointer_rl_flamingo.padding import left_pad
from pointer_rl_flamingo.pixels import pixels
from pointer_rl_flamingo.prompts import IMAGE, check_images, render

__all__ = ["FlamingoPrompt", "OpenFlamingo"]

_KEPT_BYTES = 256 * 2**20
"""Of latents: 2,000 images of the published models in bfloat16."""


@dataclass(frozen=True)
class FlamingoPrompt:
    """A prompt as the model sees it."""

    token_ids: list[int]
    """One <image> for each of the latents."""
    latents: tuple[Tensor, ...]
    """[n, D] of each image, in the order of their places."""

    @property
    def tokens(self) -> int:
        """Places in a row."""
        return len(self.token_ids)


class OpenFlamingo:
    """A model on its device, with its tokenizer."""

    def __init__(self, model: OpenFlamingoModel, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._end_id: int = model.config.eoc_token_id
        self._image_id: int = model.config.media_token_id
        self._pad_id = self._end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Only <|endofchunk|> ends an answer, as in the model's own evaluation: the language
        # model's end of text does not.
        model.generation_config = GenerationConfig()
        self.stop_ids = set_end_tokens(model, [self._end_id], self._pad_id)
        model.generation_config.suppress_tokens = [self._image_id]
        text = model.config.text_config
        self._longest: int = getattr(text, "max_seq_len", None) or text.max_position_embeddings
        self._latents: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, prompt: Prompt) -> FlamingoPrompt:
        """Opens and encodes the prompt's images. Raises InputError for one that cannot be shown."""
        token_ids: list[int] = self.tokenizer(render(prompt))["input_ids"]
        check_images(token_ids.count(self._image_id), prompt)
        return FlamingoPrompt(token_ids, tuple(self._encode_image(each) for each in prompt.images))

    def encode_answer(self, answer: str) -> list[int]:
        """The answer's tokens and <|endofchunk|>. Raises InputError for one with an <image>."""
        token_ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if self._image_id in token_ids:
            raise InputError(f"an answer to be scored contains the token {IMAGE}")
        return [*token_ids, self._end_id]

    def generate(
        self, prompts: Sequence[FlamingoPrompt], decoding: Decoding
    ) -> Sequence[Generation]:
        """Decode each prompt. Raises torch.OutOfMemoryError, and InputError for one too long."""
        self._check_length(max(prompt.tokens for prompt in prompts) + decoding.max_new_tokens)
        arguments = self._arguments([(prompt, ()) for prompt in prompts])
        return generation.generate(self, arguments, decoding)

    def score(self, rows: Sequence[tuple[FlamingoPrompt, Sequence[int]]]) -> Sequence[float]:
        """log p(tokens | prompt) of each row. Raises as `generate` does."""
        self._check_length(max(prompt.tokens + len(answer) for prompt, answer in rows))
        return generation.score(self, self._arguments(rows), [len(answer) for _, answer in rows])

    def _check_length(self, tokens: int) -> None:
        if tokens > self._longest:
            raise InputError(
                f"the prompt with its answer has {tokens} tokens, and the language model reads"
                f" {self._longest} at most; show fewer demonstrations"
            )

    @torch.inference_mode()
    def _encode_image(self, image: ImageRef) -> Tensor:
        kept = self._latents.get(image.key)
        if kept is None:
            side = self.model.config.vision_config.image_size
            batch = pixels(image.open(), side)[None].to(self.model.device)
            try:
                kept = self.model.encode(batch)[0]
            except torch.OutOfMemoryError as error:
                raise InputError(
                    "out of memory on a single image; use a smaller batch_tokens"
                ) from error
            self._latents[image.key] = kept
            while len(self._latents) > max(1, _KEPT_BYTES // kept.nbytes):
                self._latents.popitem(last=False)
        self._latents.move_to_end(image.key)
        return kept

    @torch.inference_mode()
    def _arguments(self, rows: Sequence[tuple[FlamingoPrompt, Sequence[int]]]) -> dict[str, Tensor]:
        """The model's arguments for rows of (prompt, tokens that follow it), on its device.

        input_ids, attention_mask: [B, L] int64, rows end together. media as `project` gives it,
        where there are images: rows with fewer have zeros behind, which no token sees.
        """
        token_ids = [[*prompt.token_ids, *following] for prompt, following in rows]
        arguments = left_pad(token_ids, self._pad_id, self.model.device)
        images = [prompt.latents for prompt, _ in rows]
        most = max(map(len, images))
        if most:
            one = next(each for latents in images for each in latents)
            padded_BTnD = one.new_zeros(len(rows), most, *one.shape)
            for row, latents in enumerate(images):
                if latents:
                    padded_BTnD[row, : len(latents)] = torch.stack(latents)
            arguments["media"] = self.model.project(padded_BTnD)
        return arguments
