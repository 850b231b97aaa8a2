"""`pointer-rl embed`, in this process and, to be killed, in its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pointer_rl.cli.embed import embed
from pointer_rl.datasets.embeddings import load_embeddings
from pointer_rl.errors import InputError
from pointer_rl.registry import Registry

PLUGIN = '''
"""A dataset of ten examples, and an encoder that waits and notes what it encodes."""

import os
import time
from dataclasses import dataclass

from pointer_rl.hookspecs import hookimpl
from pointer_rl.datasets.images import ImageBytes
from pointer_rl.types import Dataset, Example


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    size: int = 10
    """Examples."""
    broken: int = -1
    """The example whose image is none."""


@dataclass(frozen=True, kw_only=True)
class SlowOptions:
    seconds: float = 0.0
    """How long a batch takes."""
    revision: str = "1"
    """Part of the fingerprint."""


def png(row):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1), (row, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def toy(options):
    examples = [
        Example(
            f"e{row}",
            row,
            ImageBytes(b"none" if row == options.broken else png(row), f"{row}.png"),
            "?",
            ("yes",),
        )
        for row in range(options.size)
    ]
    return Dataset("toy", examples, examples[:4])


class Slow:
    dim = 2

    def __init__(self, options):
        self.options = options
        self.fingerprint = f"slow {options.revision}"

    def encode(self, examples):
        import torch

        with open(os.environ["ENCODED"], "a") as file:
            print(*(example.id for example in examples), file=file)
        time.sleep(self.options.seconds)
        return torch.tensor(
            [[example.row / 3, example.image.open().getpixel((0, 0))[0]] for example in examples]
        )


@hookimpl
def pointer_rl_register_datasets(register):
    register("toy", toy, options=ToyOptions, summary="Ten examples")


@hookimpl
def pointer_rl_register_encoders(register):
    register("slow", Slow, options=SlowOptions, summary="Waits")
'''

ARGUMENTS = ["--dataset", "toy", "--encoder", "slow", "--batch-size", "2", "--split"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plugin, as a distribution that is installed there."""
    folder = tmp_path / "site"
    info = folder / "slow_embedding-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "slow_embedding.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-embedding\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pointer_rl]\nslow = slow_embedding\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "slow_embedding", raising=False)
    monkeypatch.setenv("ENCODED", str(tmp_path / "encoded"))
    monkeypatch.setenv("POINTER_RL_PLUGINS", "slow")
    return folder


@pytest.fixture
def registry(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin alone."""
    only = Registry([EntryPoint("slow", "slow_embedding", "pointer_rl")])
    for module in ("pointer_rl.registry", "pointer_rl.session.session"):
        monkeypatch.setattr(f"{module}.registry", lambda: only)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(embed, [*ARGUMENTS, *map(str, arguments)])


def encoded(tmp_path: Path) -> list[str]:
    return (tmp_path / "encoded").read_text().splitlines()


def error_of(result: Result) -> str:
    assert isinstance(result.exception, InputError)
    message = str(result.exception)
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("registry")
def test_writes_the_split(tmp_path: Path) -> None:
    for split, size in (("queries", 10), ("pool", 4)):
        path = tmp_path / f"{split}.safetensors"
        result = run(split, "--output-path", path)
        assert result.exit_code == 0, result.output
        assert f"{size} rows of 2 dimensions (slow 1)" in result.output
        made = load_embeddings(path)
        assert made.ids == tuple(f"e{row}" for row in range(size))
        assert made.encoder == "slow 1"
        assert made.vectors[:, 1].tolist() == list(range(size))
        assert not Path(f"{path}.partial").exists()


@pytest.mark.usefixtures("registry")
def test_an_image_that_is_none_names_the_example(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    result = run("queries", "--output-path", path, "--dataset-opt", "broken=5")
    assert error_of(result).startswith("example e5: 5.png: not a readable image")
    assert not path.exists()


@pytest.mark.usefixtures("registry")
def test_goes_on_after_an_error_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    run("queries", "--output-path", path, "--dataset-opt", "broken=5")
    assert encoded(tmp_path) == ["e0 e1", "e2 e3", "e4 e5"]
    assert run("queries", "--output-path", path).exit_code == 0
    assert encoded(tmp_path)[3:] == ["e4 e5", "e6 e7", "e8 e9"]
    assert run("queries", "--output-path", path).exit_code == 0
    assert len(encoded(tmp_path)) == 6


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--encoder-opt", "revision=2"], "another encoder (slow 1, now slow 2)"),
        (["--dataset-opt", "size=9"], "another examples"),
        (["--batch-size", "3"], "another batch size (2, now 3)"),
    ],
)
def test_another_run_is_not_continued(arguments: Sequence[str], what: str, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    run("queries", "--output-path", path, "--dataset-opt", "broken=5")
    before = encoded(tmp_path)
    message = error_of(run("queries", "--output-path", path, *arguments))
    assert message.startswith(f"{path}.partial: ")
    assert what in message
    assert encoded(tmp_path) == before


@pytest.mark.usefixtures("registry")
def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    run("queries", "--output-path", path, "--dataset-opt", "broken=5")
    plan = Path(f"{path}.partial") / "plan.json"
    assert json.loads(plan.read_text())["encoder"] == "slow 1"
    plan.write_text("{")
    assert "plan.json: cannot be read" in error_of(run("queries", "--output-path", path))


@pytest.mark.usefixtures("registry")
def test_killed_and_run_again_the_file_is_the_same_to_the_bit(site: Path, tmp_path: Path) -> None:
    path, straight = tmp_path / "killed.safetensors", tmp_path / "straight.safetensors"
    partial = Path(f"{path}.partial")
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def command(seconds: float) -> list[str]:
        arguments = [*ARGUMENTS, "queries", "--output-path", str(path)]
        arguments += ["--encoder-opt", f"seconds={seconds}"]
        program = "from pointer_rl.cli.embed import embed; embed()"
        return [sys.executable, "-c", program, *arguments]

    process = subprocess.Popen(command(0.3), env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while len(list(partial.glob("*.safetensors"))) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = len(list(partial.glob("*.safetensors")))
    assert not path.exists()
    assert finished < 5

    (tmp_path / "encoded").unlink()
    subprocess.run(command(0), env=environment, check=True, capture_output=True)
    assert run("queries", "--output-path", straight).exit_code == 0
    assert len(encoded(tmp_path)) == (5 - finished) + 5
    assert path.read_bytes() == straight.read_bytes()
    assert not partial.exists()
