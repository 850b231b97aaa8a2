"""A third-party plugin for the command line: a backend that copies, and one that needs nothing."""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, EntryPoint, entry_points
from types import ModuleType

import PIL.Image
import pytest
import torch
from click.testing import CliRunner, _NamedTextIOWrapper
from fake_hub import TOKEN, FakeHub
from fakes import CopyBackend
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.hookspecs import hookimpl
from pointer_rl.registry import registry
from pointer_rl.testing import example
from pointer_rl.types import Dataset


class OtherDistribution(Distribution):
    def read_text(self, filename):
        return "Metadata-Version: 2.1\nName: other-dist\nVersion: 2.0\n"

    def locate_file(self, path):
        raise AssertionError(path)


def install_plugin(monkeypatch, **hooks) -> None:
    """As if a distribution with these hooks were installed beside the built-in plugins.

    `registry.cache_clear()` when it is over.
    """
    module = ModuleType("other_plugin_module")
    for name, hook in hooks.items():
        hook.__name__ = name
        setattr(module, name, hookimpl(hook))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = EntryPoint("other", module.__name__, "pointer_rl")._for(OtherDistribution())
    points = [*entry_points(group="pointer_rl"), point]
    monkeypatch.setattr("pointer_rl.registry.entry_points", lambda group: points)
    monkeypatch.setenv("POINTER_RL_PLUGINS", "other")
    registry.cache_clear()


@pytest.fixture
def backends(monkeypatch, tmp_path):
    """Registers the backend `copy`, and datasets whose ids are no good; a cache of the test's own.

    The list holds each backend that is made.
    """
    monkeypatch.setenv("POINTER_RL_CACHE", str(tmp_path / "cache"))
    made: list[CopyBackend] = []
    datasets: dict[str, Dataset] = {}

    def create():
        made.append(CopyBackend())
        return made[-1]

    for name, ids in (("twins", ("a", "b", "a")), ("underscored", ("a", "_b"))):
        examples = tuple(example(row, id=id_) for row, id_ in enumerate(ids))
        datasets[name] = Dataset(name, examples, examples)
    install_plugin(
        monkeypatch,
        pointer_rl_register_backends=lambda register: register("copy", create, summary="copies"),
        pointer_rl_register_datasets=lambda register: [
            register(name, lambda made=made: made, summary="broken ids")
            for name, made in datasets.items()
        ],
    )
    yield made
    registry.cache_clear()


class World:
    """A jsonl dataset of 8 examples, its embeddings, and how to run `generate` on it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.data = folder / "data.jsonl"
        self.query_emb, self.cand_emb = folder / "q.safetensors", folder / "c.safetensors"
        self.output = folder / "out" / "rl.json"
        self.rows = [
            {
                "id": f"e{i}",
                "image": f"{i}.png",
                "question": f"q{i}?",
                "answers": ["ab"[i % 2]] * 10,
            }
            for i in range(8)
        ]
        for i in range(8):
            PIL.Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
        self.write()
        vectors = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
        for path in (self.query_emb, self.cand_emb):
            save_embeddings(path, vectors, [row["id"] for row in self.rows])

    def write(self) -> None:
        self.data.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def generate(self, *more: str, selector: bool = False):
        args = [
            *("generate", "--backend", "copy", "--dataset", "jsonl"),
            *("--dataset-opt", f"path={self.data}"),
            *("--query-emb", str(self.query_emb), "--cand-emb", str(self.cand_emb)),
            *("--output-path", str(self.output)),
            *(() if selector else ("--num-beams", "0", "--num-samples-per-temp", "0")),
            *("--num-random", "3", *more),
        ]
        return run_cli(*args)


def run_cli(*args: str):
    from pointer_rl.cli.main import cli

    return CliRunner().invoke(cli, list(args))


@pytest.fixture
def world(tmp_path, backends):
    return World(tmp_path)


@pytest.fixture
def cli():
    return run_cli


@pytest.fixture
def terminal(monkeypatch):
    """Standard output is a terminal of 80 columns that shows no images."""
    monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda self: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "TMUX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What huggingface_hub read from the environment when it was imported says: this Hub."""
    with FakeHub() as hub:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.ENDPOINT", hub.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        disable_progress_bars()  # as `main` does
        yield hub
        enable_progress_bars()
