"""`pointer-rl beams`, from the command line to its file."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import Distribution, EntryPoint
from types import ModuleType

import pytest
from torch.nn.functional import cosine_similarity

from pointer_rl import registry as registry_module
from pointer_rl.beams import run as beams_run
from pointer_rl.hookspecs import hookimpl
from pointer_rl.registry import registry
from pointer_rl.testing import FakeBackend
from pointer_rl.types import BackendError, Response


class ScoringDistribution(Distribution):
    def read_text(self, filename):
        return "Metadata-Version: 2.1\nName: scoring-dist\nVersion: 1.0\n"

    def locate_file(self, path):
        raise AssertionError(path)


class Scoring(FakeBackend):
    """An answer is likelier for each time that it is shown, most so for the last shown.

    Fails for an image that does not open; raises KeyboardInterrupt at the `until`-th trial.
    """

    fingerprint = "scoring"
    until = 10**9

    def __init__(self):
        super().__init__(str)

    def run(self, requests):
        for index, request in enumerate(requests):
            self.asked.append(request)
            if len(self.asked) == self.until:
                raise KeyboardInterrupt
            try:
                for image in request.prompt.images:
                    image.open()
            except Exception as error:
                yield index, BackendError(str(error))
                continue
            said = [part.split()[0] for part in request.prompt.text.split("Short answer:")[1:-1]]
            yield (
                index,
                Response(
                    None,
                    tuple(
                        sum((place + 1) * (each == answer) for place, each in enumerate(said)) - 9.0
                        for answer in request.score
                    ),
                ),
            )


@pytest.fixture
def scorers(backends, monkeypatch):
    """Registers the backend `scoring`; the list holds each that is made."""
    made: list[Scoring] = []

    def create():
        made.append(Scoring())
        return made[-1]

    module = ModuleType("scoring_plugin_module")
    hook = hookimpl(lambda register: register("scoring", create, summary="scores"))
    hook.__name__ = "pointer_rl_register_backends"
    module.pointer_rl_register_backends = hook
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = EntryPoint("scoring", module.__name__, "pointer_rl")._for(ScoringDistribution())
    points = [*registry_module.entry_points(group="pointer_rl"), point]
    monkeypatch.setattr("pointer_rl.registry.entry_points", lambda group: points)
    monkeypatch.setenv("POINTER_RL_PLUGINS", "other,scoring")
    registry.cache_clear()
    return made


@pytest.fixture
def beams(world, scorers, cli):
    """Runs on the jsonl world, whose pool are its queries."""

    def run(*more):
        return cli(
            *("beams", "--backend", "scoring", "--dataset", "jsonl"),
            *("--dataset-opt", f"path={world.data}", "--output-path", str(world.output)),
            *more,
        )

    return run


def content(path):
    found = json.loads(path.read_text())
    return found.pop("_meta"), found


def one_line(result, *parts):
    assert result.exit_code == 2, result.output
    message = result.output.strip().splitlines()[-1]
    for part in parts:
        assert part in message
    if not result.output.startswith("Usage:"):
        assert result.output.startswith("pointer-rl: error: ")
        assert len(result.output.strip().splitlines()) == 1


def test_the_best_beams_show_the_answer_and_never_the_query(beams, world):
    result = beams("--sub-pool", "6", "--beam-size", "3")
    assert result.exit_code == 0, result.output
    meta, records = content(world.output)
    assert list(records) == [f"e{number}" for number in range(8)]
    answers = [row["answers"][0] for row in world.rows]
    for row, (query_id, record) in enumerate(records.items()):
        assert record["query"]["query_id"] == query_id
        assert record["query"]["gt_answers_raw"] == world.rows[row]["answers"]
        assert len(record["pool"]) == 6
        assert row not in record["pool"]
        assert len(record["beams"]) == 3
        for beam in record["beams"]:
            assert set(beam["pointer"]) <= set(record["pool"])
            said = [answers[each] == answers[row] for each in beam["pointer"]]
            assert beam["step_scores"] == [float(said[0]), 2.0 * said[1]]
            assert beam["score"] == sum(beam["step_scores"])
        assert [beam["score"] for beam in record["beams"][:2]] == [3.0, 3.0]
    assert (meta["shots"], meta["beam_size"], meta["sampler"], meta["sub_pool"]) == (
        *(2, 3, "random", 6),
    )
    assert meta["backend"]["fingerprint"] == "scoring"
    assert not {"metric", "decoding"} & meta.keys()
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[2:5] == [["0", "-", "0.000"], ["1", "+1.00", "0.000"], ["2", "+3.00", "0.002"]]
    assert "likelier for 8 of 8 queries" in result.stdout
    assert "8 queries, 24 beams" in result.stdout


def test_beams_of_any_length_end_where_nothing_is_gained(beams, world):
    result = beams("--sub-pool", "2", "--beam-size", "2", "--any-length")
    assert result.exit_code == 0, result.output
    meta, records = content(world.output)
    assert (meta.get("shots"), meta["max_shots"]) == (None, 2)
    answers = [row["answers"][0] for row in world.rows]
    gains = []
    for row, record in enumerate(records.values()):
        same = [each for each in record["pool"] if answers[each] == answers[row]]
        best = record["beams"][0]
        assert len(best["pointer"]) == len(best["step_scores"]) == (2 if same else 0)
        gains.append(best["score"])
        assert best["score"] == (0.0, 2.0, 3.0)[len(same)]
    assert 0.0 in gains
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[4][:2] == ["2", f"{sum(gains) / 8:+.2f}"], "0 more where a beam is shorter"


def test_nothing_is_paid_for_twice_and_the_bytes_are_the_same(beams, world, scorers):
    assert beams().exit_code == 0
    first = world.output.read_bytes()
    asked = len(scorers[0].asked)
    assert asked == 8 * (1 + 7 + 5 * 6)
    result = beams("--overwrite")
    assert scorers[1].asked == []
    assert f"{asked} trials, {asked} of them from the response cache" in result.stdout
    assert world.output.read_bytes() == first
    _, records = content(world.output)
    assert not any("pool" in record for record in records.values())  # all that they may choose


def test_seed_and_query_decide_the_sub_pool_whatever_the_limit(beams, world):
    def pools(*more):
        assert beams("--sub-pool", "3", "--overwrite", *more).exit_code == 0
        return {key: record["pool"] for key, record in content(world.output)[1].items()}

    every = pools()
    assert pools("--limit", "2") == {key: every[key] for key in ("e0", "e1")}
    assert pools("--seed", "1") != every


def test_max_calls_stops_between_windows_and_the_same_command_goes_on(
    beams, world, scorers, monkeypatch
):
    monkeypatch.setattr(beams_run, "TRIALS_TOGETHER", 2 * (1 + 8 * 5))  # windows of two queries
    assert beams("--no-store").exit_code == 0
    whole = world.output.read_bytes()
    world.output.unlink()
    for run in range(1, 5):  # a query takes 38 trials: a window fits a run
        result = beams("--max-calls", "120")
        assert result.exit_code == 0
        assert len(scorers[run].asked) == 2 * 38
        left = f"stopped by --max-calls, {8 - 2 * run} queries left" in result.stdout
        assert left == (run < 4)
    assert world.output.read_bytes() == whole
    assert "finished before; nothing to do" in beams("--max-calls", "120").stdout


def test_generate_asks_the_queries_of_a_beam_file(beams, world):
    assert beams("--limit", "3").exit_code == 0
    of_beams, world.output = world.output, world.folder / "rl.json"
    assert world.generate("--beam-data", str(of_beams)).exit_code == 0
    assert list(content(world.output)[1]) == ["e0", "e1", "e2"]


def test_jsonl_has_the_same_records(beams, world):
    assert beams().exit_code == 0
    meta, records = content(world.output)
    lines = world.folder / "beams.jsonl"
    assert beams("--output-path", str(lines)).exit_code == 0
    first, *others = map(json.loads, lines.read_text().splitlines())
    assert first == {"_meta": meta}
    assert {each.pop("query_id"): each for each in others} == records


def test_max_calls_that_one_query_exceeds_is_refused_before_the_backend_loads(beams, scorers):
    one_line(beams("--max-calls", "37"), "--max-calls 37", "may take 304 trials")
    assert scorers == []


def test_a_picture_that_fails_costs_its_query_and_no_other(beams, world):
    (world.folder / "3.png").write_bytes(b"no picture")
    result = beams("--beam-size", "50")
    assert result.exit_code == 0, result.output
    _, records = content(world.output)
    assert list(records) == ["e0", "e1", "e2", "e4", "e5", "e6", "e7"]
    beams_of = [record["beams"] for record in records.values()]
    assert {row for each in beams_of for beam in each for row in beam["pointer"]} == {
        *(0, 1, 2, 4, 5, 6, 7),
    }
    # Of each other query those that show it, alone or second; of e3 those of the first step.
    assert f"{7 * (1 + 6) + 8} trials failed; first: " in result.stderr
    assert "1 queries are left out" in result.stderr


def test_a_backend_that_scores_nothing_is_one_line_and_no_file(beams, world):
    for number in range(8):
        (world.folder / f"{number}.png").write_bytes(b"no picture %d" % number)
    result = beams()
    assert result.exit_code == 2
    message = result.stderr.splitlines()[-1]
    assert message.startswith("pointer-rl: error: not one of 64 trials has a score")
    assert "0.png" in message
    assert not world.output.exists()


def test_a_dataset_without_answers_is_refused(beams, world, scorers):
    for row in world.rows:
        row["answers"] = []
    world.write()
    one_line(beams(), "answers")
    assert scorers == []


def test_interrupted_it_keeps_the_queries_that_are_done(beams, world, monkeypatch):
    monkeypatch.setattr(beams_run, "TRIALS_TOGETHER", 2 * (1 + 8 * 5))  # windows of two queries
    assert beams("--no-store").exit_code == 0
    whole = world.output.read_bytes()
    world.output.unlink()
    monkeypatch.setattr(Scoring, "until", 5)
    result = beams("--no-store")
    assert "interrupted: no query was done, nothing is written" in result.stderr
    assert [path.name for path in world.output.parent.glob("*beams*")] == []
    monkeypatch.setattr(Scoring, "until", 2 * 38 + 10)
    result = beams("--no-store")
    assert result.exit_code == 130
    partial = world.output.with_name(f"{world.output.stem}.partial.jsonl")
    assert f"interrupted: 2 queries are in {partial}" in result.stderr
    assert not world.output.exists()
    monkeypatch.setattr(Scoring, "until", 10**9)
    assert beams("--no-store").exit_code == 0
    assert world.output.read_bytes() == whole


@pytest.mark.parametrize(
    ("sampler", "mode"), [("image", "image"), ("text", "text"), ("mixed", "both")]
)
def test_similar_sub_pools_are_the_nearest_by_the_encoders_mode(cli, scorers, world, sampler, mode):
    result = cli(
        *("beams", "--backend", "scoring", "--sampler", sampler, "--sub-pool", "5"),
        *("--dataset-opt", "pool_size=30", "--dataset-opt", "train_size=4"),
        *("--output-path", str(world.output)),
    )
    assert result.exit_code == 0, result.output
    meta, records = content(world.output)
    encoder = registry().create("encoder", "glyphs", {"mode": mode})
    assert meta["similarity"] == encoder.fingerprint
    dataset = registry().create("dataset", "glyphs", {"pool_size": 30, "train_size": 4})
    shown = encoder.encode(dataset.pool)
    for query, record in zip(dataset.queries, records.values(), strict=True):
        cosines = cosine_similarity(shown, encoder.encode([query])).tolist()
        nearest = sorted(range(30), key=lambda row: -cosines[row])[:5]
        assert record["pool"] == sorted(nearest)


@pytest.mark.parametrize("command", ["beams", "cache"])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'sqlite3', 'PIL'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--shots", "3", "--sub-pool", "2"), ("3 shots need a sub-pool",)),
        (("--shots", "8"), ("may choose 7", "8 shots")),
        (("--sampler", "image"), ("--sampler image needs --encoder",)),
        (("--sampler", "mixed", "--encoder", "clop"), ("clop", "clip")),
        (
            ("--sampler", "text", "--encoder", "clip", "--encoder-opt", "mode=text"),
            ("--sampler text", "one way only"),
        ),
        (("--encoder", "clip"), ("sampler random compares nothing",)),
        (("--encoder-opt", "mode=text"), ("--encoder",)),
        (("--sampler", "nearest"), ("nearest",)),
        (("--max-calls", "0"), ("0",)),
        (("--store", "a", "--no-store"), ("exclude each other",)),
        (("--output-path", "a.txt"), ("a.txt", ".json")),
        (("--output-path", "data.jsonl/a.json"), ("a.json", "cannot be written")),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_does_not_fit_is_one_line_before_anything_is_asked(
    beams, world, scorers, monkeypatch, more, parts
):
    monkeypatch.chdir(world.folder)
    one_line(beams(*more), *parts)
    assert scorers == []


def test_the_glyph_model_rates_relevant_demonstrations_best(cli, world):
    result = cli(
        *("beams", "--limit", "4", "--sampler", "mixed", "--sub-pool", "8", "--beam-size", "2"),
        *("--output-path", str(world.output)),
    )
    assert result.exit_code == 0, result.output
    dataset = registry().create("dataset", "glyphs")
    checked = 0
    for query, record in zip(dataset.queries, content(world.output)[1].values(), strict=False):
        relevant = {row for row in record["pool"] if dataset.pool[row].answer in query.answers}
        if relevant:
            checked += 1
            assert relevant & set(record["beams"][0]["pointer"])
            assert record["beams"][0]["score"] > 1
    assert checked
    # Training embeds as the encoder would, not as the sampler compares.
    inputs = content(world.output)[0]["inputs"]
    assert inputs["encoder_plugin"] == {"name": "glyphs", "options": {}}
