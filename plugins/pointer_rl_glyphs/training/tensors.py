"""Episodes as tensors, in the prompts that the prompt builders make."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from pointer_rl.local.chat import chat_messages, render_chat
from pointer_rl.types import PromptBuilder
from pointer_rl_glyphs.images import SIZE, GlyphImage
from pointer_rl_glyphs.lexicon import COLORS, JOINER, KEYS, PATTERNS, SHAPES
from pointer_rl_glyphs.training.episodes import Episode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PATCH, MERGE = 14, 2
_SIDE = SIZE // PATCH
IMAGE_TOKENS = (_SIDE // MERGE) ** 2
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def patches(images: Sequence[GlyphImage]) -> torch.Tensor:
    """[N, 16, 588] uint8: unnormalised patches in the order of Qwen2-VL's image processor."""
    pixels = torch.from_numpy(np.stack([np.asarray(image.open()) for image in images]))
    blocks = _SIDE // MERGE
    split = pixels.reshape(-1, blocks, MERGE, PATCH, blocks, MERGE, PATCH, 3)
    return split.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(len(images), _SIDE * _SIDE, -1)


def pixel_values(patches_NPx: torch.Tensor) -> torch.Tensor:
    """[N·16, 1176] float32: normalised, with the frame repeated as the processor repeats it."""
    channels = patches_NPx.reshape(-1, 3, PATCH * PATCH).float() / 255
    normal = (channels - _MEAN[:, None]) / _STD[:, None]
    return normal[:, :, None].expand(-1, 3, 2, -1).reshape(len(normal), -1)


def grid(num_images: int) -> torch.Tensor:
    """[N, 3]: numbers of patches in time, height and width."""
    return torch.tensor([[1, _SIDE, _SIDE]]).expand(num_images, 3)


class ImageBank:
    """Images drawn before training, the same number for each combination of features and stamp.

    Drawing takes as long as a training step, so training steps use these images.
    """

    def __init__(self, seed: int, copies: int) -> None:
        rng = random.Random(f"{seed}/pictures")  # the shipped weights come from this seed
        combinations = list(product(SHAPES, COLORS, PATTERNS, (False, True)))
        self._slot = {combination: index for index, combination in enumerate(combinations)}
        self.copies = copies
        parts = []
        for shape, color, pattern, stamped in combinations:
            draw = partial(GlyphImage.draw_at_random, shape=shape, color=color, pattern=pattern)
            parts.append(patches([draw(rng, stamped=stamped) for _ in range(copies)]))
        self.patches = torch.cat(parts)
        numbers = (len(SHAPES), len(COLORS), len(PATTERNS), 2)
        features = torch.cartesian_prod(*map(torch.arange, numbers))
        self.features = features.repeat_interleave(copies, 0)
        """[N, 4] indices of shape, colour, pattern and stamp."""

    def rows(self, images: Sequence[GlyphImage], rng: random.Random) -> torch.Tensor:
        """For each image, the row of a random one with the same features."""
        slots = [self._slot[(p.shape, p.color, p.pattern, p.stamped)] for p in images]
        return torch.tensor([slot * self.copies + rng.randrange(self.copies) for slot in slots])


@dataclass(frozen=True)
class Batch:
    """Episodes of one length.

    Shapes: E episodes, L tokens, A words of answers (one or two per block), T supervised tokens.
    """

    input_ids: torch.Tensor
    """[E, L], padded on the right"""
    attention_mask: torch.Tensor
    """[E, L]"""
    asked_at: torch.Tensor
    """[A, 2]: episode and position of the last token before each word"""
    keys: torch.Tensor
    """[A]: index in KEYS of what each word means"""
    positions: torch.Tensor
    """[T, 2]: episode and position from which each supervised token is predicted"""
    targets: torch.Tensor
    """[T]"""
    weights: torch.Tensor
    """[T]"""
    target_blocks: torch.Tensor
    """[T]: block of each supervised token, counted over all episodes"""


def tokenise(
    episodes: Sequence[Episode],
    builder: PromptBuilder,
    tokenizer: PreTrainedTokenizerFast,
    query_weight: float,
) -> Batch:
    """Render and tokenise episodes and find their answers.

    Supervised tokens are those of the answers that can be known and, in the last block, the end of
    the turn. Tokens of the last block have the weight `query_weight`, others 1.
    """
    texts = []
    for episode in episodes:
        prompt = builder.build(episode[-1].example, [block.example for block in episode[:-1]])
        text = render_chat(tokenizer, chat_messages(prompt))
        text = text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS)
        texts.append(text + episode[-1].answer + "<|im_end|>")
    encoded = tokenizer(
        texts, padding=True, padding_side="right", return_tensors="pt", return_offsets_mapping=True
    )

    asked_at: list[tuple[int, int]] = []
    keys: list[int] = []
    positions: list[tuple[int, int]] = []
    targets: list[int] = []
    weights: list[float] = []
    target_blocks: list[int] = []
    number = 0
    for row, (episode, text) in enumerate(zip(episodes, texts, strict=True)):
        ids = encoded.input_ids[row].tolist()
        starts = {
            start: index
            for index, (start, end) in enumerate(encoded.offset_mapping[row].tolist())
            if end
        }
        cursor = 0
        for block in episode:
            is_query = block is episode[-1]
            cursor = text.index(block.question, cursor) + len(block.question)
            if is_query:
                start = len(text) - len(block.answer + "<|im_end|>")
            else:
                start = min(
                    at + len(marker)
                    for marker in (" answer:", "assistant\n")
                    if (at := text.find(marker + block.answer, cursor)) >= 0
                )
            first = starts[start]
            last = starts[start + len(block.answer)]  # the token after the answer
            if block.answerable:
                for index in range(first, last + is_query):
                    positions.append((row, index - 1))
                    targets.append(ids[index])
                    weights.append(query_weight if is_query else 1.0)
                    target_blocks.append(number)
            for key, word in zip(block.keys, block.answer.split(JOINER), strict=True):
                asked_at.append((row, starts[start] - 1))
                keys.append(KEYS.index(key))
                start += len(word + JOINER)
            number += 1
    return Batch(
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        asked_at=torch.tensor(asked_at),
        keys=torch.tensor(keys),
        positions=torch.tensor(positions).reshape(-1, 2),
        targets=torch.tensor(targets, dtype=torch.long),
        weights=torch.tensor(weights),
        target_blocks=torch.tensor(target_blocks, dtype=torch.long),
    )
