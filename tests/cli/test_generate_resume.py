"""What a run may spend, and how the same command goes on where it stopped."""

from __future__ import annotations

import json

import PIL.Image
import pytest
from cli.test_generate import records, refused

from pointer_rl.generate import plan
from pointer_rl.testing import FakeBackend
from pointer_rl.types import Count


@pytest.fixture
def world(world):
    """With windows of three queries."""
    generate = world.generate
    world.generate = lambda *more: generate("--window", "3", *more)
    return world


def asked(backends):
    return sum(len(backend.asked) for backend in backends)


def partial(world):
    return world.output.with_name("rl.partial.jsonl")


def test_max_calls_stops_before_it_would_be_exceeded_and_the_same_command_goes_on(world, backends):
    whole = world.generate("--no-store")
    once = world.output.read_bytes()
    world.output.unlink()
    backends.clear()
    refused(world.generate("--max-calls", "9"), "a window of 3 queries may take 1")
    # A query has four candidates at most, a window twelve.
    result = world.generate("--max-calls", "14")
    assert result.exit_code == 0, result.output
    assert asked(backends) <= 14
    assert "stopped by --max-calls" in result.stdout
    lines = partial(world).read_text().splitlines()
    assert f"{len(lines) - 1} queries are in {partial(world)}" in result.stdout
    backends.clear()
    rest = world.generate()
    assert world.output.read_bytes() == once
    assert not partial(world).exists()
    table = whole.stdout.splitlines()[:-1]
    assert rest.stdout.splitlines()[: len(table)] == table, "the table is of the whole file"


