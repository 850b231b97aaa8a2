"""Tiny OpenFlamingo parts, laid out as published: a checkpoint, a language model, a CLIP model.

The checkpoint is written tensor by tensor under the published names, not saved from the plugin's
model. Its gates are open: at their initial 0 nothing of an image would be seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

KINDS = ("mosaic_gpt", "mpt", "gpt_neox")
LAYERS = {
    "mosaic_gpt": "transformer.blocks",
    "mpt": "transformer.blocks",
    "gpt_neox": "gpt_neox.layers",
}
MEDIA_WIDTH, TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 32, 32, 4, 4
DEPTH, LATENTS, MEDIA_HEADS, HEAD_DIM = 2, 3, 2, 64
SIDE = 28
CONTEXT = 512
EVERY = {"mosaic_gpt": 1, "mpt": 4, "gpt_neox": 2}
"""As in the published models of 3B, 9B and 4B."""
_MOSAIC = {
    ".norm_1.": ".ln_1.",
    ".norm_2.": ".ln_2.",
    ".norm_f.": ".ln_f.",
    ".ffn.up_proj.": ".mlp.mlp_up.",
    ".ffn.down_proj.": ".mlp.mlp_down.",
}


@dataclass(frozen=True)
class Parts:
    """What lies in the folders."""

    checkpoint: Path
    language: Path
    vision: Path
    trained: Mapping[str, Tensor]
    """By the published names."""
    language_tensors: Mapping[str, Tensor]
    """By the names of MPT, with attn.q_ln and attn.k_ln; or of GPT-NeoX."""
    vision_model: Any
    tokenizer: Any
    """With OpenFlamingo's special tokens."""
    kind: str


