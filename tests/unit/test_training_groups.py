"""Groups as tensors: batches against each query looked at by itself; the held-out split."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_worlds import naive_credit, ragged_groups

from pointer_rl.datasets.embeddings import Embeddings
from pointer_rl.errors import InputError
from pointer_rl.records.beam_dataset import BeamDatasetWithEmbedding
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.trainer import split_by_image

CPU = torch.device("cpu")


def naive(groups, query):
    """What one query's part of a batch is to say, in rows of the whole pool."""
    own = slice(groups.offsets[query], groups.offsets[query + 1])
    rows = np.arange(len(groups.pool)) if groups.pools[query] is None else groups.pools[query]
    blocked = groups.excluded[query]
    return {
        "pointers": groups.pointers[own].tolist(),
        "rewards": groups.rewards[own].tolist(),
        "sampled": groups.sampled[own].tolist(),
        "pool": rows.tolist(),
        "allowed": [row for row in rows.tolist() if blocked is None or row not in blocked],
        "credited": naive_credit(groups.pointers[own].tolist(), groups.rewards[own].tolist()),
    }


def view(groups, batch, index):
    """The same of a batch's part."""
    valid = batch.valid[index]
    pool = batch.pool if batch.own is None else batch.pool[batch.own[index]]
    # Rows are told by their embedding, which no other row has.
    rows = [(groups.pool == vector).all(-1).nonzero().item() for vector in pool]
    allowed = torch.ones(len(pool)).bool() if batch.allowed is None else batch.allowed[index]
    assert (batch.pointers[index][~valid] == 0).all()
    assert (batch.rewards[index][~valid] == 0).all()
    assert not batch.sampled[index][~valid].any()
    assert not batch.credited[index][~valid].any()
    return {
        "pointers": [
            [rows[place] if place >= 0 else place for place in each]
            for each in batch.pointers[index][valid].tolist()
        ],
        "rewards": batch.rewards[index][valid].tolist(),
        "sampled": batch.sampled[index][valid].tolist(),
        "pool": rows,
        "allowed": [row for row, may in zip(rows, allowed, strict=True) if may],
        "credited": batch.credited[index][valid].tolist(),
    }


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    size=st.integers(1, 4),
    per_query_pool=st.booleans(),
    excluding=st.booleans(),
    shuffled=st.booleans(),
    cut=st.booleans(),
)
def test_batches_are_what_the_queries_are_by_themselves(
    seed, sizes, size, per_query_pool, excluding, shuffled, cut
):
    groups = ragged_groups(seed, sizes=sizes, per_query_pool=per_query_pool, excluding=excluding)
    if cut:
        lengths = np.random.default_rng(seed).integers(0, 3, len(groups.pointers))
        groups.pointers[np.arange(2) >= lengths[:, None]] = -1
    rng = np.random.default_rng(seed) if shuffled else None
    seen = []
    for batch in groups.batches(np.arange(len(groups)), size, CPU, rng):
        assert 1 <= len(batch.queries) <= size
        for index, vector in enumerate(batch.queries):
            query = (groups.queries == vector).all(-1).nonzero().item()
            seen.append(query)
            assert view(groups, batch, index) == naive(groups, query)
        # What is credited to no candidate of the batch, after the last that is, is left out.
        credited = batch.credited.any(0).any(0).tolist()
        assert batch.depth == max([1, *(step + 1 for step, each in enumerate(credited) if each)])
    assert sorted(seen) == list(range(len(groups)))


