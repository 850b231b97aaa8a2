"""The `datasets` loader, on datasets made here: saved to disk and in Parquet; no network."""

from __future__ import annotations

import io
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read when `datasets` and its hub client are imported.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
from PIL import Image

from pointer_rl.datasets import identity
from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.registry import registry
from pointer_rl_standard.hf_dataset import load_hf
from pointer_rl_standard.options import HFOptions

datasets = pytest.importorskip("datasets")

COLOURS = ["red", "lime", "blue", "red"]
ANSWERS = [["net", "net", "screen"], ["hill", "slope"], ["black"], ["yes", "no", "yes"]]


@pytest.fixture(autouse=True)
def _quiet_and_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(stream, "PNG")
    return stream.getvalue()


def table(**columns: Any) -> Any:
    """Four rows; a column given as None is left out."""
    rows = {
        "image": [{"bytes": png(colour), "path": None} for colour in COLOURS],
        "question": [f"question {row}?" for row in range(4)],
        "answers": ANSWERS,
        "question_id": [100, 101, 102, 103],
        **columns,
    }
    made = datasets.Dataset.from_dict({k: v for k, v in rows.items() if v is not None})
    if "image" not in columns:
        made = made.cast_column("image", datasets.Image())
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    splits = {"train": table(question_id=[1, 2, 3, 4]), "validation": table()}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def save(folder: Path, **columns: Any) -> Path:
    table(**columns).save_to_disk(folder)
    return folder


def load(path: Path, **options: Any) -> Any:
    return load_hf(HFOptions(path=str(path), **options))


def test_examples_are_those_of_the_split(saved: Path) -> None:
    dataset = load(saved)
    assert [each.id for each in dataset.queries] == ["100", "101", "102", "103"]
    assert [each.question_id for each in dataset.queries] == [100, 101, 102, 103]
    assert [each.row for each in dataset.queries] == [0, 1, 2, 3]
    assert [each.question for each in dataset.queries] == [f"question {row}?" for row in range(4)]
    assert [list(each.answers) for each in dataset.queries] == ANSWERS
    assert dataset.queries[0].image_id is None
    assert dataset.pool is dataset.queries
    assert dataset.name == "images/validation"


def test_pool_of_another_split(saved: Path) -> None:
    dataset = load(saved, pool_split="train")
    assert [each.id for each in dataset.queries] == ["100", "101", "102", "103"]
    assert [each.id for each in dataset.pool] == ["1", "2", "3", "4"]
    assert dataset.queries[0].image != dataset.pool[0].image
    assert dataset.queries[0].image.key == dataset.pool[0].image.key
    same = load(saved, pool_split="validation")
    assert same.pool is same.queries


def test_images_are_read_from_their_rows(saved: Path) -> None:
    images = [each.image for each in load(saved).queries]
    assert [image.open().getpixel((0, 0)) for image in images] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 0, 0),
    ]
    assert images[0].key == images[3].key  # equal content, whatever the row
    assert len({image.key for image in images}) == 3


def test_an_image_pickles_by_reference(saved: Path) -> None:
    image = load(saved).queries[2].image
    data = pickle.dumps(image)
    assert png("blue") not in data
    copy = pickle.loads(data)
    assert copy == image
    assert hash(copy) == hash(image)
    assert copy.key == image.key
    assert copy.open().getpixel((0, 0)) == (0, 0, 255)


def test_a_damaged_image_fails_alone(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": None} for data in (b"not an image", png("red"), b"", None)]
    first, second, *missing = load(save(tmp_path / "d", image=images)).queries
    assert second.image.open().size == (4, 3)
    with pytest.raises(InputError, match="row 0: not a readable image"):
        first.image.open()
    for each in missing:
        with pytest.raises(InputError, match=rf"row {each.row}: no image in the column 'image'"):
            each.image.open()


@pytest.mark.parametrize("form", ["bytes", "path"])
def test_columns_of_plain_bytes_and_of_paths(tmp_path: Path, form: str) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    value = png("red") if form == "bytes" else str(tmp_path / "red.png")
    examples = load(save(tmp_path / "d", image=[value] * 4)).queries
    assert examples[1].image.open().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "form",
    [
        [[{"answer": each, "answer_id": 1} for each in answers] for answers in ANSWERS],
        [{"answer": answers} for answers in ANSWERS],
    ],
    ids=["objects", "object of lists"],
)
def test_forms_of_answers(tmp_path: Path, form: Any) -> None:
    examples = load(save(tmp_path / "d", answers=form)).queries
    assert [list(each.answers) for each in examples] == ANSWERS


def test_one_answer_a_row(tmp_path: Path) -> None:
    examples = load(save(tmp_path / "d", answers=["a", "b", "c", "d"])).queries
    assert [each.answers for each in examples] == [("a",), ("b",), ("c",), ("d",)]


