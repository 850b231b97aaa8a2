"""A dataset cut in two by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.datasets.parts import Part, part_of
from pointer_rl.errors import InputError
from pointer_rl.testing import example
from pointer_rl.types import Dataset


def showing(row: int, image: str, image_id: str | None = None):
    return example(row, image=ImageBytes(image.encode(), image), image_id=image_id)


def both(dataset: Dataset, share: float = 0.3, seed: int = 0) -> tuple[Dataset, Dataset]:
    sides = (Part(side=side, share=share, seed=seed) for side in ("training", "held-out"))
    training, held_out = (each.of(dataset) for each in sides)
    return training, held_out


def images(examples) -> set[str]:
    return {each.image.key for each in examples}


def ids(examples) -> list[str]:
    return [each.id for each in examples]


letters = st.sampled_from("abcdefgh")


@given(
    st.lists(st.tuples(letters, st.none() | letters), min_size=2, max_size=20),
    st.lists(st.tuples(letters, st.none() | letters), max_size=10),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_no_image_is_on_both_sides_nor_a_held_out_one_in_the_pool(queries, pool, share, seed):
    """Neither by content nor by image_id; nothing else is lost."""
    examples = tuple(showing(row, *each) for row, each in enumerate(queries))
    dataset = Dataset("d", examples, examples)
    if pool:
        shown = [replace(showing(row, *each), id=f"p{row}") for row, each in enumerate(pool)]
        dataset = replace(dataset, pool=tuple(shown))
    try:
        training, held_out = both(dataset, share, seed)
    except InputError:
        return
    assert training.pool == held_out.pool
    for learned in (training.queries, training.pool):
        assert not images(learned) & images(held_out.queries)
        known = {each.image_id for each in learned} - {None}
        assert not known & {each.image_id for each in held_out.queries}
        assert all(not AllowedRows(learned).excluded(each) for each in held_out.queries)
    asked = set(ids(training.queries)) | set(ids(held_out.queries))
    names = {each.image_id for each in held_out.queries}
    dropped = [each for each in examples if each.id not in asked]
    assert all(each.image_id in names for each in dropped)
    for part in (training.queries, training.pool, held_out.queries):
        assert [each.row for each in part] == list(range(len(part)))


def test_the_share_is_one_of_images_and_a_side_follows_from_the_image_alone():
    examples = tuple(showing(row, f"image {row // 3}") for row in range(60))
    training, held_out = both(Dataset("d", examples, examples), 0.3)
    assert len(images(held_out.queries)) == 6  # of 20
    assert len(held_out.queries) == 18
    assert training.pool is training.queries
    renamed = tuple(
        replace(each, id=f"other {row}", row=row) for row, each in enumerate(reversed(examples))
    )
    assert images(both(Dataset("e", renamed, renamed), 0.3)[1].queries) == images(held_out.queries)
    assert images(both(Dataset("d", examples, examples), 0.3, seed=1)[1].queries) != images(
        held_out.queries
    )


def test_rows_that_a_dataset_knows_to_answer_a_query_stay_the_same_examples():
    examples = tuple(showing(row, f"image {row}") for row in range(20))
    knows = [[[(row + 1) % 20, (row + 2) % 20], [(row + 3) % 20]] for row in range(20)]
    dataset = Dataset("d", examples, examples, relevant=knows)
    for part in both(dataset):
        left = set(ids(part.pool))
        assert part.relevant is not None
        for query, sets in zip(part.queries, part.relevant, strict=True):
            before = [[f"e{row}" for row in one] for one in knows[int(query.id[1:])]]
            after = [[part.pool[row].id for row in one] for one in sets]
            assert after == [[id for id in one if id in left] for one in before]


def test_what_cannot_be_cut():
    one = tuple(showing(row, "same") for row in range(4))
    with pytest.raises(InputError, match="1 image, and holding out some takes two"):
        both(Dataset("d", one, one))
    two = tuple(showing(row, f"image {row}", "same id") for row in range(2))
    with pytest.raises(InputError, match="1 of 2 images are held out, and nothing is left"):
        both(Dataset("d", two, two))
    with pytest.raises(InputError, match="between 0 and 1"):
        Part(side="training", share=1.0)


def test_it_is_read_back_from_what_is_recorded():
    assert part_of({"name": "d"}) is None
    part = Part(side="held-out", share=0.5, seed=3)
    assert part_of({"part": {"side": "held-out", "share": 0.5, "seed": 3}}) == part
    with pytest.raises(InputError, match=r"_meta.dataset.part"):
        part_of({"part": {"left": 1}})
