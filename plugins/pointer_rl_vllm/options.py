"""Options of the vllm backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pointer_rl.options import FileOrName, FilePath


@dataclass(frozen=True, kw_only=True, slots=True)
class VLLMOptions:
    """Which checkpoint to run, and how vLLM runs it. Names are vLLM's own."""

    model: FileOrName
    """Checkpoint folder, or Hugging Face Hub id (Qwen/Qwen2.5-VL-3B-Instruct)."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of weights and activations; auto is float32 on a CPU, else the checkpoint's."""
    quantization: str | None = None
    """Quantise the weights when they are loaded (fp8, …); by default as the checkpoint has them."""
    chat_template: FilePath | None = None
    """Jinja file to use instead of the checkpoint's chat template."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels (Qwen-VL); the checkpoint's own value by
    default."""
    max_pixels: int | None = None
    """Larger images are reduced to this many pixels (Qwen-VL); the checkpoint's own value by
    default."""
    max_model_len: int | None = None
    """Longest prompt with its answer, in tokens; by default as long as the model allows."""
    tensor_parallel_size: int = 1
    """Number of GPUs that the model is spread over."""
    gpu_memory_utilization: float | None = None
    """Share of the memory that vLLM may use; by default vLLM's own value and, on a CPU, what the
    weights need and 4 GiB for keys and values."""
    block_size: int | None = None
    """Tokens per block of keys and values; prompts share whole blocks. By default vLLM's own value
    and, on a CPU, 32."""
    enforce_eager: bool = False
    """Neither compile the model nor use CUDA graphs: faster to start, slower to answer."""

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "max_model_len", "block_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
        if self.tensor_parallel_size < 1:
            raise ValueError("tensor_parallel_size must be at least 1")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError("gpu_memory_utilization must be greater than 0 and at most 1")
