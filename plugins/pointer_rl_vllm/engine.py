"""vLLM's engine, in this process. This is the only module that imports vLLM.

vLLM reads the variables below when it is imported or starts. What the user has set stays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

# Start in 3 to 6 seconds instead of 34, and without importing the main module again.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
import vllm
from PIL.Image import Image
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.platforms import current_platform

from pointer_rl.errors import InputError, PluginError, first_line
from pointer_rl.types import Decoding

VERSION = vllm.__version__
ON_CPU = bool(current_platform.is_cpu())

_REFUSALS = (VLLMClientError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)
"""Exceptions of vLLM and of processors for a prompt that they do not accept."""


@cache
def start(**arguments: Any) -> LLM:
    """Start vLLM with a checkpoint. Raises InputError.

    Engines are kept: the end of one breaks the others in the process.
    """
    pixels = {name: arguments.pop(name) for name in ("min_pixels", "max_pixels")}
    pixels = {name: value for name, value in pixels.items() if value is not None}
    try:
        return LLM(
            **arguments,
            mm_processor_kwargs=pixels or None,
            limit_mm_per_prompt={"video": 0},
            enable_prefix_caching=True,
            tokenizer_mode="hf",
            trust_remote_code=False,
            seed=0,
            use_tqdm_on_load=False,
        )
    except (VLLMClientError, ValueError, RuntimeError, OSError, ImportError) as error:
        raise InputError(f"{arguments['model']}: vLLM cannot run it ({_explain(error)})") from error


class VLLMEngine:
    """An `Engine` over vLLM's `LLM`."""

    def __init__(self, llm: LLM, stop_ids: Sequence[int]) -> None:
        """`stop_ids`: tokens at which generation ends, besides those of the checkpoint."""
        self._llm = llm
        self._stop_ids = list(stop_ids)
        self._waiting: list[str] = []

    def enqueue(
        self,
        token_ids: Sequence[int],
        images: Sequence[tuple[str, Image]],
        decoding: Decoding | None,
        *,
        use_cache: bool = True,
    ) -> None:
        """See `Engine`."""
        params = _scoring() if decoding is None else self._generating(decoding)
        params.skip_reading_prefix_cache = not use_cache
        try:
            self._waiting += self._llm.enqueue([_prompt(token_ids, images)], params, use_tqdm=False)
        except _REFUSALS as error:
            raise InputError(f"vLLM refuses the prompt: {_explain(error)}") from error

    def wait(self) -> Sequence[Any]:
        """See `Engine`. Raises PluginError if the engine fails."""
        try:
            outputs: Sequence[Any] = self._llm.wait_for_completion(use_tqdm=False)
        except Exception as error:
            _fail(error)
        self._waiting = []
        return outputs

    def abort(self) -> None:
        """See `Engine`."""
        self._llm.llm_engine.abort_request(self._waiting, internal=True)
        self._waiting = []

    def count(self, token_ids: Sequence[int], images: Sequence[tuple[str, Image]]) -> int:
        """See `Engine`."""
        try:
            # The cache of processed images must only see what is sent to the engine.
            [rendered] = self._llm.renderer.render_cmpl(
                [_prompt(token_ids, images)], skip_mm_cache=True
            )
        except _REFUSALS as error:
            raise InputError(f"vLLM refuses the prompt: {_explain(error)}") from error
        return len(rendered["prompt_token_ids"])

    def _generating(self, decoding: Decoding) -> SamplingParams:
        return SamplingParams(
            temperature=0,
            max_tokens=decoding.max_new_tokens,
            stop=list(decoding.stop),
            stop_token_ids=self._stop_ids,
            detokenize=bool(decoding.stop),
        )


def _scoring() -> SamplingParams:
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=0,  # Of the prompt's own tokens only.
        flat_logprobs=True,
        detokenize=False,  # Rows of cached tokens hold ids that are none.
    )


def _prompt(token_ids: Sequence[int], images: Sequence[tuple[str, Image]]) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
    if images:
        # vLLM caches images by our keys instead of hashing their pixels.
        prompt["multi_modal_data"] = {"image": [opened for _, opened in images]}
        prompt["multi_modal_uuids"] = {"image": [key for key, _ in images]}
    return prompt


def _fail(error: Exception) -> NoReturn:
    advice = ""
    if isinstance(error, torch.OutOfMemoryError):
        advice = "; use a smaller gpu_memory_utilization or max_model_len"
    raise PluginError(f"vLLM's engine failed ({_explain(error)}){advice}") from error


def _explain(error: Exception) -> str:
    """The first line of an error's message, or the first finding of pydantic's validation."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        return str(errors()[0]["msg"])
    return first_line(error)
