"""A folder for the Hub: `datasets` reads it with images, and nothing of the data is lost."""

from __future__ import annotations

import io
import json

import PIL.Image
import pytest
from report_world import write_world

from pointer_rl.errors import InputError
from pointer_rl.records.convert import convert_file
from pointer_rl.registry import registry

datasets = pytest.importorskip("datasets")

from huggingface_hub import DatasetCard  # noqa: E402

from pointer_rl.export import dataset_folder  # noqa: E402
from pointer_rl.export.dataset_folder import write_dataset_folder  # noqa: E402

TEXTS = ("one", "two ↯ \x1b[31m", "three\nlines")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


@pytest.fixture
def rl_data(tmp_path):
    return write_world(tmp_path, TEXTS, queries=10)


def with_own_pool(rl_data):
    """The same data with a pool of other ids, in another file."""
    folder = rl_data.parent
    lines = [json.loads(each) for each in (folder / "data.jsonl").read_text().splitlines()]
    pool = [{**each, "id": f"pool {each['id']}", "image_id": 7} for each in reversed(lines)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pool))
    content = json.loads(rl_data.read_text())
    content["_meta"]["dataset"]["options"]["pool"] = str(folder / "pool.jsonl")
    del content["q3"], content["q0"]
    rl_data.write_text(json.dumps(content))
    return rl_data


