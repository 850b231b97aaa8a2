"""Progress on standard error: on a terminal, in a log, and not at all."""

from __future__ import annotations

import io
import logging
import os
import re
from contextlib import contextmanager

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pointer_rl.cli import progress as module
from pointer_rl.cli.progress import Progress, clock, duration, per_second
from pointer_rl.registry import registry
from pointer_rl.types import Outcome

RIGHT, WRONG = Outcome(answer="a", correct=True), Outcome(answer="a", correct=False)
TIMED = re.compile(r"\d+:\d\d:\d\d  ")


@pytest.fixture
def said(monkeypatch):
    """The lines that a `Progress` writes, whose clock stands still."""
    lines: list[str] = []
    monkeypatch.setattr(module, "note", lines.append)
    return lines


def bodies(lines):
    return [TIMED.sub("", line) for line in lines]


# --- without a terminal ---------------------------------------------------------------------------


def test_lines_come_after_10_30_and_60_seconds_then_each_minute(said):
    progress = Progress()
    progress.start(10)
    assert said == []  # it may still fail
    for _ in range(2):
        progress.window(4, 8)
    assert bodies(said) == ["0/10 queries"]
    progress._began = 0.0  # so that no difference is rounded
    times = []
    for half in range(2 * 3600):
        before = len(said)
        progress.tick(half / 2)
        times += [half / 2] * (len(said) - before)
    assert times == [10, 30, *range(60, 3600, 60)]


def test_a_machine_that_slept_writes_one_line(said):
    progress = Progress()
    progress.tick(progress._began + 10_000)
    assert len(said) == 1
    progress.tick(progress._began + 10_050)
    assert len(said) == 2


def test_an_activity_is_named_once_it_takes_long(said):
    progress = Progress()
    with progress.activity("loading qwen2vl"):
        progress.tick(progress._began + 1)
        assert said == []
        progress.tick(progress._began + 3)
        progress.tick(progress._began + 4)
    progress.tick(progress._began + 5)
    assert bodies(said) == ["loading qwen2vl …"]
    with progress.activity("embedding the pool", 200) as advance:
        advance(64)
        progress.tick(progress._began + 11)
    assert bodies(said)[1:] == ["embedding the pool: 64/200"] * 2


def test_a_line_says_what_is_known(said):
    asked = [0]
    progress = Progress()
    progress.start(10, 2, asked=lambda: asked[0])
    progress.window(4, 8)
    for outcome, method in [(RIGHT, "beam"), (WRONG, "beam"), (RIGHT, "random")]:
        asked[0] += 1
        progress.trial(outcome, [method])
    progress.trial(RIGHT, ["random"])
    progress.trial(Outcome(failure="no image"), ["random"])
    progress.tick(progress._began + 10)
    [line] = bodies(said)[1:]
    line = re.sub(r" [\d,]+/s,", "", line)
    assert line == (
        "2/10 queries, 5 trials, 3 asked, 1 failed, correct: 75% (beam 50%, random 100%)"
    )
    progress.finish(4)
    assert progress.done == 6


def test_a_trial_counts_for_every_arm_that_shows_it(said):
    progress = Progress()
    progress.start(1)
    progress.trial(RIGHT, ["similar", "RL"])
    progress.trial(WRONG, [])
    assert progress._share_correct() == "correct: 50% (similar 100%, RL 100%)"


def test_the_rest_of_a_limited_run_is_its_calls(said):
    left = [20]
    progress = Progress()
    progress.start(None, left=lambda: left[0])
    left[0] = 15
    progress.tick(progress._began + 10)
    assert bodies(said) == ["5/20 trials, 0 asked"]


def test_nothing_is_said_of_a_run_with_nothing_to_do(said):
    with Progress() as progress:
        progress.start(4, 4)
    assert said == []
    assert not progress._thread.is_alive()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (clock(3_725), "1:02:05"),
        (per_second(1234.5), "1,234/s"),
        (per_second(5.71), "5.7/s"),
        (per_second(0.4), "2.5 s each"),
        (duration(0.2), "0 s"),
        (duration(99), "99 s"),
        (duration(100), "2 min"),
        (duration(7_200), "2.0 h"),
    ],
)
def test_numbers_in_words(text, value):
    assert text == value


# --- on a terminal --------------------------------------------------------------------------------


def shown(progress, **settings):
    file = io.StringIO()
    Console(width=80, file=file, **settings).print(progress._render())
    return file.getvalue()


@given(
    total=st.integers(1, 10**7),
    trials=st.integers(0, 30),
    methods=st.lists(st.text("abcdefghij -", min_size=1, max_size=20), min_size=1, max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_the_display_fits_80_columns(total, trials, methods):
    progress = Progress()
    progress.start(total, asked=lambda: 10**6)
    for number in range(trials):
        progress.trial(RIGHT if number % 3 else WRONG, [methods[number % len(methods)]])
    with progress.activity("embedding " + "x" * 100, 10**6):
        lines = shown(progress).splitlines()
    assert max(map(len, lines)) <= 80
    assert f"0/{total:,} queries" in lines[0]
    assert len(lines) == 2 + (trials > 0)


def test_the_display_has_a_line_for_each_worker_and_a_log_only_their_number():
    progress = Progress()
    progress.start(9)
    fleet = [f"worker {number} (node, GPU 0): 9.1/s, queries 1 to 8 for 3 s" for number in (1, 2)]
    progress.workers(lambda: ["workers: 2 (1 died)", *fleet])
    indent = " " * len("0:00:00 ")
    assert shown(progress).splitlines()[1:] == [indent + each for each in progress._workers()]
    assert progress._line().endswith("0/9 queries, workers: 2 (1 died)")


@contextmanager
def terminal(monkeypatch):
    """Standard error is a terminal; yields a function that returns what was written to it."""
    reading, writing = os.openpty()
    os.set_blocking(reading, False)

    def written():
        file.flush()
        return os.read(reading, 1_000_000).decode()

    with os.fdopen(writing, "w") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", file)
        yield written
    os.close(reading)


COLOUR = re.compile(r"\x1b\[[\d;]*m")


@pytest.mark.parametrize("coloured", [True, False])
def test_a_terminal_has_a_display_in_colour_unless_it_is_not_wanted(monkeypatch, capsys, coloured):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    with terminal(monkeypatch) as written:
        with Progress(lambda metrics: "an epoch") as progress:
            progress.start(4)
            progress.trial(RIGHT, ["beam"])
            progress.say("a note")
            progress.epoch({"stage": "rce", "epoch": 1}, 3)
        text = written()
    codes = {code for code in COLOUR.findall(text) if re.search(r"\[(?:.*;)?[34]\d|38;", code)}
    assert bool(codes) is coloured
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
    assert "0/4 queries, 1 trials" in plain
    assert "correct: 100% (beam 100%)" in plain
    assert "a note" in plain
    assert "rce epoch 1/3" in plain
    assert capsys.readouterr().out == "an epoch\n"


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal(monkeypatch) as written:
        with Progress() as progress:
            progress.start(4)
            progress.window(4, 8)
        assert written() == "0:00:00  0/4 queries\r\n"


# --- the options ----------------------------------------------------------------------------------


def test_results_are_the_same_and_alone_on_standard_output(world, cli):
    loud = world.generate("--no-store")
    assert re.fullmatch(
        r"0:00:\d\d  0/8 queries\n0:00:\d\d  8/8 queries, 31 trials, [\d,]+/s\n",
        loud.stderr.replace("32 trials", "31 trials"),
    )
    quiet = world.generate("--no-store", "--overwrite", "--quiet")
    assert quiet.stderr == ""
    assert loud.stdout == quiet.stdout
    assert "best of each query" in quiet.stdout


def test_quiet_keeps_warnings_and_errors(cli, tmp_path):
    result = cli("--quiet", "rescore", str(tmp_path / "none.json"), "--output-path", "x.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("pointer-rl: error: ")


def test_verbose_says_what_is_opened_asked_and_kept(world, cli):
    result = world.generate("-v")
    assert f"pointer_rl.datasets.embeddings: {world.query_emb}: read, 8 rows" in result.stderr
    assert "0 from the response cache, " in result.stderr
    assert "8 queries added" in result.stderr
    assert "pointer_rl." not in world.generate("--overwrite").stderr
    registry.cache_clear()
    assert "pointer_rl.registry: loading the plugin" in cli("-v", "plugins").stderr


def test_a_log_file_has_everything_with_its_time(world, cli, tmp_path):
    log = tmp_path / "log.txt"
    result = world.generate("--log-file", str(log))
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?:DEBUG  |INFO   |WARNING|ERROR  ) "
    lines = log.read_text().splitlines()
    assert all(re.match(stamp, line) for line in lines)
    messages = [re.sub(stamp + r"\S+: ", "", line) for line in lines]
    for printed in (result.stdout + result.stderr).splitlines():
        assert printed in messages
    assert "DEBUG" not in result.stderr
    shown = cli("show", str(world.output), "--log-file", str(tmp_path / "show.txt"))
    assert shown.exit_code == 0, shown.output
    logged = (tmp_path / "show.txt").read_text()
    assert all(line in logged for line in shown.stdout.splitlines())
    failed = cli("--log-file", str(log), "rescore", "none.json", "--output-path", "x.json")
    assert failed.exit_code == 2
    longer = log.read_text().splitlines()
    assert longer[: len(lines)] == lines
    assert longer[-1].endswith(failed.stderr.strip())
    cli("plugins")
    assert log.read_text().splitlines() == longer  # the options of a command end with it


def test_a_usage_error_is_in_the_log(cli, tmp_path):
    log = tmp_path / "log.txt"
    assert cli("--log-file", str(log), "generate").exit_code == 2
    assert log.read_text().splitlines()[-1].endswith("Missing option '--output-path'.")


def test_a_log_file_that_cannot_be_written_is_one_line(cli, tmp_path):
    result = cli("schema", "--log-file", str(tmp_path / "none" / "log.txt"))
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "log.txt: cannot be written (No such file or directory)" in line


def test_other_libraries_log_warnings_only(cli, tmp_path, monkeypatch):
    from pointer_rl.cli.main import cli as root

    def talk():
        for name in ("httpcore.http11", "pointer_rl.talk"):
            logging.getLogger(name).debug("%s: authorization sk-secret", name)
            logging.getLogger(name).warning("%s: careful", name)

    monkeypatch.setitem(root.commands, "talk", click.Command("talk", callback=talk))
    log = tmp_path / "log.txt"
    result = cli("-v", "--log-file", str(log), "talk")
    for text in (result.stderr, log.read_text()):
        assert "httpcore.http11: careful" in text
        assert "pointer_rl.talk: authorization" in text
        assert "httpcore.http11: authorization" not in text
