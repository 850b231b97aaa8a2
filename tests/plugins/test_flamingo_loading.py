"""OpenFlamingo's files: every key form, nothing left out or over; what is said of wrong ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_flamingo as tiny
import torch
from safetensors.torch import save_file

from pointer_rl.errors import InputError
from pointer_rl_flamingo import ALIASES, openflamingo
from pointer_rl_flamingo.loading import load_model
from pointer_rl_flamingo.model import OpenFlamingoModel
from pointer_rl_flamingo.options import FlamingoOptions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.Parts]:
    return {
        kind: tiny.make_parts(tmp_path_factory.mktemp(kind), kind, seed)
        for seed, kind in enumerate(tiny.KINDS)
    }


@pytest.fixture(params=tiny.KINDS)
def parts(made: dict[str, tiny.Parts], request: pytest.FixtureRequest) -> tiny.Parts:
    return made[request.param]


@pytest.fixture
def mpt(made: dict[str, tiny.Parts]) -> tiny.Parts:
    return made["mpt"]


def options(parts: tiny.Parts, checkpoint: Path | None = None, **others: str) -> FlamingoOptions:
    return FlamingoOptions(
        model=str(checkpoint or parts.checkpoint),
        language_model=others.get("language_model", str(parts.language)),
        vision_model=others.get("vision_model", str(parts.vision)),
        device="cpu",
    )


def loaded(parts: tiny.Parts, checkpoint: Path | None = None) -> OpenFlamingoModel:
    return load_model(options(parts, checkpoint))[0].model


def write(folder: Path, content: object) -> Path:
    folder.mkdir()
    torch.save(content, folder / "checkpoint.pt")
    return folder


def same(a: OpenFlamingoModel, b: OpenFlamingoModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is read ---


def test_every_tensor_has_its_place(parts, monkeypatch):
    """And all that the model has is filled: nothing stays as it was initialised."""
    reports = []
    check = openflamingo._check_report
    monkeypatch.setattr(
        openflamingo, "_check_report", lambda *each: (reports.append(each[1]), check(*each))
    )
    model = loaded(parts)
    assert len(reports) == 2  # the language model; the whole
    assert not any(names for report in reports for names in report.values())
    state = model.state_dict()
    for name, tensor in parts.trained.items():
        assert torch.equal(state.pop(name), tensor), name
    for name, tensor in parts.vision_model.state_dict().items():
        assert torch.equal(state.pop(f"vision_encoder.{name}"), tensor.float()), name
    rest = {name.replace(".decoder_layer.", "."): tensor for name, tensor in state.items()}
    for name, tensor in parts.language_tensors.items():
        if name.endswith(("wte.weight", "embed_in.weight")):
            continue  # the checkpoint's
        if name == "lm_head.weight":
            tensor = tensor[: len(parts.tokenizer)]
        name = name.replace("attn.q_ln", "attn.Wqkv.q_ln").replace("attn.k_ln", "attn.Wqkv.k_ln")
        assert torch.equal(rest.pop(f"lang_encoder.{name}"), tensor), name
    tied = [] if parts.kind == "gpt_neox" else ["lang_encoder.lm_head.weight"]
    assert list(rest) == tied
    if tied:
        assert model.lang_encoder.lm_head.weight is model.lang_encoder.transformer.wte.weight


def in_own_list(parts: tiny.Parts) -> dict[str, torch.Tensor]:
    start = f"lang_encoder.{tiny.LAYERS[parts.kind]}."
    renamed = {}
    for name, tensor in parts.trained.items():
        if name.startswith(start) and "gated_cross_attn_layer." in name:
            number, _, rest = name.removeprefix(start).partition(".gated_cross_attn_layer.")
            name = f"lang_encoder.gated_cross_attn_layers.{number}.{rest}"
        renamed[name] = tensor
    assert renamed.keys() != parts.trained.keys()
    return renamed


def prefixed(parts: tiny.Parts) -> dict[str, torch.Tensor]:
    return {f"module.{name}": tensor for name, tensor in parts.trained.items()}


FORMS = {
    "module.": prefixed,
    "gated_cross_attn_layers": in_own_list,
    "model_state_dict": lambda parts: {"epoch": 3, "model_state_dict": prefixed(parts)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_key_form_is_the_same_model(parts, form, tmp_path):
    folder = write(tmp_path / "other", FORMS[form](parts))
    assert same(loaded(parts, folder), loaded(parts))


def test_safetensors_are_read_under_any_name(parts, tmp_path):
    save_file(dict(parts.trained), tmp_path / "weights.safetensors")
    assert same(loaded(parts, tmp_path), loaded(parts))


def test_a_pickle_without_an_archive_is_read(mpt, tmp_path):
    torch.save(dict(mpt.trained), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(loaded(mpt, tmp_path), loaded(mpt))


def test_what_gpt_neox_saved_beside_its_weights_is_read_or_passed_over(made, tmp_path):
    neox = made["gpt_neox"]
    output = torch.randn(len(neox.tokenizer), tiny.TEXT_WIDTH)
    layer = "lang_encoder.gpt_neox.layers.0.decoder_layer.attention"
    others = {
        "lang_encoder.embed_out.weight": output,
        f"{layer}.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        f"{layer}.masked_bias": torch.tensor(-1e9),
        f"{layer}.rotary_emb.inv_freq": torch.ones(1),
    }
    model = loaded(neox, write(tmp_path / "other", {**neox.trained, **others}))
    assert torch.equal(model.lang_encoder.lm_head.weight, output)


def test_one_folder_holds_all(parts, tmp_path):
    model, tokenizer = openflamingo.assemble(
        parts.checkpoint / "checkpoint.pt", parts.language, parts.vision, torch.float32
    )
    openflamingo.save(model, tokenizer, tmp_path)
    again, _ = load_model(FlamingoOptions(model=str(tmp_path), device="cpu"))
    assert same(again.model, model)
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()


# --- the fingerprint ---


def test_the_fingerprint_is_of_content_not_of_places(parts, tmp_path):
    _, before = load_model(options(parts))
    for name in ("checkpoint", "language", "vision"):
        shutil.copytree(getattr(parts, name), tmp_path / name)
    (tmp_path / "checkpoint/checkpoint.pt").rename(tmp_path / "checkpoint/mine.pt")
    copied = FlamingoOptions(
        model=str(tmp_path / "checkpoint"),
        language_model=str(tmp_path / "language"),
        vision_model=str(tmp_path / "vision"),
        device="cpu",
        batch_tokens=7,
    )
    assert load_model(copied)[1] == before
    assert "float32" in before


@pytest.mark.parametrize("changed", ["checkpoint", "language", "vision", "tokenizer", "dtype"])
def test_the_fingerprint_changes_with_what_decides_a_response(made, changed, tmp_path):
    parts = made["mosaic_gpt"]
    _, before = load_model(options(parts))
    for name in ("checkpoint", "language", "vision"):
        shutil.copytree(getattr(parts, name), tmp_path / name)
    if changed == "checkpoint":
        tensors = dict(parts.trained)
        tensors["perceiver.latents"] = tensors["perceiver.latents"] + 1e-6
        torch.save(tensors, tmp_path / "checkpoint/checkpoint.pt")
    elif changed == "tokenizer":
        path = tmp_path / "language/tokenizer.json"
        path.write_bytes(path.read_bytes() + b"\n")
    elif changed != "dtype":
        other = tiny.make_parts(tmp_path / "others", parts.kind, seed=9)
        shutil.rmtree(tmp_path / changed)
        shutil.copytree(getattr(other, changed), tmp_path / changed)
    _, after = load_model(
        FlamingoOptions(
            model=str(tmp_path / "checkpoint"),
            language_model=str(tmp_path / "language"),
            vision_model=str(tmp_path / "vision"),
            device="cpu",
            dtype="bfloat16" if changed == "dtype" else "float32",
        )
    )
    assert after != before


# --- what is refused ---


def refusal(given: FlamingoOptions) -> str:
    with pytest.raises(InputError) as caught:
        load_model(given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_missing_or_left_over_is_listed(parts, tmp_path):
    tensors = dict(parts.trained)
    del tensors["perceiver.norm.bias"]
    tensors["vision_encoder.conv1.weight"] = torch.ones(1)
    message = refusal(options(parts, write(tmp_path / "other", tensors)))
    assert "1 missing (perceiver.norm.bias)" in message
    assert "1 left over (vision_encoder.conv1.weight)" in message


def test_a_gated_layer_that_is_missing_is_missed(parts, tmp_path):
    last = f"{tiny.LAYERS[parts.kind]}.{tiny.TEXT_LAYERS - 1}.gated_cross_attn_layer.ff.1.weight"
    tensors = dict(parts.trained)
    del tensors[f"lang_encoder.{last}"]
    assert last in refusal(options(parts, write(tmp_path / "other", tensors)))


def test_a_tensor_of_another_shape_is_named(mpt, tmp_path):
    tensors = {**mpt.trained, "perceiver.norm.bias": torch.ones(3)}
    message = refusal(options(mpt, write(tmp_path / "other", tensors)))
    assert "1 of another shape (perceiver.norm.bias)" in message


def test_a_checkpoint_of_another_language_model_is_refused(made):
    neox = made["gpt_neox"]
    message = refusal(options(made["mpt"], language_model=str(neox.language)))
    assert "gpt_neox.embed_in" in message


def test_a_tokenizer_of_another_length_is_refused(mpt, tmp_path):
    tensors = dict(mpt.trained)
    name = "lang_encoder.transformer.wte.weight"
    tensors[name] = tensors[name][:-1].clone()
    message = refusal(options(mpt, write(tmp_path / "other", tensors)))
    assert f"embeddings of {len(mpt.tokenizer) - 1} tokens" in message
    assert f"has {len(mpt.tokenizer)}" in message


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)


def test_code_in_a_checkpoint_is_not_run(mpt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(options(mpt, write(tmp_path / "evil", {**mpt.trained, "x": Evil()})))
    assert "other things than tensors" in message
    language = tmp_path / "language"
    shutil.copytree(mpt.language, language)
    (language / "model.safetensors").unlink()
    torch.save({"x": Evil()}, language / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(options(mpt, language_model=str(language)))
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a readable checkpoint"),
        (b"PK\x03\x04 cut", "not a readable checkpoint"),
        ([1, 2], "not a state_dict"),
        ({"model_state_dict": {"a": 1}}, "not a state_dict"),
        ({}, "it holds nothing"),
        ({"weight": torch.ones(1)}, "it holds weight"),
    ],
    ids=["empty", "cut", "list", "numbers", "nothing", "another"],
)
def test_what_is_no_checkpoint_is_said_to_be_none(mpt, tmp_path, content, said):
    if isinstance(content, bytes):
        (tmp_path / "checkpoint.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "checkpoint.pt")
    assert said in refusal(options(mpt, tmp_path))


def test_a_folder_without_or_with_several_checkpoints_is_refused(mpt, tmp_path):
    assert "found none" in refusal(options(mpt, tmp_path))
    torch.save({}, tmp_path / "a.pt")
    torch.save({}, tmp_path / "b.pt")
    assert "found several (a.pt, b.pt)" in refusal(options(mpt, tmp_path))


def test_a_checkpoint_needs_a_language_model(mpt):
    given = FlamingoOptions(model=str(mpt.checkpoint), device="cpu")
    assert "language_model=" in refusal(given)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model_type", "llama", "is a llama model"),
        ("alibi", False, "alibi"),
        ("alibi_bias_max", 16, "alibi_bias_max"),
        ("prefix_lm", True, "prefix_lm"),
        ("logit_scale", "inv_sqrt_d_model", "logit_scale"),
        ("mlp_ratio", 2, "expansion_ratio"),
        ("d_model", "wide", "config.json"),
    ],
)
def test_a_language_model_that_computes_otherwise_is_refused(made, tmp_path, field, value, said):
    mosaic = made["mosaic_gpt"]
    folder = tmp_path / "language"
    shutil.copytree(mosaic.language, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    assert said in refusal(options(mosaic, language_model=str(folder)))


def test_a_vision_model_that_is_no_clip_is_refused(mpt, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert "is a siglip model" in refusal(options(mpt, vision_model=str(tmp_path)))


def test_a_model_of_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    message = refusal(FlamingoOptions(model=str(tmp_path), device="cpu"))
    assert "is a llava model; the backend flamingo runs open_flamingo, idefics" in message


@pytest.mark.parametrize("model_type", ["idefics2", "idefics3"])
def test_the_successors_of_idefics_are_left_to_hf(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    message = refusal(FlamingoOptions(model=str(tmp_path), device="cpu"))
    assert f"is an {model_type} model" in message
    assert message.endswith("use --backend hf")


def test_a_saved_folder_with_another_tokenizer_is_refused(mpt, tmp_path):
    model, _ = openflamingo.assemble(
        mpt.checkpoint / "checkpoint.pt", mpt.language, mpt.vision, torch.float32
    )
    openflamingo.save(model, tiny.base_tokenizer(), tmp_path)
    assert "not this model's" in refusal(FlamingoOptions(model=str(tmp_path), device="cpu"))


def test_aliases_name_everything_that_a_checkpoint_needs():
    for alias, values in ALIASES.items():
        given = FlamingoOptions(**values)
        needs_parts = alias.startswith("flamingo")
        assert (given.language_model is not None) == needs_parts