def equal_but_for_nulls(found, expected):
    """Columns that do not apply are null."""
    if isinstance(expected, dict):
        assert {key for key, each in found.items() if each is not None} <= expected.keys()
        for key, value in expected.items():
            equal_but_for_nulls(found[key], value)
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        for one, other in zip(found, expected, strict=True):
            equal_but_for_nulls(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("own_pool", [False, True])
def test_datasets_reads_records_and_images(rl_data, tmp_path, own_pool):
    if own_pool:
        rl_data = with_own_pool(rl_data)
    written = write_dataset_folder(rl_data, tmp_path / "hub")
    records = json.loads(rl_data.read_text())
    meta = records.pop("_meta")
    rows = datasets.load_dataset(str(tmp_path / "hub"), split="train")
    assert rows["query_id"] == list(records)
    for row in rows:
        record = records[row["query_id"]]
        assert row["query"]["gt_answers_raw"] == record["query"]["gt_answers_raw"]
        equal_but_for_nulls(row["pointer_candidates"], record["pointer_candidates"])
    pool = datasets.load_dataset(str(tmp_path / "hub"), "examples", split="pool")
    queries = pool
    if own_pool:
        queries = datasets.load_dataset(str(tmp_path / "hub"), "examples", split="queries")
        assert queries["id"] == list(records)
    assert written.examples == {"pool": 10} | ({"queries": 8} if own_pool else {})
    dataset = registry().create("dataset", "jsonl", meta["dataset"]["options"])
    wanted = [dataset.queries[each["query"]["row"]] for each in records.values()]
    for table, examples in ((pool, dataset.pool), (queries, wanted)):
        for row, example in zip(table, examples, strict=True):
            assert (row["id"], row["question"]) == (example.id, example.question)
            assert row["answers"] == list(example.answers)
            assert row["image"].convert("RGB").tobytes() == example.image.open().tobytes()
    convert_file(tmp_path / "hub" / "candidates.parquet", tmp_path / "back.json")
    assert json.loads((tmp_path / "back.json").read_text()) == json.loads(rl_data.read_text())


@pytest.mark.parametrize("own_pool", [False, True])
def test_pointer_rl_opens_it_as_the_card_says(rl_data, tmp_path, own_pool):
    if own_pool:
        rl_data = with_own_pool(rl_data)
    write_dataset_folder(rl_data, tmp_path / "hub")
    [line] = [
        each
        for each in (tmp_path / "hub" / "README.md").read_text().splitlines()
        if each.startswith("--dataset hf ")
    ]
    assigned = line.removeprefix("--dataset hf ").split("--dataset-opt ")[1:]
    options = dict(each.strip().split("=") for each in assigned)
    assert options.pop("path") == "FOLDER"
    found = registry().create("dataset", "hf", {"path": str(tmp_path / "hub"), **options})
    meta = json.loads(rl_data.read_text())["_meta"]
    dataset = registry().create("dataset", "jsonl", meta["dataset"]["options"])
    assert (found.pool is found.queries) is not own_pool
    for one, other in zip(found.pool, dataset.pool, strict=True):
        assert (one.id, one.question, one.answers) == (other.id, other.question, other.answers)
        assert one.image.key == other.image.key  # the file's own bytes


def test_parquet_alone_has_images_and_no_private_path(rl_data, tmp_path):
    write_dataset_folder(rl_data, tmp_path / "hub")
    files = str(tmp_path / "hub" / "pool" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train")
    assert rows[2]["image"].size == (90, 60)
    raw = rows.cast_column("image", datasets.Image(decode=False))[2]["image"]
    assert raw["path"] == "2.png"
    assert raw["bytes"] == (tmp_path / "2.png").read_bytes()


def test_the_card_describes_the_tables_and_leaves_the_license_open(rl_data, tmp_path):
    write_dataset_folder(rl_data, tmp_path / "hub")
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license is None
    assert card.data.size_categories == ["n<1K"]
    infos = {each["config_name"]: each for each in card.data.to_dict()["dataset_info"]}
    assert infos["candidates"]["splits"][0]["num_examples"] == 10
    features = {each["name"]: each for each in infos["examples"]["features"]}
    assert features["image"]["dtype"] == "image"
    assert "# license: fill in" in (tmp_path / "hub" / "README.md").read_text()


def test_large_tables_have_several_files_and_an_image_once_in_each_group(tmp_path, monkeypatch):
    rl_data = write_world(tmp_path, TEXTS, queries=24)
    noise = PIL.Image.effect_noise((1100, 1100), 90)  # larger than a page
    for number in range(8):
        noise.rotate(90 * (number % 2)).save(tmp_path / f"{number}.png", compress_level=1)
    image = (tmp_path / "0.png").stat().st_size
    monkeypatch.setattr(dataset_folder, "_GROUP_ROWS", 12)
    write_dataset_folder(rl_data, tmp_path / "one")
    [file] = (tmp_path / "one" / "pool").iterdir()
    assert file.stat().st_size < 5 * image  # two different ones in each of two groups
    monkeypatch.setattr(dataset_folder, "_FILE_BYTES", image)
    write_dataset_folder(rl_data, tmp_path / "two")
    names = sorted(each.name for each in (tmp_path / "two" / "pool").iterdir())
    assert names == ["00000.parquet", "00001.parquet"]
    rows = datasets.load_dataset(str(tmp_path / "two"), "examples", split="pool")
    assert rows["id"] == [f"q{number}" for number in range(24)]


def test_an_image_that_cannot_be_read_is_left_out_and_counted(rl_data, tmp_path):
    (tmp_path / "3.png").unlink()
    assert write_dataset_folder(rl_data, tmp_path / "hub").unreadable == 1
    rows = datasets.load_dataset(str(tmp_path / "hub"), "examples", split="pool")
    assert [each["id"] for each in rows if each["image"] is None] == ["q3"]


def test_images_that_are_in_no_file_are_drawn(tmp_path):
    from pointer_rl.records.formats import open_writer
    from pointer_rl.records.records import to_record
    from pointer_rl.types import Candidate, Outcome

    dataset = registry().create("dataset", "glyphs", {})
    judged = [(Candidate((1, 2), "random"), Outcome("a", "a", True, 1.0))]
    described = {"dataset": {"name": "glyphs", "options": {}}}
    with open_writer(tmp_path / "rl.json", described) as writer:
        writer.write(dataset.queries[5].id, to_record(dataset.queries[5], judged))
    write_dataset_folder(tmp_path / "rl.json", tmp_path / "hub")
    rows = datasets.load_dataset(str(tmp_path / "hub"), "examples", split="queries")
    expected = io.BytesIO(dataset.queries[5].image.png())
    assert rows[0]["image"].tobytes() == PIL.Image.open(expected).tobytes()


def test_an_earlier_export_is_replaced_as_a_whole_if_that_is_wanted(rl_data, tmp_path):
    folder = tmp_path / "hub"
    write_dataset_folder(rl_data, folder)
    with pytest.raises(InputError, match=r"README\.md: exists; remove it, or give --overwrite"):
        write_dataset_folder(rl_data, folder)
    (folder / "pool" / "00001.parquet").write_bytes(b"of a larger dataset")
    (folder / "notes.txt").write_text("mine")
    write_dataset_folder(rl_data, folder, overwrite=True)
    assert [each.name for each in (folder / "pool").iterdir()] == ["00000.parquet"]
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("foreign", ["pool/embeddings.parquet", "candidates.parquet"])
def test_what_others_wrote_is_not_replaced(rl_data, tmp_path, foreign):
    path = tmp_path / "hub" / foreign
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"\.parquet: exists; remove it, or give --overwrite"):
        write_dataset_folder(rl_data, tmp_path / "hub")
    if foreign.startswith("pool"):
        with pytest.raises(InputError, match=r"embeddings\.parquet: no export wrote it"):
            write_dataset_folder(rl_data, tmp_path / "hub", overwrite=True)
    assert path.read_bytes() == b"mine"
    assert [each for each in (tmp_path / "hub").rglob("*.*") if each.is_file()] == [path]


def test_beams_replace_rl_data(rl_data, tmp_path):
    write_dataset_folder(rl_data, tmp_path / "hub")
    content = json.loads(rl_data.read_text())
    beams = {
        key: {"query": each["query"], "beams": [{"pointer": [1, 2], "score": -1.0}]}
        for key, each in content.items()
        if key != "_meta"
    }
    path = tmp_path / "beams.json"
    path.write_text(json.dumps({"_meta": content["_meta"], **beams}))
    write_dataset_folder(path, tmp_path / "hub", overwrite=True)
    assert [each.name for each in (tmp_path / "hub").glob("*.parquet")] == ["beams.parquet"]


def test_an_export_that_fails_leaves_the_earlier_one(rl_data, tmp_path):
    folder = tmp_path / "hub"
    write_dataset_folder(with_own_pool(rl_data), folder)
    before = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    content = json.loads(rl_data.read_text())
    content["unknown"] = content["q1"]
    rl_data.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no query 'unknown'"):
        write_dataset_folder(rl_data, folder, overwrite=True)
    assert {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()} == before


def test_another_dataset_is_one_line_and_leaves_no_card(rl_data, tmp_path):
    with_own_pool(rl_data)
    other = {"path": str(tmp_path / "pool.jsonl"), "pool": str(tmp_path / "data.jsonl")}
    with pytest.raises(InputError, match="has no query 'q1'"):
        write_dataset_folder(rl_data, tmp_path / "hub", dataset="jsonl", dataset_options=other)
    assert not (tmp_path / "hub" / "README.md").exists()
