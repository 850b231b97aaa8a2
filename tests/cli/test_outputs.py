"""What cannot be written is refused in one line, before anything is read, loaded or asked."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from training_worlds import class_groups

from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.session.cache import ResponseCache

# The inputs do not exist: a command that looks at one before its output complains of that.
EMBEDDINGS = ("--query-emb", "none.safetensors", "--cand-emb", "none.safetensors")
MODEL = ("--dataset", "jsonl", "--dataset-opt", "path=none.jsonl", "--backend", "copy", *EMBEDDINGS)
COMMANDS = {
    "generate": ("generate", *MODEL, "--output-path", "OUT.json"),
    "plan": ("generate", *MODEL, "--plan", "--output-path", "OUT.json"),
    "beams": ("beams", *MODEL[:6], "--output-path", "OUT.json"),
    "evaluate": ("evaluate", *MODEL, "--output-path", "OUT.json"),
    "plot": ("evaluate", *MODEL, "--plot", "OUT.png"),
    "train": ("train", "--beam-data", "none.json", "--output-dir", "OUT"),
    "seeds": ("train", "--beam-data", "none.json", "--output-dir", "OUT", "--seeds", "2"),
    "online": ("train", "--online", "--max-calls", "99", *MODEL, "--output-dir", "OUT"),
    "sft": ("sft", "--beam-data", "none.json", "--output-dir", "OUT"),
    "embed": (
        *("embed", "--dataset", "jsonl", "--dataset-opt", "path=none.jsonl", "--encoder", "none"),
        *("--split", "pool", "--output-path", "OUT.safetensors"),
    ),
    "convert": ("convert", "none.json", "OUT.json"),
    "parquet": ("convert", "none.json", "OUT.parquet"),
    "rescore": ("rescore", "none.json", "--output-path", "OUT.json"),
    "merge": ("merge", "none.json", "nil.json", "--output-path", "OUT.json"),
    "export": ("cache", "export", "OUT.jsonl"),
    "new": ("plugins", "new", "mine", "--kind", "metric", "--output-dir", "OUT"),
    "glyphs": ("glyphs", "OUT"),
}
FOLDERS = {"train", "seeds", "online", "sft", "new", "glyphs"}


@pytest.fixture
def run(tmp_path, backends, cli, monkeypatch):
    """Runs a command of `COMMANDS` with its output at a path."""
    monkeypatch.chdir(tmp_path)
    ResponseCache(tmp_path / "cache" / "responses.sqlite").close()

    def run(name, output):
        return cli(*(arg.replace("OUT", str(output)) for arg in COMMANDS[name]))

    return run


def one_line(result, *parts):
    assert result.exit_code == 2, result.output
    assert result.output.startswith("pointer-rl: error: ")
    assert len(result.output.splitlines()) == 1
    for part in parts:
        assert part in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_places_that_cannot_be_written(run, tmp_path, name):
    (tmp_path / "file").touch()
    one_line(run(name, "file/out"), "file/out", *(() if name in FOLDERS else ("not a folder",)))
    one_line(run(name, "run\udcff"), r"run\udcff", "not a name in UTF-8")
    if name not in FOLDERS:
        (suffix,) = {Path(arg).suffix for arg in COMMANDS[name] if arg.startswith("OUT")}
        (tmp_path / f"folder{suffix}").mkdir()
        one_line(run(name, "folder"), f"folder{suffix}: cannot be written (it is a folder")
        (tmp_path / f"folder{suffix}").rmdir()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "cache"}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"seeds"}))
def test_a_folder_that_may_not_be_written(run, tmp_path, name):
    run(name, tmp_path / "elsewhere")  # imports what the other user may be unable to read
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        is_root = os.geteuid() == 0
        if is_root:  # who may write everywhere
            os.seteuid(65534)
        try:
            result = run(name, Path(folder, "out"))
        finally:
            if is_root:
                os.seteuid(0)
        one_line(result, "Permission denied")
        assert not os.listdir(folder)
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"plot", "seeds", "new", "glyphs"}))
def test_two_processes_do_not_write_one_output(run, tmp_path, name):
    suffix = {"parquet": ".parquet", "export": ".jsonl", "embed": ".safetensors"}.get(name, ".json")
    output = tmp_path / f"out{suffix}"
    if name in FOLDERS:
        output = tmp_path / "out" / "checkpoint.safetensors"
    program = (
        "import sys; from pathlib import Path; from pointer_rl.files import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(output)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        says = f"another process is writing it (process {other.pid} on "
        if name == "embed":  # its inputs come first
            says = "none.jsonl"
        one_line(run(name, "out"), says)


@pytest.mark.parametrize("name", ["convert", "generate", "export"])
def test_the_current_folder_is_no_name_for_a_file(cli, tmp_path, backends, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    ResponseCache(tmp_path / "cache" / "responses.sqlite").close()
    args = ["." if arg.startswith("OUT") else arg for arg in COMMANDS[name]]
    one_line(cli(*args), ".: ", "name a")


def test_what_another_command_left_is_removed(run, tmp_path):
    kill = "import os, sys; from pathlib import Path; from pointer_rl.files import *\n"
    kill += "with locked(Path('a.json')), AtomicFile(Path('a.json')): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", kill])
    assert len(list(tmp_path.glob(".a.json*"))) == 2
    assert run("export", "b").exit_code == 0
    assert not list(tmp_path.glob(".*"))


# --- no room --------------------------------------------------------------------------------------


def in_child(action):
    """Run an action in a fork; returns its exit status and what it wrote to standard error."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(2, "w")
        try:
            action()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code or 0)
        except BaseException as error:
            os.write(2, repr(error).encode())
        os._exit(99)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.parametrize("args", [("--version",), ("plugins",), ("cache", "info"), ("new",)])
