"""`pointer-rl doctor`: what is installed, and whether a backend's batches change answers."""

from __future__ import annotations

import math
import re
import sqlite3
import sys
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from pointer_rl.errors import InputError
from pointer_rl.evaluate.parity import measure_parity
from pointer_rl.registry import ConfiguredEntry, registry
from pointer_rl.session.session import PluginRef, SessionOptions
from pointer_rl.types import BackendError, Response

from .conftest import install_plugin, run_cli


@dataclass(frozen=True, kw_only=True)
class MoodyOptions:
    drift: float = 0.0
    """What a neighbour in a batch takes from a log-probability."""
    wrong: int = 0
    """Every so many-th request of a batch is answered otherwise; 0: none."""
    fails: Literal["never", "together", "always"] = "never"
    engine: Literal["quick", "plain"] = "quick"


class MoodyBackend:
    """What it says depends on who shares a batch, unless its engine is plain."""

    fingerprint = "moody"
    batches: list[tuple[str, int]] = []  # noqa: RUF012  # engine and size, of all backends

    def __init__(self, options: MoodyOptions) -> None:
        self.options = options

    def run(self, requests):
        options = self.options
        self.batches.append((options.engine, len(requests)))
        alone = len(requests) == 1
        for index, request in enumerate(requests):
            if options.fails == "always" or (options.fails == "together" and not alone and index):
                yield index, BackendError("no memory")
                continue
            spoilt = options.wrong and not alone and index % options.wrong == 0
            shift = 0.0 if alone else options.drift
            logprobs = tuple(-float(len(answer)) - shift for answer in request.score)
            yield index, Response("z" if spoilt else "a", logprobs)


@pytest.fixture
def moody(world, monkeypatch):
    """Asks it from the command line."""
    install_plugin(
        monkeypatch,
        pointer_rl_register_backends=lambda register: [
            register("moody", MoodyBackend, options=MoodyOptions, summary="depends on batches"),
            register("single", lambda: MoodyBackend(MoodyOptions(wrong=2)), summary="no options"),
        ],
    )
    MoodyBackend.batches.clear()

    def ask(*options: str, backend: str = "moody", against: tuple[str, ...] = ()):
        given = [word for option in options for word in ("--backend-opt", option)]
        given += against
        return run_cli(
            *("doctor", "--parity", "--backend", backend, *given),
            *("--dataset", "jsonl", "--dataset-opt", f"path={world.data}", "--limit", "6"),
        )

    yield ask
    registry.cache_clear()


# --- parity ---


def test_trials_are_asked_together_and_then_alone_on_engine_plain(moody):
    result = moody()
    assert result.exit_code == 0, result.output
    assert MoodyBackend.batches == [("quick", 12), *[("plain", 1)] * 12]
    assert "12 trials of 6 random queries, 2 random demonstrations each" in result.output
    assert "one at a time with engine=plain" in result.output
    assert "No answer differs, of 12." in result.output
    assert "No accuracy differs" in result.output
    assert "log-probabilities of 12 scored answers are the same" in result.output


def test_what_differs_is_counted_and_shown(moody):
    result = moody("wrong=3", "drift=0.5")
    assert result.exit_code == 1, result.output
    assert "4 of 12 answers differ (33.3%)" in result.output
    shown = [line for line in result.output.splitlines() if "together 'z', alone 'a'" in line]
    assert len(shown) == 4
    # "a" is right for e0, e2, e4, …: there a spoilt answer loses an accuracy of 1 in 12.
    asked = [f"query e{row}:" for row in (0, 2, 4, 6)]
    lost = sum(any(query in line for query in asked) for line in shown)
    found = re.search(
        r"(\d+) accuracies differ.* is ([.\d]+) together and ([.\d]+) alone", result.output
    )
    assert lost > 0
    assert int(found[1]) == lost
    assert float(found[3]) - float(found[2]) == pytest.approx(lost / 12, abs=1e-4)
    chance = math.exp(-1) - math.exp(-1.5)  # of "a", as its annotators write it
    assert f"at most 5.0e-01 nats, their probabilities by at most {chance:.1e}" in result.output


def test_log_probabilities_alone_are_no_difference_of_answers(moody):
    result = moody("drift=0.25")
    assert result.exit_code == 0
    assert "No answer differs" in result.output
    assert "at most 2.5e-01 nats" in result.output


def test_a_backend_without_engines_is_asked_alone_as_it_is(moody):
    result = moody(backend="single")
    assert result.exit_code == 1
    assert MoodyBackend.batches == [("quick", 12), *[("quick", 1)] * 12]
    assert "one at a time." in result.output
    assert "6 of 12 answers differ" in result.output
    assert "… and 1 more" in result.output


def test_another_backend_is_asked_all_together_and_compared(moody):
    result = moody("drift=0.5", against=("--against", "moody", "--against-opt", "engine=plain"))
    assert result.exit_code == 0, result.output
    assert MoodyBackend.batches == [("quick", 12), ("plain", 12)]
    assert "were asked of the backends moody and moody." in result.output
    assert "at most 5.0e-01 nats" in result.output
    result = moody(against=("--against", "single"))
    assert result.exit_code == 1
    assert "6 of 12 answers differ" in result.output
    assert ": moody 'a', single 'z'" in result.output


