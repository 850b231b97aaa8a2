"""Loading checkpoints: what is refused and how, what the fingerprint depends on, adapters."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.local import fingerprints
from pointer_rl.registry import registry
from pointer_rl.types import Decoding, Message, Prompt, Request, Response
from pointer_rl_qwen2vl import ALIASES, create_backend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.options import Qwen2VLOptions

PROMPT = Prompt((Message("user", ("what is a dog?",)),))


@pytest.fixture
def folder(tiny_qwen, tmp_path: Path) -> Path:
    """A checkpoint that may be spoilt."""
    return shutil.copytree(tiny_qwen("qwen2_5_vl"), tmp_path / "model")


def load(folder: Path | str, **options: object):
    return load_checkpoint(Qwen2VLOptions(model=str(folder), **{"device": "cpu", **options}))


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- what is registered ---


def test_the_backend_and_its_short_names_are_registered():
    entry = registry().find("backend", "qwen2vl")
    assert entry.options is Qwen2VLOptions
    for alias, model in ALIASES.items():
        assert registry().find("backend", alias) is entry
        assert entry.aliases[alias] == {"model": model}


def test_the_entry_module_is_light():
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'peft'}"
    code = f"import sys, pointer_rl_qwen2vl; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"batch_tokens": "0"}, "batch_tokens"),
        ({"engine": "fast"}, "not one of"),
        ({"attn_implementation": "flash_attention_2"}, "use engine=plain"),
        ({"max_pixels": "0"}, "max_pixels"),
        ({"min_pixels": "9", "max_pixels": "8"}, "must not exceed"),
        ({"dtype": "int8"}, "not one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, why):
    with pytest.raises(InputError, match=why):
        registry().create("backend", "qwen2vl", {"model": "nowhere", **options})


# --- what is refused ---


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def text_only(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="qwen2")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")


def incomplete_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of_another_size(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def damaged_template(folder: Path) -> None:
    (folder / "chat_template.json").write_text("{}")


def rename_token(token: str) -> Callable[[Path], None]:
    def rename(folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = folder / name
            path.write_text(path.read_text().replace(token, "<|another|>"))

    return rename


def foreign_tokenizer(folder: Path) -> None:
    edit_json(folder / "config.json", image_token_id=7)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (without("config.json"), "not a checkpoint folder"),
        (broken_config, "not a model configuration"),
        (text_only, "is a qwen2 model.*qwen2_vl, qwen2_5_vl, qwen3_vl"),
        (pickled_weights, "pickled weights are not read"),
        (damaged_weights, "cannot load the model"),
        (incomplete_weights, r"1 tensors .* missing or of another shape \(lm_head.weight"),
        (weights_of_another_size, r"1 tensors .* missing or of another shape \(lm_head.weight"),
        (without("tokenizer.json"), "cannot load the tokenizer"),
        (without("preprocessor_config.json"), "cannot load the tokenizer and the image processor"),
        (without("chat_template.jinja"), "no chat template"),
        (damaged_template, "not a chat template"),
        (rename_token("<|image_pad|>"), "no <.image_pad.>"),
        (foreign_tokenizer, "not this model's"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_is_no_checkpoint_is_refused_in_one_line(folder, spoil, why):
    spoil(folder)
    with pytest.raises(InputError, match=why) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_refused(model):
    with pytest.raises(InputError, match="no such checkpoint folder"):
        load(model)


def test_a_hub_id_out_of_reach_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"pointer-rl/none@v1: not in the cache, .* nor is there such a folder"
    ) as e:
        load("pointer-rl/none", revision="v1")
    assert "\n" not in str(e.value)


def test_a_folder_has_no_revision(folder):
    with pytest.raises(InputError, match="leave it out"):
        load(folder, revision="main")


@pytest.mark.parametrize("device", ["gpu", "xla", "cuda:x", "meta"])
def test_an_unknown_device_is_refused(folder, device):
    with pytest.raises(InputError, match="unknown device"):
        load(folder, device=device)


def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match="no device 'cuda:99'"):
        load(folder, device="cuda:99")


def test_flash_attention_is_refused_where_it_cannot_run(folder):
    with pytest.raises(InputError, match="needs a CUDA device"):
        load(folder, attn_implementation="flash_attention_2", engine="plain")


def test_a_model_that_does_not_fit_is_refused(folder, monkeypatch):
    from transformers import Qwen2_5_VLForConditionalGeneration

    def full(model, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "to", full)
    with pytest.raises(InputError, match="does not fit into the memory of cpu as float32"):
        load(folder)


# --- the fingerprint ---


def test_the_fingerprint_is_the_contents(folder, tmp_path):
    original = load(folder).fingerprint
    assert original.startswith("qwen2vl-qwen2_5_vl-float32-")
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "README.md").write_text("notes")
    assert load(copy).fingerprint == original
    assert load(copy, dtype="float32", max_pixels=12 * 28 * 28).fingerprint == original


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"max_pixels": 4096},
        {"min_pixels": 4096},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_what_decides_an_answer(folder, options):
    assert load(folder, **options).fingerprint != load(folder).fingerprint


@pytest.mark.parametrize("whole_below", [2**26, 0], ids=["hashed whole", "sampled"])
def test_the_fingerprint_changes_with_the_files(folder, monkeypatch, whole_below):
    monkeypatch.setattr(fingerprints, "_WHOLE_BELOW", whole_below)
    seen = {load(folder).fingerprint}
    tensors = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "visual.blocks.0.norm1.weight"):
        tensors[name] += 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        seen.add(load(folder).fingerprint)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    seen.add(load(folder).fingerprint)
    assert len(seen) == 4


# --- adapters ---


def lora(folder: Path, adapter: Path) -> Path:
    """A random LoRA adapter of a checkpoint."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = load(folder).model
    model.add_adapter(
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    model.save_pretrained(adapter)
    return adapter


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    return lora(folder, tmp_path / "adapter")


def answer(folder: Path, **options: object) -> tuple[str, Response]:
    backend = create_backend(Qwen2VLOptions(model=str(folder), device="cpu", **options))
    [(_, response)] = backend.run([Request(PROMPT, Decoding(max_new_tokens=6), ("a dog",))])
    return backend.fingerprint, response


def test_an_adapter_changes_the_answers_and_the_fingerprint(folder, adapter):
    from transformers import Qwen2_5_VLForConditionalGeneration

    without_fingerprint, without_adapter = answer(folder)
    with_fingerprint, with_adapter = answer(folder, adapter=str(adapter))
    assert with_fingerprint != without_fingerprint
    assert with_adapter.text != without_adapter.text
    assert answer(folder, adapter=str(adapter)) == (with_fingerprint, with_adapter)

    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    state = base.state_dict()
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] / 4
    for key in filter(lambda key: "lora_A" in key, tensors):
        name = key.removeprefix("base_model.model.").replace("lora_A.", "")
        state[name] += scale * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    base.load_state_dict(state)
    base.save_pretrained(folder)
    _, expected = answer(folder)
    assert with_adapter.text == expected.text
    assert with_adapter.score_logprobs == pytest.approx(expected.score_logprobs, rel=1e-4)


