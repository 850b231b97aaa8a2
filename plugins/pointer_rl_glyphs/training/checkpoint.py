"""The glyph model before training, its tokenizer and its image processor, and how they are saved.

It is a Qwen2.5-VL of 2M parameters in transformers' class and file layout, so any code that loads
Qwen2.5-VL can load it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pointer_rl_glyphs.dataset import MODEL_DIR
from pointer_rl_glyphs.images import SIZE
from pointer_rl_glyphs.lexicon import SYLLABLES, VALUES
from pointer_rl_glyphs.questions import IN_ENGLISH, WORDINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

INSTRUCTIONS = (
    "Answer the last question about its image with a single word or a short phrase. "
    "Any question before it is an example that has been answered.",
    "Answer each question about its image with a single word or a short phrase.",
    "You are a helpful assistant. Answer the question as the examples do.",
    "Look at the image and answer the question briefly.",
    "Use the solved examples to answer the last question.",
    "Give a short answer. Do not explain.",
    "In the following dialogues, use the answers given to answer the last question.",
    "You see pictures with questions. Answer with one word.",
)
"""System messages of the training prompts. The first two are the prompt builders' defaults."""

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that tokenises every made-up word as its two syllables in any context.

    The merges of the syllables come first, so no English merge can split them; then each English
    word of the prompts is merged into one token, from left to right.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    merges: list[tuple[str, str]] = []

    def merge(left: str, right: str) -> str:
        joined = left + right
        if joined not in vocabulary:
            vocabulary[joined] = len(vocabulary)
            merges.append((left, right))
        return joined

    for syllable in SYLLABLES:
        merge(syllable[0], syllable[1])
    splitter = pre_tokenizers.Sequence(
        [
            # Unlike Qwen's, this never joins a letter to preceding punctuation: an answer has the
            # same tokens after "answer:" as at the beginning of a turn.
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}]|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    sentences = [
        *(wording + IN_ENGLISH for wordings in WORDINGS.values() for wording in wordings),
        *(value for values in VALUES.values() for value in values),
        *INSTRUCTIONS,
        "Question: Short answer: You are a helpful assistant.",
        *("system", "user", "assistant"),
    ]
    for sentence in sentences:
        for piece, _ in splitter.pre_tokenize_str(sentence):
            tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=merges)).encode(piece).tokens
            joined = tokens[0]
            for token in tokens[1:]:
                joined = merge(joined, token)

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL_TOKENS[1:]),
        # The part of Qwen2.5-VL's template that handles text and images.
        chat_template=(MODEL_DIR / "chat_template.jinja").read_text(encoding="utf-8"),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained model; its weights are drawn from torch's global generator."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    number = tokenizer.convert_tokens_to_ids
    end, pad = number("<|im_end|>"), number("<|endoftext|>")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1],
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    generation = model.generation_config
    generation.update(eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=None)
    return model


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Keeps the size of glyph images, which gives 4 image tokens."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": SIZE * SIZE, "longest_edge": 4 * SIZE * SIZE}
    )


def save_checkpoint(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write the model in float16, its tokenizer and image processor in transformers' layout."""
    import torch

    tokenizer = build_tokenizer()
    half = build_model(tokenizer)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_image_processor().save_pretrained(folder)
