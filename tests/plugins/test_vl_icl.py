"""The VL-ICL loader on small files in the published layout, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipe_files import VL_ICL, write_vl_icl

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.options import build_options
from pointer_rl.types import Dataset
from pointer_rl_standard.options import VLICLOptions
from pointer_rl_standard.vl_icl import load_vl_icl


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("VL-ICL")
    write_vl_icl(folder)
    return folder


def load(root: Path, task: str, **options: object) -> Dataset:
    given = {"root": str(root), "task": task, **options}
    return load_vl_icl(build_options(VLICLOptions, given, "dataset vl-icl"))


def shown(dataset: Dataset, row: int) -> list[tuple[str, str]]:
    """The demonstrations that a query may be shown: name of the image, answer."""
    query, pool = dataset.queries[row], dataset.pool
    allowed = AllowedRows(pool).mask([query])[0].nonzero()[:, 0].tolist()
    return [(Path(str(pool[each].image.path)).name, pool[each].answer) for each in allowed]


@pytest.mark.parametrize(("task", "pool"), list(zip(VL_ICL, (36, 36, 12, 12), strict=True)))
def test_each_task_has_its_queries_and_its_support(root, task, pool):
    dataset = load(root, task)
    assert (len(dataset.queries), len(dataset.pool)) == (6, pool)
    assert dataset.name == f"vl-icl/{task}"
    for row, each in enumerate(dataset.queries):
        assert (each.id, each.row, each.image.open().mode) == (f"query-{row}", row, "RGB")
        assert each.image.path == root / task / "query" / f"{row}.png"
    support = load(root, task, split="support")
    assert support.queries == support.pool == dataset.pool


def test_counts_are_texts(root):
    assert [each.answers for each in load(root, "clevr").queries[:3]] == [("0",), ("1",), ("2",)]


def test_a_query_sees_the_support_with_its_operators_answers(root):
    dataset = load(root, "operator_induction")
    for row, compute in enumerate((lambda a: a + 2, lambda a: a - 2, lambda a: a * 2)):
        expected = [(f"{each}.png", str(compute(each % 4))) for each in range(12)]
        assert shown(dataset, row) == expected


def test_a_support_example_sees_no_other_operator_and_not_itself(root):
    dataset = load(root, "operator_induction", split="support")
    assert shown(dataset, 4) == [
        (f"{each}.png", str(each % 4 - 2)) for each in range(12) if each != 1
    ]


def test_made_up_names_hold_for_one_query_alone(root):
    dataset = load(root, "open_mi")
    for row in range(6):
        names = ("dax", "perpo") if row % 2 else ("perpo", "blicket")
        images = [f"{each}.png" for each in range(6 * row, 6 * row + 6)]
        assert shown(dataset, row) == list(
            zip(images, [names[0]] * 3 + [names[1]] * 3, strict=True)
        )
        assert dataset.queries[row].answer == names[0]
    assert {each.question for each in dataset.pool} == {"This is a"}


def change(path: Path, edit: Any) -> None:
    items = json.loads(path.read_text())
    edit(items)
    path.write_text(json.dumps(items))


@pytest.mark.parametrize(
    ("task", "file", "edit", "message"),
    [
        (
            "clevr",
            "query",
            lambda each: each[1].update(image=["a.png", "b.png"]),
            "item 1: 2 images",
        ),
        ("clevr", "query", lambda each: each[2].pop("answer"), "item 2: answer must be a string"),
        ("clevr", "query", lambda each: each[2].update(answer=True), "item 2: answer must be"),
        ("clevr", "support", lambda each: each[0].pop("question"), "item 0: question must be"),
        ("clevr", "support", lambda each: each.insert(0, 3), "item 0: must be an object, not int"),
        ("clevr", "support", list.clear, "must be a list of examples"),
        ("clevr", "query", lambda each: each[0].update(image="../../a.png"), "lies outside of"),
        (
            "operator_induction",
            "query",
            lambda each: each[0].update(operator="/"),
            "must be +, - or",
        ),
        ("operator_induction", "support", lambda each: each[0].update(answer=1), "a list of three"),
        ("open_mi", "query", lambda each: each[5].pop("support"), "item 5: no support"),
        ("open_mi", "query", lambda each: each[0]["support"].update(dax=1), "'dax' has no list"),
    ],
)
def test_other_files_are_refused_with_the_place(tmp_path, task, file, edit, message):
    write_vl_icl(tmp_path, [task])
    change(tmp_path / task / f"{file}.json", edit)
    with pytest.raises(InputError) as raised:
        load(tmp_path, task)
    assert message in str(raised.value)
    assert str(tmp_path / task) in str(raised.value)


def test_a_missing_folder_and_unknown_tasks_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"support\.json: cannot read it"):
        load(tmp_path, "clevr")
    with pytest.raises(InputError, match="matching_mi"):
        load(tmp_path, "matching_mi")
    (tmp_path / "clevr").mkdir()
    (tmp_path / "clevr" / "support.json").write_text("[")
    with pytest.raises(InputError, match=r"support\.json: not JSON"):
        load(tmp_path, "clevr")