def test_max_seconds_begins_no_further_window(world, backends, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("pointer_rl.session.windows.time.monotonic", lambda: next(clock))
    result = world.generate("--max-seconds", "15", "--no-store")
    assert "stopped by --max-seconds" in result.stdout
    assert "3 queries are in" in result.stdout
    assert "5 queries left" in result.stdout


def test_without_a_store_a_window_that_was_cut_is_asked_whole(world, backends):
    whole = world.generate("--no-store")
    assert whole.exit_code == 0
    everything = asked(backends)
    once = world.output.read_bytes()
    world.generate("--no-store", "--max-calls", "14", "--overwrite")
    first, *_ = lines = partial(world).read_text().splitlines(keepends=True)
    partial(world).write_text(first + lines[1])  # one query of its window is there
    world.output.unlink()
    backends.clear()
    world.generate("--no-store")
    assert asked(backends) == everything
    assert world.output.read_bytes() == once


def test_a_finished_run_asks_nothing_and_stays_as_it_is(world, backends):
    world.generate("--no-store")
    once, stamp = world.output.read_bytes(), world.output.stat().st_mtime_ns
    backends.clear()
    result = world.generate("--no-store")
    assert result.exit_code == 0
    assert "finished before; nothing to do" in result.stdout
    assert asked(backends) == 0
    assert (world.output.read_bytes(), world.output.stat().st_mtime_ns) == (once, stamp)


def test_failed_trials_are_asked_again_and_no_others(world, backends):
    (world.folder / "2.png").write_text("no image")
    first = world.generate("--no-store")
    failed = first.stderr
    assert "the same command asks them again" in failed
    _, before = records(world.output)
    PIL.Image.new("RGB", (4, 4), (200, 0, 0)).save(world.folder / "2.png")
    backends.clear()
    refused(world.generate("--no-store"), "--accept-changed inputs", backends)
    second = world.generate("--no-store", "--accept-changed", "inputs")
    assert "again" not in second.stderr
    _, after = records(world.output)
    touched = {
        key
        for key, record in before.items()
        if any(c.get("eval_failed") for c in record["pointer_candidates"])
    }
    assert asked(backends) == sum(len(after[key]["pointer_candidates"]) for key in touched)
    assert list(after) == list(before)
    assert {key for key in after if after[key] != before[key]} == touched
    assert b"eval_failed" not in world.output.read_bytes()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--seed", "1"), "seed: 0, now 1"),
        (("--score-answers",), "score_answers: false, now true"),
        (("--limit", "7"), "dataset.num_queries: 8, now 7"),
        (("--shard", "1/2"), 'shard: null, now "1/2"'),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_refused_before_anything_is_spent(world, backends, option, says, finished):
    world.generate(*(() if finished else ("--max-calls", "14")))
    path = world.output if finished else partial(world)
    before = path.read_bytes()
    backends.clear()
    refused(world.generate(*option), says, backends)
    assert path.read_bytes() == before
    assert world.generate(*option, "--overwrite").exit_code == 0
    assert world.output.read_bytes() != before


def test_other_data_is_noticed_too(world, backends):
    world.generate("--max-calls", "14")
    world.rows[5]["question"] = "another?"
    world.write()
    backends.clear()
    refused(world.generate(), "question, answer or id of the queries has changed", backends)


SEARCH = (
    *("--num-random", "0", "--num-retrieval", "0", "--shots", "1"),
    *("--generator", "first-success", "--generator-opt", "first-success.budget=6"),
)


def test_a_search_stops_each_query_and_is_resumed_to_the_same_bytes(world, backends, monkeypatch):
    """Interrupted in the second round of the second window; then stopped by --max-calls."""
    assert world.generate(*SEARCH, "--no-store").exit_code == 0
    once, everything = world.output.read_bytes(), asked(backends)
    _, found = records(world.output)
    lengths = []
    for record in found.values():
        correct = [each["vqa_correct"] for each in record["pointer_candidates"]]
        assert {each["gen_method"] for each in record["pointer_candidates"]} == {"first-success"}
        assert len(set(correct[:-1])) == 1 or len(correct) == 2, "it stops once it has both"
        lengths.append(len(correct))
    assert sum(lengths) == everything < 8 * 6
    world.output.unlink()

    backends.clear()
    run, count = FakeBackend.run, 0

    def interrupted(self, requests):
        nonlocal count
        for result in run(self, requests):
            count += 1
            if count == sum(lengths[:3]) + 6 + 1:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(FakeBackend, "run", interrupted)
        assert world.generate(*SEARCH).exit_code == 130
    before = asked(backends)
    backends.clear()
    refused(world.generate(*SEARCH, "--max-calls", "17"), "a window of 3 queries may take 18")
    backends.clear()
    result = world.generate(*SEARCH, "--max-calls", "19")
    assert "stopped by --max-calls" in result.stdout
    assert asked(backends) <= 19
    before += asked(backends)
    backends.clear()
    assert world.generate(*SEARCH).exit_code == 0
    assert world.output.read_bytes() == once
    assert before + asked(backends) <= everything + 9, "a window that was cut is asked again"
    backends.clear()
    assert world.generate(*SEARCH, "--overwrite").exit_code == 0
    assert asked(backends) == 0, "the cache answers every round"
    assert world.output.read_bytes() == once


def test_shards_are_the_run_in_parts(world):
    world.generate()
    meta, whole = records(world.output)
    parts = {}
    for number in (1, 2, 3):
        world.output = world.output.with_name(f"part-{number}.json")
        assert world.generate("--shard", f"{number}/3").exit_code == 0
        about, found = records(world.output)
        assert about.pop("shard") == f"{number}/3"
        assert about == meta
        assert list(found) == list(whole)[3 * number - 3 : 3 * number]
        parts |= found
    assert parts == whole


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_shards_that_are_none(world, shard):
    result = world.generate("--shard", shard)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert "--shard" in result.stderr


def test_a_shard_without_a_query(world, backends):
    refused(world.generate("--shard", "9/9"), "no query is left for it", backends)


class TestPlan:
    def lines(self, result):
        assert result.exit_code == 0, result.output
        rows = [line.split("  ") for line in result.stdout.splitlines()[2:]]
        return {name: next(filter(None, rest), "").strip() for name, *rest in rows}

    def test_it_counts_what_the_run_then_asks(self, world, backends, monkeypatch):
        monkeypatch.setattr(plan, "MEASURED", 5)
        monkeypatch.setattr(plan, "WARM_UP", 2)
        result = world.generate("--plan", "--no-store")
        assert asked(backends) == 5
        assert not world.output.exists()
        assert not partial(world).exists()
        numbers = self.lines(result)
        assert "trials/s, measured on 3" in result.stdout
        backends.clear()
        world.generate("--no-store")
        candidates = sum(len(r["pointer_candidates"]) for r in records(world.output)[1].values())
        assert numbers["queries"] == "8"
        assert int(numbers["candidates"]) == int(numbers["trials"]) == candidates
        assert asked(backends) == candidates

    def test_what_is_stored_or_done_is_not_counted_again(self, world, backends):
        world.generate()
        world.output.unlink()
        result = world.generate("--plan")
        assert self.lines(result)["to ask"] == "0"
        assert "trials/s" not in result.stdout
        world.generate("--max-calls", "1")
        assert world.output.exists(), "everything was cached"
        result = world.generate("--plan")
        assert "8 of them done" in result.stdout

    def test_many_windows_are_estimated(self, world, monkeypatch):
        monkeypatch.setattr(plan, "WINDOWS", 2)
        result = world.generate("--plan", "--no-store", "--window", "2")
        assert "counted on 4 queries drawn at random" in result.stdout
        assert "about" in result.stdout

    def test_tokens_are_those_that_the_backend_counts(self, world, backends, monkeypatch):
        monkeypatch.setattr(
            FakeBackend,
            "count",
            lambda self, requests: Count(10 * len(requests), 4 * len(requests)),
            raising=False,
        )
        result = world.generate("--plan", "--no-store")
        trials = int(self.lines(result)["trials"])
        assert f"{10 * trials:,}" in result.stdout
        assert f"{4 * trials:,}" in result.stdout

    def test_a_run_of_other_options_is_refused(self, world, backends):
        world.generate("--max-calls", "14")
        before = json.dumps(partial(world).read_text())
        backends.clear()
        refused(world.generate("--plan", "--seed", "1"), "seed: 0, now 1", backends)
        assert json.dumps(partial(world).read_text()) == before
