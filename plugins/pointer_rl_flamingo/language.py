"""OpenFlamingo's language models: MPT, its predecessor MosaicGPT, and GPT-NeoX.

transformers implements them, except for MPT's LayerNorm over queries and keys (`qk_ln`). MosaicGPT
(MPT-1B-RedPajama, published with its own code) is MPT with that LayerNorm and other names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MptConfig, MptForCausalLM

from pointer_rl.errors import InputError, first_line

LAYERS = {"mpt": "transformer.blocks", "gpt_neox": "gpt_neox.layers"}
"""Model type → name of the module that lists its layers."""
_MOSAIC_NAMES = {
    r"\.ln_1\.": ".norm_1.",
    r"\.ln_2\.": ".norm_2.",
    r"\.ln_f\.": ".norm_f.",
    r"\.mlp\.mlp_up\.": ".ffn.up_proj.",
    r"\.mlp\.mlp_down\.": ".ffn.down_proj.",
}
_QK_NORMS = {r"\.attn\.([qk]_ln)\.": r".attn.Wqkv.\1."}
"""The norms belong to the module that computes queries, keys and values."""


class MptLanguageModel(MptForCausalLM):  # type: ignore[misc]  # transformers carries no types
    """`MptForCausalLM` that normalises queries and keys if the configuration says so."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__(config)
        if config.attn_config.qk_ln:
            for block in self.transformer.blocks:
                block.attn.Wqkv = _NormalisedQkv(block.attn.Wqkv, config)
                block.attn.clip_qkv = None  # Applied before the norms, as in MPT's own code.


class _NormalisedQkv(nn.Module):
    """Projection to queries, keys and values. Normalises queries and keys over all heads."""

    def __init__(self, projection: nn.Linear, config: MptConfig) -> None:
        super().__init__()
        self.weight = projection.weight
        self._clip = config.attn_config.clip_qkv
        width, eps = config.hidden_size, config.layer_norm_epsilon
        self.q_ln = nn.LayerNorm(width, eps=eps, bias=False)
        self.k_ln = nn.LayerNorm(width, eps=eps, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        projected = linear(hidden, self.weight)
        if self._clip:
            projected = projected.clamp(-self._clip, self._clip)
        queries, keys, values = projected.chunk(3, dim=-1)
        return torch.cat([self.q_ln(queries), self.k_ln(keys), values], dim=-1)


def language_model(config: Any) -> nn.Module:
    """Create an untrained model from a configuration (`MptConfig` or `GPTNeoXConfig`)."""
    model: nn.Module = _model_class(config)._from_config(config)
    return model


def _model_class(config: Any) -> Any:
    return {"mpt": MptLanguageModel, "gpt_neox": GPTNeoXForCausalLM}[config.model_type]


def language_config(folder: Path) -> Any:
    """Read the configuration in a language model's folder.

    Raises InputError if there is none, for another kind of model, and for settings that are not
    supported.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_bytes())
        model_type = values.pop("model_type")
    except FileNotFoundError:
        raise InputError(f"{folder}: not a language model's folder (no config.json)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a model configuration ({first_line(error)})") from error
    try:
        if model_type == "gpt_neox":
            return GPTNeoXConfig(**values)
        if model_type == "mosaic_gpt":
            values = _from_mosaic(values)
        elif model_type != "mpt":
            raise InputError(
                f"{folder}: is a {model_type} model; OpenFlamingo stands on mpt, mosaic_gpt or"
                " gpt_neox"
            )
        config = MptConfig(**values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(
            f"{path}: not a configuration of {model_type} ({first_line(error)})"
        ) from error
    _check_mpt(config, path)
    return config


def _from_mosaic(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the configuration of MosaicGPT to that of MPT."""
    same = ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "logit_scale")
    return {name: values[name] for name in same if name in values} | {
        "expansion_ratio": values.get("mlp_ratio", 4),
        "tie_word_embeddings": True,
        "attn_config": {
            "alibi": values.get("alibi", False),
            "alibi_bias_max": values.get("alibi_bias_max", 8),
            "clip_qkv": values.get("attn_clip_qkv"),
            "qk_ln": values.get("attn_qk_ln", False),
            "softmax_scale": values.get("softmax_scale"),
            "prefix_lm": values.get("prefix_lm", False),
        },
    }


def _check_mpt(config: MptConfig, path: Path) -> None:
    """Refuse settings that transformers' MPT silently ignores."""
    attention = config.attn_config
    wrong = {
        "attn_type": attention.attn_type != "multihead_attention",
        "alibi": not attention.alibi,
        "alibi_bias_max": attention.alibi_bias_max != 8,
        "prefix_lm": attention.prefix_lm,
        "logit_scale": config.logit_scale is not None,
        "expansion_ratio": config.expansion_ratio != 4,
    }
    names = [name for name, is_wrong in wrong.items() if is_wrong]
    if names:
        raise InputError(
            f"{path}: {', '.join(names)} has a value that transformers' MPT does not compute"
        )


def load_language_model(folder: Path, config: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the model. Returns it with transformers' report of tensors that did not fit.

    Weights may be safetensors or PyTorch's pickles, which are read with `weights_only`.
    """
    names = {**_MOSAIC_NAMES, **_QK_NORMS} if config.model_type == "mpt" else None
    model, report = _model_class(config).from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        key_mapping=names,
        ignore_mismatched_sizes=True,  # The report lists them.
        output_loading_info=True,
        weights_only=True,
    )
    return model, report
