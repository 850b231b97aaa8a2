"""Tiny random Qwen-VL checkpoints, laid out as on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

_SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# What the published templates write for text and images; Qwen3-VL's has no default system message.
_DEFAULT_SYSTEM = (
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
_TEMPLATE = (
    "{% for message in messages %}DEFAULT_SYSTEM<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer():
    """Byte-level BPE with Qwen's special tokens and a few merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["You are a helpful assistant. Question: what is this? Short answer: red cat, a dog."],
        trainer,
    )
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in _SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _config(family: str, vocab_size: int, ids: dict[str, int]):
    import transformers

    text = {
        "vocab_size": vocab_size,
        "hidden_size": 64,  # Heads of 16: cuDNN has kernels for multiples of 8.
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
        },
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {"depth": 2, "num_heads": 2, "in_channels": 3}
    special = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14}
        return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **special)
    vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    if family == "qwen2_5_vl":
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)
    text |= {"head_dim": 16}
    text["rope_parameters"]["mrope_interleaved"] = True
    vision |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **special)


def make_tiny_qwen(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a random checkpoint of one family into a folder.

    Its matrices are large enough for the logits to be far apart: rounding flips no argmax.
    """
    import torch
    import transformers

    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    ids = {each: tokenizer.convert_tokens_to_ids(each) for each in _SPECIAL_TOKENS}
    config = _config(family, len(tokenizer), ids)
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5)
        # Generates printable text only, and no special token.
        for token, index in tokenizer.get_vocab().items():
            if not (token.isascii() and token.isprintable()) or token in _SPECIAL_TOKENS:
                model.lm_head.weight[index] = 0.0
    # As published: sampling defaults that a deterministic decoder has to ignore.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.1,
        top_k=1,
        top_p=0.001,
        repetition_penalty=1.5,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    factor = 32 if family == "qwen3_vl" else 28
    preprocessor: dict[str, object] = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": factor // 2,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    if family == "qwen3_vl":
        preprocessor |= {
            "size": {"shortest_edge": factor**2, "longest_edge": 12 * factor**2},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
        template = {"chat_template": _TEMPLATE.replace("DEFAULT_SYSTEM", "")}
        (folder / "chat_template.json").write_text(json.dumps(template))
    else:
        preprocessor |= {"min_pixels": factor**2, "max_pixels": 12 * factor**2}
        (folder / "chat_template.jinja").write_text(
            _TEMPLATE.replace("DEFAULT_SYSTEM", _DEFAULT_SYSTEM)
        )
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family → its checkpoint folder, made when first asked for. Not to be written to."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny_qwen(tmp_path_factory.mktemp("tiny") / family, family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family of `tiny_models` → its checkpoint folder, made when first asked for. Read only."""
    from tiny_models import make_tiny_model

    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny_model(tmp_path_factory.mktemp("tiny") / family, family)
        return made[family]

    return get
