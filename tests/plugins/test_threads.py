"""The CPU threads of torch while a backend runs, and outside."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pointer_rl.errors import InputError
from pointer_rl.local.threads import SMALL, choose_threads, run_in_threads
from pointer_rl.session.judge import Trial
from pointer_rl.session.session import PluginRef, Session, SessionOptions

OWN = 3
"""Torch's own number here."""


@pytest.fixture(autouse=True)
def own_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(OWN)
    yield
    torch.set_num_threads(before)


def threads_of(backend, **options):
    """Those of the model's forward passes, for an answer of the glyph model."""
    session = Session(
        SessionOptions(
            dataset=PluginRef("glyphs", {"train_size": 4, "pool_size": 8}),
            backend=PluginRef(backend, {"device": "cpu", **options}),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
        )
    )
    judge = session.judge()
    seen = set()
    hook = register_module_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    try:
        for _ in judge.judge([Trial(query, ()) for query in session.queries[:1]]):
            assert torch.get_num_threads() == OWN, "outside nothing changes"
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("backend", ["qwen2vl", "hf"])
def test_a_small_model_runs_on_one_thread_and_the_option_wins(backend):
    assert threads_of(backend) == {1}
    assert threads_of(backend, threads=2) == {2}
    with pytest.raises(InputError, match="threads must be at least 1"):
        threads_of(backend, threads=0)


def test_larger_models_and_the_environment_keep_torchs_own(monkeypatch):
    class Model(torch.nn.Linear):
        device = torch.device("meta")

    small, large = (Model(1, size, bias=False, device="meta") for size in (SMALL - 1, SMALL))
    assert choose_threads(small, None) is None, "it is not on a CPU"
    Model.device = torch.device("cpu")
    assert choose_threads(small, None) == 1
    assert choose_threads(large, None) is None
    assert choose_threads(large, 2) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(small, None) is None
    assert choose_threads(small, 3) == 3


def test_threads_are_restored_after_each_result_and_an_error():
    def results():
        for _ in range(2):
            yield torch.get_num_threads()
        raise ValueError("broken")

    running = run_in_threads(results(), 2)
    for _ in range(2):
        assert next(running) == 2
        assert torch.get_num_threads() == OWN
    with pytest.raises(ValueError, match="broken"):
        next(running)
    assert torch.get_num_threads() == OWN
