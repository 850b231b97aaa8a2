"""IDEFICS-1 through transformers, as a `LocalModel`.

IDEFICS-1 is a reproduction of Flamingo: a token attends to the last image before it. A base model
gets the text in reading order, an instructed model gets a dialogue.

Shapes: B rows, L tokens of the longest row, T images of a row at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence
from transformers import IdeficsForVisionText2Text

from pointer_rl.errors import InputError
from pointer_rl.local.loading import load_preprocessing, load_weights, place, set_end_tokens
from pointer_rl.local.padding import PaddedModel, PaddedPrompt
from pointer_rl.types import Prompt
from pointer_rl_flamingo.prompts import IMAGE, check_images, render

_FAKE = "<fake_token_around_image>"
_END_OF_UTTERANCE = "<end_of_utterance>"
_BEFORE_ANSWER = ":"
"""The last character of every prompt."""


class Idefics(PaddedModel[Tensor]):
    """An IDEFICS-1 model on its device, with its tokenizer.

    The images of a prompt are pixels [T, 3, side, side]. A prompt without images has one that no
    token sees.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._image_processor = image_processor
        vocabulary = tokenizer.get_vocab()
        self._image_id: int = vocabulary[IMAGE]
        self._is_instructed = _END_OF_UTTERANCE in vocabulary
        end_id: int = vocabulary.get(_END_OF_UTTERANCE, tokenizer.eos_token_id)
        self._end_id = end_id
        self.pad_id = end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.stop_ids = set_end_tokens(model, [end_id, tokenizer.eos_token_id], self.pad_id)
        model.generation_config.suppress_tokens = [self._image_id, vocabulary[_FAKE]]
        self.max_tokens = model.config.get_text_config().max_position_embeddings

    def encode(self, prompt: Prompt) -> PaddedPrompt[Tensor]:
        """See `LocalModel`."""
        text = _dialogue(prompt) if self._is_instructed else render(prompt, close="\n")
        text = text.replace(IMAGE, f"{_FAKE}{IMAGE}{_FAKE}").replace(_FAKE + _FAKE, _FAKE)
        token_ids = self._tokenise(f"{self.tokenizer.bos_token}{text}")
        check_images(token_ids.count(self._image_id), prompt)
        if prompt.images:
            pixels = self._image_processor(
                [image.open() for image in prompt.images], return_tensors="pt"
            )
        else:
            side = self._image_processor.image_size
            pixels = torch.zeros(1, 3, side, side)
        return PaddedPrompt(token_ids, pixels)

    def encode_answer(self, answer: str) -> list[int]:
        """See `LocalModel`. The tokens are those that the answer has at the end of a prompt."""
        before = self._tokenise(_BEFORE_ANSWER)
        whole = self._tokenise(_BEFORE_ANSWER + answer)
        fits = whole[: len(before)] == before
        token_ids = whole[len(before) :] if fits else self._tokenise(answer)
        if self._image_id in token_ids:
            raise InputError(f"an answer to be scored contains the token {IMAGE}")
        return [*token_ids, self._end_id]

    def image_arguments(self, images: Sequence[Tensor], input_ids: Tensor) -> dict[str, Tensor]:
        """See `PaddedModel`."""
        pixels = pad_sequence(list(images), batch_first=True)
        number_BL = (input_ids == self._image_id).long().cumsum(-1)
        seen_BLT = one_hot(number_BL, pixels.shape[1] + 1)[:, :, 1:]
        return {"pixel_values": pixels.to(input_ids.device), "image_attention_mask": seen_BLT}

    def _tokenise(self, text: str) -> list[int]:
        token_ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids


def load_idefics(folder: Path, dtype: torch.dtype, device: torch.device, name: str) -> Idefics:
    """Load a model from its folder. Raises InputError for a folder that cannot be used.

    `name` is the user's name for the model.
    """
    tokenizer, image_processor = load_preprocessing(folder)
    missing = {IMAGE, _FAKE} - tokenizer.get_vocab().keys()
    if missing:
        raise InputError(f"{folder}: the tokenizer has no {', '.join(sorted(missing))}")
    model = load_weights(IdeficsForVisionText2Text, folder, dtype=dtype)
    return Idefics(place(model, device, name), tokenizer, image_processor)


def _dialogue(prompt: Prompt) -> str:
    """The dialogue format that IDEFICS-1's instructed models were trained on."""
    turns = []
    for message in prompt.messages:
        text = "".join(part if isinstance(part, str) else IMAGE for part in message.parts)
        space = "" if text.startswith(IMAGE) else " "
        turns.append(f"{message.role.capitalize()}:{space}{text}{_END_OF_UTTERANCE}")
    return "\n".join([*turns, "Assistant:"])
