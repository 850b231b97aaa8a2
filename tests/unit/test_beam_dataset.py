"""`BeamDataset`: files into arrays, with and without embeddings."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pointer_rl import BeamDataset, BeamDatasetWithEmbedding, collate_groups
from pointer_rl.datasets.embeddings import Embeddings, save_embeddings
from pointer_rl.datasets.identity import digest_ids
from pointer_rl.errors import InputError, PluginError
from pointer_rl.records.beams import Beam, to_beam_record
from pointer_rl.records.formats import open_writer
from pointer_rl.records.records import to_record
from pointer_rl.registry import registry
from pointer_rl.testing import example
from pointer_rl.types import NO_ROW, Candidate, Outcome

REWARDS = json.loads((Path(__file__).parents[1] / "data" / "rewards.json").read_text())
OUTCOME = {"vqa_pred_answer": "x", "vqa_correct": 1, "vqa_acc_score": 0.6}
COLUMNS = ("pointers", "rewards", "accuracies", "methods", "logprobs", "temperatures", "top_ps")


def candidate(pointer, method="random", **fields):
    return {"pointer": pointer, "gen_method": method, **OUTCOME, **fields}


def dump(folder, content, name="rl.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def rl(tmp_path):
    """Three queries with ragged groups, and one of which nothing is left."""
    failed = {"pointer": [1], "gen_method": "random", "eval_failed": True}
    unasked = {"pointer": [2], "gen_method": "random"}
    return dump(
        tmp_path,
        {
            "a": {
                "query": {"row": 7, "image_id": 12},
                "pointer_candidates": [
                    candidate([4, 2], "beam", beam_rank=0, beam_score=-1.0, logprob_score=-1.5),
                    candidate([3], "sample", temperature=1.3, top_p=0.9, logprob_score=-2.0),
                ],
            },
            "none": {"pointer_candidates": [failed, unasked]},
            "b": {
                "pointer_candidates": [candidate([9, 8, 1], vqa_correct=0, vqa_acc_score=0.0)],
                "pool": [1, 8, 9],
                "excluded": [5],
            },
            "c": {"pointer_candidates": [failed, candidate([0, 1]), candidate([1, 0])]},
            "_meta": {"dataset": {"shared_pool": True}, "seed": 3},
        },
    )


def test_the_arrays_are_what_the_file_says(rl):
    dataset = BeamDataset(rl)
    assert dataset.ids == ["a", "b", "c"]
    assert dataset.image_ids == ["12", None, None]
    assert dataset.recorded_rows.tolist() == [7, -1, -1]
    assert dataset.offsets.tolist() == [0, 2, 3, 5]
    assert dataset.pointers.tolist() == [
        *([4, 2, -1], [3, -1, -1], [9, 8, 1]),
        *([0, 1, -1], [1, 0, -1]),
    ]
    assert dataset.rewards.tolist() == pytest.approx([1.6, 1.6, 0, 1.6, 1.6])
    assert dataset.accuracies.tolist() == pytest.approx([0.6, 0.6, 0, 0.6, 0.6])
    assert [dataset.method_names[each] for each in dataset.methods] == [
        *("beam", "sample", "random", "random", "random")
    ]
    nan = math.nan
    close = {"nan_ok": True, "rel": 1e-6}
    assert dataset.logprobs.tolist() == pytest.approx([-1.5, -2, nan, nan, nan], **close)
    assert dataset.temperatures.tolist() == pytest.approx([nan, 1.3, nan, nan, nan], **close)
    assert dataset.top_ps.tolist() == pytest.approx([nan, 0.9, nan, nan, nan], **close)
    assert [None if pool is None else pool.tolist() for pool in dataset.pools] == [
        *(None, [1, 8, 9], None)
    ]
    assert [None if rows is None else rows.tolist() for rows in dataset.excluded] == [
        *([7], [5], None)
    ]
    assert (dataset.failed, dataset.without_reward, dataset.empty) == (2, 1, 1)
    assert dataset.trials == 5 + 2, "what was never asked cost nothing"
    assert (dataset.kind, dataset.shots, dataset.meta["seed"]) == ("rl", (1, 2, 3), 3)
    assert len(dataset) == 3
    types = [getattr(dataset, name).dtype.name for name in ("offsets", *COLUMNS)]
    assert types == ["int64", "int32", "float32", "float32", "uint8", *["float32"] * 3]


def test_the_sha256_is_the_files(tmp_path):
    path = dump(tmp_path, {"a": {"pointer_candidates": [candidate([1])]}})
    first = BeamDataset(path).sha256
    assert first == BeamDataset(str(path)).sha256
    assert len(first) == 64
    path.write_text(path.read_text() + "\n")
    assert BeamDataset(path).sha256 != first


def test_a_group_is_one_querys_part(rl):
    dataset = BeamDataset(rl)
    group = dataset[1]
    assert group.id == "b"
    assert group.pointers.tolist() == [[9, 8, 1]]
    assert group.pool.tolist() == [1, 8, 9]
    assert group.query_embedding is None
    assert [each.id for each in dataset] == ["a", "b", "c"]
    assert dataset[-1].id == "c"
    assert dataset[-1].rewards.tolist() == pytest.approx([1.6, 1.6])
    for outside in (3, -4):
        with pytest.raises(IndexError):
            dataset[outside]


def test_a_data_loader_takes_it(rl):
    loader = torch.utils.data.DataLoader(BeamDataset(rl), batch_size=2, collate_fn=list)
    assert [[group.id for group in batch] for batch in loader] == [["a", "b"], ["c"]]
    assert pickle.loads(pickle.dumps(BeamDataset(rl)))[0].id == "a"


def test_a_selection_is_a_dataset(rl):
    dataset = BeamDataset(rl)
    chosen = dataset.select(np.array([2, 0]))
    assert chosen.ids == ["c", "a"]
    assert chosen.offsets.tolist() == [0, 2, 4]
    assert chosen.recorded_rows.tolist() == [-1, 7]
    assert chosen.image_ids == [None, "12"]
    assert chosen.excluded[1].tolist() == [7]
    assert chosen.shots == (1, 2)
    for new, old in ((0, 2), (1, 0)):
        for name in ("pointers", "rewards", "methods", "logprobs"):
            ours, theirs = getattr(chosen[new], name), getattr(dataset[old], name)
            np.testing.assert_array_equal(ours, theirs)
    assert dataset.ids == ["a", "b", "c"], "the whole is left as it was"
    assert len(dataset.select([])) == 0
    assert dataset.select([-1]).ids == ["c"]
    with pytest.raises(IndexError):
        dataset.select([3])
    with pytest.raises(TypeError):
        dataset.select(np.array([True, False, True]))


# --- rewards ---


def test_rewards_are_the_reference_ones(tmp_path):
    """Against values of the ancestor's own code, in every mode and with every option."""
    options = ("hard_weight", "soft_weight", "alpha", "beta", "correctness_mode", "use_logprob")
    fields = ("beam_score", "logprob_score")
    outcome = ("vqa_correct", "vqa_acc_score", "vqa_gt_prob", "vqa_rel_score")
    groups: dict[str, list] = {}
    for case in REWARDS:
        groups.setdefault(json.dumps([case[name] for name in options]), []).append(case)
    checked = 0
    for values, cases in groups.items():
        for mode in {case["reward_mode"] for case in cases}:
            # The ancestor also took half an outcome, in which it counted what is missing as 0.
            known_of = [[case[k] is not None for k in outcome[:3]] for case in cases]
            mine = [
                case
                for case, known in zip(cases, known_of, strict=True)
                if case["reward_mode"] == mode and (all(known[:2]) or not any(known))
            ]
            judged = [case for case in mine if case["vqa_correct"] is not None]
            basis = {"pointer": [1], "gen_method": "x", "vqa_pred_answer": "a"}
            record = {
                "pointer_candidates": [
                    basis | {k: case[k] for k in fields + outcome} for case in mine
                ]
            }
            path = dump(tmp_path, {"q": record, "z": {"pointer_candidates": [candidate([1])]}})
            # The ancestor takes every option in every mode; here a mode refuses what it ignores.
            given = dict(zip(options, json.loads(values), strict=True))
            known = {
                each.name for each in dataclasses.fields(registry().find("reward", mode).options)
            }
            dataset = BeamDataset(path, mode, {k: v for k, v in given.items() if k in known})
            assert dataset.without_reward == len(mine) - len(judged)
            expected = [case["reward"] for case in judged]
            assert dataset.rewards[:-1].tolist() == pytest.approx(expected, abs=1e-6)
            checked += len(judged)
    assert checked > 100


