"""What a checkpoint is, as a short string: equal where the same request gets the same response."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

from pointer_rl.local.fingerprints import digest_of, folder_digest

__all__ = ["checkpoint_fingerprint"]


def checkpoint_fingerprint(
    folder: Path,
    adapter: Path | None,
    *,
    family: str,
    dtype: str,
    attn_implementation: str,
    pixels: Mapping[str, int],
) -> str:
    """`qwen2vl-<family>-<dtype>-<20 hex digits>`.

    `pixels`: the image processor's limits, as in use. Raises InputError for unreadable files.
    """
    digest = digest_of(
        {
            "model": folder_digest(folder),
            "adapter": None if adapter is None else folder_digest(adapter),
            "attn_implementation": attn_implementation,
            "pixels": {name: value for name, value in pixels.items() if value is not None},
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
    )
    return f"qwen2vl-{family}-{dtype}-{digest}"
