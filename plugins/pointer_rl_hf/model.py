"""A loaded checkpoint as a `LocalModel`.

Each prompt goes through the processor once, alone, and batches are joined from the results. When a
model is loaded, two prompts that differ in length, image size and number of images show whether a
joined batch equals the processor's own batch. If it does not, prompts run one at a time.

Answers are scored in one pass, which is correct only if no token attends to later ones. Some models
attend in both directions within a prompt and use token types to tell the text that follows it
apart. This, too, is detected when a model is loaded.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from pointer_rl.errors import InputError, first_line
from pointer_rl.local.batching import LocalBackend, default_batch_tokens
from pointer_rl.local.decoding import Generation, generate_batch, last_logits, score_batch
from pointer_rl.local.templates import TALL, WIDE, user_prompt
from pointer_rl.local.threads import choose_threads
from pointer_rl.types import Decoding, Prompt
from pointer_rl_hf.checkpoint import Checkpoint
from pointer_rl_hf.inputs import HFPrompt, join

logger = logging.getLogger(__name__)

Rows = Sequence[tuple[HFPrompt, Sequence[int]]]
"""Prompts, each with the tokens that follow it."""


def make_backend(
    checkpoint: Checkpoint, batch_tokens: int | None, threads: int | None = None
) -> LocalBackend[HFPrompt]:
    """Make the backend of a loaded checkpoint. Raises InputError if it accepts no images.

    For the other arguments see `HFBackendOptions`.
    """
    try:
        model = HFModel(checkpoint)
    except (InputError, RuntimeError) as error:
        name, why = checkpoint.model.name_or_path, first_line(error)
        raise InputError(f"{name}: cannot take a prompt with an image ({why})") from error
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(checkpoint.model.device)
    if not model.joins_as_the_processor():
        logger.warning(
            "%s pads batches in a way of its own: prompts go through the model one at a time",
            type(checkpoint.processor).__name__,
        )
        batch_tokens = 1
    return LocalBackend(
        model,
        fingerprint=checkpoint.fingerprint,
        batch_tokens=batch_tokens,
        advice="use fewer demonstrations, smaller images or fewer beams",
        threads=choose_threads(checkpoint.model, threads),
    )


class HFModel:
    """A `LocalModel` over transformers' processor and model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._processor = checkpoint.processor
        self._tokenizer = checkpoint.tokenizer
        model = checkpoint.model
        self._max_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # `generate` computes positions itself, but a forward pass needs them as an argument, unless
        # the model has get_rope_index and computes positions in three dimensions.
        self._counts_positions = "position_ids" in inspect.signature(
            model.forward
        ).parameters and not hasattr(model.base_model, "get_rope_index")
        self._following_type = self._find_following_type()
        """Token type of an answer; None if the model cannot score an answer in one pass."""

    def encode(self, prompt: Prompt) -> HFPrompt:
        """See `LocalModel`."""
        encoded = self._encode_unchecked(prompt)
        if self._max_tokens is not None and encoded.tokens >= self._max_tokens:
            raise InputError(
                f"the prompt has {encoded.tokens} tokens, the model takes {self._max_tokens};"
                " use fewer demonstrations or smaller images"
            )
        return encoded

    def encode_answer(self, answer: str) -> list[int]:
        """See `LocalModel`. Answers are tokenised alone, since generation starts at a new token."""
        if self._following_type is None:
            raise InputError(
                "answers cannot be scored: this model lets a token attend to later tokens"
            )
        token_ids: list[int] = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        special = self._checkpoint.special_ids.intersection(token_ids)
        if special:
            token = self._tokenizer.convert_ids_to_tokens(min(special))
            raise InputError(f"an answer to be scored contains the token {token}")
        return [*token_ids, self._checkpoint.turn_end_id]

    def generate(self, prompts: Sequence[HFPrompt], decoding: Decoding) -> list[Generation]:
        """See `LocalModel`."""
        if decoding.num_beams > 1 and not self._beams_see_their_images:
            raise InputError(
                f"transformers {transformers.__version__} mixes up the images of this model's"
                " beams; ask without beams (num_beams=1)"
            )
        done: dict[int, Generation] = {}
        for indices, arguments in self._join([(prompt, ()) for prompt in prompts]):
            with _refusing("the model refuses the prompt"):
                generated = generate_batch(self._checkpoint, arguments, decoding)
            done |= zip(indices, generated, strict=True)
        return [done[index] for index in range(len(prompts))]

    def score(self, rows: Rows) -> list[float]:
        """See `LocalModel`."""
        done: dict[int, float] = {}
        assert self._following_type is not None, "encode_answer refuses every answer"
        for indices, arguments in self._join(rows, self._following_type):
            if self._counts_positions:
                positions = arguments["attention_mask"].cumsum(dim=1) - 1
                arguments["position_ids"] = positions.clamp(min=0)
            lengths = [len(rows[index][1]) for index in indices]
            with _refusing("the model refuses the prompt"):
                logprobs = score_batch(self._checkpoint, arguments, lengths)
            done |= zip(indices, logprobs, strict=True)
        return [done[index] for index in range(len(rows))]

    def joins_as_the_processor(self) -> bool:
        """Whether joining two encoded prompts gives the batch that the processor makes of them."""
        prompts = [user_prompt(WIDE, "alpha"), user_prompt("beta", TALL, "gamma", WIDE)]
        try:
            rows = [(self._encode_unchecked(prompt), ()) for prompt in prompts]
            batch = self._process(prompts, padding_side="left")
        except InputError:
            return False
        joined = join(rows, self._checkpoint.pad_id)
        return joined.keys() == batch.keys() and all(
            torch.equal(tensor, batch[name]) for name, tensor in joined.items()
        )

    def _find_following_type(self) -> int | None:
        """The token type with which following tokens leave the logits before them unchanged.

        Raises InputError if the model refuses even one prompt with one image.
        """
        prompt = self._encode_unchecked(user_prompt(WIDE, "alpha"))
        first, second, *_ = self._tokenizer("alpha beta", add_special_tokens=False)["input_ids"]
        rows = [(prompt, (first, first)), (prompt, (first, second))]
        for kind in (0, 1) if "token_type_ids" in prompt.tensors else (0,):
            [(_, arguments)] = self._join(rows, kind)
            with _refusing("the model refuses the prompt"):
                one, other = last_logits(self._checkpoint, arguments, 3)[:, :-1]
            if (one - other).abs().max() <= 0.01 * one.abs().max():
                return kind
        return None

    @cached_property
    def _beams_see_their_images(self) -> bool:
        """Whether the first logits after two images are the same with and without beams."""
        prompt = self._encode_unchecked(user_prompt(WIDE, "alpha", TALL))
        [(_, arguments)] = self._join([(prompt, ())])
        expected = last_logits(self._checkpoint, arguments, 1)[0]
        config = GenerationConfig(num_beams=2, max_new_tokens=1, do_sample=False)
        try:
            output = self._checkpoint.model.generate(
                **arguments,
                generation_config=config,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except ValueError:  # The number of images does not match the number of placeholders.
            return False
        difference = (output.logits[0].float() - expected).abs().max()
        return bool(difference <= 0.01 * expected.abs().max())

    def _encode_unchecked(self, prompt: Prompt) -> HFPrompt:
        """Encode a prompt of any length. Raises InputError."""
        return HFPrompt(self._process([prompt]))

    def _process(
        self, prompts: Sequence[Prompt], padding_side: str | None = None
    ) -> dict[str, Tensor]:
        """The processor's tensors on the CPU, floats in the model's dtype. Raises InputError.

        Several prompts need a `padding_side`, and an image each.
        """
        texts = [self._checkpoint.chat.render(prompt) for prompt in prompts]
        images: list[list[Image.Image]] = [
            [image.open() for image in prompt.images] for prompt in prompts
        ]
        begin = self._tokenizer.bos_token
        padding = {} if padding_side is None else {"padding": True, "padding_side": padding_side}
        # Code of many authors: on text that it does not expect it raises anything (StopIteration).
        with _refusing("the processor refuses the prompt", (Exception,)):
            features = self._processor(
                text=texts,
                images=images if any(images) else None,
                return_tensors="pt",
                add_special_tokens=not (begin and texts[0].startswith(begin)),
                **padding,
            )
        tensors = {}
        for name, value in features.items():
            if name == "labels":  # Used in training only.
                continue
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{type(self._processor).__name__} gives {name} as {type(value).__name__}, not"
                    " a tensor: the backend hf cannot run this model"
                )
            floating = value.is_floating_point()
            tensors[name] = value.to(self._checkpoint.model.dtype) if floating else value
        return tensors

    def _join(
        self, rows: Rows, following_type: int = 0
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Batches of rows as (their indices, the model's arguments on its device).

        Prompts with and without images have different arguments and go into separate batches.
        """
        kinds: dict[frozenset[str], list[int]] = {}
        for index, (prompt, _) in enumerate(rows):
            kinds.setdefault(frozenset(prompt.tensors), []).append(index)
        device = self._checkpoint.model.device
        for indices in kinds.values():
            alike = [rows[index] for index in indices]
            joined = join(alike, self._checkpoint.pad_id, following_type)
            yield indices, {name: tensor.to(device) for name, tensor in joined.items()}


@contextmanager
def _refusing(
    what: str,
    kinds: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, AttributeError),
) -> Iterator[None]:
    """Turn exceptions with which a prompt is refused (by default, a model's) into InputError."""
    try:
        yield
    except kinds as error:
        raise InputError(f"{what}: {first_line(error)}") from error
