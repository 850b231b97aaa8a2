"""Load an OpenFlamingo model and its tokenizer from files.

The files are either one folder written by `save`, or the published parts: a checkpoint of the
trained tensors, a language model, and a vision tower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import CLIPModel, CLIPVisionModel, PreTrainedTokenizerFast

from pointer_rl.errors import InputError, first_line
from pointer_rl.local.loading import LOADING_ERRORS, load_weights, read_model_type
from pointer_rl_flamingo.language import LAYERS, language_config, load_language_model
from pointer_rl_flamingo.model import OpenFlamingoConfig, OpenFlamingoModel
from pointer_rl_flamingo.prompts import END_OF_CHUNK, IMAGE
from pointer_rl_flamingo.published import read_checkpoint, read_sizes, rename


def assemble(
    path: Path, language: Path, vision: Path, dtype: torch.dtype
) -> tuple[OpenFlamingoModel, Any]:
    """Load the model and its tokenizer from a checkpoint and the folders of its other two parts.

    The checkpoint must contain exactly the tensors that training changes. Raises InputError for
    parts that cannot be read or do not fit; the error lists missing and unexpected tensors.
    """
    text_config = language_config(language)
    layers = LAYERS[text_config.model_type]
    trained = rename(read_checkpoint(path), layers)
    sizes = read_sizes(trained, text_config.model_type, path)
    vocab_size = sizes.pop("vocab_size")
    tokenizer = add_special_tokens(_tokenizer(language))
    if len(tokenizer) != vocab_size:
        raise InputError(
            f"{path}: has embeddings of {vocab_size} tokens, but {language}'s tokenizer has"
            f" {len(tokenizer)} with {END_OF_CHUNK} and {IMAGE}: it was trained on another model"
        )
    tower = _load_vision(vision, dtype)
    language_model, report = _load(language, load_language_model, language, text_config, dtype)
    _check_report(language, report)
    text_config.vocab_size = vocab_size
    config = OpenFlamingoConfig(
        vision_config=tower.config,
        text_config=text_config,
        media_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        eoc_token_id=tokenizer.convert_tokens_to_ids(END_OF_CHUNK),
        **sizes,
    )
    with torch.device("meta"):
        names = set(OpenFlamingoModel(config).state_dict())
    base = _base_tensors(tower, language_model, names, layers, vocab_size)
    tied = {"lang_encoder.lm_head.weight"} if text_config.tie_word_embeddings else set()
    _check(path, names - tied - base.keys() - trained.keys(), (), trained.keys() - names)
    model, report = _load(path, _from_pretrained, None, dtype, config, {**base, **trained})
    _check_report(path, report)
    return model, tokenizer


def load_saved(folder: Path, dtype: torch.dtype) -> tuple[OpenFlamingoModel, Any]:
    """Load the model and its tokenizer from a folder written by `save`.

    Raises InputError for an incomplete folder.
    """
    tokenizer = _tokenizer(folder)
    model, report = _load(folder, _from_pretrained, folder, dtype)
    _check_report(folder, report)
    for token, used in ((IMAGE, "media_token_id"), (END_OF_CHUNK, "eoc_token_id")):
        if tokenizer.get_vocab().get(token) != getattr(model.config, used):
            raise InputError(f"{folder}: the tokenizer is not this model's ({token} differs)")
    return model, tokenizer


def save(model: OpenFlamingoModel, tokenizer: Any, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into one folder.

    The backend loads such a folder without any other option.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def add_special_tokens(tokenizer: Any) -> Any:
    """Add OpenFlamingo's special tokens to a language model's tokenizer, and return it.

    Their order is that of the published embeddings: a padding token comes last, and only if the
    tokenizer has none.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": [END_OF_CHUNK, IMAGE]})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return tokenizer


def _base_tensors(
    tower: Any, language_model: Any, names: set[str], layers: str, vocab_size: int
) -> dict[str, torch.Tensor]:
    """The tensors that training does not change, by their names in the whole model."""
    tensors = {f"vision_encoder.{name}": each for name, each in tower.state_dict().items()}
    embeddings = language_model.get_input_embeddings().weight
    for name, tensor in language_model.state_dict().items():
        if tensor.data_ptr() == embeddings.data_ptr():
            continue  # The checkpoint has the embeddings, and the output layer if weights are tied.
        if name == "lm_head.weight":
            tensor = tensor[:vocab_size]  # As `resize_token_embeddings` cut it for training.
        name = f"lang_encoder.{name}"
        if name not in names:  # Its layer is preceded by gated cross-attention.
            name = re.sub(rf"({layers}\.\d+)\.", r"\1.decoder_layer.", name)
        tensors[name] = tensor
    return tensors


def _tokenizer(folder: Path) -> Any:
    # Not AutoTokenizer: MosaicGPT's configuration comes with its own code, which is never run.
    return _load(folder, PreTrainedTokenizerFast.from_pretrained, folder)


def _load_vision(folder: Path, dtype: torch.dtype) -> Any:
    """Load a vision tower from a CLIP model or from a folder of its own."""
    model_type = read_model_type(folder)
    if model_type == "clip":
        return load_weights(CLIPModel, folder, dtype=dtype).vision_model
    if model_type == "clip_vision_model":
        return load_weights(CLIPVisionModel, folder, dtype=dtype)
    raise InputError(f"{folder}: is a {model_type} model; OpenFlamingo sees through CLIP's")


def _from_pretrained(
    folder: Path | None,
    dtype: torch.dtype,
    config: OpenFlamingoConfig | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
) -> Any:
    return OpenFlamingoModel.from_pretrained(
        folder,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # The report lists them.
        output_loading_info=True,
    )


def _load(place: Path, load: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return load(*arguments)
    except (*LOADING_ERRORS, UnpicklingError) as error:
        raise InputError(f"{place}: cannot be loaded ({first_line(error)})") from error


def _check_report(place: Path, report: Mapping[str, Any]) -> None:
    _check(place, report["missing_keys"], report["mismatched_keys"], report["unexpected_keys"])


def _check(place: Path, missing: Any, mismatched: Any, unexpected: Any) -> None:
    """Refuse tensors that do not match the model exactly. transformers only warns about them."""
    faults = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:4])}{', …' if len(names) > 4 else ''})"
        for what, names in (
            ("missing", list(missing)),
            ("of another shape", [name for name, *_ in mismatched]),
            ("left over", list(unexpected)),
        )
        if names
    ]
    if faults:
        raise InputError(f"{place}: the tensors do not fit the model: {'; '.join(faults)}")
