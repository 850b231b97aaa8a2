"""From prompts to the tensors that a Qwen-VL model takes, as the official processor makes them.

The checkpoint's chat template writes the prompt with one <|image_pad|> an image; after tokenising,
each is repeated once for every merged patch of its image. (The official processor repeats it in the
text. It is a special token, so the tokens are the same, and this way long prompts are not
tokenised pad by pad.)

Shapes: B rows, L tokens of the longest row, P patches of all images, D numbers a patch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.types import BackendError, ImageRef, Prompt
from pointer_rl_qwen2vl.checkpoint import Checkpoint

__all__ = ["EncodedPrompt", "PromptEncoder", "left_pad"]

_PIXEL_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Patches:
    """One preprocessed image."""

    pixels: Tensor
    """[patches, D], in the model's dtype"""
    grid: Tensor
    """[1, 3] int64: patches in time, height and width"""
    tokens: int
    """How many <|image_pad|> stand for it: patches after merging."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model sees it, images in the order of their places."""

    token_ids: list[int]
    images: tuple[Patches, ...]


class PromptEncoder:
    """Renders, tokenises and preprocesses; keeps the images that it met last."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._template = checkpoint.chat_template
        self._image_token_id = checkpoint.image_token_id
        self._image_processor = checkpoint.image_processor
        self._dtype = checkpoint.model.dtype
        self._cache: OrderedDict[str, Patches] = OrderedDict()
        self._cached_bytes = 0

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt | BackendError]:
        """Each prompt up to where the model begins to answer, or why it cannot be shown."""
        rendered = [self._render(prompt) for prompt in prompts]
        texts = [text for text in rendered if isinstance(text, str)]
        token_ids = iter(self._tokenizer(texts)["input_ids"] if texts else [])
        return [
            text if isinstance(text, BackendError) else self._insert_images(next(token_ids), prompt)
            for text, prompt in zip(rendered, prompts, strict=True)
        ]

    def encode_answers(self, answers: Sequence[str]) -> list[list[int]] | BackendError:
        """The tokens of each answer alone.

        Tokenised apart from the prompt: generation, too, begins at a token boundary after the
        prompt, and a boundary that shifted with the answer would change the prompt it follows.
        """
        if not answers:
            return []
        token_ids: list[list[int]] = self._tokenizer(list(answers), add_special_tokens=False)[
            "input_ids"
        ]
        if any(self._image_token_id in answer for answer in token_ids):
            return BackendError("an answer to be scored contains the token <|image_pad|>")
        return token_ids

    def _render(self, prompt: Prompt) -> str | BackendError:
        conversation = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in prompt.messages
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            return BackendError(f"the chat template refuses the prompt: {error}")
        return text

    def _insert_images(self, token_ids: list[int], prompt: Prompt) -> EncodedPrompt | BackendError:
        if token_ids.count(self._image_token_id) != len(prompt.images):
            return BackendError(
                f"the prompt has {len(prompt.images)} images but"
                f" {token_ids.count(self._image_token_id)} <|image_pad|>: a question or answer"
                " contains that token, or the chat template has no place for images"
            )
        try:
            images = tuple(self._patches(image) for image in prompt.images)
        except InputError as error:
            return BackendError(str(error))
        expanded: list[int] = []
        remaining = iter(images)
        for token_id in token_ids:
            if token_id == self._image_token_id:
                expanded += [token_id] * next(remaining).tokens
            else:
                expanded.append(token_id)
        return EncodedPrompt(expanded, images)

    def _patches(self, image: ImageRef) -> Patches:
        key = image.key
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        picture = image.open()
        try:
            features = self._image_processor(images=[picture], return_tensors="pt")
        except ValueError as error:  # an aspect ratio beyond 200
            raise InputError(f"image {key[:12]}, {picture.size} pixels: {error}") from error
        patches = Patches(
            pixels=features["pixel_values"].to(self._dtype),
            grid=features["image_grid_thw"],
            tokens=int(features["image_grid_thw"].prod()) // self._image_processor.merge_size**2,
        )
        self._cache[key] = patches
        self._cached_bytes += patches.pixels.nbytes
        while self._cached_bytes > _PIXEL_CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.pixels.nbytes
        return patches


def left_pad(
    rows: Sequence[tuple[EncodedPrompt, Sequence[int]]], checkpoint: Checkpoint
) -> dict[str, Tensor]:
    """The model's arguments for rows of (prompt, tokens that follow it), on its device.

    input_ids, attention_mask, mm_token_type_ids (1 at images, else 0): [B, L] int64, rows end
    together. Where there are images also pixel_values [P, D] and image_grid_thw [images, 3].
    """
    token_ids = [[*prompt.token_ids, *following] for prompt, following in rows]
    length = max(map(len, token_ids))
    input_ids = torch.tensor([[checkpoint.pad_id] * (length - len(row)) + row for row in token_ids])
    attention_mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in token_ids])
    arguments = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (input_ids == checkpoint.image_token_id).long(),
    }
    images = [image for prompt, _ in rows for image in prompt.images]
    if images:
        arguments["pixel_values"] = torch.cat([image.pixels for image in images])
        arguments["image_grid_thw"] = torch.cat([image.grid for image in images])
    device = checkpoint.model.device
    return {name: tensor.to(device) for name, tensor in arguments.items()}
