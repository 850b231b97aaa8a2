"""Padded batches through a model: generation, and the log-probability of given answers.

Shapes: B rows, L tokens of the longest row, A tokens of the longest answer with its end, V
vocabulary, P patches of all images, D numbers a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from pointer_rl.types import Decoding
from pointer_rl_qwen2vl.answers import Generation, first_stop, read, text_of
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.patches import ImagePatches

__all__ = ["EncodedPrompt", "generate", "left_pad", "score"]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model sees it, images in the order of their places."""

    token_ids: list[int]
    """An <|image_pad|> for every merged patch."""
    images: tuple[ImagePatches, ...]


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
        arguments["image_grid_thw"] = torch.tensor([image.grid for image in images])
    device = checkpoint.model.device
    return {name: tensor.to(device) for name, tensor in arguments.items()}


@torch.inference_mode()
def generate(
    checkpoint: Checkpoint, prompts: Sequence[EncodedPrompt], decoding: Decoding
) -> list[Generation]:
    """Decode a batch of prompts: greedily, or the best beam.

    Raises torch.OutOfMemoryError.
    """
    arguments = left_pad([(prompt, ()) for prompt in prompts], checkpoint)
    beams = {"num_beams": decoding.num_beams, "length_penalty": decoding.length_penalty}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        **(beams if decoding.num_beams > 1 else {}),
    )
    prompt_length = arguments["input_ids"].shape[1]
    criteria = [_StopStrings(checkpoint, decoding.stop, prompt_length)]
    sequences = checkpoint.model.generate(
        **arguments,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList(criteria if decoding.stop else []),
    )
    return [read(row, checkpoint, decoding.stop) for row in sequences[:, prompt_length:].tolist()]


@torch.inference_mode()
def score(
    checkpoint: Checkpoint, rows: Sequence[tuple[EncodedPrompt, Sequence[int]]]
) -> list[float]:
    """log p(answer, end of turn | prompt) of each (prompt, tokens of the answer).

    Natural logarithm, summed over the tokens, in float32 whatever the model's dtype. Raises
    torch.OutOfMemoryError.
    """
    model = checkpoint.model
    ended = [(prompt, [*answer, checkpoint.turn_end_id]) for prompt, answer in rows]
    arguments = left_pad(ended, checkpoint)
    lengths = torch.tensor([len(answer) for _, answer in ended], device=model.device)
    longest = int(lengths.max())
    # Rows end together, so that all answers lie in the last A places, each predicted by the one
    # before: nothing of size L × V is ever computed.
    output = model(**arguments, use_cache=False, logits_to_keep=longest + 1)
    logprobs_BAV = torch.log_softmax(output.logits[:, :-1].float(), dim=-1)
    answers_BA = arguments["input_ids"][:, -longest:]
    logprobs_BA = logprobs_BAV.gather(2, answers_BA[..., None])[..., 0]
    places = torch.arange(longest, device=model.device)
    is_answer = places >= longest - lengths[:, None]
    sums: list[float] = logprobs_BA.where(is_answer, 0.0).sum(dim=1).tolist()
    return sums


class _StopStrings(StoppingCriteria):  # type: ignore[misc]  # transformers carries no types
    """Ends a row once its own text, without the prompt's, contains one of the strings.

    (transformers' `stop_strings` also matches across the end of the prompt, and needs seconds to
    index a large vocabulary.)
    """

    def __init__(self, checkpoint: Checkpoint, stop: tuple[str, ...], prompt_length: int) -> None:
        self._checkpoint = checkpoint
        self._stop = stop
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        rows = input_ids[:, self._prompt_length :].tolist()
        texts = [text_of(row, self._checkpoint) for row in rows]
        done = [first_stop(text, self._stop) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)
