"""Loading checkpoints with hf: templates, what is refused and how, the fingerprint, adapters."""

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
from hf_reference import HFReference
from local_backend_checks import PROMPTS
from qwen_reference import ask, make_image
from safetensors.torch import load_file, save_file
from tiny_models import NEEDED

from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.registry import registry
from pointer_rl.types import Decoding, Request
from pointer_rl_hf import create_backend
from pointer_rl_hf.checkpoint import load_checkpoint
from pointer_rl_hf.options import HFBackendOptions


@pytest.fixture
def folder(tiny_model, tmp_path: Path) -> Path:
    """A checkpoint that may be spoilt."""
    return shutil.copytree(tiny_model("llava"), tmp_path / "model")


def load(folder: Path | str, **options: object):
    return load_checkpoint(HFBackendOptions(model=str(folder), **{"device": "cpu", **options}))


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_backend_is_registered():
    assert registry().find("backend", "hf").options is HFBackendOptions


def test_the_entry_module_is_light():
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'peft'}"
    code = f"import sys, pointer_rl_hf; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="batch_tokens"):
        registry().create("backend", "hf", {"model": "nowhere", "batch_tokens": "0"})


# --- chat templates ---


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3", "internvl"])
def test_images_stay_where_they_stand_in_the_prompt(tiny_model, family):
    """Also where the template (LLaVA's) puts the images of a message before its text."""
    folder = tiny_model(family)
    chat = load(folder).chat
    reference = HFReference(folder, family)
    for prompt in PROMPTS:
        assert chat.render(prompt) == reference.render(prompt)


def test_an_image_is_marked_as_the_template_marks_it_whatever_stands_around_it(tiny_model):
    """LLaVA-OneVision's begins every text on a line of its own."""
    chat = load(tiny_model("llava_onevision")).chat
    prompt = ask(make_image(1), "a cat", make_image(2), "this?")
    assert chat.render(prompt) == (
        "<|im_start|>user \n<image>\na cat\n<image>\nthis?<|im_end|><|im_start|>assistant\n"
    )


def test_a_template_of_the_users_is_taken_and_changes_the_fingerprint(folder, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% for m in messages %}{% for p in m.content %}"
        "{% if p.type == 'image' %}[<image>]{% else %}{{ p.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    checkpoint = load(folder, chat_template=str(path))
    prompt = ask(make_image(1), "what? ", make_image(2))
    assert checkpoint.chat.render(prompt) == "[<image>]what? [<image>]"
    assert checkpoint.fingerprint != load(folder).fingerprint
    (folder / "chat_template.jinja").unlink()
    plain = load(folder, chat_template="plain")
    assert plain.chat.render(prompt) == "<image>what? <image>"
    assert plain.turn_end_id == plain.tokenizer.eos_token_id


def test_the_token_that_ends_a_turn_is_the_templates(tiny_model):
    for family, token in (("llava", "</s>"), ("gemma3", "<end_of_turn>")):
        checkpoint = load(tiny_model(family))
        assert checkpoint.tokenizer.convert_ids_to_tokens(checkpoint.turn_end_id) == token
        assert checkpoint.turn_end_id in checkpoint.stop_ids


# --- what is refused ---


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def text_only(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llama")


def unknown(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="no_such_model")


def encoder_decoder(folder: Path) -> None:
    config = {"model_type": "florence2", "is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))


def broken_config(folder: Path) -> None:
    edit_json(folder / "config.json", vision_feature_layer="the last but one")


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")


def incomplete_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("lm_head.weight"))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (without("config.json"), "not a checkpoint folder"),
        (text_only, "is a llama model, which is not an image-text-to-text model"),
        (unknown, "cannot use this no_such_model configuration.*never run"),
        (broken_config, "cannot use this llava configuration"),
        (encoder_decoder, "an encoder-decoder"),
        (pickled_weights, "pickled weights are not read"),
        (damaged_weights, "cannot load the model"),
        (incomplete_weights, "1 tensors .* missing or of another shape"),
        (without("processor_config.json"), "cannot load the processor|has no image_processor"),
        (without("chat_template.jinja"), "no chat template.*chat_template=FILE.*=plain"),
        (template("{% for m in messages %}{{ m.content[0].text }}{% endfor %}"), "no place for im"),
        (template("{{ raise_exception('no chat') }}"), "no chat.*chat_template=FILE"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(folder, spoil, why):
    spoil(folder)
    with pytest.raises(InputError, match=why) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_file_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match="cannot read the chat template"):
        load(folder, chat_template=str(folder / "none.jinja"))


def test_a_processor_of_another_model_is_refused(folder):
    """LLaVA's patches are counted by its processor and made by its model."""
    edit_json(folder / "processor_config.json", patch_size=14)
    with pytest.raises(InputError, match=r"cannot take a prompt with an image \(the model refuses"):
        create_backend(HFBackendOptions(model=str(folder), device="cpu"))


@pytest.mark.parametrize(("family", "package"), NEEDED.items())
def test_a_package_that_a_processor_needs_is_named(tiny_model, family, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingExtraError, match=f"needs the package {package}: pip in") as caught:
        load(tiny_model(family))
    assert "\n" not in str(caught.value)


# --- the fingerprint ---


def test_the_fingerprint_is_the_contents(folder, tmp_path):
    original = load(folder).fingerprint
    assert original.startswith("hf-llava-float32-")
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "README.md").write_text("notes")
    assert load(copy, dtype="float32").fingerprint == original
    seen = {original, load(copy, dtype="bfloat16").fingerprint}
    seen.add(load(copy, attn_implementation="eager").fingerprint)
    tensors = load_file(copy / "model.safetensors")
    tensors[next(name for name in tensors if name.endswith("lm_head.weight"))] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    seen.add(load(copy).fingerprint)
    path = copy / "chat_template.jinja"
    path.write_text(path.read_text() + " ")
    seen.add(load(copy).fingerprint)
    edit_json(copy / "generation_config.json", eos_token_id=[7])
    seen.add(load(copy).fingerprint)
    assert len(seen) == 6


def test_a_revision_is_another_content(tiny_model, tmp_path, monkeypatch):
    """Of a Hub id its snapshot is read, which is of one commit."""
    revisions = {
        "a": tiny_model("llava"),
        "b": shutil.copytree(tiny_model("llava"), tmp_path / "b"),
    }
    tensors = load_file(revisions["b"] / "model.safetensors")
    tensors[next(iter(tensors))] += 1
    save_file(tensors, revisions["b"] / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda model, revision, allow_patterns: str(revisions[revision]),
    )
    one, other = (load("owner/name", revision=each).fingerprint for each in "ab")
    assert one == load(revisions["a"]).fingerprint
    assert one != other


# --- adapters ---


def test_an_adapter_changes_the_answers_and_the_fingerprint(folder, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = load(folder).model
    model.add_adapter(
        peft.LoraConfig(r=4, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    results = []
    for options in ({}, {"adapter": str(tmp_path / "adapter")}):
        backend = create_backend(HFBackendOptions(model=str(folder), device="cpu", **options))
        [(_, response)] = backend.run([Request(PROMPTS[0], Decoding(max_new_tokens=6), ("a",))])
        results.append((backend.fingerprint, response))
    (without_adapter, plain), (with_adapter, adapted) = results
    assert with_adapter != without_adapter
    assert adapted.score_logprobs != pytest.approx(plain.score_logprobs)
