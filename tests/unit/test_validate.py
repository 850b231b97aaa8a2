"""Validation: what is sound passes, and each deliberate fault is found where it is."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.records.formats import open_writer
from pointer_rl.records.records import to_record
from pointer_rl.registry import Registry
from pointer_rl.types import Candidate, Example, Outcome
from pointer_rl.validate import Report, ValidationConfig, validate_file

EXACT = """
from pointer_rl.errors import InputError
from pointer_rl.hookspecs import hookimpl
from pointer_rl.types import Judgement

class Exact:
    version = "1"
    def judge(self, answer, answers):
        if "?" in answers:
            raise InputError("cannot judge by '?'")
        share = answers.count(answer) / len(answers)
        return Judgement(correct=share > 0.5, accuracy=share)

@hookimpl
def pointer_rl_register_metrics(register):
    register("share", Exact, summary="Share of the annotators who agree")
"""


@pytest.fixture(autouse=True)
def _metrics(tmp_path_factory, monkeypatch):
    """A registry with one metric: the share of annotators who agree, correct above a half."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "validate_test_metric.py").write_text(EXACT)
    monkeypatch.syspath_prepend(str(folder))
    plugins = Registry([EntryPoint("share", "validate_test_metric", "pointer_rl")])
    monkeypatch.setattr("pointer_rl.validate.validator.registry", lambda: plugins)


def _document() -> dict[str, Any]:
    """A file in which every rule can be checked, and nothing is wrong."""
    beam = Candidate((0, 1), "beam", beam_rank=0, beam_score=-0.5, logprob_score=-0.5)
    sample = Candidate((1, 0), "sample", logprob_score=-1.0, temperature=1.0, top_p=0.9)
    random = Candidate((2, 3), "random")
    nearest = Candidate((3, 2), "retrieval", similarity_score=0.5)
    right = Outcome("red Q", "red", correct=True, accuracy=0.75, gt_prob=0.5)
    wrong = Outcome("blue", "blue", correct=False, accuracy=0.25)
    failed = Outcome(failure="timeout")
    judged = [(beam, right), (sample, wrong), (random, wrong), (nearest, failed)]
    answers = ("red", "red", "red", "blue")
    queries = [
        Example("a/~b", 4, ImageBytes(b"", "none"), "What?", answers, 1, "x"),
        Example("q2", 5, ImageBytes(b"", "none"), "What?", answers),
    ]
    meta = {
        "schema_version": "1.0",
        "dataset": {"name": "test", "pool_size": 6, "shared_pool": True},
        "metric": {"name": "share", "version": "1"},
        "shots": 2,
        "dedup": "ordered",
    }
    records = {query.id: {**to_record(query, judged), "pool": [0, 1, 2, 3]} for query in queries}
    return {"_meta": meta, **records}


def _validate(path: Path, document: Any, **config: Any) -> Report:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return validate_file(path, ValidationConfig(**config))


def _faults(report: Report) -> list[tuple[str, str]]:
    return [(finding.rule, finding.pointer) for finding in report.findings]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rl.json"


# --- what is sound ---


def test_a_sound_file_has_no_findings_and_leaves_nothing_unchecked(path):
    report = _validate(path, _document())
    assert _faults(report) == []
    assert report.unchecked == []
    assert report.num_findings == 0
    assert report.queries == 2
    assert report.candidates == {"beam": 2, "sample": 2, "random": 2, "retrieval": 2}
    assert report.failed == 2


def test_jsonl_is_validated_in_the_same_way(tmp_path):
    document = _document()
    document["q2"]["pointer_candidates"][0]["vqa_correct"] = 7
    with open_writer(tmp_path / "rl.jsonl", document.pop("_meta")) as writer:
        for key, record in document.items():
            writer.write(key, record)
    report = validate_file(tmp_path / "rl.jsonl")
    assert _faults(report) == [("schema.enum", "/q2/pointer_candidates/0/vqa_correct")]
    assert report.findings[0].line == 3


def test_the_schema_examples_are_sound(path):
    import pointer_rl_schemas

    for example in pointer_rl_schemas.load("pointer_candidates")["examples"]:
        assert _faults(_validate(path, example)) == []