def test_a_reward_that_does_not_exist_is_one_line(rl):
    with pytest.raises(PluginError, match="unknown reward 'soft'"):
        BeamDataset(rl, "soft")
    with pytest.raises(InputError, match="no option 'hard'"):
        BeamDataset(rl, reward_options={"hard": 1.0})


# --- what generate writes ---

numbers = st.floats(-1e3, 0, width=32)
candidates = st.builds(
    Candidate,
    pointer=st.lists(st.integers(0, 2**31 - 1), max_size=5, unique=True).map(tuple),
    gen_method=st.sampled_from(["beam", "sample", "random", "new"]),
    beam_rank=st.none() | st.integers(0, 9),
    beam_score=st.none() | numbers,
    logprob_score=st.none() | numbers,
    temperature=st.none() | st.floats(0.125, 3, width=32),
    top_p=st.none() | st.floats(0.125, 1, width=32),
)
outcomes = st.one_of(
    st.builds(Outcome, failure=st.text()),
    st.builds(Outcome, answer=st.text(), correct=st.booleans(), accuracy=st.floats(0, 1, width=32)),
)
groups = st.lists(
    st.tuples(candidates, outcomes), max_size=6, unique_by=lambda judged: judged[0].pointer
)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@given(st.dictionaries(st.text(min_size=1).filter(lambda key: key[0] != "_"), groups, max_size=4))
def test_what_generate_writes_comes_back(tmp_path_factory, suffix, data):
    path = tmp_path_factory.mktemp("data") / f"rl{suffix}"
    with open_writer(path, {"seed": 1}) as writer:
        for row, (key, judged) in enumerate(data.items()):
            writer.write(key, to_record(example(row, id=key, image_id=row), judged))
    kept = {
        key: [each for each in judged if each[1].failure is None] for key, judged in data.items()
    }
    if not any(kept.values()):
        with pytest.raises(InputError, match="no candidate with a reward"):
            BeamDataset(path, "soft_only")
        return
    dataset = BeamDataset(path, "soft_only")
    read = {
        group.id: [
            (
                tuple(row for row in rows.tolist() if row >= 0),
                dataset.method_names[method],
                reward,
                accuracy,
                logprob,
            )
            for rows, method, reward, accuracy, logprob in zip(
                group.pointers,
                group.methods,
                *map(np.ndarray.tolist, (group.rewards, group.accuracies, group.logprobs)),
                strict=True,
            )
        ]
        for group in dataset
    }
    expected = {
        key: [
            (c.pointer, c.gen_method, o.accuracy, o.accuracy, _nan(c.logprob_score))
            for c, o in judged
        ]
        for key, judged in kept.items()
        if judged
    }
    assert repr(read) == repr(expected)  # repr, for NaN is not equal to itself
    flat = [c for judged in kept.values() for c, _ in judged]
    assert repr(dataset.temperatures.tolist()) == repr([_nan(c.temperature) for c in flat])
    assert repr(dataset.top_ps.tolist()) == repr([_nan(c.top_p) for c in flat])
    assert dataset.image_ids == [str(list(data).index(key)) for key in expected]
    assert dataset.recorded_rows.tolist() == [list(data).index(key) for key in expected]
    assert dataset.empty == len(data) - len(expected)
    assert dataset.failed == sum(map(len, data.values())) - len(flat)
    assert dataset.shots == tuple(sorted({len(c.pointer) for c in flat}))
    assert dataset.meta == {"seed": 1}


