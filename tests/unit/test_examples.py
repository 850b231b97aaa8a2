"""Examples in columns are the examples that were put in."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.datasets.examples import (
    _KEPT,
    ExampleBuilder,
    ExampleColumns,
    KeyIndex,
    select,
    values,
)
from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.types import Example

TEXTS = st.text(st.characters(), max_size=8)  # half surrogate pairs, too
IDS = st.none() | st.integers() | TEXTS
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "image": st.sampled_from(["a", "b/ü", "c"]),
            "question": TEXTS,
            "answers": st.lists(TEXTS, max_size=3).map(tuple),
            "id": IDS,
            "question_id": IDS,
            "image_id": IDS,
        }
    ),
    max_size=8,
)


def image(prefix: str, mark: str) -> ImageBytes:
    return ImageBytes(f"{prefix}{mark}".encode(), mark)


def build(rows) -> ExampleColumns:
    builder = ExampleBuilder()
    for row in rows:
        builder.append(**row)
    return builder.build(partial(image, "image "))


def expected(rows) -> list[Example]:
    found = []
    for number, row in enumerate(rows):
        ids = [row["id"], row["question_id"], number]
        id = str(next(each for each in ids if each is not None))
        fields = {**row, "id": id, "row": number, "image": image("image ", row["image"])}
        found.append(Example(**fields))
    return found


@given(ROWS)
def test_what_was_appended_comes_back(rows):
    examples, wanted = build(rows), expected(rows)
    assert len(examples) == len(wanted)
    assert [examples[row] for row in range(len(rows))] == wanted
    for mine, theirs in zip(examples, wanted, strict=True):
        assert mine == theirs
        for name in ("question_id", "image_id"):  # 1 is no "1"
            assert type(getattr(mine, name)) is type(getattr(theirs, name))
    for field in ("id", "question", "answers", "image_id"):
        assert list(values(examples, field)) == list(values(wanted, field))
    assert examples == wanted
    assert pickle.loads(pickle.dumps(examples)) == wanted


@given(ROWS, st.slices(8), st.slices(8), st.data())
def test_parts_are_those_of_a_list(rows, part, part_of_it, data):
    examples, wanted = build(rows), expected(rows)
    assert examples[part] == wanted[part]
    assert examples[part][part_of_it] == wanted[part][part_of_it]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=4) if rows else st.just([]))
    assert select(examples, chosen) == select(wanted, chosen) == [wanted[row] for row in chosen]
    assert select(examples[::-1], chosen) == select(wanted[::-1], chosen)
    with pytest.raises(IndexError):
        examples[part][len(wanted[part])]


ROW = {"image": "a", "question": "q", "answers": ("x",)}


def test_columns_that_differ_are_not_equal():
    two = build([ROW, {**ROW, "question": "other"}])
    assert two == two[:]
    assert two != two[:1]
    assert two != two[::-1]
    assert two[:1] != [replace(two[0], answers=("y",))]
    assert two != 2


def test_examples_of_one_image_share_its_reference():
    examples = build([ROW, ROW, {**ROW, "image": "b"}])
    assert examples[0] is examples[0]
    assert examples[0].image is examples[1].image is next(iter(examples)).image
    assert examples[2].image is not examples[0].image


def test_a_file_is_hashed_once_however_many_others_are_looked_at_between(tmp_path):
    builder = ExampleBuilder()
    names = [str(number) for number in range(2 * _KEPT)]
    for name in names:
        (tmp_path / name).write_text(name)
        builder.append(name, "q")
    examples = builder.build(lambda name: ImageFile(tmp_path / name))
    keys = [each.image.key for each in examples]
    assert len(set(keys)) == len(names)
    for name in names:
        (tmp_path / name).unlink()
    assert [each.image.key for each in list(examples)[:_KEPT]] == keys[:_KEPT]


@pytest.mark.parametrize("key", ["", "x", "0" * 64, "A" * 64, "é" * 64])
def test_keys_of_any_spelling_come_back(key):
    class Picture(ImageFile):
        key = cached_property(lambda self: key)

    builder = ExampleBuilder()
    for number in range(_KEPT + 2):
        builder.append(number, "q")
    examples = builder.build(lambda number: Picture(Path(str(number))))
    for _ in range(2):
        assert {each.image.key for each in examples} == {key}


def test_answers_may_come_later_in_any_order():
    builder = ExampleBuilder()
    for name in "abc":
        builder.append(name, "q")
    builder.answer(2, ["z", "y"])
    builder.answer(0, ["y"])
    assert [builder.is_answered(row) for row in range(3)] == [True, False, True]
    examples = builder.build(Path)
    assert [each.answers for each in examples] == [("y",), (), ("z", "y")]


def test_hundreds_of_thousands_take_a_hundred_bytes_each():
    builder = ExampleBuilder()
    for row in range(2_000):
        builder.append(
            f"{row // 5}.jpg", "x" * 40, ["yes"] * 10, question_id=10 * row, image_id=row // 5
        )
    assert len(pickle.dumps(builder.build(ImageFile))) < 140 * 2_000


class Alike(str):
    """A string whose hash says nothing."""

    def __hash__(self) -> int:
        return 2**63 - 1


@pytest.mark.parametrize("kind", [str, Alike])
@given(keys=st.lists(st.text("ab", max_size=2), max_size=12))
def test_an_index_finds_the_rows_of_a_key(kind, keys):
    keys = [kind(key) for key in keys]
    index = KeyIndex(keys, keys.__getitem__)
    for key in [*keys, kind("c")]:
        assert index.rows(key) == [row for row, each in enumerate(keys) if each == key]
    assert index.most >= max(map(keys.count, keys), default=0)
    if kind is str:
        assert index.most == max(map(keys.count, keys), default=0)
    found = index.repeated()
    if len(set(map(str, keys))) == len(keys):
        assert found is None
    else:
        first, second = found
        assert first < second
        assert keys[first] == keys[second]
        assert keys[first] not in keys[:first]