def test_failing_one_time_only_is_a_difference(moody):
    result = moody("fails=together")
    assert result.exit_code == 1
    assert "11 of 12 answers differ" in result.output
    assert "together failed (no memory), alone 'a'" in result.output


def test_nothing_to_compare_is_an_error(moody):
    result = moody("fails=always")
    assert result.exit_code == 2
    assert "all 12 trials failed: no memory" in result.output


def test_no_store_is_read_or_written(moody, tmp_path):
    for _ in range(2):
        moody()
    assert len(MoodyBackend.batches) == 2 * 13
    assert not list((tmp_path / "cache").rglob("*.sqlite"))


def test_trials_are_random_repeatable_and_never_show_the_query(moody, world):
    options = SessionOptions(
        dataset=PluginRef("jsonl", {"path": str(world.data)}),
        backend=PluginRef("moody"),
        prompt=PluginRef("short-answer"),
        metric=PluginRef("vqa"),
        limit=5,
    )

    def drawn(seed: int, shots: int = 3) -> list[tuple[str, tuple[str, ...]]]:
        parity = measure_parity(options, shots=shots, seed=seed)
        return [
            (pair.trial.query.id, tuple(each.id for each in pair.trial.demonstrations))
            for pair in parity.pairs
        ]

    trials = drawn(0)
    assert trials == drawn(0)
    assert trials != drawn(1)
    assert len(trials) == 10
    for (query, one), (again, other) in zip(trials[::2], trials[1::2], strict=True):
        assert query == again
        assert one[:-1] == other[:-1]
        assert one[-1] != other[-1]
        for shown in (one, other):
            assert len(set(shown)) == 3
            assert query not in shown
    # Where a query may choose as many rows as are shown, there is one trial.
    assert len(drawn(0, shots=7)) == 5


def test_more_shots_than_the_pool_has_is_an_error(moody, cli, world):
    result = cli(
        *("doctor", "--parity", "--backend", "moody", "--dataset", "jsonl", "--shots", "8"),
        *("--dataset-opt", f"path={world.data}"),
    )
    assert result.exit_code == 2
    assert "fewer than 8 shots" in result.output


# --- what is installed ---


def test_an_installation_that_is_whole(backends, cli):
    result = cli("doctor")
    assert result.exit_code == 0, result.output
    assert "nothing is broken" in result.output
    for expected in ("Python 3", "torch 2", "cpu:", " loaded", "no response is stored yet"):
        assert expected in result.output
    assert "pointer_candidates is loaded" in result.output


def test_a_plugin_that_fails_is_named(monkeypatch, cli):
    def fails(register):
        raise RuntimeError("no weights")

    install_plugin(monkeypatch, pointer_rl_register_backends=fails)
    result = cli("doctor")
    registry.cache_clear()
    assert result.exit_code == 1
    assert "BROKEN: other of other-dist 2.0 cannot be loaded: RuntimeError: no weights" in (
        result.output
    )
    assert "1 broken" in result.output


def test_a_torchvision_of_another_torch_is_named(backends, cli, tmp_path, monkeypatch):
    """transformers fails with it, in ways that do not say so."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('no operator nms')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    why = r"torchvision is installed, but cannot be imported \(no operator nms\); .*pip uninstall"
    result = cli("doctor")
    assert result.exit_code == 1
    assert re.search(why, result.output)

    def fail() -> None:
        raise ImportError("Could not import module 'AutoProcessor'")

    entry = replace(registry().find("backend", "hf"), factory=fail)
    with pytest.raises(InputError, match=why):
        ConfiguredEntry(entry, None).create()


def test_missing_packages_are_named_with_their_command(backends, cli, monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name in ("matplotlib", "pluggy"):
            raise metadata.PackageNotFoundError(name)
        return "0.9" if name == "safetensors" else "0.0.1" if name == "click" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    result = cli("doctor")
    assert result.exit_code == 1
    assert "plot lacks matplotlib: pip install 'pointer-rl[plot]'" in result.output
    assert "BROKEN: pluggy>=1.5 is missing: pip install 'pluggy>=1.5'" in result.output
    assert "BROKEN: click>=8.1 is needed, and 0.0.1 is installed" in result.output
    assert "2 broken" in result.output


def test_a_file_that_is_no_store_is_broken_and_stays_as_it_is(backends, cli, tmp_path):
    path = tmp_path / "cache" / "responses.sqlite"
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    result = cli("doctor")
    assert result.exit_code == 1
    assert "not a response cache" in result.output
    assert path.read_bytes() == before


def test_the_store_is_counted(world, cli):
    assert world.generate().exit_code == 0
    counted = cli("cache", "info").output.splitlines()[0].split(", ")[1]
    assert f"responses.sqlite: {counted}" in cli("doctor").output
    assert counted != "0 responses"


def test_options_of_parity_alone_are_refused(cli):
    result = cli("doctor", "--shots", "3")
    assert result.exit_code == 2
    assert "--shots goes with --parity" in result.output


def test_the_embedded_worlds_model_says_the_same_in_batches(cli):
    registry.cache_clear()
    result = cli("doctor", "--parity", "--limit", "3")
    assert result.exit_code == 0, result.output
    assert "No answer differs, of 6." in result.output
    [nats] = re.findall(r"differ by at most (\S+) nats", result.output)
    assert float(nats) < 1e-3
