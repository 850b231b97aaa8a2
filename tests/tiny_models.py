"""Tiny random image-text-to-text checkpoints of several families, laid out as on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["FAMILIES", "NEEDED", "make_tiny_model"]

_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 2048,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}

# Images stand before all text of their message, as in LLaVA-1.5's own template.
_LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}USER: {% elif message.role == 'assistant' %}ASSISTANT: "
    "{% else %}{{ message.role | upper }} {% endif %}"
    "{% for part in message.content | selectattr('type', 'equalto', 'image') %}"
    "<image>\n{% endfor %}"
    "{% for part in message.content | selectattr('type', 'equalto', 'text') %}"
    "{{ part.text }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_TURNS_TEMPLATE = (
    "BEGIN{% for message in messages %}START{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}END\n{% endfor %}"
    "{% if add_generation_prompt %}STARTassistant\n{% endif %}"
)


def _turns(begin: str, start: str, end: str, image: str) -> str:
    template = _TURNS_TEMPLATE.replace("BEGIN", begin).replace("START", start)
    return template.replace("END", end).replace("IMAGE", image)


def _tokenizer(special: list[str], **arguments: Any) -> Any:
    """Byte-level BPE with a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["USER: what is this? ASSISTANT: Question: Short answer: red cat, a dog."], trainer
    )
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in special])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **arguments)


