"""Options of the hf backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pointer_rl.options import FileOrName, FilePath


@dataclass(frozen=True, kw_only=True, slots=True)
class HFBackendOptions:
    """Which checkpoint to run, its chat template, device and precision."""

    model: FileOrName
    """Checkpoint folder, or Hugging Face Hub id (llava-hf/llava-1.5-7b-hf)."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    adapter: FilePath | None = None
    """Folder of a LoRA adapter (peft) to apply to the model."""
    chat_template: FileOrName | None = None
    """Jinja file to use instead of the checkpoint's chat template; plain: texts and images as they
    come, with nothing around them (for models that were not trained on chats)."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, …; auto is cuda where there is one, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of weights and activations; auto is float32 on a CPU, else bfloat16."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernels; flash_attention_2 needs the package flash-attn and a CUDA device."""
    batch_tokens: int | None = None
    """Tokens that go through the model together (by default 1,024 on a CPU, else 16,384); halved
    by itself where memory runs out."""
    threads: int | None = None
    """CPU threads of torch while the model runs; by default one for a model of fewer than 20
    million parameters, else torch's own number. OMP_NUM_THREADS, if set, is the default."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError("threads must be at least 1")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError("batch_tokens must be at least 1")
