"""Padded batches through a model: generation, and the log-probability of given answers.

Shapes: B rows, L tokens of the longest row, A tokens of the longest answer with its end, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from pointer_rl.types import Decoding
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import EncodedPrompt, left_pad

__all__ = ["Generation", "generate", "score"]


@dataclass(frozen=True)
class Generation:
    """What the model wrote after one prompt."""

    text: str
    """Without special tokens, and cut before the first stop string."""
    tokens: int
    """How many were generated, with the one that ended it."""


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
    criteria = [_StopStrings(checkpoint.tokenizer, decoding.stop, prompt_length)]
    sequences = checkpoint.model.generate(
        **arguments,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList(criteria if decoding.stop else []),
    )
    return [_read(row, checkpoint, decoding.stop) for row in sequences[:, prompt_length:].tolist()]


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

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        texts = self._tokenizer.batch_decode(
            input_ids[:, self._prompt_length :],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        done = [_first_stop(text, self._stop) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in the text."""
    return min((place for each in stop if (place := text.find(each)) >= 0), default=None)


def _read(token_ids: list[int], checkpoint: Checkpoint, stop: tuple[str, ...]) -> Generation:
    """Cut one row of new tokens where its generation ended: at an end token, or at padding."""
    end = next((place for place, id_ in enumerate(token_ids) if id_ in checkpoint.stop_ids), None)
    written = token_ids[:end]
    text: str = checkpoint.tokenizer.decode(
        written, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    cut = _first_stop(text, stop)
    if cut is None:
        return Generation(text, len(written) + (end is not None))
    return Generation(text[:cut], len(written))