rows = st.lists(st.integers(0, 9), max_size=2, unique=True).map(tuple)
proposals = st.one_of(
    st.builds(Candidate, rows, st.just("beam"), st.integers(0, 9), st.floats(-9, 9)),
    st.builds(
        Candidate,
        rows,
        st.just("sample"),
        logprob_score=st.floats(-99, 0),
        temperature=st.floats(0.1, 2),
    ),
    st.builds(Candidate, rows, st.just("random")),
    st.builds(Candidate, rows, st.text(min_size=5), st.none() | st.integers(0, 3)),
)
trials = st.one_of(
    st.builds(Outcome, failure=st.text()),
    st.floats(0, 1).flatmap(
        lambda accuracy: st.builds(
            Outcome,
            st.none() | st.text(),
            st.text(),
            st.just(accuracy > 0),
            st.just(accuracy),
            st.none() | st.floats(0, 1),
        )
    ),
)
groups = st.lists(st.tuples(proposals, trials), max_size=4, unique_by=lambda each: each[0].pointer)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "é/~", "0"]), groups, min_size=1, max_size=2))
def test_whatever_is_written_is_sound(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("data") / "rl.json"
    with open_writer(path) as writer:
        for key, judged in data.items():
            query = Example(key, 0, ImageBytes(b"", "none"), "What?", ("a",))
            writer.write(key, to_record(query, judged, normalise=str.upper))
    report = validate_file(path, ValidationConfig(pool_size=10))
    assert _faults(report) == []
    assert report.queries == len(data)


# --- deliberate faults ---

FIRST = "/a~1~0b/pointer_candidates"
Change = Callable[[list[dict[str, Any]], dict[str, Any], dict[str, Any]], object]
"""Of (the first record's candidates, the first record, the file)."""


def _set(index: int, **fields: Any) -> Change:
    return lambda candidates, record, document: candidates[index].update(fields)


def _drop(index: int, field: str) -> Change:
    return lambda candidates, record, document: candidates[index].pop(field)


def _record(**fields: Any) -> Change:
    return lambda candidates, record, document: record.update(fields)


def _query(**fields: Any) -> Change:
    return lambda candidates, record, document: record["query"].update(fields)


def _meta(**fields: Any) -> Change:
    return lambda candidates, record, document: document["_meta"].update(fields)


FAULTS: list[tuple[Change, str, str]] = [
    # the schema
    (_drop(0, "pointer"), "schema.required", f"{FIRST}/0"),
    (_drop(0, "gen_method"), "schema.required", f"{FIRST}/0"),
    (_set(0, gen_method=""), "schema.minLength", f"{FIRST}/0/gen_method"),
    (_set(0, pointer=[0, -1]), "schema.minimum", f"{FIRST}/0/pointer/1"),
    (_set(0, pointer=[0, 1.5]), "schema.type", f"{FIRST}/0/pointer/1"),
    (_set(0, pointer=[0, 2**64]), "schema.maximum", f"{FIRST}/0/pointer/1"),
    (_set(0, pointer=[1, 1]), "row-repeated", f"{FIRST}/0/pointer"),
    (_set(0, beam_rank="0"), "schema.type", f"{FIRST}/0/beam_rank"),
    (_set(1, logprob_score=0.5), "schema.maximum", f"{FIRST}/1/logprob_score"),
    (_set(1, temperature=0), "schema.exclusiveMinimum", f"{FIRST}/1/temperature"),
    (_set(1, top_p=1.5), "schema.maximum", f"{FIRST}/1/top_p"),
    (_set(0, vqa_correct=2), "schema.enum", f"{FIRST}/0/vqa_correct"),
    (_set(0, vqa_correct=True), "schema.enum", f"{FIRST}/0/vqa_correct"),
    (_set(0, vqa_acc_score=75), "schema.maximum", f"{FIRST}/0/vqa_acc_score"),
    (_set(0, vqa_pred_answer=None), "schema.type", f"{FIRST}/0/vqa_pred_answer"),
    (_set(0, vqa_gt_prob=-0.1), "schema.minimum", f"{FIRST}/0/vqa_gt_prob"),
    (_set(3, eval_failed="yes"), "schema.type", f"{FIRST}/3/eval_failed"),
    (_record(pointer_candidates={}), "schema.type", FIRST),
    (_record(pool=[1, 1]), "schema.uniqueItems", "/a~1~0b/pool"),
    (_query(gt_answers_raw="red"), "schema.type", "/a~1~0b/query/gt_answers_raw"),
    (_meta(schema_version="2.0"), "schema.pattern", "/_meta/schema_version"),
    (_meta(metric={"name": "share"}), "schema.required", "/_meta/metric"),
    (_meta(shots=-1), "schema.minimum", "/_meta/shots"),
    (_meta(max_shots=-1), "schema.minimum", "/_meta/max_shots"),
    (_meta(shard="0/2"), "schema.pattern", "/_meta/shard"),
    (_meta(rescored_from={"sha256": "x"}), "schema.pattern", "/_meta/rescored_from/sha256"),
    # what a generation method ties together
    (_drop(0, "beam_score"), "beam-fields", f"{FIRST}/0"),
    (_set(0, beam_rank=None), "beam-fields", f"{FIRST}/0/beam_rank"),
    (_drop(1, "logprob_score"), "sample-fields", f"{FIRST}/1"),
    (_set(1, temperature=None), "sample-fields", f"{FIRST}/1/temperature"),
    (_set(2, logprob_score=-1.0), "random-fields", f"{FIRST}/2/logprob_score"),
    (_set(3, beam_score=1.0), "retrieval-fields", f"{FIRST}/3/beam_score"),
    (_drop(0, "vqa_correct"), "outcome-fields", f"{FIRST}/0"),
    (_set(3, vqa_correct=0), "outcome-fields", f"{FIRST}/3/vqa_correct"),
    # what a schema cannot say
    (_query(query_id="q2"), "query-id", "/a~1~0b/query/query_id"),
    (_set(0, vqa_acc_score=float("nan")), "not-finite", f"{FIRST}/0/vqa_acc_score"),
    (_set(2, pointer=[3, 0]), "", ""),
    (_set(2, pointer=[0, 1]), "duplicate-candidate", f"{FIRST}/2"),
    (_set(2, pointer=[0, 1, 2]), "shots", f"{FIRST}/2/pointer"),
    (_set(2, pointer=[]), "shots", f"{FIRST}/2/pointer"),
    (_set(2, vqa_correct=1), "accuracy", f"{FIRST}/2/vqa_correct"),
    (_set(0, vqa_acc_score=1.0), "accuracy", f"{FIRST}/0/vqa_acc_score"),
    (_set(0, vqa_pred_answer="blue"), "accuracy", f"{FIRST}/0/vqa_acc_score"),
    (_query(gt_answers_raw=["?"]), "accuracy", "/a~1~0b/query/gt_answers_raw"),
    (_query(row=3), "own-demonstration", f"{FIRST}/2/pointer/1"),
    (_record(pool=[0, 1, 2]), "row-in-query-pool", f"{FIRST}/2/pointer/1"),
]


@pytest.mark.parametrize(
    ("change", "rule", "pointer"), FAULTS, ids=[f"{rule}:{pointer}" for _, rule, pointer in FAULTS]
)
def test_a_fault_is_found_where_it_is(path, change, rule, pointer):
    document = _document()
    change(document["a/~b"]["pointer_candidates"], document["a/~b"], document)
    report = _validate(path, document)
    found = _faults(report)
    if not rule:  # the control: a change that breaks nothing
        assert found == []
        return
    assert (rule, pointer) in found
    # nothing else is blamed (candidate 3 has the same rows as candidate 2)
    assert {place.split("/pointer/")[0] for _, place in found} <= {
        pointer.split("/pointer/")[0],
        f"{FIRST}/3",
    }
    for finding in report.findings:
        assert finding.message
        assert finding.fix
        assert "\n" not in finding.message + finding.fix


@pytest.mark.parametrize(
    ("shots", "max_shots", "wrong"),
    [
        (None, 2, {3}),
        (2, None, {0, 1, 3}),
        (0, None, {1, 2, 3}),
        (None, 0, {1, 2, 3}),
        (2, 2, {0, 1, 3}),
        (None, 3, set()),
    ],
)
def test_pointers_have_any_length_that_meta_allows(path, shots, max_shots, wrong):
    document = _document()
    document["_meta"].update(shots=shots, max_shots=max_shots)
    del document["q2"]
    candidates = document["a/~b"]["pointer_candidates"]
    for length, candidate in enumerate(candidates):
        candidate["pointer"] = list(range(length))
    report = _validate(path, document)
    assert _faults(report) == [("shots", f"{FIRST}/{each}/pointer") for each in sorted(wrong)]
    for finding in report.findings:
        assert "_meta.shots is" in finding.message or "_meta.max_shots is" in finding.message


def test_an_unavailable_row_list_that_is_wrong_hides_no_other_finding(path):
    document = _document()
    document["q2"]["excluded"] = [1, 1]
    document["q2"]["pointer_candidates"][2]["pointer"] = [0, 1]
    assert _faults(_validate(path, document)) == [
        ("schema.uniqueItems", "/q2/excluded"),
        ("duplicate-candidate", "/q2/pointer_candidates/2"),
    ]


def test_a_newer_minor_version_is_checked_as_far_as_it_is_known(path):
    document = _document()
    document["_meta"].update(schema_version="1.99", news={"of": "then"})
    report = _validate(path, document)
    assert _faults(report) == []
    assert "of schema version 1.99: what was added since 1." in report.notes[0]
    document["_meta"]["schema_version"] = "1.0"
    assert _validate(path, document).notes == []


def test_rows_beyond_the_pool_are_found(path):
    document = _document()
    del document["q2"]["pool"]
    document["q2"]["pointer_candidates"][2]["pointer"] = [0, 6]
    assert _faults(_validate(path, document)) == [
        ("row-in-range", "/q2/pointer_candidates/2/pointer/1")
    ]


def test_a_verdict_that_contradicts_itself_is_found_where_no_metric_is_named(path):
    document = _document()
    del document["_meta"]
    candidates = document["q2"]["pointer_candidates"]
    for record in (document["a/~b"], document["q2"]):
        for candidate in record["pointer_candidates"][1:3]:
            candidate["vqa_correct"] = 1
    candidates[0]["vqa_correct"] = 0
    candidates[1].update(vqa_correct=1, vqa_acc_score=0)
    assert _faults(_validate(path, document)) == [
        ("correct-accuracy", "/q2/pointer_candidates/0/vqa_correct"),
        ("correct-accuracy", "/q2/pointer_candidates/1/vqa_correct"),
    ]


def test_a_named_metric_may_set_its_threshold_above_zero(path):
    document = _document()
    candidates = document["q2"]["pointer_candidates"]
    candidates[0].update(vqa_correct=0, vqa_acc_score=1)
    candidates[1].update(vqa_correct=1, vqa_acc_score=0)
    candidates[2].update(vqa_correct=0, vqa_acc_score=0.4)
    assert _faults(_validate(path, document, recompute=False)) == [
        ("correct-accuracy", "/q2/pointer_candidates/0/vqa_correct"),
        ("correct-accuracy", "/q2/pointer_candidates/1/vqa_correct"),
    ]


def test_a_second_meta_is_a_finding(tmp_path):
    line = json.dumps({"_meta": {"schema_version": "1.0"}})
    repeated = line[:-1] + ", " + line[1:]
    (tmp_path / "rl.jsonl").write_text(repeated + "\n")
    found = [(each.rule, each.message) for each in validate_file(tmp_path / "rl.jsonl").findings]
    assert ("duplicate-key", found[0][1]) == found[0]
    assert "the key '_meta' is repeated" in found[0][1]


def test_where_order_does_not_count_reversed_pointers_are_duplicates(path):
    document = _document()
    document["_meta"]["dedup"] = "unordered"
    assert [rule for rule, _ in _faults(_validate(path, document))] == ["duplicate-candidate"] * 4


def test_keys_that_stand_twice_are_found(path):
    text = json.dumps(_document(), indent=1)
    text = text.replace('"question": "What?"', '"question": "What?", "question": "Why?"', 1)
    record = json.dumps(_document()["q2"])
    report = _validate(path, f'{text[:-2]},\n"q2": {record}}}')
    assert _faults(report) == [
        ("duplicate-key", "/a~1~0b/query/question"),
        ("duplicate-key", "/q2"),
    ]
    assert report.findings[1].line == text.count("\n") + 1


def test_a_query_needs_an_id(path):
    document = _document()
    document[""] = document.pop("q2")
    assert _faults(_validate(path, document)) == [("query-id", "/")]


def test_a_file_without_queries_is_a_finding(path):
    assert _faults(_validate(path, {"_meta": {}})) == [("empty", "")]


def test_a_faulty_candidate_does_not_hide_its_neighbours(path):
    document = _document()
    candidates = document["q2"]["pointer_candidates"]
    candidates[0]["gen_method"] = 3
    candidates[2]["pointer"] = [1]
    assert _faults(_validate(path, document)) == [
        ("schema.type", "/q2/pointer_candidates/0/gen_method"),
        ("shots", "/q2/pointer_candidates/2/pointer"),
    ]


def test_messages_say_what_and_what_to_do(path):
    document = _document()
    document["a/~b"]["pointer_candidates"][0]["beam_rank"] = None
    document["q2"] = [3]
    first, second = _validate(path, document).findings
    assert first.message == (
        "a beam candidate has its beam_rank and beam_score: beam_rank is null, not of type integer"
    )
    assert first.fix == (
        "write beam_rank: an integer: the rank among the query's beams, from 0 for the best; "
        "null if there is none"
    )
    assert second.message == "the value is [3], not of type object"


def test_nan_is_not_blamed_for_being_no_number_too(path):
    document = _document()
    document["q2"]["pointer_candidates"][0]["vqa_acc_score"] = float("nan")
    assert _faults(_validate(path, document)) == [
        ("not-finite", "/q2/pointer_candidates/0/vqa_acc_score")
    ]


def test_findings_beyond_the_limit_are_counted(path):
    document = _document()
    for record in (document["a/~b"], document["q2"]):
        for candidate in record["pointer_candidates"]:
            candidate["pointer"] = [-1]
    report = _validate(path, document, max_findings=3)
    assert (len(report.findings), report.num_findings) == (3, 8)
    assert _validate(path, {}, max_findings=0).num_findings == 1


def test_both_validators_together_report_everything_once(path):
    """jsonschema reports the first findings of a record and of a file, jsonschema-rs the others."""
    faulty = {"pointer": [-1], "gen_method": "", "vqa_correct": 7}
    document = {f"q{number}": {"pointer_candidates": [faulty] * 10} for number in range(30)}
    expected = [
        ("schema.minimum", "pointer/0"),
        ("schema.minLength", "gen_method"),
        ("schema.enum", "vqa_correct"),
        ("outcome-fields", ""),
    ]
    report = _validate(path, document, max_findings=5000)
    assert report.num_findings == 30 * 10 * 5  # two fields of the outcome are missing
    found = {(finding.rule, finding.pointer) for finding in report.findings}
    assert found == {
        (rule, f"/q{number}/pointer_candidates/{index}/{place}".removesuffix("/"))
        for number in range(30)
        for index in range(10)
        for rule, place in expected
    }


@pytest.mark.parametrize("place", ["_meta", "q2"])
def test_half_a_surrogate_pair_is_reported_and_not_a_crash(path, place):
    document = _document()
    document[place]["\ud800"] = 1
    assert _faults(_validate(path, document)) == []
    document["_meta"]["shots"] = -1
    document["q2"]["pointer_candidates"][0]["vqa_correct"] = "\ud800"
    assert ("schema.enum", "/q2/pointer_candidates/0/vqa_correct") in _faults(
        _validate(path, document)
    )


# --- what could not be checked ---


def _unchecked(report: Report) -> dict[str, str]:
    return {each.rule: each.reason for each in report.unchecked}


def test_without_meta_the_rules_that_need_it_are_listed(path):
    document = _document()
    del document["_meta"]
    assert _unchecked(_validate(path, document)) == {
        "row-in-range": "no pool size: give --pool-size",
        "own-demonstration": "_meta.dataset.shared_pool is not given",
        "shots": "_meta gives neither shots nor max_shots",
        "accuracy": "_meta.metric is not given",
    }
    assert "row-in-range" not in _unchecked(_validate(path, document, pool_size=6))


def test_meta_of_another_program_says_nothing(path):
    document = _document()
    document["_meta"] = {"dataset": {"pool_size": 1}, "shots": 9}
    report = _validate(path, document)
    assert {rule for rule, _ in _faults(report)} == {"correct-accuracy"}  # no metric is named
    assert {"row-in-range", "shots"} <= _unchecked(report).keys()


def test_meta_is_used_wherever_it_stands(path):
    document = _document()
    document["_meta"] = document.pop("_meta")
    document["_meta"]["shots"] = 3
    assert [rule for rule, _ in _faults(_validate(path, document))] == ["shots"] * 8


def test_a_given_pool_size_counts_more_than_a_recorded_one(path):
    report = _validate(path, _document(), pool_size=3)
    assert {rule for rule, _ in _faults(report)} == {"row-in-range"}
    assert report.notes == ["rows are checked against the pool size given, 3; _meta.dataset says 6"]


def test_records_that_lack_what_a_rule_needs_are_counted(path):
    document = _document()
    del document["q2"]["query"]
    reason = "1 of 2 queries have no `query."
    assert _unchecked(_validate(path, document)) == {
        "own-demonstration": f"{reason}row`",
        "accuracy": f"{reason}gt_answers_raw`",
    }


@pytest.mark.parametrize(
    ("metric", "config", "reason"),
    [
        ({"name": "share", "version": "0"}, {}, "recorded with share 0, installed is share 1"),
        ({"name": "shore", "version": "1"}, {}, "unknown metric 'shore'; did you mean 'share'?"),
        ({"name": "share", "version": "1"}, {"recompute": False}, "switched off"),
    ],
)
def test_a_metric_that_cannot_be_applied_is_said(path, metric, config, reason):
    document = _document()
    document["_meta"]["metric"] = metric
    document["q2"]["pointer_candidates"][0]["vqa_acc_score"] = 0.7
    report = _validate(path, document, **config)
    assert _faults(report) == []
    assert _unchecked(report)["accuracy"].startswith(reason)


# --- older layouts ---


def test_beam_data_is_named_once(path):
    record = {"id_list": [[1, 2, 0]], "score_list": [0.5]}
    report = _validate(path, {"0": record, "1": record})
    assert _faults(report) == [("layout", "/0")]
    assert "beam data" in report.findings[0].message
    assert "it is not RL data (2 of 2 queries)" in report.findings[0].message


def test_v4_is_checked_as_the_same_data(path):
    document = _document()
    for record in (document["a/~b"], document["q2"]):
        for candidate in record["pointer_candidates"]:
            candidate["pointer_pos"] = candidate["pointer"]
    report = _validate(path, document)
    assert _faults(report) == []
    assert report.notes[0].startswith("2 queries in an older layout: RL data of Lever-Plus v4")
    document["q2"]["pointer_candidates"][0]["pointer"] = [0, 9]
    assert ("row-in-range", "/q2/pointer_candidates/0/pointer/1") in _faults(
        _validate(path, document)
    )


def test_k64_is_named_and_its_positions_are_not_taken_for_rows(path):
    document = _document()
    for record in (document["a/~b"], document["q2"]):
        record["candidate_pool_ids"] = [50, 60, 70, 80]
        for candidate in record["pointer_candidates"]:
            candidate["pointer_global"] = [10 * (row + 5) for row in candidate["pointer"]]
            candidate["pointer"] = [row + 60 for row in candidate["pointer"]]
    document["q2"]["pointer_candidates"][0]["vqa_correct"] = 7
    report = _validate(path, document)
    assert _faults(report) == [
        ("schema.enum", "/q2/pointer_candidates/0/vqa_correct"),
        ("layout", "/a~1~0b"),
    ]
    assert "positions in candidate_pool_ids, not pool rows" in report.findings[1].message
    assert {"row-in-range", "own-demonstration"} <= _unchecked(report).keys()


# --- files and cost ---


def test_what_cannot_be_read_raises(path):
    with pytest.raises(InputError, match="cannot read"):
        validate_file(path)
    with pytest.raises(InputError, match="found no JSON object"):
        _validate(path, "3")


@pytest.mark.parametrize("config", [{"pool_size": 0}, {"max_findings": -1}])
def test_settings_that_mean_nothing_are_refused(config):
    with pytest.raises(InputError):
        ValidationConfig(**config)


def test_validating_imports_neither_torch_nor_what_only_writers_need(path):
    path.write_text(json.dumps(copy.deepcopy(_document())))
    code = (
        "import sys, pathlib; from pointer_rl.validate import validate_file;"
        "from pointer_rl.cli.validate import validate;"
        f"validate_file(pathlib.Path({str(path)!r}));"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'jsonschema'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
