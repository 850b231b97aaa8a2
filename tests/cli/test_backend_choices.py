"""What the machine decides (windows, a backend's choices) is recorded; a resumed run keeps it."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from dataclasses import dataclass

import pytest
from cli.conftest import install_plugin

from pointer_rl.beams import run as beams_run
from pointer_rl.devices import default_window
from pointer_rl.records.merge import merge_files
from pointer_rl.session.cache import default_store
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.types import Response


class Machine:
    """What a run is on: memory, queries in a window, and the trial at which it is interrupted."""

    def __init__(self) -> None:
        self.memory, self.window = 64, 3
        self.made: list[Sized] = []
        self.interrupt(None)

    def interrupt(self, at: int | None) -> None:
        self._trials, self._until = itertools.count(1), at

    def count(self) -> None:
        if next(self._trials) == self._until:
            raise KeyboardInterrupt


@dataclass(frozen=True, kw_only=True)
class SizedOptions:
    memory: int | None = None
    """By default, what the machine has."""
    device: str = "auto"


class Sized:
    """The last digits of its scores depend on its memory."""

    fingerprint = "sized"

    def __init__(self, options: SizedOptions, machine: Machine) -> None:
        self.machine, self.given = machine, options.memory
        self.chosen = {} if options.memory is not None else {"memory": machine.memory}
        self.memory = options.memory or machine.memory
        machine.made.append(self)

    def run(self, requests):
        for index, request in enumerate(requests):
            self.machine.count()
            text = request.prompt.text.split("Short answer:")[-2].split(" Question:")[0]
            scores = [-1 - len(each) - self.memory * 1e-9 for each in request.score]
            yield index, Response(text, tuple(scores))


@pytest.fixture
def machine(world, monkeypatch):
    machine = Machine()
    install_plugin(
        monkeypatch,
        pointer_rl_register_backends=lambda register: register(
            "sized", lambda given: Sized(given, machine), options=SizedOptions, summary="sized"
        ),
    )
    monkeypatch.setattr(beams_run, "TRIALS_TOGETHER", 2 * (1 + 8 * 5))  # windows of two queries
    monkeypatch.setattr("pointer_rl.session.session.default_window", lambda device: machine.window)
    return machine


COMMANDS = {
    "generate": (
        *("--score-answers", "--no-store"),
        *("--num-beams", "0", "--num-samples-per-temp", "0", "--num-random", "3"),
    ),
    "beams": ("--no-store",),
    "evaluate": ("--shots", "1", "--no-store"),
    "train": (
        *("--online", "--max-calls", "32", "--rounds", "2", "--shots", "1", "--score-answers"),
        *("--heads", "2", "--layers", "1", "--held-out", "0.3"),
    ),
}


@pytest.fixture
def run(world, machine, cli):
    """Runs a command on the jsonl world; gives the exit code and what the command wrote."""

    def run(command, *more, output="out"):
        folder = world.folder / output
        file = folder / ("round-02.json" if command == "train" else "made.json")
        embeddings = ("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb))
        result = cli(
            *(command, "--backend", "sized", "--dataset", "jsonl"),
            *("--dataset-opt", f"path={world.data}"),
            *(() if command == "beams" else embeddings),
            *(("--output-dir", folder) if command == "train" else ("--output-path", file)),
            *COMMANDS[command],
            *more,
        )
        if command == "train":
            file = folder / "rounds" / file.name
        return result, json.loads(file.read_text()) if file.exists() else None

    return run


def meta_of(command, content):
    return content["settings"] if command == "evaluate" else content["_meta"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_resumed_run_uses_what_the_first_machine_chose(run, machine, command):
    result, whole = run(command, output="whole")
    assert result.exit_code == 0, result.output
    meta = meta_of(command, whole)
    assert meta["backend_choices"] == {"memory": 64}
    assert meta["backend"]["options"] == {"memory": None, "device": "auto"}
    assert meta.get("window") == {"generate": 3, "train": 3}.get(command)
    default_store().unlink(missing_ok=True)
    # After the first window, or in the second round.
    machine.interrupt(at={"beams": 100, "evaluate": 40}.get(command, 20))
    assert run(command)[0].exit_code == 130
    machine.interrupt(at=None)
    machine.memory, machine.window = 8, 2
    result, resumed = run(command)
    assert result.exit_code == 0, result.output
    assert machine.made[-1].given == 64
    assert resumed == whole
    default_store().unlink(missing_ok=True)
    machine.interrupt(at=1)
    assert run(command, "--overwrite")[0].exit_code == 130
    assert machine.made[-1].given is None, "a new run is this machine's"


def test_an_option_given_by_the_user_wins_and_the_run_goes_on(run, machine):
    machine.interrupt(at=20)
    assert run("generate")[0].exit_code == 130
    machine.interrupt(at=None)
    result, content = run("generate", "--backend-opt", "memory=16")
    assert result.exit_code == 0, result.output
    assert machine.made[-1].given == 16
    assert "backend_choices" not in content["_meta"]
    assert content["_meta"]["backend"]["options"] == {"memory": 16, "device": "auto"}


def test_a_finished_run_is_the_same_run_on_another_machine(run, machine):
    _, once = run("generate")
    machine.memory, machine.window = 8, 2
    result, again = run("generate")
    assert "finished before" in result.stdout
    assert again == once


def test_the_plan_says_what_was_chosen(run, machine):
    result, _ = run("generate", "--plan")
    assert re.search(r"^window +3 +queries asked together$", result.stdout, re.MULTILINE)
    assert "\nthe backend chose memory=64\n" in result.stdout
    machine.interrupt(at=20)
    assert run("generate")[0].exit_code == 130
    machine.interrupt(at=None)
    machine.memory, machine.window = 8, 2
    result, _ = run("generate", "--plan")
    assert re.search(r"^window +3 ", result.stdout, re.MULTILINE), "as the run began"
    assert "\nthe backend chose memory=64\n" in result.stdout
    result, content = run("generate", "--window", "2")
    assert "window: 3, now 2" in result.stderr
    assert content is None


def test_a_shard_names_its_window(run, machine):
    result, content = run("generate", "--shard", "1/2")
    assert result.exit_code == 2
    assert "shard 1/2: give the same --window to all shards" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert content is None


def test_the_window_is_larger_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_window("auto") == default_window("cpu") == 128
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert default_window("auto") == default_window("cuda:0") == 1024
    assert default_window("cpu") == 128


def test_a_copy_of_the_session_is_given_what_was_chosen(world, machine):
    session = Session(
        SessionOptions(
            dataset=PluginRef("jsonl", {"path": str(world.data)}),
            backend=PluginRef("sized"),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
        )
    )
    assert session.backend.fingerprint == "sized"
    machine.memory = 8
    copy = pickle.loads(pickle.dumps(session))
    assert copy.backend.fingerprint == "sized"
    assert machine.made[-1].given == 64
    assert copy.describe([]) == session.describe([])


def test_shards_of_machines_that_chose_otherwise_merge(run, machine, world):
    """On other devices, too."""
    made = []
    for number, memory in ((1, 64), (2, 8)):
        machine.memory = memory
        shard = ("--window", "3", "--shard", f"{number}/2")
        run("generate", *shard, "--backend-opt", f"device={number}", output=f"part{number}")
        made.append(world.folder / f"part{number}" / "made.json")
    target = world.folder / "merged.json"
    merge_files(made, target)
    content = json.loads(target.read_text())
    assert "backend_choices" not in content.pop("_meta")
    assert len(content) == 8
