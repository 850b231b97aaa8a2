from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError, PluginError
from pointer_rl.session.proposing import propose, random_source
from pointer_rl.testing import batch, example, pool
from pointer_rl.types import Candidate


class Fixed:
    """Proposes the same pointers for every query."""

    def __init__(self, *pointers, method="fixed") -> None:
        self.candidates = [Candidate(pointer, method) for pointer in pointers]

    def propose(self, policy, queries, pool, rngs):
        return [self.candidates for _ in queries.examples]


class Drawn:
    """One random pointer a query."""

    def propose(self, policy, queries, pool, rngs):
        size = len(pool.examples)
        return [
            [Candidate(tuple(map(int, rng.permutation(size)[: queries.shots])), "drawn")]
            for rng in rngs
        ]


def run(generators, queries=2, size=6, dedup="ordered", seed=0, shots=2):
    asked = batch([example(100 + row) for row in range(queries)], size, shots)
    return propose(None, asked, pool([example(r) for r in range(size)]), generators, seed, dedup)


def test_a_query_never_sees_itself_nor_its_image():
    shared = ImageBytes(b"same", "x")
    examples = [
        example(0, id="q"),
        example(1),
        example(2, image=shared),
        example(3),
    ]
    allowed = AllowedRows(examples)
    queries = [
        examples[0],
        example(1, id="b", image=ImageBytes(b"1", "x")),
        example(9, id="c", image=ImageBytes(b"same", "another file")),
        example(9, id="q", image=ImageBytes(b"other", "y")),
    ]
    expected = [
        [False, True, True, True],
        [True, False, True, True],
        [True, True, False, True],
        [True, True, True, True],
    ]
    assert allowed.mask(queries).tolist() == expected


def test_images_are_compared_by_content_where_any_id_is_missing():
    same = ImageBytes(b"same", "x")
    with_ids = AllowedRows([example(0, image_id=7, image=same), example(1, image_id="8")])
    queries = [example(9, image_id="7"), example(9, image_id=8), example(9, image=same)]
    assert with_ids.mask(queries).tolist() == [[False, True], [True, False], [False, True]]
    mixed = AllowedRows([example(0, image_id=7, image=same), example(1)])
    queries = [example(9, image_id=7), example(9, image_id=1, image=same)]
    assert mixed.mask(queries).tolist() == [[True, True], [False, True]]


def test_too_few_rows_are_noticed_however_images_are_compared():
    same = ImageBytes(b"same", "x")
    pool = [example(0, image_id=0), *(example(row, image_id=row, image=same) for row in (1, 2))]
    allowed = AllowedRows(pool)
    allowed.check([example(9, image_id=0)], 2)
    with pytest.raises(InputError, match="query q may choose 1 of the pool's 3"):
        allowed.check([example(9, image_id=0), example(9, id="q", image=same)], 2)


def test_a_query_is_shown_its_own_episode_alone():
    pool = [example(row, episode=episode) for row, episode in enumerate(["a", "b", "b"])]
    allowed = AllowedRows(pool)
    queries = [example(9), example(9, episode="b"), pool[1]]
    assert allowed.mask(queries).tolist() == [
        [True, True, True],
        [False, True, True],
        [False, False, True],  # not its own image either
    ]
    allowed.check(queries[:2], 2)
    with pytest.raises(InputError, match=r"may choose 1 of the pool's 3 .* other episodes"):
        allowed.check([example(9, episode="a")], 2)


def test_an_unreadable_image_masks_nothing(tmp_path):
    missing = ImageFile(tmp_path / "none.png")
    allowed = AllowedRows([example(0, image=missing), example(1)])
    assert allowed.mask([example(5, image=missing)]).tolist() == [[True, True]]


def test_unreadable_images_differ(tmp_path):
    examples = [example(row, image=ImageFile(tmp_path / f"{row}.png")) for row in range(4)]
    allowed = AllowedRows(examples)
    assert [allowed.excluded(query) for query in examples] == [(row,) for row in range(4)]


