"""Checkpoints: our folders, ancestors' files, and files that are to be refused in one line."""

import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toy_selectors import StoppingSelector, ToyConfig, ToySelector, installed

from pointer_rl.errors import InputError, PluginError
from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    SelectorPolicy,
    create_selector,
    load_selector,
    save_selector,
)
from pointer_rl.selectors.bundle import load_bundle, read_query_ids
from pointer_rl.types import Pool, QueryBatch

OLD = Path(__file__).parents[1] / "data" / "versions" / "policies"
"""What 57b4359 wrote."""


def make(**changes):
    sizes = {"d_model": 12, "hidden_dim": 8, "num_layers": 2, "num_heads": 1, "history": "gated"}
    return PointerSelector.seeded(PointerConfig(**{**sizes, **changes}), 3)


def expect_same(loaded, selector):
    assert loaded.state_dict().keys() == selector.state_dict().keys()
    for name, tensor in selector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training


def expect_refused(path, *words, **options):
    with pytest.raises(InputError) as caught:
        load_selector(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


def test_a_saved_folder_comes_back_whole(tmp_path):
    selector = make(num_heads=4, temperature=0.2, dropout=0.3)
    save_selector(tmp_path / "a" / "b", selector)
    save_selector(tmp_path / "a" / "b", selector)
    assert sorted(each.name for each in (tmp_path / "a" / "b").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "model.safetensors"):
        loaded = load_selector(path)
        expect_same(loaded, selector)
        assert loaded.config == selector.config


SIZES = [
    {},
    {"history": "static"},
    {"d_model": 8},
    {"num_layers": 1, "hidden_dim": 16},
    {"num_layers": 11},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes_are_read_off_the_tensors(tmp_path, sizes):
    selector = make(**sizes)
    save_file(selector.state_dict(), tmp_path / "bare.safetensors")
    loaded = load_selector(tmp_path / "bare.safetensors")
    expect_same(loaded, selector)
    assert loaded.config == selector.config


@pytest.mark.parametrize("prefix", ["", "lever_lm.", "pointer_selector.", "model."])
@pytest.mark.parametrize("wrapping", [None, "model_state_dict", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_wrapping_and_prefix_of_the_ancestors_loads(tmp_path, prefix, wrapping, zipped):
    selector = make()
    state = {prefix + name: each for name, each in selector.state_dict().items()}
    content = state if wrapping is None else {wrapping: state, "epoch": 3, "phase": "grpo"}
    file = tmp_path / "old.ckpt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    expect_same(load_selector(file), selector)


def test_prefixes_may_be_nested(tmp_path):
    selector = make()
    state = {f"model.lever_lm.{name}": each for name, each in selector.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "old.pt")
    expect_same(load_selector(tmp_path / "old.pt"), selector)


def test_old_names_are_layer_0(tmp_path):
    selector = make(num_layers=1)
    state = {
        name.replace("cross_attn_layers.0.", "cross_attn.").replace(
            "attn_norms.0.", "attn_norm."
        ): x
        for name, x in selector.state_dict().items()
    }
    assert "cross_attn.in_proj_weight" in state
    assert "attn_norm.weight" in state
    torch.save(state, tmp_path / "old.pt")
    expect_same(load_selector(tmp_path / "old.pt"), selector)


def test_numpy_numbers_among_the_metrics_do_not_matter(tmp_path):
    content = {
        "model_state_dict": make().state_dict(),
        "epoch": 1,
        "phase": "rce",
        "kl_beta": np.float64(0.3),
        "metrics": {"loss": np.float32(1.5), "steps": np.int64(7), "best": np.bool_(True)},
    }
    torch.save(content, tmp_path / "old.pt")
    expect_same(load_selector(tmp_path / "old.pt"), make())


def test_other_models_tensors_are_ignored_and_counted(tmp_path, caplog):
    state = {f"lever_lm.{name}": each for name, each in make().state_dict().items()}
    clip = {f"img_model.layers.{n}.query_proj.weight": torch.ones(2) for n in range(5)}
    torch.save({"state_dict": {**state, **clip}}, tmp_path / "old.ckpt")
    with caplog.at_level(logging.INFO):
        expect_same(load_selector(tmp_path / "old.ckpt"), make())
    assert "5 tensors of other models ignored" in caplog.text


def test_heads_are_taken_from_the_argument_and_logged_when_assumed(tmp_path, caplog):
    torch.save(make().state_dict(), tmp_path / "old.pt")
    assert load_selector(tmp_path / "old.pt", num_heads=2).config.num_heads == 2
    assert not caplog.records
    assert load_selector(tmp_path / "old.pt").config.num_heads == 1
    assert "attention heads it has; taking 1" in caplog.text
    expect_refused(tmp_path / "old.pt", "not a multiple of 3 heads", num_heads=3)


def test_heads_that_contradict_the_saved_ones_are_refused(tmp_path):
    save_selector(tmp_path, make(num_heads=2))
    assert load_selector(tmp_path, num_heads=2).config.num_heads == 2
    expect_refused(tmp_path, "saved with num_heads=2; 4", num_heads=4)


def test_a_config_of_another_program_beside_the_file_is_not_read(tmp_path):
    save_file(make().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    expect_same(load_selector(tmp_path / "model.safetensors"), make())
    expect_refused(tmp_path, "config.json")


def test_half_precision_becomes_single(tmp_path):
    selector = make()
    torch.save({k: v.half() for k, v in selector.state_dict().items()}, tmp_path / "half.pt")
    loaded = load_selector(tmp_path / "half.pt")
    assert {each.dtype for each in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.state_dict(), selector.state_dict(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", make().state_dict())
def test_a_missing_tensor_is_named(tmp_path, name):
    state = make().state_dict()
    del state[name]
    torch.save(state, tmp_path / "old.pt")
    if name == "input_proj.weight":  # without it the sizes are those of d_model = hidden_dim
        assert load_selector(tmp_path / "old.pt").config.d_model == 8
    else:
        expect_refused(tmp_path / "old.pt", name)


def test_another_architecture_is_refused(tmp_path):
    torch.save({"encoder.weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "other.pt")
    expect_refused(tmp_path / "other.pt", "not a pointer selector", "none of its 2 tensors")
    wider = {**make().state_dict(), "cand_proj.weight": torch.ones(4, 8)}
    torch.save(wider, tmp_path / "wider.pt")
    expect_refused(tmp_path / "wider.pt", "cand_proj.weight has shape (4, 8)", "(8, 8)")
    biased = {**make().state_dict(), "query_proj.bias": torch.ones(8)}
    torch.save(biased, tmp_path / "biased.pt")
    expect_refused(tmp_path / "biased.pt", "no query_proj.bias", "another architecture")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    expect_refused(tmp_path / "list.pt", "holds a list")


@pytest.mark.parametrize("name", ["pointer", "sequential"])
def test_what_only_the_config_tells_is_not_left_out(name, tmp_path):
    """Without config.json, a file is taken for a `pointer` selector that never stops."""
    options = {"d_model": 4, "num_heads": 1, "stop": name == "pointer"}
    save_selector(tmp_path, create_selector(name, options))
    (tmp_path / "config.json").unlink()
    words = "stop.bias" if name == "pointer" else "history_in.bias"
    with pytest.raises(InputError, match=f"this selector has no {words}; another architecture"):
        load_selector(tmp_path / "model.safetensors", num_heads=1)


def test_two_selectors_in_one_file_are_refused(tmp_path):
    state = make().state_dict()
    both = {**state, **{f"lever_lm.{name}": each for name, each in state.items()}}
    torch.save(both, tmp_path / "two.pt")
    expect_refused(tmp_path / "two.pt", "both input_proj.weight and lever_lm.input_proj.weight")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = make().state_dict()
    state["query_proj.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "diverged.pt")
    expect_refused(tmp_path / "diverged.pt", "query_proj.weight", "not finite")


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def write_zip(content, file):
    torch.save(content, file)


def write_legacy(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def write_pickle(content, file):
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_pickle])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, write):
    mark = tmp_path / "ran"
    write({"state_dict": make().state_dict(), "hook": Malicious(mark)}, tmp_path / "evil.ckpt")
    expect_refused(tmp_path / "evil.ckpt")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists(), "the file would have been harmless anyway"


def test_the_python_object_that_a_file_is_refused_for_is_named(tmp_path):
    content = {"state_dict": make().state_dict(), "hyper_parameters": Malicious(tmp_path)}
    torch.save(content, tmp_path / "lightning.ckpt")
    expect_refused(tmp_path / "lightning.ckpt", "posix.system", "save its state_dict alone")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    file = tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(make().state_dict(), file)
    else:
        save_file(make().state_dict(), file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    expect_refused(file, "damaged")


def test_files_that_are_none_are_refused(tmp_path):
    expect_refused(tmp_path / "absent.pt", "no such checkpoint")
    expect_refused(tmp_path, "no model.safetensors in it")
    (tmp_path / "text.ckpt").write_text("hello world")
    expect_refused(tmp_path / "text.ckpt", "damaged")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not a selector's"),
        ('{"selector": "pointer", "config": 3}', "not a selector's"),
        ('{"architecture": "pointer_selector", "num_heads": 2}', "not a selector's configuration"),
        ('{"selector": "pointer", "config": {"d_model": 12, "hidden_dim": 8, "num_layers": 2, '
         '"num_heads": 3, "history": "gated"}}', "not a multiple of 3 heads"),
        ('{"selector": "pointer", "config": {"d_model": 12, "depth": 3}}', "no option 'depth'"),
    ],
)  # fmt: skip
def test_a_broken_config_is_refused(tmp_path, text, words):
    save_selector(tmp_path, make())
    (tmp_path / "config.json").write_text(text)
    expect_refused(tmp_path, "config.json", words)


# --- what 57b4359 wrote ----------------------------------------------------------------------

BEAMS = {
    "selector": [[[3, 0], [0, 3]], [[2, 4], [1, 4]], [[4, 2], [2, 4]]],
    "bundle": [[[3, 0], [0, 3]], [[2, 1], [2, 4]], [[2, 4], [4, 2]]],
}
HASHES = {
    "selector": "4d576682ee5a2fa2c0e85ed86b89f466a7ffce51d44dc2cb6a34d78199947759",
    "bundle": "417a0e6a976fa7a0fb5d944a5c4d4b51abd9951e192d11b9186cb99c4e9bee81",
}


@pytest.mark.parametrize("name", ["selector", "bundle"])
def test_a_folder_of_57b4359_is_read_and_decodes_as_it_did(name):
    policy = SelectorPolicy(load_selector(OLD / name))
    assert policy.hash == HASHES[name]
    pool = Pool((), torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    queries = QueryBatch(
        (),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(2)),
        torch.ones(3, 5, dtype=torch.bool),
        shots=2,
    )
    assert policy.beam(queries, pool, 2).rows.tolist() == BEAMS[name]


def test_a_bundle_of_57b4359_is_read():
    bundle = load_bundle(OLD / "bundle")
    assert bundle.policy.hash == HASHES["bundle"]
    assert bundle.info.shots == 2
    assert bundle.info.training["metrics"] == {"held_out_reward": 0.75, "tied_groups": 0.25}
    assert bundle.pool_ids == ("p0", "p1", "p2", "p3", "p4")
    assert read_query_ids(OLD / "bundle") == ("q1", "q2")


def test_a_checkpoint_of_lever_plus_is_read():
    selector = load_selector(OLD / "lever_plus.ckpt", num_heads=2)
    expected = PointerConfig(d_model=4, hidden_dim=8, num_layers=1, num_heads=2, history="gated")
    expect_same(selector, PointerSelector.seeded(expected, 2))
    assert selector.config == expected


# --- third parties' --------------------------------------------------------------------------


def test_any_registered_selector_is_saved_and_loaded(tmp_path):
    toy = ToySelector.seeded(ToyConfig(d_model=5, widths=(4, 1)), 0)
    stopping = StoppingSelector.seeded(PointerConfig(d_model=4, num_heads=2), 1)
    with installed():
        for selector in (toy, stopping):
            save_selector(tmp_path, selector)
            loaded = load_selector(tmp_path)
            assert type(loaded) is type(selector)
            assert loaded.config == selector.config
            expect_same(loaded, selector)
            assert SelectorPolicy(loaded).hash == SelectorPolicy(selector).hash
    with pytest.raises(PluginError, match=r"config\.json: unknown selector 'stopping'"):
        load_selector(tmp_path)


def test_equal_weights_of_different_selectors_have_different_hashes():
    class Renamed(ToySelector):
        name = "renamed"

    one, other = (cls.seeded(ToyConfig(d_model=4), 0) for cls in (ToySelector, Renamed))
    assert SelectorPolicy(one).hash != SelectorPolicy(other).hash


def test_a_selector_is_created_by_its_name():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with installed():
        one, again = (create_selector("toy", {"d_model": 4, "scale": "2"}, 3) for _ in range(2))
        expect_same(one.eval(), again)
        assert one.config == ToyConfig(d_model=4, scale=2.0)
        with pytest.raises(InputError, match=r"selector toy needs the option d_model"):
            create_selector("toy", {})
        with pytest.raises(PluginError, match=r"unknown selector 'tow'; did you mean 'toy'"):
            create_selector("tow", {"d_model": 4})
    assert torch.equal(torch.rand(1), expected), "the global random state stays"
    pointer = create_selector("pointer", {"d_model": 16}, 3)
    expect_same(pointer.eval(), PointerSelector.seeded(PointerConfig(d_model=16), 3))
    assert pointer.config.hidden_dim == 16


def test_a_factory_that_makes_something_else_is_refused():
    with installed(dict=lambda options: {}, other=lambda options: ToySelector(options)):
        with pytest.raises(PluginError, match=r"selector dict: its factory returns a dict"):
            create_selector("dict", {"d_model": 4})
        with pytest.raises(PluginError, match=r"other: its class has name = 'toy'.* 'other'"):
            create_selector("other", {"d_model": 4})