def test_output_that_cannot_be_printed_is_one_line(run, args):
    from pointer_rl.cli.main import cli

    def printing():
        sys.stdout = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
        cli(COMMANDS.get(args[0], args))

    said = "pointer-rl: error: standard output: No space left on device\n"
    assert in_child(printing) == (2, said)


def test_no_traceback_at_pythons_end_when_output_cannot_be_printed():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pointer_rl", "schema"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "pointer-rl: error: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize("name", ["new", "glyphs"])
def test_a_full_disk_leaves_nothing(run, tmp_path, name):
    from pointer_rl.cli.main import cli

    def writing():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        cli([arg.replace("OUT", "out") for arg in COMMANDS[name]])

    status, said = in_child(writing)
    assert status == 2
    assert "File too large" in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


# --- damaged files --------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path, cli, monkeypatch):
    """Trains a small policy into the folder `out`."""
    monkeypatch.chdir(tmp_path)
    groups = class_groups(0, 40, dim=8)
    save_embeddings(tmp_path / "q.safetensors", groups.queries, groups.ids)
    save_embeddings(tmp_path / "c.safetensors", groups.pool, [f"p{row}" for row in range(24)])
    records = {}
    for index, id_ in enumerate(groups.ids):
        own = range(groups.offsets[index], groups.offsets[index + 1])
        records[id_] = {
            "pointer_candidates": [
                {
                    **{"pointer": groups.pointers[each].tolist(), "gen_method": "random"},
                    **{"vqa_pred_answer": "a", "vqa_correct": int(groups.rewards[each] > 0.4)},
                    "vqa_acc_score": min(1.0, max(0.0, float(groups.rewards[each]))),
                }
                for each in own
            ]
        }
    (tmp_path / "rl.json").write_text(json.dumps(records))
    return lambda *more: cli(
        *("train", "--beam-data", "rl.json", "--output-dir", "out", "--layers", "1"),
        *("--query-emb", "q.safetensors", "--cand-emb", "c.safetensors", "--held-out", "0.3"),
        *("--rce-epochs", "2", "--grpo-epochs", "1", *more),
    )


def test_a_flipped_bit_in_a_training_checkpoint_is_noticed(training, tmp_path):
    assert training().exit_code == 0
    path = tmp_path / "out" / "checkpoint.safetensors"
    content = path.read_bytes()
    rng = random.Random(0)
    places = [rng.randrange(len(content)) for _ in range(30)]
    for place in (8, 20, *places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        one_line(training(), "checkpoint.safetensors: ", "with --overwrite")
    path.write_bytes(content)
    assert "finished before" in training().output
