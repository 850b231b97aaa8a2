"""The policy on a GPU: the same proposals as on the CPU. Skips itself without CUDA."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointer_rl.selectors import PointerConfig, PointerSelector, SelectorPolicy
from pointer_rl.testing import batch, example, pool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIG = PointerConfig(d_model=16, hidden_dim=32, num_layers=2, num_heads=2, history="gated")


def test_beams_and_samples_are_those_of_the_cpu():
    selector = PointerSelector.seeded(CONFIG, 0)
    queries = batch([example(100 + row) for row in range(8)], 40, shots=3, dim=16)
    candidates = pool([example(row) for row in range(40)], dim=16)
    on_cpu, on_gpu = SelectorPolicy(selector), SelectorPolicy(selector, "cuda")
    assert on_cpu.hash == on_gpu.hash

    def rngs():
        return [np.random.default_rng(row) for row in range(8)]

    for one, other in (
        (on_cpu.beam(queries, candidates, 4), on_gpu.beam(queries, candidates, 4)),
        (
            on_cpu.sample(queries, candidates, 4, rngs(), 1.3),
            on_gpu.sample(queries, candidates, 4, rngs(), 1.3),
        ),
    ):
        assert other.rows.device.type == "cpu"
        assert torch.equal(one.rows, other.rows)
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)
