"""The JSONL loader, and the forms in which any dataset may give answers and ids."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError
from pointer_rl_standard.example_fields import read_answers
from pointer_rl_standard.jsonl_dataset import load_jsonl
from pointer_rl_standard.options import JSONLOptions

CAT = {"image": "cat.png", "question": "what animal?", "answers": ["cat", "kitten", "cat"]}
DOG = {"image": "dog.png", "question": "what animal?", "answer": "dog"}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.integers() | texts
records = st.fixed_dictionaries(
    {"image": texts, "question": texts, "answers": st.lists(texts, min_size=1, max_size=4)},
    optional={"id": ids, "question_id": ids, "image_id": ids, "note": st.none() | st.floats()},
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def write(path: Path, *objects: object) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> Any:
    return load_jsonl(JSONLOptions(path=str(path), **options))


def test_examples_are_those_of_the_lines(tmp_path: Path) -> None:
    dataset = load(write(tmp_path / "pets.jsonl", CAT, DOG))
    cat, dog = dataset.queries
    assert (cat.id, cat.row, cat.question, cat.answers) == (
        "0",
        0,
        CAT["question"],
        ("cat", "kitten", "cat"),
    )
    assert (dog.id, dog.row, dog.answers) == ("1", 1, ("dog",))
    assert (cat.question_id, cat.image_id) == (None, None)
    assert cat.image == ImageFile(tmp_path / "cat.png")
    assert dataset.pool is dataset.queries
    assert dataset.name == "pets"


def test_unanswered_queries_are_read_where_that_is_wanted(tmp_path: Path) -> None:
    new = {"image": "new.png", "question": "what animal?"}
    path, pool = write(tmp_path / "new.jsonl", new, DOG), write(tmp_path / "pool.jsonl", CAT)
    dataset = load(path, unanswered=True)
    assert [each.answers for each in dataset.queries] == [(), ("dog",)]
    assert dataset.pool == ()
    assert load(path, unanswered=True, pool=str(pool)).pool == load(pool).queries
    for options in ({}, {"unanswered": True, "pool": str(path)}):
        with pytest.raises(InputError, match=r"new\.jsonl, line 1: give either 'answers'"):
            load(path, **options)
    both = write(tmp_path / "both.jsonl", {**CAT, "answer": "cat"})
    with pytest.raises(InputError, match="give either"):
        load(both, unanswered=True)


def test_an_image_is_opened_when_needed_and_hashed_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CAT, {**CAT, "question": "what colour?"}, DOG)
    Image.new("RGB", (3, 2), "red").save(tmp_path / "cat.png")
    cat, same, dog = load(path).queries
    assert cat.image is same.image
    assert cat.image.open().size == (3, 2)
    with pytest.raises(InputError, match=r"dog\.png: cannot read the image"):
        dog.image.open()


def test_examples_take_at_most_400_bytes_plus_their_strings(tmp_path: Path) -> None:
    lines = [
        {
            "image": f"{row // 5}.jpg",
            "question": f"What is number {row} in this image?",
            "answers": [("yes", "no", "two")[(row + each) % 3] for each in range(10)],
            "question_id": 1000 + row,
            "image_id": 1000 + row // 5,
        }
        for row in range(5_000)
    ]
    path = write(tmp_path / "a.jsonl", *lines)
    load(path)
    tracemalloc.start()
    examples = load(path).queries
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    strings = {id(s): s for each in examples for s in (each.id, each.question, each.image.name)}
    assert examples[0].answers[0] is examples[1].answers[2], "equal answers are one string"
    assert (size - sum(map(sys.getsizeof, strings.values()))) / len(examples) <= 400


def test_images_folder_and_pool(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "train").mkdir()
    queries = write(tmp_path / "queries.jsonl", CAT)
    pool = write(tmp_path / "train" / "pool.jsonl", DOG, CAT)

    beside = load(queries, pool=str(pool))
    assert beside.queries[0].image.path == tmp_path / "cat.png"
    assert beside.pool[1].image.path == tmp_path / "train" / "cat.png"
    assert [each.row for each in beside.pool] == [0, 1]

    together = load(queries, pool=str(pool), images=str(tmp_path / "images"))
    assert together.queries[0].image == together.pool[1].image
    assert together.queries[0].image.path == tmp_path / "images" / "cat.png"
    with pytest.raises(InputError, match="nowhere: no such folder of images"):
        load(queries, images=str(tmp_path / "nowhere"))


def test_an_id_defaults_to_the_question_id_then_to_the_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {**CAT, "id": "a", "question_id": 7, "image_id": "i"},
        {**CAT, "question_id": 7},
        {**CAT, "id": None},
    )
    examples = load(path).queries
    assert [each.id for each in examples] == ["a", "7", "2"]
    assert [each.question_id for each in examples] == [7, 7, None]
    assert [each.image_id for each in examples] == ["i", None, None]


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{json.dumps(CAT)}\r\n\n  \n{json.dumps(DOG)}")
    assert [each.row for each in load(path).queries] == [0, 1]
    path.write_text(path.read_text() + "\n{}")
    with pytest.raises(InputError, match=r"a\.jsonl, line 6: no 'image'"):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be an object, not list"),
        ({**CAT, "imgae": CAT["image"], "image": ...}, "no 'image'; did you mean 'imgae'"),
        ({**CAT, "question": ...}, "no 'question'"),
        ({**CAT, "answers": ...}, "give either 'answers' or 'answer'"),
        ({**CAT, "answer": "cat"}, "give either 'answers' or 'answer'"),
        ({**CAT, "answers": []}, "answers must be .* at least one, not"),
        ({**CAT, "answers": ["cat", 5]}, "answer must be a string, not 5"),
        ({**CAT, "question": 5}, "question must be a string, not 5"),
        ({**CAT, "question": "\ud83d"}, "question holds a broken character"),
        ({**CAT, "image": None}, "image must be a string, not None"),
        ({**CAT, "id": 1.0}, "id must be an integer or a string, not 1.0"),
        ({**CAT, "image_id": [1]}, r"image_id must be an integer or a string, not \[1\]"),
        ({**CAT, "id": 0}, r"the id '0' is already that of .*a\.jsonl, line 1; "),
    ],
)
def test_an_error_names_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    if isinstance(line, dict):
        line = json.dumps({key: value for key, value in line.items() if value is not ...})
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(CAT)}\n{line}\n")
    with pytest.raises(InputError, match=rf"a\.jsonl, line 2: {message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_no_file_and_no_examples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl: cannot read it \(No such file"):
        load(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl: no examples in it"):
        load(write(tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match=r"b\.jsonl: no examples in it"):
        load(write(tmp_path / "a.jsonl", CAT), pool=str(write(tmp_path / "b.jsonl")))


@settings(deadline=None)
@given(st.lists(records, min_size=1, max_size=5))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, given: Any) -> None:
    for row, record in enumerate(given):
        record["id"] = f"{row}:{record.get('id')}"
    path = write(tmp_path_factory.getbasetemp() / "round.jsonl", *given)
    examples = load(path).queries
    assert [each.row for each in examples] == list(range(len(given)))
    for example, record in zip(examples, given, strict=True):
        assert example.id == record["id"]
        assert example.image.path == path.parent / record["image"]
        assert example.question == record["question"]
        assert list(example.answers) == record["answers"]
        assert example.question_id == record.get("question_id")
        assert example.image_id == record.get("image_id")


def test_every_truncation_is_a_shorter_file_or_an_input_error(tmp_path: Path) -> None:
    """A cut at a line's end cannot be told from a file that ends there; any other is an error."""
    path = write(tmp_path / "a.jsonl", CAT, DOG)
    whole, everything = path.read_bytes(), load(path).queries
    ends = {len(json.dumps(CAT)): 1, len(whole) - 1: 2}
    ends |= {end + 1: count for end, count in ends.items()}
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        if length in ends:
            assert load(path).queries == everything[: ends[length]]
        else:
            with pytest.raises(InputError, match=r"a\.jsonl"):
                load(path)


