"""`--log-to`: with the real packages, which `make test-tools` installs."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from training_worlds import class_groups

from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.errors import InputError
from pointer_rl.session.observer import Observer
from pointer_rl.train import trackers
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.run import Output, TrainRun, run_training
from pointer_rl.train.trackers import PROJECT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NEEDS = "not installed: `make test-tools` installs it"


class TensorBoardLog:
    """What TensorBoard's own reader finds."""

    def __init__(self, folder, monkeypatch) -> None:
        pytest.importorskip("tensorboard", reason=f"tensorboard is {NEEDS}")
        self.folder = folder
        # A file of events is named by the second it was made in, and read in the order of names.
        seconds = count(1_000_000_000)
        clock = SimpleNamespace(time=lambda: next(seconds))
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)

    def steps(self, output):
        """[(step, metrics)] in the order in which they stand there."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.folder / output / "tensorboard"))
        events.Reload()
        found: dict[int, dict[str, float]] = {}
        for tag in events.Tags()["scalars"]:
            scalars = events.Scalars(tag)
            assert len({each.step for each in scalars}) == len(scalars), f"{tag}: a step twice"
            for each in scalars:
                found.setdefault(each.step, {})[tag] = each.value
        return sorted(found.items())


class TrackioLog:
    """What Trackio's own reader finds, in a folder of the test's own. Nothing uses the network."""

    def __init__(self, folder, monkeypatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")  # for which `trackio.init` would ask the Hub
        monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/?write_token=x")
        storage = pytest.importorskip(
            "trackio.sqlite_storage", reason=f"trackio is {NEEDS}", exc_type=ImportError
        )
        monkeypatch.setattr(storage, "TRACKIO_DIR", folder / "trackio")
        self.folder = folder

    def runs(self):
        """Id → name."""
        from trackio.sqlite_storage import SQLiteStorage

        return {each["id"]: each["name"] for each in SQLiteStorage.get_run_records(PROJECT)}

    def steps(self, output):
        from trackio.sqlite_storage import SQLiteStorage

        id_ = (self.folder / output / "trackio.txt").read_text().strip()
        name = self.runs()[id_]
        assert name == f"{self.folder.name}/{output}"
        logs = SQLiteStorage.get_logs(PROJECT, name, run_id=id_)
        return [
            (each["step"], {k: v for k, v in each.items() if k not in ("step", "timestamp")})
            for each in logs
        ]


@pytest.fixture(params=["tensorboard", "trackio"])
def tracker(request):
    return request.param


@pytest.fixture
def tracked(tracker, tmp_path, monkeypatch):
    opened = {"tensorboard": TensorBoardLog, "trackio": TrackioLog}[tracker]
    log = opened(tmp_path, monkeypatch)

    def refuse(*args, **more):
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return log


@pytest.fixture
def run(tmp_path, tracker):
    groups = class_groups(0, 20, dim=8)
    pool_ids = [f"p{row}" for row in range(len(groups.pool))]
    save_embeddings(tmp_path / "q.safetensors", groups.queries, groups.ids, "toy")
    save_embeddings(tmp_path / "c.safetensors", groups.pool, pool_ids, "toy")
    records = {}
    for index, id_ in enumerate(groups.ids):
        own = range(groups.offsets[index], groups.offsets[index + 1])
        records[id_] = {
            "pointer_candidates": [
                {
                    **{"pointer": groups.pointers[each].tolist(), "gen_method": "random"},
                    **{"vqa_pred_answer": "a", "vqa_correct": int(groups.rewards[each] > 0.4)},
                    "vqa_acc_score": float(groups.rewards[each]),
                }
                for each in own
            ]
        }
    (tmp_path / "rl.json").write_text(json.dumps(records))
    return TrainRun(
        data=tmp_path / "rl.json",
        query_emb=tmp_path / "q.safetensors",
        cand_emb=tmp_path / "c.safetensors",
        output=Output(folder=tmp_path / "out", log_to=(tracker,)),
        config=TrainConfig(
            rce_epochs=2, grpo_epochs=2, held_out=0.3, selector_options={"num_layers": 1}
        ),
        device="cpu",
    )


class Killed(BaseException):
    pass


class KilledAt(Observer):
    """Ends the run once it has reported so many lines, before it writes the checkpoint."""

    def __init__(self, lines) -> None:
        self.left = lines

    def epoch(self, metrics, of):
        self.left -= 1
        if not self.left:
            raise Killed


def check(tracked, output="out"):
    """The tracker has each line of metrics.jsonl once, with every number in it."""
    lines = (tracked.folder / output / "metrics.jsonl").read_text().splitlines()
    expected = [
        {name: value for name, value in json.loads(line).items() if not isinstance(value, str)}
        for line in lines
    ]
    steps = tracked.steps(output)
    assert [step for step, _ in steps] == list(range(len(expected)))
    for (_, found), line in zip(steps, expected, strict=True):
        assert found == pytest.approx(line, rel=1e-6)
    return expected


@pytest.mark.parametrize("killed", [(), (1,), (3, 2), (5,)], ids=str)
def test_it_has_every_line_once_wherever_the_run_was_killed(tracked, run, killed):
    for lines in killed:
        with pytest.raises(Killed):
            run_training(run, KilledAt(lines))
    run_training(run)
    assert len(check(tracked)) == 5
    assert run_training(run).unchanged
    check(tracked)


def test_a_run_that_began_without_it_is_there_from_the_first_step(tracked, run):
    silent = replace(run, output=replace(run.output, log_to=()))
    with pytest.raises(Killed):
        run_training(silent, KilledAt(3))
    run_training(run)
    check(tracked)
    other = replace(run, output=replace(run.output, folder=run.output.folder.with_name("two")))
    run_training(replace(other, output=replace(other.output, log_to=())))
    run_training(other)  # it is finished, and shown all the same
    check(tracked, "two")
    check(tracked)


def test_overwriting_begins_another_log(tracked, run, tracker):
    other = replace(run, config=replace(run.config, seed=1))
    with pytest.raises(Killed):
        run_training(other, KilledAt(1))  # before its checkpoint: then it never was
    run_training(run)
    before = check(tracked)
    run_training(replace(other, output=replace(run.output, overwrite=True)))
    assert check(tracked) != before
    if tracker == "trackio":  # where the earlier one stays to be compared with
        assert len(tracked.runs()) == 2
    else:
        assert len(list((tracked.folder / "out" / "tensorboard").iterdir())) == 1


def test_a_log_that_cannot_be_written_ends_the_run_in_a_line_and_costs_nothing(
    tracked, run, tracker, monkeypatch
):
    if tracker == "trackio":
        import trackio.sqlite_storage as storage

        monkeypatch.setattr(storage, "TRACKIO_DIR", tracked.folder / "rl.json")  # no folder
    else:
        run.output.folder.mkdir()
        (run.output.folder / "tensorboard").write_text("a file")
    with pytest.raises(InputError, match=f"^--log-to {tracker}: .*without it continues") as raised:
        run_training(run)
    assert os.linesep not in str(raised.value)
    run_training(replace(run, output=replace(run.output, log_to=())))


def test_a_log_that_cannot_be_closed_is_a_line(tmp_path, monkeypatch):
    class Full(trackers.Trackio):
        def __init__(self, *_args: object) -> None:
            pass

        def write(self, _log: object) -> None:
            pass

        def close(self) -> None:
            raise OSError("disk full")

    monkeypatch.setitem(trackers._TRACKERS, "trackio", Full)
    with (
        pytest.raises(InputError, match=r"^--log-to trackio: disk full"),
        trackers.open_trackers(["trackio"], tmp_path, {}, []),
    ):
        pass