def _nan(value):
    return math.nan if value is None else float(value)


# --- older layouts, and beam data ---


def test_positions_in_a_querys_own_pool_become_rows(tmp_path):
    k64 = {
        "candidate_pool_ids": [40, 30, 20],
        "pointer_candidates": [
            candidate([2, 0], pointer_global=[20, 40]),
            candidate([1], pointer_global=[30]),
        ],
    }
    v4 = {"pointer_candidates": [candidate([50, 60], pointer_pos=[0, 1])]}
    error = {"pointer_candidates": [candidate([5], pointer_pos=[5], vqa_eval_mode="error")]}
    guide = {"pointer_candidates": [candidate([5], vqa_eval_mode="error")]}
    dataset = BeamDataset(dump(tmp_path, {"k": k64, "v": v4, "e": error, "g": guide}))
    assert dataset.pointers.tolist() == [[20, 40], [30, -1], [50, 60]]
    assert dataset.pools[0].tolist() == [40, 30, 20]
    assert dataset.failed == 2, "an error is not a wrong answer"


def test_a_query_is_excluded_where_it_is_in_the_pool(tmp_path):
    record = {"query": {"row": 3}, "pointer_candidates": [candidate([1])]}
    other = {"_meta": {"dataset": {"shared_pool": False}}, "q": {**record, "excluded": []}}
    assert list(BeamDataset(dump(tmp_path, {"q": record})).excluded) == [None]
    assert BeamDataset(dump(tmp_path, other)).excluded[0].tolist() == []
    shared = {"_meta": {"dataset": {"shared_pool": True}}, "q": {**record, "excluded": [9, 3]}}
    assert BeamDataset(dump(tmp_path, shared)).excluded[0].tolist() == [3, 9]


