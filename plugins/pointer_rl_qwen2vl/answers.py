"""From generated tokens to an answer: where a generation ends, and what of it is text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pointer_rl_qwen2vl.checkpoint import Checkpoint

__all__ = ["Generation", "first_stop", "read", "text_of"]


@dataclass(frozen=True)
class Generation:
    """What the model wrote after one prompt."""

    text: str
    """Without special tokens, and cut before the first stop string."""
    tokens: int
    """How many were generated, with the one that ended it."""


def text_of(token_ids: Sequence[int], checkpoint: Checkpoint) -> str:
    """Tokens as text, without special tokens."""
    text: str = checkpoint.tokenizer.decode(
        token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in the text."""
    return min((place for each in stop if (place := text.find(each)) >= 0), default=None)


def read(token_ids: Sequence[int], checkpoint: Checkpoint, stop: tuple[str, ...]) -> Generation:
    """Cut one row of new tokens where its generation ended: at an end token, or at padding."""
    end = next((place for place, id_ in enumerate(token_ids) if id_ in checkpoint.stop_ids), None)
    written = token_ids[:end]
    text = text_of(written, checkpoint)
    cut = first_stop(text, stop)
    if cut is None:
        return Generation(text, len(written) + (end is not None))
    return Generation(text[:cut], len(written))
