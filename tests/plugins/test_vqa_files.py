"""The VQA loader on small files in the official layout, whole and damaged."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError
from pointer_rl.options import build_options
from pointer_rl_standard import OKVQA
from pointer_rl_standard.options import VQAOptions
from pointer_rl_standard.vqa_files import load_vqa

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"
# (question_id, image_id, question, answers); questions 0 and 2 are about one image
ITEMS = [
    (458752000, 458752, "What is this photo taken looking through?", ["net"] * 9 + ["screen"]),
    (262146000, 262146, "Où est-ce ?", ["ski slope", "hill", "ski slope"]),
    (458752001, 458752, "What colour is the net?", ["black"]),
]


def questions_json(items: list[tuple[Any, ...]], subtype: str = "train2014") -> dict[str, Any]:
    return {
        "info": {"version": "2.0"},
        "task_type": "Open-Ended",
        "data_subtype": subtype,
        "questions": [
            {"image_id": image, "question": question, "question_id": id}
            for id, image, question, _ in items
        ],
    }


def annotations_json(items: list[tuple[Any, ...]], subtype: str = "train2014") -> dict[str, Any]:
    return {
        "data_subtype": subtype,
        "annotations": [
            {
                "question_id": id,
                "image_id": image,
                "multiple_choice_answer": answers[0],
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                    for number, answer in enumerate(answers, start=1)
                ],
            }
            for id, image, _, answers in items
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train2014").mkdir()
    write(tmp_path / QUESTIONS, questions_json(ITEMS))
    # Annotators' order is not the questions' order, and one question more was annotated.
    extra = (7, 9, "Who?", ["nobody"])
    write(tmp_path / ANNOTATIONS, annotations_json([extra, *reversed(ITEMS)]))
    return tmp_path


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def load(root: Path, **options: object) -> Any:
    return load_vqa(build_options(VQAOptions, {"root": str(root), **options}, "dataset vqa"))


def test_examples_are_those_of_the_files(root: Path) -> None:
    dataset = load(root)
    assert [
        (each.question_id, each.image_id, each.question, list(each.answers))
        for each in dataset.queries
    ] == ITEMS
    assert [each.id for each in dataset.queries] == ["458752000", "262146000", "458752001"]
    assert [each.row for each in dataset.queries] == [0, 1, 2]
    assert dataset.queries[0].answer == "net"
    assert dataset.queries[1].image == ImageFile(
        root / "train2014" / "COCO_train2014_000000262146.jpg"
    )
    assert dataset.pool is dataset.queries
    assert dataset.name == "v2_OpenEnded_mscoco_train2014_questions"


def test_an_image_of_several_questions_is_hashed_once(root: Path) -> None:
    examples = load(root).queries
    assert examples[0].image is examples[2].image
    assert examples[0].image is not examples[1].image


def test_a_missing_image_fails_alone(root: Path) -> None:
    path = root / "train2014" / "COCO_train2014_000000458752.jpg"
    Image.new("RGB", (3, 2), "red").save(path)
    first, second, _ = load(root).queries
    assert first.image.open().size == (3, 2)
    with pytest.raises(InputError, match=r"000000262146\.jpg: cannot read the image"):
        second.image.open()


def test_okvqa_preset_differs_in_the_file_names_only(root: Path) -> None:
    (root / QUESTIONS).rename(root / "OpenEnded_mscoco_train2014_questions.json")
    (root / ANNOTATIONS).rename(root / "mscoco_train2014_annotations.json")
    assert len(load(root, **OKVQA).queries) == 3


def test_a_pool_of_its_own(root: Path) -> None:
    (root / "val2014").mkdir()
    items = [(5, 42, "How many?", ["2"])]
    write(root / "val_questions.json", questions_json(items, "val2014"))
    write(root / "val_annotations.json", annotations_json(items, "val2014"))
    dataset = load(
        root,
        questions="val_questions.json",
        annotations="val_annotations.json",
        images="val2014",
        pool_questions=QUESTIONS,
        pool_annotations=ANNOTATIONS,
        pool_images="train2014",
    )
    assert [each.id for each in dataset.queries] == ["5"]
    assert dataset.queries[0].image.path.name == "COCO_val2014_000000000042.jpg"
    assert [each.question_id for each in dataset.pool] == [item[0] for item in ITEMS]
    assert [each.row for each in dataset.pool] == [0, 1, 2]
    assert dataset.pool[1].image.path.parent.name == "train2014"


def test_a_pool_is_given_whole(root: Path) -> None:
    with pytest.raises(InputError, match="give pool_questions, pool_annotations and pool_images"):
        load(root, pool_questions=QUESTIONS)


def test_files_that_are_both_queries_and_pool_are_read_once(root: Path) -> None:
    same = {
        "pool_questions": QUESTIONS,
        "pool_annotations": ANNOTATIONS,
        "pool_images": "train2014",
    }
    dataset = load(root, **same)
    assert dataset.pool is dataset.queries


def test_only_the_first_examples(root: Path) -> None:
    dataset = load(root, max_examples=2)
    assert [each.question_id for each in dataset.pool] == [item[0] for item in ITEMS[:2]]
    assert all(each.answers for each in dataset.queries)
    with pytest.raises(InputError, match="max_examples starts at 1"):
        load(root, max_examples=0)


@pytest.mark.parametrize("name", ["{image}.jpg", "{image_id:zz}.jpg", "{}.jpg", "{image_id.x}"])
def test_image_name_that_makes_no_name(root: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"image_name=.* does not make a file name"):
        load(root, image_name=name)


def test_other_ids_and_image_names(root: Path) -> None:
    """Some datasets in this format name images by strings and give no data_subtype."""
    items = [("q-a", "img7", "What?", ["it"])]
    for name, content in (
        (QUESTIONS, questions_json(items)),
        (ANNOTATIONS, annotations_json(items)),
    ):
        del content["data_subtype"]
        write(root / name, content)
    with pytest.raises(InputError, match="no data_subtype in it"):
        load(root)
    with pytest.raises(InputError, match=r"image_id 'img7' in {image_id:d}: "):
        load(root, image_name="{image_id:d}")
    (example,) = load(root, image_name="{image_id}.png").queries
    assert (example.id, example.image.path.name) == ("q-a", "img7.png")


def test_questions_without_annotation_are_counted(root: Path) -> None:
    write(root / ANNOTATIONS, annotations_json(ITEMS[:1]))
    with pytest.raises(InputError, match=r"no annotation for 2 of the 3 .*the first: 262146000"):
        load(root)


def test_an_id_met_twice_is_refused(root: Path) -> None:
    write(root / QUESTIONS, questions_json([*ITEMS, ITEMS[1]]))
    with pytest.raises(InputError, match=r"questions\[3\]: the id '262146000' is already that of"):
        load(root)
    write(root / QUESTIONS, questions_json(ITEMS))
    write(root / ANNOTATIONS, annotations_json([*ITEMS, ITEMS[1]]))
    with pytest.raises(InputError, match=r"annotations\[3\]: a second annotation for .*262146000"):
        load(root)


def test_files_and_folders_that_are_not_there(root: Path) -> None:
    for option in ("questions", "annotations"):
        with pytest.raises(InputError, match=r"nowhere\.json: cannot read it \(No such file"):
            load(root, **{option: "nowhere.json"})
    with pytest.raises(InputError, match="nowhere: no such folder of images"):
        load(root, images="nowhere")


def test_files_given_for_each_other(root: Path) -> None:
    with pytest.raises(InputError, match="is it a VQA questions file"):
        load(root, questions=ANNOTATIONS)
    with pytest.raises(InputError, match="is it a VQA annotations file"):
        load(root, annotations=QUESTIONS)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (QUESTIONS, "question", None, r"questions\[1\]: question must be a string, not None"),
        (QUESTIONS, "question", ["a"], r"questions\[1\]: question must be a string"),
        (QUESTIONS, "question_id", 1.5, r"questions\[1\]: question_id must be an integer or a"),
        (QUESTIONS, "image_id", True, r"questions\[1\]: image_id must be an integer or a string"),
        (ANNOTATIONS, "question_id", None, r"annotations\[1\]: question_id must be"),
        (ANNOTATIONS, "answers", None, r"annotations\[1\]: answers must be"),
        (ANNOTATIONS, "answers", [], r"annotations\[1\]: answers must be .* at least one"),
        (ANNOTATIONS, "answers", [{"answer": 3}], r"annotations\[1\]: answer must be a string"),
        (ANNOTATIONS, "answers", [{}], r"annotations\[1\]: answer must be a string, not None"),
    ],
)
def test_values_of_another_kind(
    root: Path, file: str, key: str, value: object, message: str
) -> None:
    content = json.loads((root / file).read_text())
    content["questions" if file == QUESTIONS else "annotations"][1][key] = value
    write(root / file, content)
    with pytest.raises(InputError, match=message):
        load(root)


@pytest.mark.parametrize(
    "content", [[], {}, 5, "x", None, {"questions": []}, {"questions": {"a": 1}}, {"questions": 4}]
)
def test_json_of_another_shape(root: Path, content: object) -> None:
    write(root / QUESTIONS, content)
    with pytest.raises(InputError, match=QUESTIONS):
        load(root, image_name="{image_id}")


def test_an_item_that_is_no_object(root: Path) -> None:
    write(root / QUESTIONS, {"data_subtype": "x", "questions": [5]})
    with pytest.raises(InputError, match=r"questions\[0\]: must be an object, not int"):
        load(root)


@pytest.mark.parametrize("file", [QUESTIONS, ANNOTATIONS])
def test_every_truncation_is_one_line_of_input_error(root: Path, file: str) -> None:
    whole = (root / file).read_bytes()
    for length in range(len(whole)):
        (root / file).write_bytes(whole[:length])
        with pytest.raises(InputError, match=file) as caught:
            load(root)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [QUESTIONS, ANNOTATIONS])
def test_changed_bytes_load_or_are_input_errors(root: Path, file: str) -> None:
    whole = (root / file).read_bytes()
    rng = random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] = rng.choice(b'\x00"\\{}[],:0e\x80\xff')
        (root / file).write_bytes(damaged)
        with contextlib.suppress(InputError):
            load(root)


def test_a_name_that_leads_out_of_the_folder_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"the image '\.\./.*' lies outside of "):
        load(root, image_name="../{image_id}.jpg")
