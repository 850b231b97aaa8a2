"""Every command that asks, on a fleet of processes: the bytes of one process."""

from __future__ import annotations

import fleet_plugin
import pytest
from cli.test_backend_choices import COMMANDS

from pointer_rl.session.judge import Trial
from pointer_rl.session.session import PluginRef, Session, SessionOptions


@pytest.fixture
def fleets(world):
    fleets = fleet_plugin.load()
    yield fleets
    for fleet in fleets:
        fleet.abandon(list(fleet.processes))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_the_bytes_of_one_process(world, fleets, cli, command):
    written = []
    embeddings = ("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb))
    for executor in ("in-process", "processes"):
        folder = world.folder / executor
        file = folder / ("rounds/round-02.json" if command == "train" else "made.json")
        result = cli(
            *(command, "--backend", "touchy", "--backend-opt", "answers=a,b"),
            *("--dataset", "jsonl", "--dataset-opt", f"path={world.data}"),
            *("--executor", executor),
            *(() if command == "beams" else embeddings),
            *(("--output-dir", folder) if command == "train" else ("--output-path", file)),
            *COMMANDS[command],
        )
        assert result.exit_code == 0, result.output
        written.append(file.read_bytes())
    assert written[0] == written[1]
    assert len(fleets) == 1, "the second run was not on workers"


def test_the_backend_is_asked_from_afar(world, fleets):
    """As arms that learn do. Two questions kill, and fail; the others have their answers."""
    answered = []
    for executor, deadly in (("in-process", ""), ("processes", "q5?")):
        session = Session(
            SessionOptions(
                dataset=PluginRef("jsonl", {"path": str(world.data)}),
                backend=PluginRef("touchy", {"deadly": deadly}),
                prompt=PluginRef("short-answer"),
                metric=PluginRef("vqa"),
                executor=PluginRef(executor),
            )
        )
        trials = [Trial(query, []) for query in session.queries]
        answered.append(dict(session.judge().judge(trials)))
        assert session.backend.asked == len(trials)
    right, found = answered
    assert [index for index in right if right[index] != found[index]] == [5]
    assert "given up" in found[5].failure