def test_columns_of_other_names(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    made = table(question_id=None, picture_id=["p", "q", "r", "p"])
    made = made.rename_columns({"image": "picture", "question": "text", "answers": "labels"})
    made.with_format("numpy").save_to_disk(folder)
    examples = load(
        folder,
        image_column="picture",
        question_column="text",
        answers_column="labels",
        id_column=None,
        image_id_column="picture_id",
    ).queries
    assert [each.id for each in examples] == ["0", "1", "2", "3"]
    assert [each.question_id for each in examples] == [None] * 4
    assert [each.image_id for each in examples] == ["p", "q", "r", "p"]
    assert examples[1].image.open().getpixel((0, 0)) == (0, 255, 0)


def test_parquet_folder(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    table().to_parquet(folder / "validation-00000-of-00001.parquet")
    dataset = load(folder)
    assert [list(each.answers) for each in dataset.queries] == ANSWERS
    assert dataset.queries[2].image.open().getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(InputError, match=r"split test: cannot load it .*Unknown split"):
        load(folder, split="test")


def test_a_split_saved_alone(tmp_path: Path) -> None:
    """It stands for any split while it has no name; a name is compared."""
    nameless = save(tmp_path / "d")
    assert len(load(nameless, split="test").queries) == 4
    with pytest.raises(InputError, match=r"no split 'validation' .*unnamed"):
        load(nameless, pool_split="train")

    rows = table()
    named = datasets.Dataset(rows.data, split=datasets.Split.TRAIN)
    named.save_to_disk(tmp_path / "named")
    assert len(load(tmp_path / "named", split="train").queries) == 4
    with pytest.raises(InputError, match=r"no split 'validation' \(known: train\)"):
        load(tmp_path / "named")


def test_a_split_or_column_that_is_not_there(saved: Path) -> None:
    with pytest.raises(InputError, match="no split 'trian'; did you mean 'train'"):
        load(saved, split="trian")
    for option in ("question", "image", "answers", "id", "image_id"):
        with pytest.raises(InputError, match=rf"no column 'questio' \(option {option}_column\);"):
            load(saved, **{f"{option}_column": "questio"})
    with pytest.raises(InputError, match=r"did you mean 'question'\? \(known: answers, image, "):
        load(saved, question_column="questio")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": [1, 2, 3, 4]}, "row 0: question must be a string, not 1"),
        ({"question": ["a", None, "c", "d"]}, "row 1: question must be a string, not None"),
        ({"answers": [["a"], [], ["b"], ["c"]]}, r"row 1: answers must be .*not \[\]"),
        ({"answers": [[1], [2], [3], [4]]}, "row 0: answer must be a string, not 1"),
        ({"question_id": [1, 2, 3, 2]}, "row 3: the id '2' is already that of .*row 1;"),
        ({"question_id": [0.5] * 4}, "row 0: question_id must be an integer or a string"),
        ({"image": [1, 2, 3, 4]}, "the column 'image' holds no images"),
    ],
)
def test_values_of_another_kind(tmp_path: Path, columns: Any, message: str) -> None:
    folder = save(tmp_path / "d", **columns)
    with pytest.raises(InputError, match=rf"d, split validation.*{message}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split validation: cannot load it"):
        load(save(tmp_path / "shardless", image=[], question=[], answers=[], question_id=[]))

    import pyarrow as pa

    shard = save(tmp_path / "d") / "data-00000-of-00001.arrow"
    with pa.ipc.open_stream(shard.read_bytes()) as reader:
        schema = reader.schema
    with pa.ipc.new_stream(str(shard), schema):  # a shard of no rows
        pass
    with pytest.raises(InputError, match="split validation: no examples in it"):
        load(tmp_path / "d")


def test_no_such_dataset(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"nobody/nothing, split validation: cannot load it"):
        load_hf(HFOptions(path="nobody/nothing"))
    with pytest.raises(InputError, match="has no name nor revision to choose"):
        load(saved, revision="main")


@pytest.mark.parametrize("file", ["dataset_info.json", "state.json", "data-00000-of-00001.arrow"])
def test_truncated_files_are_input_errors(tmp_path: Path, file: str) -> None:
    path = save(tmp_path / "d") / file
    whole = path.read_bytes()
    for length in range(0, len(whole) - 8, max(1, len(whole) // 20)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            load(tmp_path / "d")
        assert "\n" not in str(caught.value)


def test_text_that_is_no_text_is_an_input_error(tmp_path: Path) -> None:
    shard = save(tmp_path / "d") / "data-00000-of-00001.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"question 2?", b"question \xff?"))
    with pytest.raises(InputError, match=r"split validation: cannot read it \(.*can't decode"):
        load(tmp_path / "d")


def test_the_missing_package_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"dataset hf .*: pip install 'pointer-rl\[hf\]'"):
        registry().create("dataset", "hf", {"path": str(saved)})


def test_the_loader_is_imported_without_the_package() -> None:
    code = "import pointer_rl_standard.hf_dataset, sys; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_larger_images_than_allowed_are_refused(saved: Path) -> None:
    for limit in ("max_image_bytes", "max_image_pixels"):
        image = load(saved, **{limit: 2}).queries[0].image
        with pytest.raises(InputError, match=f"more than {limit}=2"):
            image.open()


def test_hashes_of_rows_are_kept_as_long_as_their_files_stay(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POINTER_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED", -1)
    expected = [each.image.key for each in load(saved).queries]

    def keys() -> list[str]:
        images = [each.image for each in load(saved).queries]
        identity.hash_images(images)
        return [image.key for image in images]

    assert keys() == expected
    kept = sqlite3.connect(tmp_path / "cache" / "images.sqlite", isolation_level=None)
    kept.execute("UPDATE hashes SET hash = 'told'")
    kept.close()
    assert keys() == ["told"] * 4
    for file in saved.rglob("*.arrow"):
        os.utime(file)
    assert keys() == expected
