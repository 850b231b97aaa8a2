from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.records.formats import stream_records
from pointer_rl.records.records import as_line, encode_record, split_line
from pointer_rl.session.journal import RUN, Journal, locked_run, partial_path

META = {"schema_version": "1.0", "seed": 0, "dataset": {"name": "d", "rows_sha256": "ab"}}
IDS = [f"q{row}" for row in range(6)]


def record(row, failed=False):
    outcome = {"vqa_pred_answer": "é", "vqa_correct": 1, "vqa_acc_score": 1.0}
    if failed:
        outcome = {"eval_failed": True}
    candidate = {"pointer": [row], "gen_method": "random", **outcome}
    return {"pointer_candidates": [candidate]}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "rl.json"


def opened(output, meta=META, **options):
    return Journal(output, meta, IDS, **options)


def whole(output):
    with opened(output) as journal:
        journal.append({row: record(row) for row in range(6)})
        journal.finish()
    return output.read_bytes()


def test_the_finished_file_is_in_the_queries_order_whatever_was_done_first(output):
    once = whole(output)
    with opened(output, overwrite=True) as journal:
        for row in (5, 0, 3):
            journal.append({row: record(row)})
    assert not list(output.parent.glob("*.tmp"))
    with opened(output) as journal:
        assert [journal.is_done(row) for row in range(6)] == [1, 0, 0, 1, 0, 1]
        assert (len(journal), journal.left) == (3, 3)
        journal.append({row: record(row) for row in (4, 2, 1)})
        journal.finish()
    assert output.read_bytes() == once
    assert [path.name for path in output.parent.iterdir()] == ["rl.json"]
    found = json.loads(once)
    assert found.pop("_meta") == META
    assert list(found.items()) == [(f"q{row}", record(row)) for row in range(6)]


def test_until_then_it_is_rl_data_itself(output):
    with opened(output) as journal:
        journal.append({0: record(0)})
    first, second = map(json.loads, partial_path(output).read_text("utf-8").splitlines())
    del first["_crc32"], second["_crc32"]
    assert first == {"_meta": META}
    assert second == {"query_id": "q0", **record(0)}
    assert list(stream_records(partial_path(output))) == [("_meta", META), ("q0", record(0))]
    assert not output.exists()


def test_cut_anywhere_it_goes_on_from_the_last_whole_line(output):
    once = whole(output)
    with opened(output, overwrite=True) as journal:
        journal.append({row: record(row) for row in range(3)})
    partial = partial_path(output)
    content = partial.read_bytes()
    ends = [end + 1 for end, byte in enumerate(content) if byte == 10]
    for cut in range(len(content) + 1):
        partial.write_bytes(content[:cut])
        with opened(output) as journal:
            # A file that has a head and no line is as good as none: then the finished one counts.
            left = sum(end <= cut for end in ends[1:])
            assert len(journal) == (left or 6), cut
            journal.append({row: record(row) for row in range(6)})
            journal.finish()
        assert output.read_bytes() == once


def test_a_damaged_line_is_asked_anew_and_the_others_are_kept(output, caplog):
    with opened(output) as journal:
        journal.append({row: record(row) for row in range(3)})
    partial = partial_path(output)
    lines = partial.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"
    partial.write_bytes(b"".join(lines))
    with opened(output) as journal:
        assert [journal.has(row) for row in range(3)] == [True, False, True]
    assert "1 damaged lines" in caplog.text


def test_failed_trials_are_not_done_and_their_next_line_counts(output):
    with opened(output) as journal:
        journal.append({row: record(row, failed=row == 4) for row in range(6)})
        assert (journal.has(4), journal.is_done(4)) == (True, False)
        journal.finish()
    with opened(output) as journal:  # a finished file is gone on with, too
        assert [journal.is_done(row) for row in range(6)] == [1, 1, 1, 1, 0, 1]
        journal.append({4: record(4)})
        journal.finish()
    assert output.read_bytes() == whole(output.with_name("other.json"))


