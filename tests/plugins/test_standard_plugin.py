"""What the standard plugin registers, and that naming it costs nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from pointer_rl.options import describe_options
from pointer_rl.registry import KINDS, Registry

REGISTERED = {
    "backend": [],
    "prompt": ["chat", "short-answer"],
    "metric": ["exact", "vqa"],
    "generator": [
        *("beam", "first-success", "greedy", "mmr"),
        *("probe", "random", "retrieval", "sample"),
    ],
    "reward": [
        "hard01_plus_gtprob",
        "hard01_plus_gtprob_separated",
        "hard_only",
        "hard_plus_gtprob_plus_rel",
        "hard_plus_soft",
        "hard_plus_soft_v2",
        "legacy",
        "separated",
        "soft_only",
    ],
    "dataset": ["hf", "jsonl", "vl-icl", "vqa"],
    "encoder": ["clip"],
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = Registry([EntryPoint("standard", "pointer_rl_standard", "pointer_rl")])
    assert [plugin.error for plugin in registry.plugins] == [None]
    return registry


def test_registers_these_names(registry: Registry) -> None:
    assert {
        kind: [entry.name for entry in registry.entries(kind)] for kind in REGISTERED
    } == REGISTERED
    assert registry.find("dataset", "okvqa_local").name == "vqa"


def test_every_option_is_documented(registry: Registry) -> None:
    for kind in KINDS:
        for entry in registry.entries(kind):
            for option in describe_options(entry.options) if entry.options else []:
                assert option.help, f"{entry.label}: {option.name}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("prompt", "metric", "generator", "reward")
        for name in REGISTERED[kind]
    ],
)
def test_is_created_without_options(registry: Registry, kind: str, name: str) -> None:
    registry.create(kind, name)


def test_options_reach_the_reward(registry: Registry) -> None:
    from pointer_rl.types import Candidate, Outcome

    reward = registry.create("reward", "hard_only", {"hard_weight": "3"})
    assert reward(Outcome(correct=True), Candidate((0,), "random")) == 3


def test_naming_the_plugin_imports_nothing_heavy() -> None:
    script = (
        "import sys, pointer_rl_standard\n"
        "heavy = {'torch', 'transformers', 'PIL', 'numpy', 'safetensors', 'datasets'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "\n"), run.stderr
