"""Bad input that once ended in a traceback, a hang or two lines: each is one line now."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from mutations import nested

from pointer_rl.errors import InputError
from pointer_rl.json_stream import MAX_DEPTH, parse_json
from pointer_rl.records.beam_dataset import BeamDataset
from pointer_rl.records.convert import convert_file
from pointer_rl.records.merge import merge_files
from pointer_rl.records.rescore import rescore_file
from pointer_rl.records.shards import Shard
from pointer_rl.validate import validate_file

CANDIDATE = {"pointer": [1], "gen_method": "m", "vqa_pred_answer": "a", "vqa_correct": 1}
META = {"schema_version": "1.0", "metric": {"name": "exact", "version": "1"}}


def dump(path: Path, meta: object, accuracy: object = 1.0, **more: object) -> Path:
    """A file of one query with one candidate, which has these fields besides."""
    candidate = {**CANDIDATE, "vqa_acc_score": accuracy, **more}
    record = {"query": {"gt_answers_raw": ["a"]}, "pointer_candidates": [candidate]}
    path.write_text(json.dumps({"_meta": meta, "q": record}))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "command",
    [
        convert_file,
        rescore_file,
        lambda source, target: merge_files([source], target),
    ],
    ids=["convert", "rescore", "merge"],
)
def test_a_meta_with_nan_is_refused(tmp_path, command, suffix):
    source = dump(tmp_path / "rl.json", {**META, "seed": math.nan})
    with pytest.raises(InputError, match="line 1: a number that is not finite at _meta/seed"):
        command(source, tmp_path / f"out{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["rl.json"]


@pytest.mark.parametrize("reader", [validate_file, BeamDataset])
@pytest.mark.parametrize("lines", [False, True])
def test_deep_nesting_is_refused(tmp_path, reader, lines):
    path = tmp_path / ("rl.jsonl" if lines else "rl.json")
    for levels, message in ((MAX_DEPTH + 1, "more than 200 levels"), (300, "200 l"), (5_000, "")):
        deep = '{"a": ' * levels + "1" + "}" * levels
        path.write_text(f'{{"query_id": "q", "x": {deep}}}' if lines else f'{{"q": {deep}}}')
        with pytest.raises(InputError, match=f"cannot parse this .*{message}"):
            reader(path)
    for levels in (10, MAX_DEPTH):
        assert parse_json(json.dumps(nested(levels))) == nested(levels)


@pytest.mark.parametrize("place", ["gen_method", "vqa_correct", "pointer", "\ud800"])
def test_validate_takes_lone_surrogates(tmp_path, place):
    report = validate_file(dump(tmp_path / "rl.json", META, **{place: "\ud800"}))
    assert report.num_findings == (place in ("vqa_correct", "pointer"))


@pytest.mark.parametrize("accuracy", [10**400, -(10**400), 1e308, "1", None])
def test_rescore_replaces_any_recorded_accuracy(tmp_path, accuracy):
    done = rescore_file(dump(tmp_path / "rl.json", META, accuracy), tmp_path / "out.json")
    assert (done.accuracies, done.accuracy_before, done.accuracy_after) == (1, 0.0, 1.0)


def test_an_error_is_one_line_whatever_it_quotes(tmp_path):
    """The name of a differing key is quoted: here with a line break and an escape code."""
    sources = [tmp_path / "a.json", tmp_path / "b.json"]
    for number, source in enumerate(sources):
        dump(source, {**META, "a\nb\x1b[31m\u2028\ud800": number})
    with pytest.raises(InputError) as caught:
        merge_files(sources, tmp_path / "out.json")
    assert r"differs in a\nb" in str(caught.value)
    assert not set("\n\x1b\u2028\ud800") & set(str(caught.value))


def test_parquet_with_damaged_utf8_is_refused(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    convert_file(
        dump(tmp_path / "rl.json", META, vqa_raw_generation="QQQQQQ"), tmp_path / "a.parquet"
    )
    table = parquet.read_table(tmp_path / "a.parquet")
    path = tmp_path / "b.parquet"
    parquet.write_table(
        table, path, compression="none", use_dictionary=False, write_statistics=False
    )
    path.write_bytes(path.read_bytes().replace(b"QQQQQQ", b"Q\xff\xffQQQ"))
    for reader in (validate_file, BeamDataset):
        with pytest.raises(InputError, match=r"cannot read it as Parquet .*utf-8"):
            reader(path)


def test_absurd_numbers_of_queries_and_shards_take_no_time(tmp_path):
    meta = {**META, "dataset": {"name": "d", "num_queries": 10**30}, "shard": "1/2"}
    path = dump(tmp_path / "1.json", meta)
    other = dump(tmp_path / "2.json", {**meta, "shard": "2/2"})
    assert f"1 of {Shard(1, 2).size(10**30, 128)} queries" in validate_file(path).notes[0]
    assert [left for _, _, left in merge_files([path, other], tmp_path / "o.json").short] != []
    dump(path, {**meta, "shard": "1/999999999"})
    with pytest.raises(InputError, match="missing: shard 2/999999999, 3/999999999"):
        merge_files([path], tmp_path / "o.json", overwrite=True)


@pytest.mark.parametrize("size", [1, 3, 128])
def test_the_size_of_a_shard_is_the_number_of_its_rows(size):
    for queries in (0, 1, 5, 127, 128, 129, 1000):
        for count in (1, 2, 5):
            for number in range(1, count + 1):
                shard = Shard(number, count)
                assert shard.size(queries, size) == len(shard.rows(queries, size))
