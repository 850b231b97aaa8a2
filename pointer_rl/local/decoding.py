"""Generation and scoring by a transformers model, in padded batches.

A row ends with the first of: a token of `stop_ids` (padding is one), a stop string in its own text,
the longest length. What a model is, here: `TextModel`.

Shapes: B rows, L tokens of the longest row, A tokens of the longest answer, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from pointer_rl.types import Decoding

__all__ = [
    "Generation",
    "TextModel",
    "first_stop",
    "generate",
    "last_logits",
    "read",
    "score",
    "text_of",
]


class TextModel(Protocol):
    """A model with its tokenizer: transformers' own objects, which carry no types."""

    @property
    def model(self) -> Any:
        """In evaluation mode; its generation config names `stop_ids` and the padding token."""
        ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def stop_ids(self) -> Sequence[int]:
        """All tokens at which generation ends; padding is one."""
        ...


@dataclass(frozen=True)
class Generation:
    """What the model wrote after one prompt."""

    text: str
    """Without special tokens, and cut before the first stop string."""
    tokens: int
    """How many were generated, with the one that ended it."""


def text_of(token_ids: Sequence[int], model: TextModel) -> str:
    """Tokens as text, without special tokens."""
    text: str = model.tokenizer.decode(
        token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in the text."""
    return min((place for each in stop if (place := text.find(each)) >= 0), default=None)


def read(token_ids: Sequence[int], model: TextModel, stop: tuple[str, ...]) -> Generation:
    """Cut one row of new tokens where its generation ended: at an end token, or at padding."""
    end = next((place for place, id_ in enumerate(token_ids) if id_ in model.stop_ids), None)
    written = token_ids[:end]
    text = text_of(written, model)
    cut = first_stop(text, stop)
    if cut is None:
        return Generation(text, len(written) + (end is not None))
    return Generation(text[:cut], len(written))


@torch.inference_mode()
def generate(
    model: TextModel, arguments: Mapping[str, Tensor], decoding: Decoding
) -> list[Generation]:
    """Decode a batch of prompts: greedily, or the best beam.

    arguments: the model's, left-padded, on its device; input_ids [B, L] among them. Raises
    torch.OutOfMemoryError.
    """
    beams = {"num_beams": decoding.num_beams, "length_penalty": decoding.length_penalty}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        **(beams if decoding.num_beams > 1 else {}),
    )
    prompt_length = arguments["input_ids"].shape[1]
    criteria = [_StopStrings(model, decoding.stop, prompt_length)]
    sequences = model.model.generate(
        **arguments,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList(criteria if decoding.stop else []),
    )
    return [read(row, model, decoding.stop) for row in sequences[:, prompt_length:].tolist()]


@torch.inference_mode()
def last_logits(model: TextModel, arguments: Mapping[str, Tensor], count: int) -> Tensor:
    """[B, count, V] float32: the logits at the last places of each row.

    Nothing of size L × V is computed where the model can do without. arguments: as for `generate`.
    Raises torch.OutOfMemoryError.
    """
    accepted = inspect.signature(model.model.forward).parameters
    keep = {"logits_to_keep": count} if "logits_to_keep" in accepted else {}
    logits: Tensor = model.model(**arguments, use_cache=False, **keep).logits
    return logits[:, -count:].float()


@torch.inference_mode()
def score(model: TextModel, arguments: Mapping[str, Tensor], lengths: Sequence[int]) -> list[float]:
    """log p(the last tokens of a row | those before), of each row.

    Natural logarithm, summed over the tokens, in float32 whatever the model's dtype.

    arguments: as for `generate`, each row a prompt and its answer; lengths: [B] how many tokens of
    the row are the answer's. Raises torch.OutOfMemoryError.
    """
    longest = max(lengths)
    # Rows end together, so that all answers lie in the last A places, each predicted by the one
    # before.
    logprobs_BAV = last_logits(model, arguments, longest + 1)[:, :-1].log_softmax(dim=-1)
    answers_BA = arguments["input_ids"][:, -longest:]
    logprobs_BA = logprobs_BAV.gather(2, answers_BA[..., None])[..., 0]
    device = answers_BA.device
    places = torch.arange(longest, device=device)
    is_answer = places >= longest - torch.tensor(lengths, device=device)[:, None]
    sums: list[float] = logprobs_BA.where(is_answer, 0.0).sum(dim=1).tolist()
    return sums


class _StopStrings(StoppingCriteria):  # type: ignore[misc]  # transformers carries no types
    """Ends a row once its own text, without the prompt's, contains one of the strings.

    (transformers' `stop_strings` also matches across the end of the prompt, and needs seconds to
    index a large vocabulary.)
    """

    def __init__(self, model: TextModel, stop: tuple[str, ...], prompt_length: int) -> None:
        self._model = model
        self._stop = stop
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        rows = input_ids[:, self._prompt_length :].tolist()
        texts = [text_of(row, self._model) for row in rows]
        done = [first_stop(text, self._stop) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)
