"""A loaded checkpoint as a `LocalModel`: prompts through the processor, batches through the model.

Each prompt goes through the processor once, alone; batches are joined from what came out. That a
batch so joined is what the processor makes of the same prompts together is checked when the model
is loaded, on two prompts of other lengths, image sizes and numbers of images. Where it is not,
prompts go through the model one at a time.

Answers are scored in one pass, which is right only where no token sees those behind it. Some models
look both ways within a prompt and tell what follows it by its token type; that, too, is found when
the model is loaded.
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
from pointer_rl.local import decoding as generation
from pointer_rl.local.batching import LocalBackend, default_batch_tokens
from pointer_rl.local.decoding import Generation
from pointer_rl.types import Decoding, Prompt
from pointer_rl_hf.checkpoint import Checkpoint
from pointer_rl_hf.inputs import EncodedPrompt, join

__all__ = ["HFModel", "make_backend"]

logger = logging.getLogger(__name__)

Rows = Sequence[tuple[EncodedPrompt, Sequence[int]]]


def make_backend(checkpoint: Checkpoint, batch_tokens: int | None) -> LocalBackend[EncodedPrompt]:
    """The backend of a loaded checkpoint. Raises InputError where it takes no image."""
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
    )


class HFModel:
    """A `LocalModel`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._processor = checkpoint.processor
        self._tokenizer = checkpoint.tokenizer
        model = checkpoint.model
        self._max_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # As `generate` does. (Models with get_rope_index count in three dimensions by themselves.)
        self._counts_positions = "position_ids" in inspect.signature(
            model.forward
        ).parameters and not hasattr(model.base_model, "get_rope_index")
        self._following_type = self._find_following_type()
        """The token type of an answer; None where the model cannot score in one pass."""

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """See `LocalModel`."""
        text = self._checkpoint.chat.render(prompt)
        encoded = self._encode(text, [image.open() for image in prompt.images])
        if self._max_tokens is not None and encoded.tokens >= self._max_tokens:
            raise InputError(
                f"the prompt has {encoded.tokens} tokens, the model takes {self._max_tokens};"
                " use fewer demonstrations or smaller images"
            )
        return encoded

    def encode_answer(self, answer: str) -> list[int]:
        """See `LocalModel`. Tokenised apart from the prompt, as generation begins after it."""
        if self._following_type is None:
            raise InputError(
                "answers cannot be scored: this model lets their tokens see those behind them"
            )
        token_ids: list[int] = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        special = self._checkpoint.special_ids.intersection(token_ids)
        if special:
            token = self._tokenizer.convert_ids_to_tokens(min(special))
            raise InputError(f"an answer to be scored contains the token {token}")
        return [*token_ids, self._checkpoint.turn_end_id]

    def generate(self, prompts: Sequence[EncodedPrompt], decoding: Decoding) -> list[Generation]:
        """See `BatchModel`."""
        if decoding.num_beams > 1 and not self._beams_see_their_images:
            raise InputError(
                f"transformers {transformers.__version__} mixes up the images of this model's"
                " beams; ask without beams (num_beams=1)"
            )
        done: dict[int, Generation] = {}
        for indices, arguments in self._join([(prompt, ()) for prompt in prompts]):
            with _refusing("the model refuses the prompt"):
                written = generation.generate(self._checkpoint, arguments, decoding)
            done |= zip(indices, written, strict=True)
        return [done[index] for index in range(len(prompts))]

    def score(self, rows: Rows) -> list[float]:
        """See `BatchModel`."""
        done: dict[int, float] = {}
        assert self._following_type is not None  # or no answer was encoded
        for indices, arguments in self._join(rows, self._following_type):
            if self._counts_positions:
                places = arguments["attention_mask"].cumsum(dim=1) - 1
                arguments["position_ids"] = places.clamp(min=0)
            lengths = [len(rows[index][1]) for index in indices]
            with _refusing("the model refuses the prompt"):
                logprobs = generation.score(self._checkpoint, arguments, lengths)
            done |= zip(indices, logprobs, strict=True)
        return [done[index] for index in range(len(rows))]

    def joins_as_the_processor(self) -> bool:
        """Whether a batch of two prompts is what the processor makes of them."""
        chat, (wide, tall) = self._checkpoint.chat, _pictures()
        one, two = chat.render_user(None, "alpha"), chat.render_user("beta", None, "gamma", None)
        try:
            rows = [(self._encode(one, [wide]), ()), (self._encode(two, [tall, wide]), ())]
            batch = self._process([one, two], [[wide], [tall, wide]], padding_side="left")
        except InputError:
            return False
        joined = join(rows, self._checkpoint.pad_id)
        return joined.keys() == batch.keys() and all(
            torch.equal(tensor, batch[name]) for name, tensor in joined.items()
        )

    def _find_following_type(self) -> int | None:
        """With which token type what follows a prompt leaves what is before as it was.

        Raises InputError where the model cannot take even one prompt with one image.
        """
        prompt = self._encode(self._checkpoint.chat.render_user(None, "alpha"), _pictures()[:1])
        first, second, *_ = self._tokenizer("alpha beta", add_special_tokens=False)["input_ids"]
        rows = [(prompt, (first, first)), (prompt, (first, second))]
        for kind in (0, 1) if "token_type_ids" in prompt.tensors else (0,):
            [(_, arguments)] = self._join(rows, kind)
            with _refusing("the model refuses the prompt"):
                one, other = generation.last_logits(self._checkpoint, arguments, 3)[:, :-1]
            if (one - other).abs().max() <= 0.01 * one.abs().max():
                return kind
        return None

    @cached_property
    def _beams_see_their_images(self) -> bool:
        """Whether what comes after two images is the same to each beam as it is without beams."""
        text = self._checkpoint.chat.render_user(None, "alpha", None)
        [(_, arguments)] = self._join([(self._encode(text, _pictures()), ())])
        expected = generation.last_logits(self._checkpoint, arguments, 1)[0]
        config = GenerationConfig(num_beams=2, max_new_tokens=1, do_sample=False)
        try:
            output = self._checkpoint.model.generate(
                **arguments,
                generation_config=config,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except ValueError:  # images and their places do not even match in number
            return False
        difference = (output.logits[0].float() - expected).abs().max()
        return bool(difference <= 0.01 * expected.abs().max())

    def _encode(self, text: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        return EncodedPrompt(self._process([text], [images] if images else None))

    def _process(
        self,
        texts: list[str],
        images: Sequence[Sequence[Image.Image]] | None,
        padding_side: str | None = None,
    ) -> dict[str, Tensor]:
        """The processor's tensors, in the model's dtype, on the CPU; padded where a side is named.

        Raises InputError.
        """
        begin = self._tokenizer.bos_token
        padding = {} if padding_side is None else {"padding": True, "padding_side": padding_side}
        with _refusing("the processor refuses the prompt"):
            features = self._processor(
                text=texts,
                images=images,
                return_tensors="pt",
                add_special_tokens=not (begin and texts[0].startswith(begin)),
                **padding,
            )
        tensors = {}
        for name, value in features.items():
            if name == "labels":  # for training
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
        """The model's arguments for rows that go together, on its device, with their indices.

        Prompts with images and those without have other arguments.
        """
        kinds: dict[frozenset[str], list[int]] = {}
        for index, (prompt, _) in enumerate(rows):
            kinds.setdefault(frozenset(prompt.tensors), []).append(index)
        device = self._checkpoint.model.device
        for indices in kinds.values():
            alike = [rows[index] for index in indices]
            joined = join(alike, self._checkpoint.pad_id, following_type)
            yield indices, {name: tensor.to(device) for name, tensor in joined.items()}


def _pictures() -> list[Image.Image]:
    """A wide and a tall one."""
    gradient = Image.linear_gradient("L").convert("RGB")
    return [gradient.resize((64, 48)), gradient.resize((40, 120))]


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """What processors and models raise for a prompt that they do not take, as an InputError."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{what}: {first_line(error)}") from error
