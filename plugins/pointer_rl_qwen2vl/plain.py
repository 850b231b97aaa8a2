"""engine=plain: padded batches of whole prompts through the model's own `generate` and `forward`.

Prompts share nothing but preprocessed images. This is the baseline that the shared engine is
compared with, and the fallback for models that the shared engine cannot run.

Shapes: B rows, L tokens of the longest row, P patches of all images, D numbers per patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointer_rl.local.batching import EncodedRequest, PaddedBatches, Result
from pointer_rl.local.padding import PaddedModel, left_pad
from pointer_rl.types import BackendError, Decoding
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import expand
from pointer_rl_qwen2vl.patches import ImagePatches, PatchCache
from pointer_rl_qwen2vl.requests import TokenisedRequest


@dataclass(frozen=True)
class QwenPrompt:
    """A prompt in the model's own format."""

    token_ids: list[int]
    """Includes an <|image_pad|> for every merged patch."""
    images: tuple[ImagePatches, ...]
    """In reading order."""

    @property
    def tokens(self) -> int:
        """Number of positions in a row."""
        return len(self.token_ids)


class PlainEngine(PaddedModel[QwenPrompt]):
    """Runs requests in padded batches."""

    def __init__(self, checkpoint: Checkpoint, patches: PatchCache, batch_tokens: int) -> None:
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self.stop_ids = checkpoint.stop_ids
        self._checkpoint = checkpoint
        self._patches = patches
        self._batches = PaddedBatches(
            self, batch_tokens, "use a smaller max_pixels, fewer demonstrations or fewer beams"
        )

    def run(
        self, requests: Sequence[TokenisedRequest], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """See `Engine`."""
        return self._batches.run(((each.index, self.encode(each)) for each in requests), decoding)

    def encode(self, request: TokenisedRequest) -> EncodedRequest[QwenPrompt] | BackendError:
        """Preprocess the request's images and insert their tokens."""
        images = []
        for patches in self._patches.find(request.images):
            if isinstance(patches, str):
                return BackendError(patches)
            images.append(patches)
        pad = self._checkpoint.image_token_id
        pads = ([pad] * image.tokens for image in images)
        prompt = QwenPrompt(expand(request.token_ids, pad, pads), tuple(images))
        ended = [[*answer, self._checkpoint.turn_end_id] for answer in request.answers]
        return EncodedRequest(prompt, len(images), ended)

    def arguments(self, rows: Sequence[tuple[QwenPrompt, Sequence[int]]]) -> dict[str, Tensor]:
        """See `PaddedModel`.

        `mm_token_type_ids` [B, L] is 1 at images, else 0. If there are images, the arguments
        include `pixel_values` [P, D] and `image_grid_thw` [images, 3].
        """
        device = self.model.device
        token_ids = [[*prompt.token_ids, *following] for prompt, following in rows]
        arguments = left_pad(token_ids, self._checkpoint.pad_id, device)
        is_image = arguments["input_ids"] == self._checkpoint.image_token_id
        arguments["mm_token_type_ids"] = is_image.long()
        images = [image for prompt, _ in rows for image in prompt.images]
        if images:
            arguments["pixel_values"] = torch.cat([image.pixels for image in images]).to(device)
            arguments["image_grid_thw"] = torch.tensor(
                [image.grid for image in images], device=device
            )
        return arguments