def test_beam_data_has_its_scores_for_rewards(tmp_path):
    path = tmp_path / "beams.json"
    beams = [Beam((4, 5), 2.5, (1.0, 1.5)), Beam((4,), 0.5, (0.5,))]
    with open_writer(path, {}) as writer:
        writer.write("q", to_beam_record({"row": 3}, beams, [4]))
        writer.write("r", to_beam_record({}, []))
    dataset = BeamDataset(path)
    assert (dataset.kind, dataset.method_names, dataset.empty) == ("beam", ("beam",), 1)
    assert dataset.trials is None, "the records do not say"
    counted = {"a": {"beams": [{"pointer": [1], "score": 1.0}], "trials": 9}}
    assert BeamDataset(dump(tmp_path, counted)).trials == 9
    assert dataset.rewards.tolist() == [2.5, 0.5]
    assert dataset.pointers.tolist() == [[4, 5], [4, -1]]
    assert np.isnan(dataset.accuracies).all()
    assert dataset.pools[0].tolist() == [4]


def test_lever_lms_beam_data_excludes_the_query(tmp_path):
    record = {"id_list": [[3, 1, 17], [2, 3, 17]], "score_list": [0.5, -1]}
    dataset = BeamDataset(dump(tmp_path, {"17": record}))
    assert dataset.pointers.tolist() == [[3, 1], [2, 3]]
    assert dataset.rewards.tolist() == [0.5, -1]
    assert dataset.excluded[0].tolist() == [17]
    assert dataset.recorded_rows.tolist() == [17]


