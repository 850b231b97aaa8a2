"""Policy bundles: written whole, read back, refused in one line; and what is selected with one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import example, given
from hypothesis import strategies as st
from toy_selectors import StoppingSelector, installed

import pointer_rl
from pointer_rl.datasets.embeddings import (
    Embeddings,
    digest_vectors,
    load_embeddings,
    save_embeddings,
)
from pointer_rl.datasets.identity import digest_ids
from pointer_rl.errors import InputError
from pointer_rl.escaping import printable
from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    SelectorPolicy,
    initial_state,
    load_selector,
    log_prob,
    save_selector,
)
from pointer_rl.selectors.bundle import (
    BundleInfo,
    DataFile,
    EncoderInfo,
    check_bundle,
    load_bundle,
    read_query_ids,
    save_bundle,
    update_evaluation,
)
from pointer_rl.selectors.card import write_card
from pointer_rl.selectors.selecting import Policy

SIZE, DIM = 7, 4
POOL_IDS = tuple(f"p{row}" for row in range(SIZE))
QUERY_IDS = ("q1", "q2")
INFO = BundleInfo(
    shots=2,
    encoder=EncoderInfo(fingerprint="toy 1", name="toy", options={"mode": "both"}),
    dataset={"name": "jsonl", "title": "pets", "options": {"path": "pets.jsonl"}},
    data=DataFile(name="rl.json", sha256="ab" * 32),
    training={"options": {"grpo_lr": 1e-4, "seed": 3}, "metrics": {"reward": 0.75}},
)


def vectors(rows: int, seed: int, dim: int = DIM) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def selector(seed: int = 0, dim: int = DIM) -> PointerSelector:
    config = PointerConfig(
        d_model=dim, hidden_dim=8, num_layers=1, num_heads=2, history="gated", dropout=0.2
    )
    return PointerSelector.seeded(config, seed)


def save(folder: Path, info: BundleInfo = INFO, seed: int = 0) -> Path:
    save_bundle(folder, selector(seed), vectors(SIZE, 1), POOL_IDS, info, QUERY_IDS)
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        Policy.load(folder, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "new" / "policy")


# --- written and read ---


def test_what_was_saved_is_loaded(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.info == INFO
    assert bundle.pool_ids == POOL_IDS
    assert torch.equal(bundle.pool_embeddings, vectors(SIZE, 1))
    assert bundle.policy.hash == SelectorPolicy(selector()).hash
    assert read_query_ids(folder) == QUERY_IDS
    assert load_selector(folder).config == selector().config
    assert load_embeddings(folder / "pool.safetensors").encoder == "toy 1"


def test_what_is_named_is_described(folder: Path) -> None:
    document = json.loads((folder / "bundle.json").read_text())
    assert document["pool"] == {
        "size": SIZE,
        "sha256": digest_ids(POOL_IDS),
        "vectors_sha256": digest_vectors(vectors(SIZE, 1)),
    }
    assert document["queries"] == {"number": 2, "sha256": digest_ids(QUERY_IDS)}
    assert document["policy"]["sha256"] == SelectorPolicy(selector()).hash


def test_equal_bundles_are_equal_bytes(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one"), save(tmp_path / "two")
    assert sorted(each.name for each in one.iterdir()) == [
        *("README.md", "bundle.json", "config.json", "model.safetensors"),
        *("pool.safetensors", "query_ids.txt"),
    ]
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes()


def test_what_may_be_unknown_may_be_missing(tmp_path: Path) -> None:
    info = BundleInfo(shots=1, encoder=EncoderInfo(fingerprint=None), dataset={})
    save(tmp_path, info)
    assert load_bundle(tmp_path).info == info
    assert "--query-emb" in (tmp_path / "README.md").read_text()


def test_what_json_has_not_is_written_as_what_it_has(tmp_path: Path) -> None:
    options = {"path": tmp_path, "temps": (1.0, 1.3)}
    metrics = {"kl": float("nan"), "loss": float("inf")}
    training = {"options": options, "metrics": metrics}
    info = load_bundle(save(tmp_path, dataclasses.replace(INFO, training=training))).info
    assert info.training == {
        "options": {"path": str(tmp_path), "temps": [1.0, 1.3]},
        "metrics": {"kl": None, "loss": None},
    }


def test_half_precision_selectors_are_bundled(tmp_path: Path) -> None:
    save_bundle(tmp_path, selector().half(), vectors(SIZE, 1), POOL_IDS, INFO, QUERY_IDS)
    assert load_bundle(tmp_path).policy.hash == SelectorPolicy(selector().half().float()).hash


@given(ids=st.lists(st.text(st.characters(codec=None)), max_size=5))
@example(ids=["", '"', '"a"', "a\nb", "\u2028", "\ud800", "ü"])
def test_any_query_ids_come_back(ids: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "ids"
    save_bundle(folder, selector(), vectors(SIZE, 1), POOL_IDS, INFO, ids)
    assert read_query_ids(folder) == tuple(ids)


def test_plain_query_ids_are_plain_lines(folder: Path) -> None:
    assert (folder / "query_ids.txt").read_text() == "q1\nq2\n"


def test_query_ids_of_another_bundle_are_refused(folder: Path) -> None:
    (folder / "query_ids.txt").write_text("q1\nq3\n")
    with pytest.raises(InputError, match=r"query_ids\.txt is not what it was saved with"):
        read_query_ids(folder)


# --- cut off, damaged, foreign ---


class Killed(BaseException):
    """As SIGKILL: nothing tidies up after it."""


WRITES = ("save_selector", "save_embeddings", "write_text", "write_text", "write_text")


@pytest.mark.parametrize("survived", range(len(WRITES)))
def test_a_save_that_was_cut_off_leaves_no_bundle(
    survived: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = itertools.count()
    for name in set(WRITES):
        real = getattr(pointer_rl.selectors.bundle, name)

        def write(*args: object, real=real) -> None:
            if next(writes) == survived:
                raise Killed
            real(*args)

        monkeypatch.setattr(f"pointer_rl.selectors.bundle.{name}", write)
    with pytest.raises(Killed):
        save(folder, seed=1)
    refused(folder, "writing was cut off")
    monkeypatch.undo()
    save(folder, seed=1)
    assert load_bundle(folder).policy.hash == SelectorPolicy(selector(1)).hash


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written"):
        save(tmp_path / "file")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder")
    refused(tmp_path, "not a policy bundle")
    save_selector(tmp_path, selector())
    refused(tmp_path, "not a policy bundle")
    for content in ("[]", '{"model_type": "bert"}', "3"):
        (tmp_path / "bundle.json").write_text(content)
        refused(tmp_path, "not a policy bundle's")


def test_a_newer_bundle_is_refused(folder: Path) -> None:
    edit(folder, bundle_version=2)
    refused(folder, "version 2", "reads up to 1", "upgrade")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff"], ids=range(4))
def test_a_bundle_json_that_does_not_parse_is_refused(content: str, folder: Path) -> None:
    (folder / "bundle.json").write_bytes(content.encode("latin-1"))
    refused(folder, "damaged", "bundle.json")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"shots": "2"}, "'shots'"),
        ({"encoder": None}, "'encoder'"),
        ({"encoder": {"fingerprint": 3, "name": None, "options": {}}}, "'encoder.fingerprint'"),
        ({"pool": {"size": 7}}, "'pool.sha256'"),
        ({"data": {"name": "rl.json"}}, "'data.sha256'"),
        ({"evaluation": []}, "'evaluation'"),
        ({"policy": {"sha256": "0" * 64, "config": {}}}, "model.safetensors"),
        ({"pool": {"size": 7, "sha256": "0" * 64}}, "pool.safetensors"),
        ({"shots": 0}, "at least 1"),
    ],
)
def test_a_bundle_json_that_does_not_fit_is_refused(
    changes: dict[str, object], name: str, folder: Path
) -> None:
    edit(folder, **changes)
    refused(folder, name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pool.safetensors"])
def test_missing_and_damaged_files_are_refused(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-9])
    refused(folder, name)
    (folder / name).unlink()
    refused(folder, name)


def test_parts_of_other_bundles_are_refused(folder: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", folder)
    refused(folder, "model.safetensors")
    save(folder)
    save_embeddings(folder / "pool.safetensors", vectors(SIZE, 1), POOL_IDS, "toy 2")
    refused(folder, "pool.safetensors")
    save_embeddings(folder / "pool.safetensors", vectors(SIZE, 1, dim=5), POOL_IDS, "toy 1")
    refused(folder, "pool.safetensors")
    save_embeddings(folder / "pool.safetensors", vectors(SIZE, 9), POOL_IDS, "toy 1")
    refused(folder, "pool.safetensors")


# --- the card ---


def test_the_card_says_what_the_bundle_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for words in (
        *("pets", "2 of a pool of 7 examples", "rl.json", "- queries: 2", "toy 1"),
        *("- grpo_lr: 0.0001", "- seed: 3", "- reward: 0.75", "pointer-rl select", "Not measured"),
    ):
        assert words in card
    assert "None" not in card


def test_the_card_of_a_policy_that_may_stop_says_so(tmp_path: Path) -> None:
    config = PointerConfig(d_model=DIM, num_layers=1, num_heads=1)
    with installed():
        save_bundle(tmp_path, StoppingSelector(config), vectors(SIZE, 1), POOL_IDS, INFO, QUERY_IDS)
    assert "up to 2 of a pool of 7 examples" in (tmp_path / "README.md").read_text()


def test_the_card_says_what_training_cost_and_what_is_not_beaten(tmp_path: Path) -> None:
    metrics = {"held_out_reward": 1.2, "held_out_random_reward": 0.5, "held_out_queries": 29}
    training = {"options": {}, "metrics": metrics, "calls": 16_400, "calls_by_file": {"a": 16_400}}
    folder = save(tmp_path, dataclasses.replace(INFO, training=training))
    assert load_bundle(folder).info.training_calls == 16_400
    verdict = "RL, 2 shots: better than random by 9.0 points. It does not beat: zero-shot"
    said = "RL, 2 shots: not distinguishable from zero-shot"
    sentences = [verdict, said, "WARNING: RL hardly tells queries apart"]
    update_evaluation(folder, {"verdict": verdict, "sentences": sentences, "queries": 100})
    card = (folder / "README.md").read_text()
    for words in (
        *(f"**{verdict}**", f"- {said}", "- WARNING: RL hardly", "- queries: 100"),
        *("- calls: 16,400", "- held_out_queries: 29", "- held_out_random_reward: 0.5"),
    ):
        assert words in card
    assert card.count(verdict) == 1


EVALUATION = {
    "verdict": "RL, 2 shots: better than random by 9.0 points",
    "sentences": ["RL, 2 shots: better than random by 9.0 points", "no query shares its image"],
    "warnings": ["3 of 100 queries left out at 2 shots"],
    "queries": 100,
    "rows": [
        {
            **{"arm": arm, "shots": shots, "queries": 97, "calls": calls, "accuracy": accuracy},
            "training_calls": trained,
        }
        for arm, shots, calls, accuracy, trained in (
            ("zero-shot", 0, 100, 0.5, 0),
            ("random", 2, 300, 0.525, 0),
            ("RL | best", 2, 1100, 0.615, 16_400),
            ("old", 2, 100, None, None),
        )
    ],
    "comparisons": [
        {
            **{"arm": "RL | best", "reference": reference, "shots": 2},
            **{"mean": mean, "low": mean - 0.05, "high": mean + 0.05},
        }
        for reference, mean in (("random", 0.09), ("zero-shot", 0.115))
    ],
    "settings": {
        **{"primary": "RL | best", "primary_shots": 2, "intervals": {"joint_level": 0.95}},
        "dataset": {"name": "jsonl", "title": 'pets: "mine"'},
        "backend": {"name": "hf", "options": {"model": "tiny/vlm"}},
        **{"prompt": {"name": "short-answer"}, "metric": {"name": "vqa"}},
    },
}


def test_the_card_has_arms_intervals_calls_and_limits(folder: Path) -> None:
    update_evaluation(folder, EVALUATION)
    card = (folder / "README.md").read_text()
    for line in (
        r"| 2 | RL \| best | 97 | 16,400 + 1,100 | 61.5 | +9.0 (+4.0 to +14.0) |",
        "| 0 | zero-shot | 97 | 100 | 50.0 |  |",
        "| 2 | old | 97 | unknown + 100 | – |  |",
        "All intervals hold together at 95%.",
        *("- backend: hf, tiny/vlm", "- metric: vqa", "- prompt: short-answer", "- queries: 100"),
        *("## Limits", "- 3 of 100 queries left out at 2 shots", "- no query shares its image"),
    ):
        assert line in card.splitlines()


def test_the_hub_reads_the_cards_metadata(folder: Path) -> None:
    def read() -> ModelCardData:
        return ModelCard((folder / "README.md").read_text()).data

    data = read()
    assert (data.library_name, data.pipeline_tag) == ("pointer-rl", "visual-question-answering")
    assert data.eval_results is None
    update_evaluation(folder, EVALUATION)
    data = read()
    [result] = data.eval_results
    assert data.model_name == "RL | best"
    assert (result.dataset_type, result.dataset_name) == ("jsonl", 'pets: "mine"')
    assert (result.metric_type, result.metric_value) == ("accuracy", 61.5)
    assert result.metric_name == "accuracy in percent, 2 shots, 97 queries"
    nothing = [{**row, "accuracy": None} for row in EVALUATION["rows"]]
    update_evaluation(folder, {**EVALUATION, "rows": nothing})
    assert read().eval_results is None


DOCUMENT = {
    "shots": 2,
    "encoder": {"name": None, "fingerprint": None},
    "dataset": {"name": "jsonl"},
    "training": {},
    "policy": {"sha256": "ab"},
    "pool": {"size": 5, "sha256": "cd"},
    "queries": {"number": 2},
}


@given(name=st.text(min_size=1))
@example(name="\x00\n---\n# no: [")
@example(name="\ud800 \U0001f600 \ufffe \x85 \u2028")
def test_a_foreign_name_does_not_break_the_cards_metadata(name: str) -> None:
    settings = {**EVALUATION["settings"], "dataset": {"name": "jsonl", "title": name}}
    card = write_card({**DOCUMENT, "evaluation": {**EVALUATION, "settings": settings}})
    [result] = ModelCard(card).data.eval_results
    assert result.dataset_name == re.sub("[\ufffe\uffff]", "\ufffd", printable(name))


def test_of_an_older_bundle_the_calls_are_unknown(folder: Path) -> None:
    assert load_bundle(folder).info.training_calls is None
    assert "- calls: unknown" in (folder / "README.md").read_text()


def test_an_older_bundle_which_has_fewer_hashes_is_checked_by_those() -> None:
    older = Path(__file__).parents[1] / "data" / "versions" / "policies" / "bundle"
    assert check_bundle(older).info.shots == 2


def test_an_evaluation_is_written_in_and_nothing_else_changes(folder: Path) -> None:
    before = json.loads((folder / "bundle.json").read_text())
    evaluation = {"verdict": "not distinguishable from random", "questions": 1000, "arms": [1]}
    update_evaluation(folder, evaluation)
    assert load_bundle(folder).info.evaluation == evaluation
    after = json.loads((folder / "bundle.json").read_text())
    assert {**before, "evaluation": evaluation, "sha256": after["sha256"]} == after
    card = (folder / "README.md").read_text()
    assert "**not distinguishable from random**" in card
    assert "- questions: 1,000" in card
    assert "Not measured" not in card
    update_evaluation(folder, None)
    assert json.loads((folder / "bundle.json").read_text()) == before


# --- choosing ---


@pytest.fixture
def policy(folder: Path) -> Policy:
    return Policy.load(folder, "cpu")


def test_it_chooses_as_the_selector_decodes(policy: Policy, monkeypatch) -> None:
    queries = vectors(5, 2)
    trained = selector().eval()
    for shots, width in ((None, 1), (3, 1), (3, 4), (SIZE, 2)):
        chosen = policy.select(queries, shots, width)
        state = initial_state(trained, queries, vectors(SIZE, 1))
        expected = pointer_rl.selectors.beam_search(trained, state, shots=shots or 2, width=width)
        assert [each.rows for each in chosen] == [tuple(r) for r in expected.rows[:, 0].tolist()]
        rows = torch.tensor([each.rows for each in chosen]).unsqueeze(1)
        scores = log_prob(trained, state, rows)[:, 0].tolist()
        assert [each.logprob for each in chosen] == pytest.approx(scores, abs=1e-5)
        monkeypatch.setattr("pointer_rl.selectors.selecting._SCORES", 2 * SIZE * width)
        assert [each.rows for each in policy.select(queries, shots, width)] == [
            each.rows for each in chosen
        ]


def test_ids_are_those_of_the_pool_and_of_the_queries(policy: Policy) -> None:
    queries = vectors(2, 2)
    for given_, ids in (
        (queries, ["0", "1"]),
        (Embeddings(("a", "b"), queries, "toy 1"), ["a", "b"]),
        (Embeddings(None, queries, None), ["0", "1"]),
    ):
        chosen = policy.select(given_)
        assert [each.query_id for each in chosen] == ids
        for each in chosen:
            assert each.ids == tuple(f"p{row}" for row in each.rows)
    assert policy.select(queries[:0]) == policy.select([]) == []


def test_excluded_rows_are_not_chosen(policy: Policy) -> None:
    queries = vectors(3, 2)
    free = policy.select(queries)
    by_row = policy.select(queries, excluded=[free[0].rows, [], free[2].rows[:1]])
    by_id = policy.select(queries, excluded=[free[0].ids, [], free[2].ids[:1]])
    assert by_row == by_id
    assert not set(by_row[0].rows) & set(free[0].rows)
    assert by_row[1].rows == free[1].rows
    assert free[2].rows[0] not in by_row[2].rows


@pytest.mark.parametrize(
    ("queries", "options", "saying"),
    [
        (vectors(1, 2), {"shots": 8}, "8 shots need a pool .* has 7"),
        (vectors(1, 2), {"shots": 0}, "shots is 0"),
        (vectors(1, 2), {"width": 0}, "width is 0"),
        (vectors(1, 2, dim=5), {}, "5 values a row, the selector takes 4"),
        (vectors(1, 2)[0], {}, r"shape \[4\]"),
        (vectors(1, 2) / 0, {}, "not all values are finite"),
        (
            Embeddings(None, vectors(1, 2), "toy 2"),
            {},
            "toy 1.; these embeddings come from toy 2",
        ),
        (vectors(2, 2), {"excluded": [[]]}, "1 entries for 2 queries"),
        (vectors(1, 2), {"excluded": [["p9"]]}, "query 0 excludes 'p9', .* not in the pool"),
        (vectors(1, 2), {"excluded": [[7]]}, "query 0 excludes 7"),
        (vectors(1, 2), {"excluded": [[-1]]}, "query 0 excludes -1"),
        (vectors(2, 2), {"excluded": [[], range(6)]}, "query 1 may choose 1 of the pool's 7"),
    ],
)
def test_what_cannot_be_chosen_for_is_refused(
    queries, options: dict[str, object], saying: str, policy: Policy
) -> None:
    with pytest.raises(InputError, match=saying) as caught:
        policy.select(queries, **options)
    assert "\n" not in str(caught.value)


def test_the_pool_is_projected_once_for_all_queries(policy: Policy, monkeypatch) -> None:
    pools = []
    policy._policy._selector.cand_proj.register_forward_hook(lambda *_: pools.append(1))
    for seed in range(3):
        policy.select(vectors(1, seed))
    assert len(pools) == 1


def test_it_is_public() -> None:
    assert pointer_rl.Policy is Policy
