"""Options of the qwen2vl backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pointer_rl.options import FileOrName, FilePath


@dataclass(frozen=True, kw_only=True, slots=True)
class Qwen2VLOptions:
    """Which checkpoint to run, device and precision."""

    model: FileOrName
    """Checkpoint folder, or Hugging Face Hub id (Qwen/Qwen2.5-VL-3B-Instruct)."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    adapter: FilePath | None = None
    """Folder of a LoRA adapter (peft) to apply to the model."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, …; auto is cuda where there is one, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of weights and activations; auto is float32 on a CPU, else bfloat16."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernels; flash_attention_2 needs the package flash-attn and a CUDA device. The
    vision tower of engine=shared always takes sdpa."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels; the checkpoint's own value by default."""
    max_pixels: int | None = None
    """Larger images are reduced to this many pixels; the checkpoint's own value by default."""
    engine: Literal["shared", "plain"] = "shared"
    """shared computes what prompts have in common once; plain is transformers' own generate."""
    batch_tokens: int | None = None
    """Tokens that go through the model together (by default 1,024 on a CPU, else 16,384); halved
    by itself where memory runs out."""
    cache_gib: float | None = None
    """GiB for the keys and values of prompts that are decoded together. engine=shared takes up to
    2.25 times as much: shared prefixes and images have theirs. By default 0.25 on a CPU, and on a
    GPU a power of two that fits its free memory."""
    cuda_graphs: bool = True
    """Whether engine=shared runs decoding steps on a GPU as CUDA graphs."""
    threads: int | None = None
    """CPU threads of torch while the model runs; by default one for a model of fewer than 20
    million parameters, else torch's own number. OMP_NUM_THREADS, if set, is the default."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError("threads must be at least 1")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError("batch_tokens must be at least 1")
        if self.cache_gib is not None and not 0 < self.cache_gib < math.inf:
            raise ValueError("cache_gib must be above 0")
        if self.engine == "shared" and self.attn_implementation == "flash_attention_2":
            raise ValueError(
                "attn_implementation=flash_attention_2 takes no masks, which engine=shared needs;"
                " use engine=plain with it, or sdpa"
            )
        for name, pixels in (("min_pixels", self.min_pixels), ("max_pixels", self.max_pixels)):
            if pixels is not None and pixels < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