def base_tokenizer() -> Any:
    """Byte-level BPE with a few merges, and GPT-NeoX's one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["Question: what is this? Short answer: red cat, a dog."], trainer
    )
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>"
    )


def flamingo_tokenizer() -> Any:
    tokenizer = base_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return tokenizer


def clip_model() -> Any:
    vision = {
        "hidden_size": MEDIA_WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 14,
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    return transformers.CLIPModel(config)


def language_model(kind: str, rows: int) -> Any:
    if kind == "gpt_neox":
        return transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                hidden_size=TEXT_WIDTH,
                num_hidden_layers=TEXT_LAYERS,
                num_attention_heads=TEXT_HEADS,
                intermediate_size=64,
                vocab_size=rows,
                max_position_embeddings=CONTEXT,
                use_parallel_residual=False,
            )
        )
    return transformers.MptForCausalLM(
        transformers.MptConfig(
            d_model=TEXT_WIDTH,
            n_heads=TEXT_HEADS,
            n_layers=TEXT_LAYERS,
            max_seq_len=CONTEXT,
            vocab_size=rows,
        )
    )


def _large(tensor: Tensor) -> Tensor:
    """Random, and large enough for logits to be far apart: rounding flips no argmax."""
    if tensor.ndim < 2:
        return 1 + 0.3 * torch.randn_like(tensor)
    return torch.randn_like(tensor) * 1.5 / tensor.shape[-1] ** 0.5


def published_tensors(
    *,
    layers: str,
    embeddings: str,
    layer_count: int,
    every: int,
    text_width: int,
    media_width: int,
    depth: int,
    latents: int,
    heads: int,
    vocab_size: int,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """What a published checkpoint holds, random."""
    inner = heads * HEAD_DIM

    def norm(name: str, width: int) -> dict[str, Tensor]:
        weight, bias = torch.ones(2, width, device=device)
        return {f"{name}.weight": _large(weight), f"{name}.bias": _large(bias) - 1}

    def matrix(name: str, out: int, into: int) -> dict[str, Tensor]:
        return {f"{name}.weight": _large(torch.empty(out, into, device=device))}

    def feed_forward(name: str, width: int) -> dict[str, Tensor]:
        return {
            **norm(f"{name}.0", width),
            **matrix(f"{name}.1", 4 * width, width),
            **matrix(f"{name}.3", width, 4 * width),
        }

    tensors = {"perceiver.latents": torch.randn(latents, media_width, device=device)}
    for number in range(depth):
        name = f"perceiver.layers.{number}"
        tensors |= norm(f"{name}.0.norm_media", media_width)
        tensors |= norm(f"{name}.0.norm_latents", media_width)
        tensors |= matrix(f"{name}.0.to_q", inner, media_width)
        tensors |= matrix(f"{name}.0.to_kv", 2 * inner, media_width)
        tensors |= matrix(f"{name}.0.to_out", media_width, inner)
        tensors |= feed_forward(f"{name}.1", media_width)
    tensors |= norm("perceiver.norm", media_width)
    tensors |= matrix(embeddings.removesuffix(".weight"), vocab_size, text_width)
    for number in range(layer_count):
        if (number + 1) % every == 0:
            name = f"lang_encoder.{layers}.{number}.gated_cross_attn_layer"
            tensors[f"{name}.attn_gate"] = torch.tensor([0.8 - 0.1 * number], device=device)
            tensors[f"{name}.ff_gate"] = torch.tensor([-0.6 + 0.1 * number], device=device)
            tensors |= norm(f"{name}.attn.norm", text_width)
            tensors |= matrix(f"{name}.attn.to_q", inner, text_width)
            tensors |= matrix(f"{name}.attn.to_kv", 2 * inner, media_width)
            tensors |= matrix(f"{name}.attn.to_out", text_width, inner)
            tensors |= feed_forward(f"{name}.ff", text_width)
    return tensors


def make_parts(folder: Path, kind: str, seed: int = 0) -> Parts:
    """Write the three folders of one kind of language model."""
    torch.manual_seed(seed)
    tokenizer = flamingo_tokenizer()
    vision = folder / "vision"
    clip = clip_model()
    _randomise(clip)
    clip.save_pretrained(vision)

    language = folder / "language"
    model = language_model(kind, len(tokenizer) + 5)  # more rows than tokens, as published
    _randomise(model)
    model.save_pretrained(language)
    base_tokenizer().save_pretrained(language)
    tensors = {name: each for name, each in model.state_dict().items() if "lm_head" not in name}
    if kind == "mosaic_gpt":
        for number in range(TEXT_LAYERS):
            for norm in ("q_ln", "k_ln"):
                name = f"transformer.blocks.{number}.attn.{norm}.weight"
                tensors[name] = _large(torch.ones(TEXT_WIDTH))
        _write_mosaic(language, tensors, len(tokenizer) + 5)
    if kind == "gpt_neox":
        tensors["lm_head.weight"] = model.lm_head.weight.detach()

    name = "gpt_neox.embed_in" if kind == "gpt_neox" else "transformer.wte"
    trained = published_tensors(
        layers=LAYERS[kind],
        embeddings=f"lang_encoder.{name}.weight",
        layer_count=TEXT_LAYERS,
        every=EVERY[kind],
        text_width=TEXT_WIDTH,
        media_width=MEDIA_WIDTH,
        depth=DEPTH,
        latents=LATENTS,
        heads=MEDIA_HEADS,
        vocab_size=len(tokenizer),
    )
    # None of OpenFlamingo's tokens is ever the likeliest: all answers have their full length.
    output = (
        tensors["lm_head.weight"] if kind == "gpt_neox" else trained[f"lang_encoder.{name}.weight"]
    )
    output[len(tokenizer) - 3 : len(tokenizer)] *= 0.1
    if kind == "gpt_neox":
        model.save_pretrained(language)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    torch.save(trained, checkpoint / "checkpoint.pt")
    return Parts(
        checkpoint=checkpoint,
        language=language,
        vision=vision,
        trained=trained,
        language_tensors=tensors,
        vision_model=clip.vision_model.double().eval(),
        tokenizer=tokenizer,
        kind=kind,
    )


def _randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_large(parameter))


def _write_mosaic(folder: Path, tensors: Mapping[str, Tensor], rows: int) -> None:
    """As MPT-1B is published: names and configuration of its own, one pickled file."""
    (folder / "model.safetensors").unlink()
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in _MOSAIC.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    torch.save(renamed, folder / "pytorch_model.bin")
    config = {
        "architectures": ["MosaicGPT"],
        "auto_map": {"AutoConfig": "configuration_mosaic_gpt.MosaicGPTConfig"},
        "model_type": "mosaic_gpt",
        "d_model": TEXT_WIDTH,
        "n_heads": TEXT_HEADS,
        "n_layers": TEXT_LAYERS,
        "mlp_ratio": 4,
        "max_seq_len": CONTEXT,
        "vocab_size": rows,
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_qk_ln": True,
        "attn_clip_qkv": None,
        "no_bias": True,
        "use_cache": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


def make_idefics(folder: Path, *, instructed: bool) -> tuple[Any, Any]:
    """Write a random IDEFICS-1 checkpoint. Returns its model and its processor."""
    torch.manual_seed(3)
    said = ["<end_of_utterance>"] if instructed else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["User: what is this? Assistant: red cat, a dog."], trainer)
    special = ["<s>", "</s>", *said, "<fake_token_around_image>", "<image>"]
    tokenizer.add_special_tokens(
        [AddedToken(each, special=True, normalized=False) for each in special]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    processor = transformers.IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), fast)
    config = transformers.IdeficsConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        vocab_size=len(fast) - 2,
        additional_vocab_size=2,
        vision_config={
            "embed_dim": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        perceiver_config={"use_resampler": False},
        alpha_initializer="zeros",
        use_resampler=not instructed,
    )
    if not instructed:
        config.perceiver_config = type(config.perceiver_config)(
            use_resampler=True,
            resampler_n_latents=3,
            resampler_depth=1,
            resampler_n_heads=2,
            resampler_head_dim=8,
        )
    model = transformers.IdeficsForVisionText2Text(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alpha" in name:
                parameter.fill_(0.7)
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(0.0, 1.5 / parameter[0].numel() ** 0.5)
            elif "embed" in name:
                parameter.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor
