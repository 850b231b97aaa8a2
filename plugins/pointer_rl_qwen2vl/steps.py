"""Decoding steps: the next token of every row.

On a GPU, a step is about a thousand kernels. Launching them from Python takes much longer than
running them, however many rows take part. A CUDA graph launches them at once. It works for one
shape and for tensors at fixed addresses, so steps have few shapes (see shapes.py), and the place of
the new token is a tensor. A graph changes no result: the kernels are the same.

Shapes: B rows, C columns of the cache, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pointer_rl_qwen2vl.keyvalues import FixedCache, RowCache
from pointer_rl_qwen2vl.language import LanguageModel
from pointer_rl_qwen2vl.shapes import Shapes

Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""Makes the graph of a function, as a function that replays it."""

_MOST_SHAPES = 64


class Steps(Protocol):
    """How decoding steps are run."""

    def run(self, token_ids: Tensor, positions: Tensor, mask: Tensor, cache: RowCache) -> list[int]:
        """Append a token to the first B rows of a cache, and predict the token after it.

        token_ids [B], positions [B] and additive mask [B, C]. See `Prediction.best`.
        """
        ...

    def forget(self) -> None:
        """Release what is kept from earlier steps."""
        ...


class GrowingSteps:
    """Each step attends to the columns in use."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def forget(self) -> None:
        """See `Steps`."""

    def run(self, token_ids: Tensor, positions: Tensor, mask: Tensor, cache: RowCache) -> list[int]:
        """See `Steps`."""
        seen = mask[:, None, None, : cache.places + 1]
        part = cache.rows(0, len(token_ids))
        hidden = self._model.step(token_ids, positions, seen, part)
        cache.places = part.places
        return self._model.predict(hidden).likeliest()


class FixedSteps:
    """Steps of a few shapes, which attend to all columns. From the second one on, they are graphs.

    The cache must have as many rows as the shapes say.
    """

    def __init__(
        self, model: LanguageModel, shapes: Shapes, capturing: Callable[[], Capture] | None
    ) -> None:
        """`capturing` makes what captures graphs. Without it, there are none."""
        self._model = model
        self._shapes = shapes
        self._capturing = capturing
        self._capture: Capture | None = None
        self._steps: dict[tuple[int, ...], _FixedStep] = {}
        self.forget()

    def forget(self) -> None:
        """Release all graphs and their memory."""
        self._steps.clear()
        # A new one, since the memory that graphs share must not outlive the last of them.
        self._capture = None if self._capturing is None else self._capturing()

    def run(self, token_ids: Tensor, positions: Tensor, mask: Tensor, cache: RowCache) -> list[int]:
        """See `Steps`."""
        part = cache.rows(0, self._shapes.rows(len(token_ids)))
        key = (*part.tensors[0].shape, *(tensor.data_ptr() for tensor in part.tensors))
        if key not in self._steps:
            if len(self._steps) == _MOST_SHAPES:
                self.forget()
            self._steps[key] = _FixedStep(self._model, part, self._capture)
        best: list[int] = self._steps[key].run(token_ids, positions, mask, part).tolist()
        cache.places += 1
        return best


class _FixedStep:
    """A step of one shape, at one address."""

    def __init__(self, model: LanguageModel, cache: RowCache, capture: Capture | None) -> None:
        rows, columns = cache.tensors[0].shape[:2]
        device = model.device
        self._model = model
        self._capture = capture
        self._ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._mask = torch.zeros(rows, 1, 1, columns, dtype=model.dtype, device=device)
        self._replay: Run | None = None
        self._ran = False

    def run(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: RowCache) -> Tensor:
        number = len(ids)
        self._ids[:number] = ids
        self._positions[:number] = positions
        self._mask[:number, 0, 0] = mask
        self._place.fill_(cache.places)
        if self._replay is not None:
            return self._replay()[:number]

        # The cache is not kept: the graph has its address, and its memory may be released.
        def step() -> Tensor:
            fixed = FixedCache(cache.tensors, self._place)
            hidden = self._model.step(self._ids, self._positions, self._mask, fixed)
            return self._model.predict(hidden).best

        if self._capture is None or not self._ran:
            self._ran = True
            return step()[:number]
        self._replay = self._capture(step)
        return self._replay()[:number]


class CUDACapture:
    """Captures functions as CUDA graphs of a device, which share their temporary memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, run: Run) -> Run:
        """Capture a function. A replay overwrites the results of all earlier ones."""
        graph = torch.cuda.CUDAGraph()
        # What runs on another device or stream would not be captured.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
        ):
            result = run()

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return result

        return replay