def test_looking_at_a_finished_file_leaves_it_alone(output):
    once = whole(output)
    with opened(output) as journal:
        assert len(journal) == 6
    assert [path.name for path in output.parent.iterdir()] == ["rl.json"]
    assert output.read_bytes() == once


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 1}, "seed: 0, now 1"),
        ({"dataset": {"name": "e", "rows_sha256": "ab"}}, 'dataset.name: "d", now "e"'),
        ({"dataset": {"name": "d", "rows_sha256": "cd"}}, "dataset.rows_sha256 differs"),
        ({"shots": 2}, "shots: null, now 2"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_another_run_left_is_refused_and_kept(output, changed, says, finished):
    if finished:
        whole(output)
    else:
        with opened(output) as journal:
            journal.append({0: record(0)})
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    with pytest.raises(InputError) as error:
        opened(output, META | changed)
    assert says in str(error.value)
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


@pytest.mark.parametrize("notes", ["my notes\nof today\n", "my notes", "{}\n"])
def test_a_file_that_is_no_journal_is_kept(output, notes):
    output.parent.mkdir()
    partial_path(output).write_text(notes)
    with pytest.raises(InputError, match=r"rl\.partial\.jsonl: exists, and is not the journal"):
        opened(output)
    assert partial_path(output).read_text() == notes


def test_an_output_has_not_the_name_of_a_journal(output):
    with pytest.raises(InputError, match="choose another name"):
        opened(output.with_name("rl.partial.jsonl"))


def test_a_beam_file_leaves_out_queries_without_a_beam_and_asks_them_again(tmp_path):
    output = tmp_path / "beams.json"
    beam = {"pointer": [1], "score": 0.5, "step_scores": [0.5]}
    records = {row: {"beams": [beam] if row else [], RUN: {"trials": 3}} for row in range(6)}
    with opened(output) as journal:
        journal.append(records)
        assert [journal.is_done(row) for row in range(6)] == [0, 1, 1, 1, 1, 1]
        assert not journal.left
        journal.finish()
    found = json.loads(output.read_text())
    assert list(found) == ["_meta", *IDS[1:]]
    assert all(RUN not in record for record in found.values())
    with opened(output) as journal:
        assert (len(journal), journal.left, journal.changed) == (5, 1, False)


def test_a_finished_file_of_something_else_is_not_taken_over(tmp_path):
    output = tmp_path / "evaluation.json"
    output.write_text("{}")
    with opened(output, take_over=False) as journal:
        assert len(journal) == 0


@given(st.data())
def test_a_flipped_bit_is_noticed(tmp_path_factory, data):
    output = tmp_path_factory.mktemp("journal") / "rl.json"
    once = whole(output)
    with opened(output, overwrite=True) as journal:
        journal.append({row: record(row) for row in range(6)})
    content = bytearray(partial_path(output).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    partial_path(output).write_bytes(content)
    if place < content.index(b"q0") - len('{"query_id": "\n'):
        with pytest.raises(InputError, match=r"first line is damaged|not the journal of a run"):
            opened(output)
        return
    with opened(output) as journal:
        lost = [row for row in range(6) if not journal.has(row)]
        assert 1 <= len(lost) <= 2
        journal.append({row: record(row) for row in lost})
        journal.finish()
    assert output.read_bytes() == once


@pytest.mark.parametrize("lacks", ["gen_method", "vqa_pred_answer"])
def test_a_finished_file_that_lacks_a_field_is_one_line(output, lacks):
    whole(output)
    found = json.loads(output.read_bytes())
    del found["q3"]["pointer_candidates"][0][lacks]
    output.write_text(json.dumps(found))
    with pytest.raises(InputError, match=rf"rl\.json: 'q3': .*{lacks} is missing.* --overwrite"):
        opened(output)
    found["q3"] = {"pointer_candidates": [1]}
    output.write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"rl\.json: 'q3': "):
        opened(output)


keys = st.text(min_size=1).filter(lambda key: not key.startswith("_"))
values = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(keys, st.dictionaries(st.text().filter(lambda key: key != "query_id"), values, min_size=1))
def test_a_line_is_split_as_it_was_joined(key, content):
    encoded = encode_record(content)
    line = as_line(key, encoded)
    assert split_line(line) == (key, encoded)
    assert json.loads(line) == {"query_id": key, **content}
    for cut in range(len(line)):
        with pytest.raises(ValueError, match=r"no (line|query)|char|decode"):
            split_line(line[:cut])


def test_a_kill_while_a_finished_file_is_taken_over_loses_none_of_it(output):
    before, now = ({**META, "inputs": {"pool_content_sha256": each}} for each in "ab")
    with opened(output, before) as journal:
        journal.append({row: record(row, failed=row == 3) for row in range(6)})
        journal.finish()
    with opened(output, now, accept=["inputs"]):
        head, changed, *_ = partial_path(output).read_bytes().splitlines(keepends=True)
    partial_path(output).write_bytes(head + changed)
    with opened(output, now, accept=["inputs"]) as journal:
        assert len(journal) == 6
        assert journal.earlier == [{"inputs": before["inputs"]}]


def test_outputs_that_share_a_journal_are_written_one_at_a_time(output):
    says = r"rl\.partial\.jsonl: another process is writing it"
    other = output.with_suffix(".parquet")
    with locked_run(output), pytest.raises(InputError, match=says), locked_run(other):
        pass
    assert not output.parent.exists()
