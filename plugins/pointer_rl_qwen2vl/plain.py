"""engine=plain: padded batches of whole prompts through the model's own `generate` and `forward`.

Prompts share nothing but preprocessed images. This is the baseline that the shared engine is
compared with, and the fallback for models that the shared engine cannot run.

Shapes: B rows, L tokens of the longest row, P patches of all images, D numbers per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from pointer_rl.local.padding import PaddedModel, PaddedPrompt
from pointer_rl.types import Prompt
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.patches import ImagePatches, PatchCache


class PlainModel(PaddedModel[tuple[ImagePatches, ...]]):
    """A checkpoint as a `LocalModel`.

    A prompt has an <|image_pad|> for every merged patch, and its images in reading order.
    """

    def __init__(self, checkpoint: Checkpoint, encoder: PromptEncoder, patches: PatchCache) -> None:
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self.stop_ids = checkpoint.stop_ids
        self.pad_id = checkpoint.pad_id
        self._turn_end_id = checkpoint.turn_end_id
        self._image_token_id = checkpoint.image_token_id
        self._encoder = encoder
        self._patches = patches

    def encode(self, prompt: Prompt) -> PaddedPrompt[tuple[ImagePatches, ...]]:
        """See `LocalModel`."""
        token_ids = self._encoder.encode(prompt)
        images = tuple(self._patches.get(image.key, image) for image in prompt.images)
        widths = iter(images)
        expanded = (
            [token] * (next(widths).tokens if token == self._image_token_id else 1)
            for token in token_ids
        )
        return PaddedPrompt(list(chain(*expanded)), images)

    def encode_answer(self, answer: str) -> list[int]:
        """See `LocalModel`."""
        return [*self._encoder.encode_answer(answer), self._turn_end_id]

    def image_arguments(
        self, images: Sequence[tuple[ImagePatches, ...]], input_ids: Tensor
    ) -> dict[str, Tensor]:
        """See `PaddedModel`.

        `mm_token_type_ids` [B, L] is 1 at images, else 0. If there are images, the arguments
        include `pixel_values` [P, D] and `image_grid_thw` [images, 3].
        """
        device = input_ids.device
        arguments = {"mm_token_type_ids": (input_ids == self._image_token_id).long()}
        shown = list(chain(*images))
        if shown:
            arguments["pixel_values"] = self._patches.pixels(shown)
            arguments["image_grid_thw"] = torch.tensor(
                [image.grid for image in shown], device=device
            )
        return arguments
