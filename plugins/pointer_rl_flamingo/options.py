"""Options of the flamingo backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pointer_rl.options import FileOrName


@dataclass(frozen=True, kw_only=True, slots=True)
class FlamingoOptions:
    """Which checkpoint to run, the models it was trained on, device and precision."""

    model: FileOrName
    """Folder or Hugging Face Hub id: an OpenFlamingo checkpoint (checkpoint.pt), a folder with all
    of an OpenFlamingo model, or an IDEFICS-1 model."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    language_model: FileOrName | None = None
    """Folder or Hub id of the MPT or GPT-NeoX model that a checkpoint.pt was trained on."""
    vision_model: FileOrName = "openai/clip-vit-large-patch14"
    """Folder or Hub id of the CLIP model that a checkpoint.pt was trained on."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, …; auto is cuda where there is one, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of weights and activations; auto is float32 on a CPU, else bfloat16."""
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