@settings(deadline=None)
@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_foreign_lines_are_input_errors(
    tmp_path_factory: pytest.TempPathFactory, line: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "foreign.jsonl"
    path.write_bytes(line)
    with pytest.raises(InputError, match=r"foreign\.jsonl"):
        load(path)


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=5))
def test_all_forms_of_answers_say_the_same(answers: list[str]) -> None:
    expected = tuple(answers)
    assert read_answers(answers, "here") == expected
    assert read_answers([{"answer": each, "answer_id": 1} for each in answers], "here") == expected
    assert read_answers({"answer": answers, "answer_id": [1]}, "here") == expected
    assert read_answers(answers[0], "here") == expected[:1]


@settings(deadline=None)
@given(json_values)
def test_other_forms_of_answers_are_input_errors(value: object) -> None:
    try:
        answers = read_answers(value, "here")
    except InputError:
        return
    assert answers
    assert all(isinstance(each, str) for each in answers)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png", ".."])
def test_images_lie_in_the_folder_that_is_named(tmp_path, name):
    (tmp_path / "images").mkdir()
    inside = {"image": "a/../b.png", "question": "?", "answer": "yes"}
    lines = [inside, {**inside, "image": name}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"line 2: the image .* lies outside of .*outside=true"):
        load(path, images=str(tmp_path / "images"))
    assert len(load(path, images=str(tmp_path / "images"), outside=True).queries) == 2
    assert load(path).queries[1].image.path == tmp_path / name, "no folder was named"


def test_larger_images_than_allowed_are_not_read(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"image": "a.png", "question": "?", "answer": "yes"}))
    load(path, max_image_pixels=81).queries[0].image.open()
    for limit in ("max_image_pixels", "max_image_bytes"):
        with pytest.raises(InputError, match=rf"a\.png: .*more than {limit}=50"):
            load(path, **{limit: 50}).queries[0].image.open()
    for limit in ({"max_image_bytes": 0}, {"max_image_pixels": 10**9}):
        with pytest.raises(ValueError, match="start at 1"):
            load(path, **limit)
