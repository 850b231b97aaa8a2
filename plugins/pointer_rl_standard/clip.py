"""The `clip` encoder: CLIP or SigLIP through transformers.

Shapes: N examples; d_i and d_t, the sizes of an image's and a question's vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.local.hub import checkpoint_folder
from pointer_rl.types import Example
from pointer_rl_standard.options import ClipOptions

FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
WHAT = "give a folder with a CLIP or SigLIP checkpoint, or its id on the Hugging Face Hub"


class ClipEncoder:
    """Unit vectors of images, of questions, or of both, concatenated with the image first.

    Mode image: [N, d_i]; text: [N, d_t]; both: [N, d_i + d_t], of norm √2. Questions are truncated
    to the model's maximum length.
    """

    fingerprint: str
    dim: int

    def __init__(self, options: ClipOptions) -> None:
        """Raises InputError if `model` is not a complete CLIP or SigLIP checkpoint."""
        self._mode = options.mode
        self._device = resolve_device(options.device)
        folder = checkpoint_folder(options.model, options.revision, FILES)
        try:
            config = AutoConfig.from_pretrained(folder)
            if config.model_type not in ("clip", "siglip"):
                raise InputError(
                    f"encoder clip: {options.model} is a {config.model_type} model; {WHAT}"
                )
            model, loading = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=options.dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
            if self._mode != "text":
                # Pillow, so that pixels are the same with and without torchvision.
                self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
            if self._mode != "image":
                self._tokenizer = AutoTokenizer.from_pretrained(folder)
                # transformers makes up an empty tokenizer if the folder has none.
                if len(self._tokenizer) <= len(self._tokenizer.all_special_ids):
                    raise ValueError("no tokenizer files")
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            if isinstance(error, ImportError) and "sentencepiece" in str(error).lower():
                raise MissingExtraError(
                    "sentencepiece", f"the tokenizer of {options.model}"
                ) from error
            summary = " ".join(str(error).split())
            raise InputError(
                f"encoder clip: cannot load {options.model} ({summary[:300]}); {WHAT}"
            ) from error
        if loading["missing_keys"]:
            raise InputError(
                f"encoder clip: {options.model} lacks weights "
                f"({', '.join(sorted(loading['missing_keys'])[:3])}, …); {WHAT}"
            )
        self._model = model.to(self._device).eval()
        self._siglip = config.model_type == "siglip"
        self.dim = sum(_dims(config)[kind] for kind in self._kinds)
        self.fingerprint = (
            f"clip {_digest(folder)} mode={self._mode} "
            f"dtype={str(model.dtype).removeprefix('torch.')}"
        )

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("image", "text") if self._mode == "both" else (self._mode,)

    @torch.inference_mode()
    def encode(self, examples: Sequence[Example]) -> Tensor:
        """[N, dim] float32 on the CPU. Raises InputError for an unreadable image."""
        encode = {"image": self._encode_images, "text": self._encode_questions}
        vectors = [
            torch.nn.functional.normalize(encode[kind](examples).float(), dim=-1)
            for kind in self._kinds
        ]
        return torch.cat(vectors, dim=-1).cpu()

    def _encode_images(self, examples: Sequence[Example]) -> Tensor:
        images = [example.image.open() for example in examples]
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self._device, self._model.dtype)
        features: Tensor = self._model.get_image_features(pixel_values=pixels).pooler_output
        return features

    def _encode_questions(self, examples: Sequence[Example]) -> Tensor:
        # SigLIP was trained on text padded to full length, without a mask: its vector is that of
        # the last position.
        tokens = self._tokenizer(
            [example.question for example in examples],
            padding="max_length" if self._siglip else True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_attention_mask=not self._siglip,
            return_tensors="pt",
        ).to(self._device)
        features: Tensor = self._model.get_text_features(**tokens).pooler_output
        return features


def _dims(config: Any) -> dict[str, int]:
    if config.model_type == "clip":
        return {"image": config.projection_dim, "text": config.projection_dim}
    return {
        "image": config.vision_config.hidden_size,
        "text": config.text_config.projection_size,
    }


def _digest(folder: Path) -> str:
    """Hash of the files that determine the vectors."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if any(map(file.match, FILES)):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                hashlib.file_digest(content, lambda: digest)
    return f"sha256:{digest.hexdigest()[:16]}"