def test_what_is_no_adapter_is_refused(folder, adapter, tmp_path):
    with pytest.raises(InputError, match="not an adapter folder"):
        load(folder, adapter=str(tmp_path))
    edit_json(adapter / "adapter_config.json", target_modules=["no_such_layer"])
    with pytest.raises(InputError, match="does not fit the model") as caught:
        load(folder, adapter=str(adapter))
    assert "\n" not in str(caught.value)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled weights are not read"):
        load(folder, adapter=str(adapter))


def test_an_adapter_of_another_model_is_refused(adapter, tiny_qwen):
    """Or peft would leave the layers that it has no tensors for at their random beginning."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: each for key, each in tensors.items() if ".1." in key}, path)
    with pytest.raises(InputError, match="4 tensors of the model are missing"):
        load(tiny_qwen("qwen2_5_vl"), adapter=str(adapter))
    save_file({key: each[:, :1].clone() for key, each in tensors.items()}, path)
    with pytest.raises(InputError, match="8 tensors of the model are missing or of ano") as caught:
        load(tiny_qwen("qwen2_5_vl"), adapter=str(adapter))
    assert "\n" not in str(caught.value)


def test_an_adapter_that_is_not_lora_is_refused(folder, adapter):
    edit_json(adapter / "adapter_config.json", peft_type="LOHA")
    with pytest.raises(InputError, match="is a LOHA adapter"):
        load(folder, adapter=str(adapter))


def test_an_adapter_without_peft_names_the_package(folder, adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="pip install peft"):
        load(folder, adapter=str(adapter))


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is installed")
def test_flash_attention_without_its_package_names_it(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MissingExtraError, match="pip install flash-attn"):
        load(folder, device="cuda", attn_implementation="flash_attention_2", engine="plain")
