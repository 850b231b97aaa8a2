"""The IDEFICS family through transformers, as a `LocalModel`.

IDEFICS-1 is Flamingo's architecture: a token attends to the last image before it. Its prompts are
written here; a base model gets the text in reading order, an instructed one a dialogue. Idefics2
and Idefics3 put images among the text's tokens; their prompts are their chat template's.

Shapes: B rows, L tokens of the longest row, T images (or tiles) of a row at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.functional import one_hot

from pointer_rl.errors import InputError, first_line
from pointer_rl.local import decoding as generation
from pointer_rl.local.decoding import Generation
from pointer_rl.local.loading import LOADING_ERRORS, load_weights, place, set_end_tokens
from pointer_rl.types import Decoding, Prompt
from pointer_rl_flamingo.padding import left_pad
from pointer_rl_flamingo.prompts import IMAGE, check_images, render

__all__ = ["FAMILIES", "Idefics", "IdeficsPrompt", "load_idefics"]

FAMILIES = {
    "idefics": "IdeficsForVisionText2Text",
    "idefics2": "Idefics2ForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
}
"""Model type → transformers' class."""
_FAKE = "<fake_token_around_image>"
_END_OF_UTTERANCE = "<end_of_utterance>"


@dataclass(frozen=True)
class IdeficsPrompt:
    """A prompt as the model sees it."""

    token_ids: list[int]
    images: Mapping[str, Tensor]
    """Arguments of the model, [1, T, …] each; empty for text alone."""

    @property
    def tokens(self) -> int:
        """Places in a row."""
        return len(self.token_ids)


class Idefics(ABC):
    """What the models of the family have in common. `encode` is each one's own."""

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._image_processor = image_processor
        vocabulary = tokenizer.get_vocab()
        self._image_id: int = vocabulary[IMAGE]
        end_id = vocabulary.get(_END_OF_UTTERANCE, tokenizer.eos_token_id)
        self._end_id: int = end_id
        self._pad_id = end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.stop_ids = set_end_tokens(model, [end_id, tokenizer.eos_token_id], self._pad_id)
        model.generation_config.suppress_tokens = [self._image_id, vocabulary[_FAKE]]
        self._longest: int = model.config.get_text_config().max_position_embeddings

    _asked, _lead = ":", ""
    """The end of a prompt, and what stands between it and an answer."""

    @abstractmethod
    def encode(self, prompt: Prompt) -> IdeficsPrompt:
        """Opens the prompt's images. Raises InputError for a prompt that cannot be shown."""

    def encode_answer(self, answer: str) -> list[int]:
        """The tokens that the answer has after a prompt, and the one that ends it.

        Raises InputError for an answer with an image.
        """
        before = self._tokenise(self._asked)
        whole = self._tokenise(self._asked + self._lead + answer)
        fits = whole[: len(before)] == before
        token_ids = whole[len(before) :] if fits else self._tokenise(answer)
        if self._image_id in token_ids:
            raise InputError(f"an answer to be scored contains the token {IMAGE}")
        return [*token_ids, self._end_id]

    def generate(
        self, prompts: Sequence[IdeficsPrompt], decoding: Decoding
    ) -> Sequence[Generation]:
        """Decode each prompt. Raises torch.OutOfMemoryError, and InputError for one too long."""
        self._check_length(max(prompt.tokens for prompt in prompts) + decoding.max_new_tokens)
        arguments = self._arguments([(prompt, ()) for prompt in prompts])
        return generation.generate(self, arguments, decoding)

    def score(self, rows: Sequence[tuple[IdeficsPrompt, Sequence[int]]]) -> Sequence[float]:
        """log p(tokens | prompt) of each row. Raises as `generate` does."""
        self._check_length(max(prompt.tokens + len(answer) for prompt, answer in rows))
        return generation.score(self, self._arguments(rows), [len(answer) for _, answer in rows])

    def _tokenise(self, text: str) -> list[int]:
        token_ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids

    def _check_length(self, tokens: int) -> None:
        if tokens > self._longest:
            raise InputError(
                f"the prompt with its answer has {tokens} tokens, and the model reads"
                f" {self._longest} at most; show fewer demonstrations"
            )

    def _arguments(self, rows: Sequence[tuple[IdeficsPrompt, Sequence[int]]]) -> dict[str, Tensor]:
        """The model's arguments for rows of (prompt, tokens that follow it), on its device."""
        device = self.model.device
        token_ids = [[*prompt.token_ids, *following] for prompt, following in rows]
        arguments = left_pad(token_ids, self._pad_id, device)
        names = dict.fromkeys(name for prompt, _ in rows for name in prompt.images)
        for name in names:
            tensors = [prompt.images.get(name) for prompt, _ in rows]
            arguments[name] = _right_pad(tensors).to(device)
        return arguments


