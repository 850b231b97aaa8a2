"""Generation and scoring by a transformers model, in padded batches.

A row ends with a token of `stop_ids` (padding is one of them), with a stop string in its own text,
or at `max_new_tokens`, whichever comes first.

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

from pointer_rl.local.stop_strings import find_stop
from pointer_rl.types import Decoding


class TextModel(Protocol):
    """A model with its tokenizer. Both are transformers' own objects, which carry no types."""

    @property
    def model(self) -> Any:
        """In evaluation mode; its generation config names `stop_ids` and the padding token."""
        ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def stop_ids(self) -> Sequence[int]:
        """All tokens at which generation ends, padding included."""
        ...


@dataclass(frozen=True)
class Generation:
    """What the model generated after one prompt."""

    text: str
    """Without special tokens, cut before the first stop string."""
    tokens: int
    """Number of generated tokens, including the one that ended the generation."""


def text_of(token_ids: Sequence[int], model: TextModel) -> str:
    """Decode tokens to text without special tokens."""
    text: str = model.tokenizer.decode(
        token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def read_generation(
    token_ids: Sequence[int], model: TextModel, stop: tuple[str, ...]
) -> Generation:
    """Cut one row of new tokens where its generation ended: at an end token or at padding."""
    end = next((place for place, id_ in enumerate(token_ids) if id_ in model.stop_ids), None)
    written = token_ids[:end]
    text = text_of(written, model)
    cut = find_stop(text, stop)
    if cut is None:
        return Generation(text, len(written) + (end is not None))
    return Generation(text[:cut], len(written))


@torch.inference_mode()
def generate_batch(
    model: TextModel, arguments: Mapping[str, Tensor], decoding: Decoding
) -> list[Generation]:
    """Decode a batch of prompts, greedily or by beam search. Raises torch.OutOfMemoryError.

    `arguments` are the model's, left-padded, on its device. They include `input_ids` [B, L].
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
    rows = sequences[:, prompt_length:].tolist()
    return [read_generation(row, model, decoding.stop) for row in rows]


@torch.inference_mode()
def last_logits(model: TextModel, arguments: Mapping[str, Tensor], count: int) -> Tensor:
    """[B, count, V] float32: the logits at the last positions of each row.

    A tensor of size L x V is avoided if the model has an option for it. `arguments` are those of
    `generate_batch`. Raises torch.OutOfMemoryError.
    """
    accepted = inspect.signature(model.model.forward).parameters
    keep = {"logits_to_keep": count} if "logits_to_keep" in accepted else {}
    logits: Tensor = model.model(**arguments, use_cache=False, **keep).logits
    return logits[:, -count:].float()


@torch.inference_mode()
def score_batch(
    model: TextModel, arguments: Mapping[str, Tensor], lengths: Sequence[int]
) -> list[float]:
    """log p(answer | prompt) of each row. Raises torch.OutOfMemoryError.

    Natural logarithm, summed over the answer's tokens, in float32 whatever the model's dtype.
    `arguments` are as for `generate_batch`, with rows of a prompt and its answer. `lengths` [B] are
    the numbers of tokens at the end of each row that belong to the answer.
    """
    longest = max(lengths)
    # Rows end together, so all answers lie in the last A positions. Each token is predicted at the
    # position before it.
    logprobs_BAV = last_logits(model, arguments, longest + 1)[:, :-1].log_softmax(dim=-1)
    answers_BA = arguments["input_ids"][:, -longest:]
    logprobs_BA = logprobs_BAV.gather(2, answers_BA[..., None])[..., 0]
    device = answers_BA.device
    places = torch.arange(longest, device=device)
    is_answer = places >= longest - torch.tensor(lengths, device=device)[:, None]
    sums: list[float] = logprobs_BA.where(is_answer, 0.0).sum(dim=1).tolist()
    return sums


class _StopStrings(StoppingCriteria):  # type: ignore[misc]  # transformers carries no types
    """Ends a row when its own text, without the prompt, contains one of the stop strings.

    transformers' `stop_strings` also matches across the end of the prompt, and it takes seconds to
    index a large vocabulary.
    """

    def __init__(self, model: TextModel, stop: tuple[str, ...], prompt_length: int) -> None:
        self._model = model
        self._stop = stop
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        rows = input_ids[:, self._prompt_length :].tolist()
        texts = [text_of(row, self._model) for row in rows]
        done = [find_stop(text, self._stop) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)