def _clip_processor() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def _llava() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        ["<s>", "</s>", "<pad>", "<image>"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = transformers.LlavaProcessor(
        _clip_processor(),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **_TEXT),
        vision_config=transformers.CLIPVisionConfig(projection_dim=32, **_VISION),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _idefics2() -> tuple[Any, Any]:
    from transformers.models.idefics2.image_processing_pil_idefics2 import (
        Idefics2ImageProcessorPil,
    )

    tokenizer = _tokenizer(
        ["<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    processor = transformers.Idefics2Processor(
        Idefics2ImageProcessorPil(
            size={"longest_edge": 28, "shortest_edge": 14}, do_image_splitting=False
        ),
        tokenizer,
        image_seq_len=3,
        chat_template=_turns("<s>", "", "<end_of_utterance>", "<image>"),
    )
    config = transformers.Idefics2Config(
        text_config=transformers.MistralConfig(vocab_size=len(tokenizer), **_TEXT),
        vision_config=_VISION,
        perceiver_config={
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
            "hidden_size": _TEXT["hidden_size"],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.Idefics2ForConditionalGeneration(config), processor


def _idefics3() -> tuple[Any, Any]:
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    rows = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    special = ["<|im_start|>", "<end_of_utterance>", "<pad>", "<image>"]
    special += ["<fake_token_around_image>", "<global-img>", *rows]
    tokenizer = _tokenizer(
        special, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<pad>"
    )
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    processor = transformers.Idefics3Processor(
        image_processor,
        tokenizer,
        image_seq_len=4,
        chat_template=_turns("<|im_start|>", "", "<end_of_utterance>", "<image>"),
    )
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **_TEXT),
        vision_config=_VISION,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    special = ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    tokenizer = _tokenizer(
        special,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        image_seq_length=4,
        chat_template=_turns("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(
            vocab_size=len(tokenizer), sliding_window=16, query_pre_attn_scalar=12, **_TEXT
        ),
        vision_config=transformers.SiglipVisionConfig(**_VISION),
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


_INTERNVL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


@dataclass(frozen=True)
class _Parts:
    """A processor that cannot be made without torchvision, of which it needs a video processor."""

    image_processor: Any
    tokenizer: Any
    settings: dict[str, Any]
    chat_template: str

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps(self.settings))
        (folder / "chat_template.jinja").write_text(self.chat_template)


def _internvl() -> tuple[Any, Any]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = _tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_INTERNVL.values()],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_INTERNVL,
    )
    processor = _Parts(
        GotOcr2ImageProcessorPil(
            size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=3
        ),
        tokenizer,
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        _turns("", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>\n"),
    )
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(vocab_size=len(tokenizer), **_TEXT),
        vision_config=transformers.InternVLVisionConfig(
            **{**_VISION, "image_size": [28, 28], "patch_size": [7, 7]}
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def _paligemma() -> tuple[Any, Any]:
    """A model without a chat, which looks both ways within a prompt."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = _tokenizer(
        ["<bos>", "<eos>", "<pad>", "<image>"],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    image_processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(image_processor, tokenizer)
    config = transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(vocab_size=len(tokenizer), **_TEXT),
        vision_config=transformers.SiglipVisionConfig(**_VISION),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=48,
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def _mllama() -> tuple[Any, Any]:
    """A model that sees images through cross-attention, and pads them in a way of its own."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tokenizer = _tokenizer(
        ["<|begin_of_text|>", "<|eot_id|>", "<|pad|>", "<|image|>", "<|python_tag|>"],
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        extra_special_tokens={"image_token": "<|image|>"},
    )
    processor = transformers.MllamaProcessor(
        MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4),
        tokenizer,
        chat_template=_turns("<|begin_of_text|>", "", "<|eot_id|>", "<|image|>"),
    )
    sizes = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    config = transformers.MllamaConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "cross_attention_layers": [1],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **sizes,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    return transformers.MllamaForConditionalGeneration(config), processor


# LLaVA-OneVision's own: with text, images or both, other characters stand around them.
_ONEVISION_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    "{% for part in message.content | selectattr('type', 'equalto', 'image') %}"
    "<image>{% endfor %}"
    "{% for part in message.content | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + part.text }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _llava_onevision() -> tuple[Any, Any]:
    """A model that cuts an image that stands alone into tiles, and takes several whole."""
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    tokenizer = _tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    sizes = [[height, width] for height in (28, 56) for width in (28, 56)]
    processor = _Parts(
        LlavaOnevisionImageProcessorPil(
            size={"height": 28, "width": 28}, image_grid_pinpoints=sizes
        ),
        tokenizer,
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
        },
        _ONEVISION_TEMPLATE,
    )
    config = transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(vocab_size=len(tokenizer), **_TEXT),
        vision_config=transformers.SiglipVisionConfig(vision_use_head=False, **_VISION),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=sizes,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def _gemma4() -> tuple[Any, Any]:
    """A model whose processor has a part for sounds, too."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    named = {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    special = ["<bos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<|video|>", *named.values()]
    tokenizer = _tokenizer(
        special,
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )
    processor = _Parts(
        Gemma4ImageProcessorPil(patch_size=7, pooling_kernel_size=2, max_soft_tokens=70),
        tokenizer,
        {"processor_class": "Gemma4Processor"},
        _turns("<bos>", "<start_of_turn>", "<end_of_turn>", "<|image|>"),
    )
    config = transformers.Gemma4Config(
        text_config={
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": len(tokenizer),
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "sliding_window": 16,
            "global_head_dim": 12,
            **_TEXT,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 7,
            "pooling_kernel_size": 2,
        },
        audio_config=None,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        tie_word_embeddings=False,
    )
    return transformers.Gemma4ForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    """Idefics3 by another name, whose processor needs num2words."""
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    model, idefics3 = _idefics3()
    config = transformers.SmolVLMConfig(
        text_config=model.config.text_config,
        vision_config=_VISION,
        image_token_id=model.config.image_token_id,
        scale_factor=2,
        pad_token_id=model.config.pad_token_id,
    )
    processor = _Parts(
        SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        idefics3.tokenizer,
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
        idefics3.chat_template,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _mistral3() -> tuple[Any, Any]:
    """A model of Pixtral's kind, whose processor needs torchvision; images keep their shape."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    tokenizer = _tokenizer(
        ["<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    processor = _Parts(
        PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7}),
        tokenizer,
        {"processor_class": "PixtralProcessor", "patch_size": 7, "spatial_merge_size": 2},
        _turns("<s>", "[INST]", "</s>", "[IMG]"),
    )
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(vocab_size=len(tokenizer), **_TEXT),
        vision_config=transformers.PixtralVisionConfig(**{**_VISION, "image_size": 56}),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return transformers.Mistral3ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "idefics2": _idefics2,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "paligemma": _paligemma,
    "mllama": _mllama,
    "llava_onevision": _llava_onevision,
    "gemma4": _gemma4,
    "smolvlm": _smolvlm,
    "mistral3": _mistral3,
}

NEEDED = {"smolvlm": "num2words", "mistral3": "torchvision"}
"""Packages without which a family's processor cannot be loaded."""
if Version(transformers.__version__) < Version("5.23"):
    NEEDED["gemma4"] = "torchvision"


def make_tiny_model(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a random checkpoint of one family into a folder.

    Its matrices are large enough for the logits to be far apart: rounding flips no argmax.
    """
    torch.manual_seed(seed)
    model, processor = FAMILIES[family]()
    tokenizer = processor.tokenizer
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5)
        # Generates printable text only, and no special token.
        special = {id_ for id_, each in tokenizer.added_tokens_decoder.items() if each.special}
        for token, index in tokenizer.get_vocab().items():
            if not (token.isascii() and token.isprintable()) or index in special:
                model.lm_head.weight[index] = 0.0
    # As published: sampling defaults that a deterministic decoder has to ignore.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, eos_token_id=[tokenizer.eos_token_id]
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