# --- what is refused ---


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "neither RL data"),
        ({}, "neither RL data"),
        ({"pointer_candidates": 3}, "pointer_candidates is not a list of objects"),
        ({"pointer_candidates": [3]}, "pointer_candidates is not a list of objects"),
        ({"pointer_candidates": [{}]}, "pointer is missing (/pointer_candidates/0)"),
        ({"pointer_candidates": [candidate([1, 2, 1])]}, "pointer holds 1 more than once"),
        ({"pointer_candidates": [candidate([2**31])]}, "no pool is that large"),
        ({"pointer_candidates": [candidate([-1])]}, "an item of pointer is -1, below 0"),
        ({"pointer_candidates": [candidate([True])]}, "an item of pointer is true, not of type"),
        ({"pointer_candidates": [candidate([1], 3)]}, "gen_method is 3, not of type string"),
        ({"pointer_candidates": [candidate([1], temperature="1")]}, 'temperature is "1", not'),
        ({"pointer_candidates": [candidate([1], beam_rank=[0])]}, "beam_rank is [0], not"),
        ({"pointer_candidates": [candidate([1], beam_score=10**99)]}, "beam_score is too large"),
        ({"pointer_candidates": [candidate([1])], "query": 3}, "query is 3, not of type object"),
        ({"pointer_candidates": [candidate([1])], "query": {"row": -2}}, "row is -2, below 0"),
        (
            {"pointer_candidates": [candidate([1])], "query": {"row": 1e308}},
            "no pool is that large",
        ),
        ({"pointer_candidates": [candidate([1])], "pool": 3}, "pool is 3, not of type array"),
        ({"pointer_candidates": [candidate([1])], "excluded": 3}, "excluded is 3, not of type"),
        # What counted as a judgement that it is not.
        ({"pointer_candidates": [candidate([1], vqa_correct=True)]}, "vqa_correct is true, none"),
        ({"pointer_candidates": [candidate([1], vqa_correct=2)]}, "vqa_correct is 2, none of"),
        ({"pointer_candidates": [candidate([1], vqa_correct=-1)]}, "vqa_correct is -1, none of"),
        ({"pointer_candidates": [candidate([1], vqa_correct=0.5)]}, "vqa_correct is 0.5, none of"),
        ({"pointer_candidates": [candidate([1], vqa_correct=None)]}, "vqa_correct is null, none"),
        ({"pointer_candidates": [candidate([1], vqa_acc_score=1.5)]}, "vqa_acc_score is 1.5, ab"),
        ({"pointer_candidates": [candidate([1], vqa_acc_score=None)]}, "vqa_acc_score is null, n"),
        ({"pointer_candidates": [candidate([1], vqa_acc_score=10**400)]}, "vqa_acc_score is 1000"),
        ({"pointer_candidates": [candidate([1], eval_failed="false")]}, 'eval_failed is "false"'),
        ({"pointer_candidates": [candidate([1], eval_failed=True)]}, "must not be there"),
        (
            {"pointer_candidates": [{"pointer": [1], "gen_method": "x", "vqa_correct": 1}]},
            "vqa_pred_answer is missing",
        ),
        ({"beams": []}, "RL data and beam data in one file"),
        ({"candidate_pool_ids": [1], "pointer_candidates": [candidate([1])]}, "position 1 in a"),
        (
            {"candidate_pool_ids": [5], "pointer_candidates": [candidate([0], pointer_global=[6])]},
            "rows [6] are not those of candidate_pool_ids",
        ),
    ],
)
def test_what_is_not_sound_is_said_in_a_line(tmp_path, record, message):
    path = dump(tmp_path, {"good": {"pointer_candidates": [candidate([1])]}, "q/1": record})
    with pytest.raises(InputError) as caught:
        BeamDataset(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: query 'q/1': ")
    assert "\n" not in str(caught.value)


def test_what_is_not_read_may_be_odd(tmp_path):
    """Training does without it; `validate` reports it."""
    odd = {"vqa_rel_edit_sim": 7, "vqa_eval_mode": 3}
    beam = candidate([1], "beam", **odd)
    record = {"query": {"question": 5, "row": 2}, "pointer_candidates": [beam]}
    assert BeamDataset(dump(tmp_path, {"a": record})).rewards.tolist() == pytest.approx([1.6])


def test_a_reward_that_is_not_finite_is_none(tmp_path):
    beams = [{"pointer": [1], "score": 1e39}, {"pointer": [2], "score": 1e38}]
    dataset = BeamDataset(dump(tmp_path, {"a": {"beams": beams}}))
    assert dataset.pointers.tolist() == [[2]]
    assert dataset.without_reward == 1
    assert np.isfinite(dataset.rewards).all()


def test_as_many_methods_as_a_byte_can_number(tmp_path):
    methods = [candidate([row], f"m{row}") for row in range(257)]
    dataset = BeamDataset(dump(tmp_path, {"a": {"pointer_candidates": methods[:256]}}))
    assert [dataset.method_names[each] for each in dataset.methods[[0, 255]]] == ["m0", "m255"]
    with pytest.raises(InputError, match="more than 256 gen_methods"):
        BeamDataset(dump(tmp_path, {"a": {"pointer_candidates": methods}}))


@pytest.mark.parametrize("lengths", [(0,), (0, 0), (2, 0, 1)])
def test_pointers_have_any_length(tmp_path, lengths):
    pointers = [list(range(length)) for length in lengths]
    record = {"pointer_candidates": [candidate(each) for each in pointers]}
    dataset = BeamDataset(dump(tmp_path, {"a": record}))
    width = max(lengths)
    assert dataset.pointers.tolist() == [each + [-1] * (width - len(each)) for each in pointers]
    assert dataset.shots == tuple(sorted(set(lengths)))
    queries, pool = embeddings(1, ("a",)), embeddings(2)
    assert len(BeamDatasetWithEmbedding(tmp_path / "rl.json", queries, pool).select([0])) == 1


def test_a_reward_sees_the_whole_outcome(tmp_path, monkeypatch):
    """Also fields that are in no array, such as the answer."""
    outcome = {"vqa_raw_generation": "x Question", "vqa_gt_prob": 0.5, "vqa_rel_score": 0.25}
    record = {"pointer_candidates": [candidate([1], similarity_score=0.75, **outcome)]}
    seen = []

    class Recording:
        def create(self, kind, name, options):
            return lambda outcome, candidate: seen.append((outcome, candidate)) or 1.0

    monkeypatch.setattr("pointer_rl.records.beam_dataset.registry", Recording)
    BeamDataset(dump(tmp_path, {"a": record}))
    assert seen == [
        (
            Outcome("x Question", "x", True, 0.6, gt_prob=0.5, rel_score=0.25),
            Candidate((1,), "random", similarity_score=0.75),
        )
    ]


def test_a_query_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "rl.json"
    record = json.dumps({"pointer_candidates": [candidate([1])]})
    path.write_text(f'{{"a": {record}, "b": {record}, "a": {record}}}')
    with pytest.raises(InputError, match="'a' occurs twice"):
        BeamDataset(path)


def test_a_file_without_rewards_says_what_it_has(tmp_path):
    failed = {"pointer": [1], "gen_method": "random", "eval_failed": True}
    path = dump(tmp_path, {"a": {"pointer_candidates": [failed]}})
    with pytest.raises(
        InputError, match=r"with a reward in it \(failed: 1, without an outcome: 0\)"
    ):
        BeamDataset(path)
    with pytest.raises(InputError, match="cannot read it"):
        BeamDataset(tmp_path / "none.json")


# --- embeddings ---


def embeddings(rows, ids=None):
    vectors = torch.arange(rows * 2, dtype=torch.float32).reshape(rows, 2)
    return Embeddings(ids, vectors, encoder=None)


def test_queries_are_found_by_id(rl):
    dataset = BeamDatasetWithEmbedding(
        rl, embeddings(4, ("c", "x", "b", "a")), embeddings(10), "soft_only"
    )
    assert dataset.query_rows.tolist() == [3, 2, 0]
    assert dataset[0].query_embedding.tolist() == [6, 7]
    assert dataset.rewards.tolist() == pytest.approx([0.6, 0.6, 0, 0.6, 0.6])
    chosen = dataset.select([2, 1])
    assert chosen.query_rows.tolist() == [0, 2]
    assert chosen[1].query_embedding.tolist() == [4, 5]


def test_queries_are_found_by_row_where_embeddings_have_no_ids(tmp_path):
    record = {"pointer_candidates": [candidate([1])]}
    path = dump(tmp_path, {"a": {**record, "query": {"row": 2}}, "0": {**record, "query": {}}})
    with pytest.raises(InputError, match=r"no row for 1 of 2 queries, the first '0'"):
        BeamDatasetWithEmbedding(path, embeddings(3), embeddings(3))
    path = dump(tmp_path, {name: {**record, "query": {"row": i}} for i, name in enumerate("ab")})
    with pytest.raises(InputError, match=r"no row for 1 of 2 queries, the first 'b'"):
        BeamDatasetWithEmbedding(path, embeddings(1), embeddings(3))
    path = dump(tmp_path, {"2": record, "0": record})
    dataset = BeamDatasetWithEmbedding(path, embeddings(3), embeddings(3))
    assert dataset.query_rows.tolist() == [2, 0]


def test_embeddings_of_other_queries_are_refused(rl):
    with pytest.raises(InputError, match=r"no row for 2 of 3 queries, the first 'b'"):
        BeamDatasetWithEmbedding(rl, embeddings(2, ("a", "x")), embeddings(10))
    wide = Embeddings(None, torch.ones(10, 3), None)
    with pytest.raises(InputError, match="2 dimensions and the pool embeddings 3"):
        BeamDatasetWithEmbedding(rl, embeddings(3, ("a", "b", "c")), wide)


def test_embeddings_of_another_pool_are_refused(rl, tmp_path):
    queries = embeddings(3, ("a", "b", "c"))
    with pytest.raises(InputError, match=r"1 of 5 pointers .* beyond their 9, .* query 'b'"):
        BeamDatasetWithEmbedding(rl, queries, embeddings(9))
    content = json.loads(rl.read_text())
    ids = tuple(map(str, range(10)))
    content["_meta"] = {"dataset": {"pool_size": 10, "pool_sha256": digest_ids(ids)}}
    path = dump(tmp_path, content, "told.json")
    assert len(BeamDatasetWithEmbedding(path, queries, embeddings(10, ids))) == 3
    assert len(BeamDatasetWithEmbedding(path, queries, embeddings(10))) == 3
    with pytest.raises(InputError, match="they have 11 rows, and the file's pool 10"):
        BeamDatasetWithEmbedding(path, queries, embeddings(11))
    with pytest.raises(InputError, match="their ids are not those of the file's pool"):
        BeamDatasetWithEmbedding(path, queries, embeddings(10, ids[::-1]))


def test_a_dataloader_pads_the_groups_of_a_batch(rl, tmp_path):
    dataset = BeamDataset(rl)
    batches = list(DataLoader(dataset, batch_size=2, collate_fn=collate_groups))
    assert [query for batch in batches for query in batch["ids"]] == dataset.ids
    for batch, start in zip(batches, range(0, len(dataset), 2), strict=True):
        groups = [dataset[start + index] for index in range(len(batch["ids"]))]
        assert batch["valid"].sum(dim=1).tolist() == [len(each.rewards) for each in groups]
        assert batch["pointers"].dtype == torch.int64
        for index, group in enumerate(groups):
            there = batch["valid"][index]
            assert batch["pointers"][index][there].tolist() == group.pointers.tolist()
            assert batch["rewards"][index][there].tolist() == group.rewards.tolist()
            assert (batch["pointers"][index][~there] == NO_ROW).all()
            assert (batch["rewards"][index][~there] == 0).all()
        assert "query_embeddings" not in batch


def test_embeddings_may_be_files_and_are_in_the_batch(rl, tmp_path):
    vectors = torch.randn(12, 3)
    path = str(tmp_path / "embeddings.safetensors")
    save_embeddings(path, vectors, [*BeamDataset(rl).ids, *map(str, range(12))][:12])
    dataset = BeamDatasetWithEmbedding(str(rl), path, path)
    batch = collate_groups(list(dataset))
    assert batch["query_embeddings"].equal(vectors[dataset.query_rows])
    assert repr(dataset).startswith(f"BeamDatasetWithEmbedding('{rl}': {len(dataset)} queries, ")
    assert len(repr(dataset.query_embeddings)) < 80
