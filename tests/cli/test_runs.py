"""`pointer_rl.Session`: its methods do what the commands do, and options may be plain values."""

from __future__ import annotations

import json

import pytest

import pointer_rl
from pointer_rl.errors import InputError, PluginError
from pointer_rl.selectors.bundle import load_bundle
from pointer_rl.session.session import PluginRef

LEARN = {"rce_epochs": 2, "grpo_epochs": 1, "held_out": 0.3, "selector_options": {"num_heads": 1}}
LEARN_FLAGS = (
    *("--rce-epochs", "2", "--grpo-epochs", "1", "--held-out", "0.3", "--heads", "1"),
    *("--overwrite", "--output-dir"),
)


@pytest.fixture
def session(world):
    return pointer_rl.Session(
        {"plugin": "jsonl", "path": world.data},
        "copy",
        query_emb=str(world.query_emb),
        cand_emb=str(world.cand_emb),
    )


@pytest.fixture
def flags(world):
    """What the session is made of, on the command line."""
    return (
        *("--backend", "copy", "--dataset", "jsonl", "--dataset-opt", f"path={world.data}"),
        *("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb)),
    )


def ran(result):
    assert result.exit_code == 0, result.output


def test_generate_writes_the_commands_bytes(session, world, tmp_path):
    ran(world.generate("--seed", "3"))
    made = session.generate(
        str(tmp_path / "rl.json"),
        generators=["retrieval", {"plugin": "random", "num": 3}],
        seed=3,
    )
    assert made.path.read_bytes() == world.output.read_bytes()
    written = json.loads(world.output.read_bytes())
    assert made.records == {key: written[key] for key in written if key != "_meta"}
    assert repr(made).startswith("RLData(8 queries, ")
    again = session.generate(str(tmp_path / "rl.json"), generators=["retrieval"], overwrite=True)
    assert {each["gen_method"] for each in _candidates(again)} == {"retrieval"}


def test_generate_without_a_file_leaves_none_and_has_the_same_records(session, tmp_path):
    options = {"generators": "random", "shots": 1}
    here = session.generate(**options)
    written = session.generate(tmp_path / "rl.parquet", **options)
    assert here.path is None
    assert here.records.keys() == written.records.keys()
    assert [each["pointer"] for each in _candidates(here)] == [
        each["pointer"] for each in _candidates(written)
    ]


def _candidates(made):
    return [each for record in made.records.values() for each in record["pointer_candidates"]]


def test_train_is_the_command(session, flags, world, cli, tmp_path):
    ran(world.generate())
    result = session.train(tmp_path / "here", str(world.output), **LEARN)
    ran(cli("train", "--beam-data", str(world.output), *flags[-4:], *LEARN_FLAGS, "there"))
    assert result.policy().info.training == load_bundle(tmp_path / "there").info.training
    assert len(repr(result)) < 200
    assert result.sentences()[0].startswith("WARNING: ")


def test_training_online_is_the_command(session, flags, cli, tmp_path):
    online = {"online": True, "max_calls": 64, "rounds": 2, "shots": 1}
    online["search"] = {"plugin": "first-success", "budget": 4}
    result = session.train(str(tmp_path / "here"), **online, **LEARN)
    ran(
        cli(
            *("train", "--online", "--max-calls", "64", "--rounds", "2"),
            *(
                "--generator",
                "first-success",
                "--generator-opt",
                "first-success.budget=4",
                "--shots",
                "1",
            ),
            *(*flags, *LEARN_FLAGS, "there"),
        )
    )
    assert result.policy().info.training == load_bundle(tmp_path / "there").info.training


def test_evaluate_is_the_command(session, flags, world, cli, tmp_path):
    ran(world.generate())
    session.train("policy", world.output, **LEARN)
    evaluation = session.evaluate({"RL": "policy"}, "here.json", shots=[1, 2], limit=6)
    ran(
        cli(
            *("evaluate", "--policy", "RL=policy", "--shots", "1,2", "--limit", "6", *flags),
            *("--output-path", "there.json"),
        )
    )
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()
    assert sorted(tmp_path.glob("*.partial*")) == []
    assert evaluation.rows()[0][0] == "shots"
    assert evaluation.sentences()[0] in repr(evaluation)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_what_does_not_fit_is_one_line(session, world):
    with pytest.raises(InputError, match="no option 'shot'; did you mean 'shots'"):
        session.generate(shot=1)
    with pytest.raises(InputError, match="no option 'limits'; did you mean 'limit'"):
        pointer_rl.Session(limits=3)
    with pytest.raises(InputError, match="generator random has no option 'nun'"):
        session.generate(generators=[{"plugin": "random", "nun": 3}])
    for wrong in ({"dedup": "x"}, {"shots": "two"}, {"accept_changed": "x"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            session.generate(**wrong)
    with pytest.raises(InputError, match="keep_by='x': not one of reward, cross_entropy"):
        session.train("runs/rl", world.output, keep_by="x")
    for reserved in ("cache", "session"):
        with pytest.raises(InputError, match=f"no option '{reserved}'"):
            pointer_rl.Session(**{reserved: "x"})
    for reserved in ("config", "output", "folder", "data"):
        with pytest.raises(InputError, match=f"no option '{reserved}'"):
            session.train("runs/rl", world.output, **{reserved: "x"})
    with pytest.raises(InputError, match="limit is -3"):
        pointer_rl.Session(limit=-3)
    with pytest.raises(InputError, match="a plugin is a name, or"):
        pointer_rl.Session({"name": "jsonl"})
    with pytest.raises(PluginError, match="unknown backend 'copi'"):
        pointer_rl.Session(backend="copi")
    with pytest.raises(InputError, match="'runs/rl': give a mapping, from names"):
        session.evaluate("runs/rl")
    with pytest.raises(InputError, match="max_seconds: give an output_path"):
        session.generate(generators="random", max_seconds=1e-9)
    with pytest.raises(InputError, match="give rl_data, or online=True"):
        session.train("runs")
    with pytest.raises(InputError, match="online=True needs max_calls"):
        session.train("runs", online=True)
    with pytest.raises(InputError, match="recipe 'ours': one of default, guide"):
        session.train("runs", "rl.json", recipe="ours")


def test_a_session_is_the_engines_and_shows_what_it_is(session):
    assert repr(session) == "Session(dataset='jsonl', backend='copy': 8 queries, a pool of 8)"
    assert session.options.cache is not None
    plain = pointer_rl.Session(
        PluginRef("glyphs", {"train_size": 3}),
        "glyphs",
        limit=2,
        store=False,
        decoding={"max_new_tokens": 3},
    )
    assert (len(plain.queries), plain.options.cache) == (2, None)
    assert plain.options.decoding.max_new_tokens == 3