def test_batches_come_in_random_order_only_where_asked():
    groups = ragged_groups(sizes=(2,) * 12)

    def order(rng):
        return [
            (groups.queries == vector).all(-1).nonzero().item()
            for batch in groups.batches(np.arange(12), 3, CPU, rng)
            for vector in batch.queries
        ]

    assert order(None) == list(range(12))
    one, again, other = (order(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one == again
    assert one != other != list(range(12))


def test_per_query_pool_of_any_order_are_found():
    groups = ragged_groups(per_query_pool=True)
    backwards = dataclasses.replace(groups, pools=[rows[::-1].copy() for rows in groups.pools])
    for batch in backwards.batches(np.arange(len(groups)), 3, CPU):
        for index, vector in enumerate(batch.queries):
            query = (groups.queries == vector).all(-1).nonzero().item()
            assert view(groups, batch, index)["pointers"] == naive(groups, query)["pointers"]


def test_zero_variance_groups_are_not_trained_on_unless_included():
    groups = ragged_groups(sizes=(3, 3, 1, 3, 2))
    assert groups.zero_variance.tolist() == [True, False, True, True, False]
    assert groups.trainable(include_zero_variance=False).tolist() == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert groups.trainable(include_zero_variance=True).all()


def test_joined_groups_are_both():
    one = ragged_groups(0)
    other = dataclasses.replace(ragged_groups(1, sizes=(2, 3)), pool=one.pool)
    both = one.joined(other)
    assert len(both) == 8
    assert both.images == [*one.images, *other.images]
    for index in range(8):
        source, at = (one, index) if index < 6 else (other, index - 6)
        assert naive(both, index) == naive(source, at)
        assert torch.equal(both.queries[index], source.queries[at])


# --- held out --------------------------------------------------------------------------------


def split(groups, held_out, seed, **options):
    return split_by_image(groups, TrainConfig(held_out=held_out, **options), seed)


def many(seed=0, queries=200):
    return ragged_groups(seed, sizes=(2,) * queries)


def test_no_image_is_on_both_sides():
    groups = many()
    training, held_out = split(groups, 0.3, 0)
    assert sorted([*training, *held_out]) == list(range(len(groups)))
    sides = [{groups.images[query] for query in side} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert 0.15 < len(held_out) / len(groups) < 0.45


def test_an_image_stays_on_its_side_when_groups_are_added():
    groups, more = many(), many(1, 80)
    more = dataclasses.replace(more, pool=groups.pool, images=[f"new {i}" for i in range(80)])
    for joined, shift in ((groups.joined(more), 0), (more.joined(groups), 80)):
        before, after = split(groups, 0.3, 5)[1], split(joined, 0.3, 5)[1]
        assert set(before + shift) <= set(after)
    assert split(groups, 0.3, 6)[1].tolist() != split(groups, 0.3, 5)[1].tolist()


def test_of_few_queries_one_image_is_held_out():
    groups = many(queries=20)
    training, held_out = split(groups, 1e-9, 0)
    assert len({groups.images[query] for query in held_out}) == 1
    assert not groups.zero_variance[held_out].all()
    assert len(training) == 18


def test_a_side_with_nothing_to_tell_is_refused():
    with pytest.raises(InputError, match=r"no query is left to train on .* \(13 of 20 have such\)"):
        split(many(queries=20), 1 - 1e-9, 0)
    tied = dataclasses.replace(many(queries=4), rewards=np.ones(8, dtype=np.float32))
    with pytest.raises(InputError, match=r"no query is left to hold out .* \(0 of 4 have such\)"):
        split(tied, 0.3, 0)
    training, held_out = split(tied, 0.3, 0, include_zero_variance=True)
    assert len(training) + len(held_out) == 4
    assert 0 < len(held_out) < 4


# --- from files ------------------------------------------------------------------------------


def candidate(pointer, correct=1, method="random"):
    return {
        **{"pointer": pointer, "gen_method": method, "vqa_pred_answer": "a"},
        **{"vqa_correct": int(correct), "vqa_acc_score": float(correct)},
    }


def read(folder, records, embeddings=None, shots=None, **options):
    path = folder / "rl.json"
    path.write_text(json.dumps(records))
    vectors = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    pool = Embeddings(tuple("abcdefgh"), vectors, None)
    queries = Embeddings(("q0", "q1", "q2"), vectors[:3].clone(), None)
    data = BeamDatasetWithEmbedding(path, embeddings or queries, embeddings or pool)
    return Groups.of(data, shots, **options)


def test_of_a_file(tmp_path):
    groups = read(
        tmp_path,
        {
            "q1": {
                "query": {"image_id": 7},
                "pointer_candidates": [candidate([3, 1]), candidate([1, 3], 0, "sample")],
                "pool": [1, 3, 5],
                "excluded": [5],
            },
            "q0": {"pointer_candidates": [candidate([2, 4])]},
        },
    )
    assert groups.ids == ["q1", "q0"]
    assert groups.images == ["7", "of query q0"]
    assert groups.shots == 2
    assert groups.pointers.tolist() == [[3, 1], [1, 3], [2, 4]]
    assert groups.rewards.tolist() == [2.0, 0.0, 2.0]
    assert groups.sampled.tolist() == [False, True, False]
    assert groups.pools == [None, None], "the whole pool, unless own pools are asked for"
    assert groups.excluded[0].tolist() == [5]
    assert groups.excluded[1] is None


def test_per_query_pool_are_the_files(tmp_path):
    record = {"pointer_candidates": [candidate([3, 1])], "pool": [1, 3, 5]}
    assert read(tmp_path, {"q0": record}, per_query_pool=True).pools[0].tolist() == [1, 3, 5]


def test_where_one_matrix_embeds_both_a_query_may_not_choose_itself(tmp_path):
    vectors = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    both = Embeddings(("q0", "q1", "q2", "q3", "q4"), vectors, None)
    record = {"pointer_candidates": [candidate([0, 1]), candidate([3, 4], 0)]}
    assert read(tmp_path, {"q2": record}, both).excluded[0].tolist() == [2]
    with pytest.raises(InputError, match="'q3' has a pointer with the row 3"):
        read(tmp_path, {"q3": record}, both)


@pytest.mark.parametrize("extra", [{"pool": [1, 5]}, {"excluded": [3]}])
def test_a_pointer_outside_its_pool_is_refused(tmp_path, extra):
    with pytest.raises(InputError, match="'q0' has a pointer with the row 3, which it may not"):
        read(tmp_path, {"q0": {"pointer_candidates": [candidate([3, 1])], **extra}})


def test_pointers_may_have_any_length_up_to_the_shots(tmp_path):
    two = {"q0": {"pointer_candidates": [candidate([3, 1])]}}
    assert read(tmp_path, two, shots=2).shots == 2
    mixed = {
        "q0": {"pointer_candidates": [candidate([3, 1]), candidate([3])], "pool": [1, 3, 5]},
    }
    assert read(tmp_path, mixed).pointers.tolist() == [[3, 1], [3, -1]]
    assert read(tmp_path, mixed, shots=3).pointers.tolist() == [[3, 1, -1], [3, -1, -1]]
    assert read(tmp_path, {"_meta": {"max_shots": 3}, **two}).shots == 3
    assert read(tmp_path, {"_meta": {"max_shots": 3}, **two}, shots=4).shots == 4


def test_max_shots_beyond_the_pool_are_refused(tmp_path):
    two = {"q0": {"pointer_candidates": [candidate([3, 1])]}}
    with pytest.raises(InputError, match="pointers of up to 1,000,000,000,000 rows"):
        read(tmp_path, {"_meta": {"max_shots": 10**12}, **two})


def test_each_demonstration_costs_its_price(tmp_path):
    """Whatever the reward: here correct + accuracy, which is 2 or 0."""
    pointers = [[], [3], [3, 1]]
    group = {"pointer_candidates": [candidate(each, len(each) != 1) for each in pointers]}
    free = read(tmp_path, {"q0": group})
    assert free.rewards.tolist() == [2, 0, 2]
    priced = read(tmp_path, {"q0": group}, demonstration_price=0.25)
    assert priced.rewards.tolist() == [2, -0.25, 1.5]
    assert priced.rewards.dtype == np.float32
    assert not priced.zero_variance[0]
    with pytest.raises(InputError, match="demonstration_price is -1"):
        TrainConfig(demonstration_price=-1)


def test_pointers_of_another_number_of_shots_are_refused(tmp_path):
    two = {"q0": {"pointer_candidates": [candidate([3, 1])]}}
    with pytest.raises(InputError, match="have 2 demonstrations and --shots 3 cannot"):
        read(tmp_path, two, shots=3)
    mixed = {"q0": {"pointer_candidates": [candidate([3, 1]), candidate([3])]}}
    with pytest.raises(InputError, match="have 1 and 2 demonstrations and --shots 1 cannot"):
        read(tmp_path, mixed, shots=1)


def test_a_batch_is_as_deep_as_its_candidates_are_credited():
    groups = ragged_groups(sizes=(3, 2), shots=3, excluding=False)
    groups.pointers[:] = [
        *([4, 2, -1], [5, 2, -1], [6, 2, -1]),
        *([3, 2, 1], [3, 2, 4]),
    ]
    assert [batch.depth for batch in groups.batches(np.arange(2), 1, CPU)] == [1, 3]
    assert [batch.padded for batch in groups.batches(np.arange(2), 1, CPU)] == [True, False]