class Idefics1(Idefics):
    """IDEFICS-1: images by cross-attention."""

    def encode(self, prompt: Prompt) -> IdeficsPrompt:
        if _END_OF_UTTERANCE in self.tokenizer.get_vocab():
            text = _dialogue(prompt)
        else:
            text = render(prompt, close="\n")
        text = text.replace(IMAGE, f"{_FAKE}{IMAGE}{_FAKE}").replace(_FAKE + _FAKE, _FAKE)
        token_ids = self._tokenise(f"{self.tokenizer.bos_token}{text}")
        check_images(token_ids.count(self._image_id), prompt)
        if prompt.images:
            pixels = self._image_processor(
                [image.open() for image in prompt.images], return_tensors="pt"
            )
        else:  # the model wants an image; no token sees this one
            side = self._image_processor.image_size
            pixels = torch.zeros(1, 3, side, side)
        return IdeficsPrompt(token_ids, {"pixel_values": pixels[None]})

    def _arguments(self, rows: Sequence[tuple[IdeficsPrompt, Sequence[int]]]) -> dict[str, Tensor]:
        arguments = super()._arguments(rows)
        number_BL = (arguments["input_ids"] == self._image_id).long().cumsum(-1)
        row_images = arguments["pixel_values"].shape[1]
        seen_BLT = one_hot(number_BL, row_images + 1)[:, :, 1:]
        return {**arguments, "image_attention_mask": seen_BLT}


class IdeficsChat(Idefics):
    """Idefics2 and Idefics3: images among the tokens, prompts by the chat template."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor.tokenizer, processor.image_processor)
        self._processor = processor
        user = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        said = {"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]}
        asked = self._template([user], add_generation_prompt=True)
        answered = self._template([user, said], add_generation_prompt=False)
        if answered.startswith(asked) and "ANSWER" in answered:
            self._asked = asked
            self._lead = answered.removeprefix(asked).partition("ANSWER")[0]

    def encode(self, prompt: Prompt) -> IdeficsPrompt:
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
            text = self._template(conversation, add_generation_prompt=True)
        except TemplateError as error:
            raise InputError(f"the chat template refuses the prompt: {error}") from error
        check_images(text.count(IMAGE), prompt)
        bos = self.tokenizer.bos_token
        try:
            arguments = self._processor(
                text=[text],
                images=[[image.open() for image in prompt.images]] if prompt.images else None,
                add_special_tokens=not (bos and text.startswith(bos)),
                return_tensors="pt",
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"the processor refuses the prompt ({first_line(error)})") from error
        names = ("pixel_values", "pixel_attention_mask")
        images = {name: arguments[name] for name in names if name in arguments}
        return IdeficsPrompt(arguments["input_ids"][0].tolist(), images)

    def _template(self, conversation: object, *, add_generation_prompt: bool) -> str:
        text: str = self._processor.apply_chat_template(
            conversation, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text


def load_idefics(
    folder: Path, family: str, dtype: torch.dtype, device: torch.device, name: str
) -> Idefics:
    """A model of the family, from its folder. Raises InputError for one that cannot be used.

    name: what the user calls it.
    """
    model_class = getattr(transformers, FAMILIES[family])
    # The image processor that works with Pillow, whether torchvision is installed or not: the two
    # round differently, and what is installed must not decide an answer.
    try:
        image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        if family == "idefics":
            processor = None
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        else:
            processor = transformers.AutoProcessor.from_pretrained(folder)
            processor.image_processor = image_processor
            tokenizer = processor.tokenizer
    except LOADING_ERRORS as error:
        raise InputError(
            f"{folder}: cannot load the tokenizer and the image processor ({first_line(error)})"
        ) from error
    missing = {IMAGE, _FAKE} - tokenizer.get_vocab().keys()
    if missing:
        raise InputError(f"{folder}: the tokenizer has no {', '.join(sorted(missing))}")
    if processor is not None and not processor.chat_template:
        raise InputError(
            f"{folder}: no chat template; copy it from the model that this one was made from"
        )
    model = load_weights(model_class, folder, dtype=dtype, attention="sdpa")
    model = place(model, device, name)
    if processor is None:
        return Idefics1(model, tokenizer, image_processor)
    return IdeficsChat(model, processor)


def _dialogue(prompt: Prompt) -> str:
    """As IDEFICS-1's instructed models were trained."""
    turns = []
    for message in prompt.messages:
        text = "".join(part if isinstance(part, str) else IMAGE for part in message.parts)
        space = "" if text.startswith(IMAGE) else " "
        turns.append(f"{message.role.capitalize()}:{space}{text}{_END_OF_UTTERANCE}")
    return "\n".join([*turns, "Assistant:"])


def _right_pad(tensors: Sequence[Tensor | None]) -> Tensor:
    """[1, …] each, of as many dimensions → [B, …]: zeros behind, and for what is not there."""
    present = [tensor for tensor in tensors if tensor is not None]
    sizes = [max(lengths) for lengths in zip(*(each.shape[1:] for each in present), strict=True)]
    padded = present[0].new_zeros(len(tensors), *sizes)
    for row, tensor in zip(padded, tensors, strict=True):
        if tensor is not None:
            row[tuple(slice(length) for length in tensor.shape[1:])] = tensor[0]
    return padded
