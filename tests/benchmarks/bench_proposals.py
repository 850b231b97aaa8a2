"""Proposals for 256 queries: batched, against a loop over queries, beams, samples and steps.

    python tests/benchmarks/bench_proposals.py

The loop is the seed guide's: every step of every beam and sample is a separate forward pass, which
encodes the pool again and replays the rows chosen so far. Both give 5 beams and 2 samples at each
of two temperatures, 2 shots, from a pool of 64 rows of 256 values; both must find the same
pointers.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    beam_search,
    initial_state,
    sample,
)

QUERIES, POOL, D, HIDDEN = 256, 64, 256, 256
SHOTS, WIDTH, SAMPLES, TEMPERATURES = 2, 5, 2, (1.0, 1.3)
REPEATS = {"loop": 3, "batched": 15}
GOALS = {"shared": 100, "own": 15}


@dataclass
class Proposed:
    beams: Tensor  # [B, WIDTH, SHOTS]
    beam_logprobs: Tensor  # [B, WIDTH]
    samples: Tensor  # [B, 2 * SAMPLES, SHOTS]


class LoopSelector:
    """The ancestor's arithmetic as written: nn.MultiheadAttention, one query at a time."""

    def __init__(self, selector: PointerSelector) -> None:
        self.selector = selector
        self.attention = [
            nn.MultiheadAttention(HIDDEN, layer.num_heads, batch_first=True).eval()
            for layer in selector.cross_attn_layers
        ]
        for ours, layer in zip(self.attention, selector.cross_attn_layers, strict=True):
            ours.load_state_dict(layer.state_dict())

    def compute_step_logits(self, query: Tensor, pool: Tensor, chosen: list[int]) -> Tensor:
        selector = self.selector
        x, rows = selector.input_proj(query)[None, None], selector.input_proj(pool)[None]
        for attention, norm in zip(self.attention, selector.attn_norms, strict=True):
            x = norm(x + attention(x, rows, rows)[0])
        state = normalize(selector.query_proj(x)[0], dim=-1)
        candidates = normalize(selector.cand_proj(rows)[0], dim=-1)
        for row in chosen:
            last = candidates[row : row + 1]
            gate = torch.sigmoid(selector.query_update_gate(torch.cat([state, last], dim=-1)))
            state = normalize(gate * state + (1 - gate) * last, dim=-1)
        logits = (state @ candidates.T)[0] / selector.config.temperature
        logits[chosen] = -torch.inf
        return logits

    def beam(self, query: Tensor, pool: Tensor) -> list[tuple[float, list[int]]]:
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(SHOTS):
            grown = []
            for score, chosen in beams:
                logp = self.compute_step_logits(query, pool, chosen).log_softmax(-1)
                best = logp.topk(WIDTH)
                for value, row in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    grown.append((score + value, [*chosen, row]))
            beams = sorted(grown, key=lambda beam: -beam[0])[:WIDTH]
        return beams

    def sample(self, query: Tensor, pool: Tensor, temperature: float, draws: Tensor) -> list[int]:
        chosen: list[int] = []
        for uniform in draws:
            logits = self.compute_step_logits(query, pool, chosen)
            cdf = (logits.double() / temperature).softmax(-1).cumsum(-1)
            chosen.append(int(torch.searchsorted(cdf, uniform * cdf[-1], right=True)))
        return chosen


def propose_loop(
    selector: PointerSelector, queries: Tensor, pools: Tensor, rngs: list[np.random.Generator]
) -> Proposed:
    loop = LoopSelector(selector)
    beams, samples = [], []
    for b, query in enumerate(queries):
        pool = pools if pools.dim() == 2 else pools[b]
        beams.append(loop.beam(query, pool))
        draws = torch.from_numpy(rngs[b].random((len(TEMPERATURES), SAMPLES, SHOTS)))
        samples.append(
            [
                loop.sample(query, pool, temperature, draws[t, n])
                for t, temperature in enumerate(TEMPERATURES)
                for n in range(SAMPLES)
            ]
        )
    return Proposed(
        torch.tensor([[rows for _, rows in each] for each in beams]),
        torch.tensor([[score for score, _ in each] for each in beams]),
        torch.tensor(samples),
    )


def propose_batched(
    selector: PointerSelector, queries: Tensor, pools: Tensor, rngs: list[np.random.Generator]
) -> Proposed:
    state = initial_state(selector, queries, pools)
    found = beam_search(selector, state, shots=SHOTS, width=WIDTH)
    samples = [
        sample(
            selector,
            state,
            shots=SHOTS,
            num_samples=SAMPLES,
            rngs=rngs,
            temperature=temperature,
        ).rows
        for temperature in TEMPERATURES
    ]
    return Proposed(found.rows, found.logprobs, torch.cat(samples, dim=1))


def timed(
    run: Callable[[list[np.random.Generator]], Proposed], repeats: int
) -> tuple[float, Proposed]:
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        rngs = [np.random.default_rng(seed) for seed in range(QUERIES)]
        start = time.perf_counter()
        result = run(rngs)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), result


def gigaflops_needed(own: bool) -> float:
    """Multiply-adds (as two) of the projections that cannot be avoided."""
    chosen = POOL if not own else QUERIES * (WIDTH + SAMPLES * len(TEMPERATURES))
    pool = POOL * (QUERIES if own else 1) * HIDDEN * HIDDEN  # candidates' projection
    encode = QUERIES * 5 * HIDDEN * HIDDEN  # the query: four of attention, and its own
    gates = (QUERIES + chosen) * HIDDEN * HIDDEN
    return 2e-9 * (pool + encode + gates)


def gigaflops_per_second() -> float:
    """What this machine reaches in a large matrix product."""
    left, right = torch.randn(QUERIES * POOL, HIDDEN), torch.randn(HIDDEN, HIDDEN)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2e-9 * QUERIES * POOL * HIDDEN * HIDDEN / statistics.median(seconds)


@torch.no_grad()
def main() -> None:
    config = PointerConfig(d_model=D, hidden_dim=HIDDEN, num_layers=1, num_heads=1, history="gated")
    selector = PointerSelector.seeded(config, 0).eval()
    random = torch.Generator().manual_seed(1)
    queries = torch.randn(QUERIES, D, generator=random)
    speed = gigaflops_per_second()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {speed:.0f} GFLOP/s in a matrix product; {QUERIES} queries, "
        f"{WIDTH} beams + {len(TEMPERATURES)}x{SAMPLES} samples, {SHOTS} shots, pool {POOL}"
    )
    for name, shape in (("shared", (POOL, D)), ("own", (QUERIES, POOL, D))):
        pools = torch.randn(*shape, generator=random)
        slow, wanted = timed(
            lambda rngs, p=pools: propose_loop(selector, queries, p, rngs), REPEATS["loop"]
        )
        fast, found = timed(
            lambda rngs, p=pools: propose_batched(selector, queries, p, rngs), REPEATS["batched"]
        )
        assert torch.equal(found.beams, wanted.beams), "the beams differ"
        assert torch.equal(found.samples, wanted.samples), "the samples differ"
        error = float((found.beam_logprobs - wanted.beam_logprobs).abs().max())
        assert error < 1e-5, error
        needed = gigaflops_needed(name == "own")
        print(
            f"{name:>6} pool: loop {slow * 1e3:7.1f} ms, batched {fast * 1e3:6.1f} ms, "
            f"{slow / fast:5.0f}x (goal {GOALS[name]}x); limit {needed:.2f} GFLOP = "
            f"{needed / speed * 1e3:.1f} ms; log-probabilities within {error:.0e}"
        )


if __name__ == "__main__":
    main()
