"""The work that a Qwen-VL model cannot avoid for given trials, and its speed.

Each kind of work runs on the bare model at the batch size at which it is fastest. Tokens after a
prefix read its keys and values in place; nothing is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from transformers.cache_utils import DynamicLayer

from pointer_rl.types import Request, Response
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.keyvalues import HeadShape
from pointer_rl_qwen2vl.planning import AnswerTree, find_prefixes

one_thread = torch.get_num_threads() == 1
clock = time.process_time if one_thread else time.perf_counter


def seconds_of(run: Callable[[], object]) -> float:
    start = clock()
    run()
    return clock() - start


def rate_of(run: Callable[[], object]) -> float:
    """Calls per second."""
    times, seconds = 0, 0.0
    while seconds < 0.2:
        seconds += seconds_of(run)
        times += 1
    return times / seconds


@dataclass(frozen=True)
class Needed:
    """The work that cannot be avoided."""

    tokens: int
    images: int
    steps: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        windows: Sequence[Sequence[Request]],
        responses: Sequence[Response],
        image_tokens: int,
    ) -> Needed:
        encoder = PromptEncoder(checkpoint)
        tokens = images = 0

        def width(element: int) -> int:
            return 1 if element >= 0 else image_tokens

        for window in windows:
            numbers: dict[str, int] = {}
            prompts = []
            for request in window:
                shown = iter(request.prompt.images)
                prompts.append(
                    [
                        numbers.setdefault(next(shown).key, -1 - len(numbers))
                        if token == checkpoint.image_token_id
                        else token
                        for token in encoder.encode(request.prompt)
                    ]
                )
                scored = [encoder.encode_answer(answer) for answer in request.score]
                tokens += len(AnswerTree.merge(scored, checkpoint.turn_end_id).token_ids)
            prompts.sort()
            plan = find_prefixes(prompts, width, 1)
            tokens += sum(sum(map(width, prompts[n.row][n.start : n.end])) for n in plan.nodes)
            for prompt, parent in zip(prompts, plan.parents, strict=True):
                start = 0 if parent is None else plan.nodes[parent].end
                tokens += sum(map(width, prompt[start:]))
            images += len(numbers)
        steps = sum(response.usage.generated_tokens - 1 for response in responses)
        return cls(tokens, images, steps)


class InPlaceLayer(DynamicLayer):
    """Keys and values with room for those of one forward pass. Nothing is copied or extended.

    transformers' own layer concatenates old and new keys and values in every forward pass.
    """

    def __init__(self, size: tuple[int, ...], before: int) -> None:
        """`size` is [B, K, P + S, D]; the first P places are filled."""
        super().__init__()
        self._all = torch.randn(size), torch.randn(size)
        self._before = before
        self.keys, self.values = (each[:, :, :before] for each in self._all)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for tensor, new in zip(self._all, (keys, values), strict=True):
            tensor[:, :, self._before :] = new
        return self._all


class Bare:
    """Speed of the bare model on tokens, images and decoding steps, at the best batch sizes."""

    def __init__(self, checkpoint: Checkpoint, grid: list[int], length: int, prompt: int) -> None:
        """`length` is the number of new tokens, `prompt` the number of all tokens of a prompt."""
        self._model = checkpoint.model
        self._shape = HeadShape.of(checkpoint.model)
        self._grid = grid
        patches = grid[1] * grid[2]
        tokens = [rows for rows in (4, 8, 16, 24, 32, 64) if rows * length <= 2048]
        images = [number for number in (1, 4, 8, 16, 64, 128) if number * patches <= 2048]
        steps = [rows for rows in (16, 32, 64, 128, 256) if rows * prompt <= 32768]
        after = prompt - length
        self._sizes = {
            "fresh tokens": self._each(tokens, length, partial(self._tokens, length, 0)),
            "tokens": self._each(tokens, length, partial(self._tokens, length, after)),
            "images": self._each(images, 1, self._images),
            "steps": self._each(steps, 1, partial(self._tokens, 1, prompt)),
        }

    def speeds(self) -> dict[str, float]:
        """Items per second of each kind, at the batch size that is fastest at the moment.

        The size is chosen anew each time: a size chosen in a slow moment would lower the limit.
        """
        return {
            name: max(number * rate_of(run) for number, run in sizes)
            for name, sizes in self._sizes.items()
        }

    def _each(
        self, sizes: Sequence[int], each: int, make: Callable[[int], Callable[[], object]]
    ) -> list[tuple[int, Callable[[], object]]]:
        runs = [(size * each, make(size)) for size in sizes]
        for _, run in runs:
            run()  # Warm up.
        return runs

    def _tokens(self, length: int, before: int, rows: int) -> Callable[[], object]:
        """A forward pass over rows of `length` tokens, each after `before` others."""
        ids = torch.randint(0, 500, (rows, length))
        if not before:
            return lambda: self._run(ids, use_cache=False)
        cache = transformers.DynamicCache(config=self._model.config.get_text_config())
        size = (rows, self._shape.heads, before + length, self._shape.size)
        cache.layers = [InPlaceLayer(size, before) for _ in range(self._shape.layers)]
        return lambda: self._run(ids, past_key_values=cache)

    def _images(self, number: int) -> Callable[[], object]:
        vision = self._model.config.vision_config
        size = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(number * self._grid[1] * self._grid[2], size)
        grids = torch.tensor([self._grid] * number)

        @torch.inference_mode()
        def encode() -> None:
            self._model.get_image_features(pixels, grids)

        return encode

    @torch.inference_mode()
    def _run(self, ids: torch.Tensor, **options: object) -> None:
        self._model(ids, logits_to_keep=1, **options)