def test_randomness_depends_on_seed_query_and_generator_alone():
    def draw(*source):
        return random_source(*source).random(4).tolist()

    assert draw(0, "q", "sample") == draw(0, "q", "sample")
    others = [draw(1, "q", "sample"), draw(0, "p", "sample"), draw(0, "q", "random")]
    assert draw(0, "q", "sample") not in others
    assert len({tuple(each) for each in others}) == 3


def test_proposals_do_not_depend_on_the_batch():
    together = run({"drawn": Drawn()}, queries=5)
    asked = batch([example(104)], 6)
    alone = propose(
        None, asked, pool([example(r) for r in range(6)]), {"drawn": Drawn()}, 0, "ordered"
    )
    assert together[4] == alone[0]


def test_the_first_named_generator_keeps_a_pointer():
    first, second = Fixed((0, 1), (1, 0), method="beam"), Fixed((1, 0), (2, 3), method="random")
    ordered = run({"beam": first, "random": second})[0]
    assert [(c.pointer, c.gen_method) for c in ordered] == [
        ((0, 1), "beam"),
        ((1, 0), "beam"),
        ((2, 3), "random"),
    ]
    unordered = run({"beam": first, "random": second}, dedup="unordered")[0]
    assert [c.pointer for c in unordered] == [(0, 1), (2, 3)]


@given(st.lists(st.lists(st.integers(0, 4), max_size=2, unique=True)))
def test_deduplication_keeps_the_first_of_each(pointers):
    candidates = [Candidate(tuple(p), str(i)) for i, p in enumerate(pointers)]
    generator = Fixed()
    generator.candidates = candidates
    for mode, key in (("ordered", tuple), ("unordered", frozenset)):
        [kept] = propose(
            None,
            batch([example(100)], 6),
            pool([example(row) for row in range(6)]),
            {"fixed": generator},
            0,
            mode,
        )
        keys = [key(candidate.pointer) for candidate in kept]
        assert len(keys) == len(set(keys))
        assert set(keys) == {key(p) for p in pointers}
        firsts = [[key(p) for p in pointers].index(k) for k in keys]
        assert [int(candidate.gen_method) for candidate in kept] == firsts == sorted(firsts)


@pytest.mark.parametrize("pointer", [(0, 1, 2), (0, 0), (0, 6), (-1, 0), (0, 5)])
def test_a_generator_that_breaks_the_rules_is_named(pointer):
    asked = batch([example(100)], 6)
    asked.allowed[0, 5] = False
    with pytest.raises(PluginError, match=r"generator bad, query e100: proposed"):
        propose(
            None, asked, pool([example(r) for r in range(6)]), {"bad": Fixed(pointer)}, 0, "ordered"
        )


def test_rows_become_python_integers_and_scores_must_be_finite():
    asked, candidates = batch([example(100)], 6), pool([example(r) for r in range(6)])
    numpy_rows = Fixed([np.int64(3), np.int32(1)])
    (found,) = propose(None, asked, candidates, {"g": numpy_rows}, 0, "ordered")[0]
    assert found.pointer == (3, 1)
    assert {type(row) for row in found.pointer} == {int}
    for broken in (Fixed((0.5, 1)), Fixed(None)):
        with pytest.raises(PluginError, match="is not a pointer"):
            propose(None, asked, candidates, {"g": broken}, 0, "ordered")
    scored = Fixed()
    scored.candidates = [Candidate((0, 1), "g", logprob_score=float("-inf"))]
    with pytest.raises(PluginError, match=r"logprob_score of .* is -inf"):
        propose(None, asked, candidates, {"g": scored}, 0, "ordered")


def test_a_generator_that_forgets_a_query_is_named():
    class Forgets:
        def propose(self, policy, queries, pool, rngs):
            return []

    with pytest.raises(PluginError, match="generator f proposed for 0 of 2 queries"):
        run({"f": Forgets()})


def test_global_randomness_is_not_used():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = run({"drawn": Drawn()})
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert run({"drawn": Drawn()}) == before
