"""Decoding against enumeration: every pointer, one query and one step at a time, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    PointerState,
    beam_search,
    greedy,
    initial_state,
    log_prob,
    sample,
)


class World:
    """A random selector with queries and pools, in float64."""

    def __init__(self, seed=0, queries=3, rows=5, history="gated", own=False, masked=False):
        generator = torch.Generator().manual_seed(seed)
        config = PointerConfig(
            d_model=6, hidden_dim=4, num_layers=1, num_heads=2, history=history, temperature=0.5
        )
        self.selector = PointerSelector.seeded(config, seed).double().eval()
        self.query = torch.randn(queries, 6, generator=generator).double()
        shape = (queries, rows, 6) if own else (rows, 6)
        self.pool = torch.randn(shape, generator=generator).double()
        self.allowed = torch.ones(queries, rows, dtype=torch.bool)
        if masked:  # another number for each query, and always two at least
            ranks = torch.rand(queries, rows, generator=generator).argsort(-1)
            self.allowed = ranks < 2 + torch.arange(queries).unsqueeze(-1) % (rows - 1)

    @property
    def state(self) -> PointerState:
        return initial_state(self.selector, self.query, self.pool, self.allowed)

    def rows(self, b):
        return self.allowed[b].nonzero().flatten().tolist()

    def rngs(self, seed=0):
        return [np.random.default_rng([seed, b]) for b in range(len(self.query))]

    @torch.no_grad()
    def step(self, b, chosen, temperature=1.0, top_p=1.0):
        """{row: probability} of the next row of one query, by the definitions."""
        pool = self.pool[b] if self.pool.dim() == 3 else self.pool
        state = initial_state(self.selector, self.query[b : b + 1], pool, self.allowed[b : b + 1])
        for row in chosen:
            state = self.selector.advance(state, torch.tensor([[row]]))
        logits = self.selector.step_logits(state)[0, 0].tolist()
        weights = {row: math.exp(each / temperature) for row, each in enumerate(logits)}
        probs = {row: each / sum(weights.values()) for row, each in weights.items() if each}
        nucleus, mass = {}, 0.0
        for row in sorted(probs, key=lambda row: (-probs[row], row)):
            if mass < top_p:
                nucleus[row] = probs[row]
                mass += probs[row]
        return {row: each / mass for row, each in nucleus.items()}

    def all_pointers(self, b, shots, **distribution):
        """{pointer: log-probability} of every pointer that can be."""
        found = {(): 0.0}
        for _ in range(shots):
            found = {
                (*pointer, row): score + math.log(probability)
                for pointer, score in found.items()
                for row, probability in self.step(b, pointer, **distribution).items()
            }
        return found


worlds = st.builds(
    World,
    seed=st.integers(0, 1000),
    queries=st.integers(1, 4),
    rows=st.integers(3, 6),
    history=st.sampled_from(["static", "gated"]),
    own=st.booleans(),
    masked=st.booleans(),
)


def naive_beams(world, b, shots, width):
    beams = {(): 0.0}
    for _ in range(shots):
        grown = {
            (*pointer, row): score + math.log(probability)
            for pointer, score in beams.items()
            for row, probability in world.step(b, pointer).items()
        }
        beams = dict(sorted(grown.items(), key=lambda each: -each[1])[:width])
    return beams


def check_beams(found, b, expected):
    """`expected` {pointer: score}, best first; beyond them nothing but -inf."""
    count = len(expected)
    assert [tuple(each) for each in found.rows[b, :count].tolist()] == list(expected)
    assert found.logprobs[b, :count].tolist() == pytest.approx(list(expected.values()), abs=1e-6)
    assert found.logprobs[b, count:].eq(-math.inf).all()


@settings(max_examples=25, deadline=None)
@given(world=worlds, shots=st.integers(1, 2), width=st.integers(1, 40))
def test_beam_search_is_the_naive_one(world, shots, width):
    found = beam_search(world.selector, world.state, shots=shots, width=width)
    assert found.rows.shape == (len(world.query), width, shots)
    for b in range(len(world.query)):
        check_beams(found, b, naive_beams(world, b, shots, width))


@pytest.mark.parametrize("history", ["static", "gated"])
def test_a_beam_as_wide_as_the_space_finds_every_pointer_in_order(history):
    world = World(seed=4, rows=5, history=history, masked=True)
    found = beam_search(world.selector, world.state, shots=2, width=25)
    for b in range(3):
        every = world.all_pointers(b, 2)
        assert len(every) == math.perm(len(world.rows(b)), 2) < 25
        check_beams(found, b, dict(sorted(every.items(), key=lambda each: -each[1])))


def test_a_beam_goes_on_to_the_last_row_of_the_pool():
    world = World(rows=4)
    found = beam_search(world.selector, world.state, shots=4, width=30)
    for b in range(3):
        every = world.all_pointers(b, 4)
        check_beams(found, b, dict(sorted(every.items(), key=lambda each: -each[1])))


def test_greedy_takes_the_likeliest_row_each_time():
    world = World(seed=2, rows=6)
    found = greedy(world.selector, world.state, shots=3)
    for b in range(3):
        pointer, score = (), 0.0
        for _ in range(3):
            probs = world.step(b, pointer)
            best = max(probs, key=probs.get)
            pointer, score = (*pointer, best), score + math.log(probs[best])
        check_beams(found, b, {pointer: score})


def test_exact_ties_go_to_the_lowest_row():
    world = World(queries=1, rows=4, history="static")
    candidates = torch.zeros(4, 4).double()  # every cosine is 0
    blocked = torch.tensor([[[False, True, False, False]]])
    tied = PointerState(candidates, torch.ones(1, 1, 4).double(), blocked)
    found = beam_search(world.selector, tied, shots=2, width=4)
    assert found.rows[0].tolist() == [[0, 2], [0, 3], [2, 0], [2, 3]]
    assert greedy(world.selector, tied, shots=3).rows.tolist() == [[[0, 2, 3]]]


@settings(max_examples=20, deadline=None)
@given(
    world=worlds,
    shots=st.integers(1, 2),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_p=st.sampled_from([0.4, 0.8, 1.0]),
)
def test_log_prob_is_that_of_the_enumeration(world, shots, temperature, top_p):
    distribution = {"temperature": temperature, "top_p": top_p}
    pointers = list(itertools.permutations(range(world.allowed.shape[1]), shots))
    rows = torch.tensor(pointers).expand(len(world.query), -1, -1)
    found = log_prob(world.selector, world.state, rows, **distribution)
    for b in range(len(world.query)):
        every = world.all_pointers(b, shots, **distribution)
        expected = [every.get(pointer, -math.inf) for pointer in pointers]
        assert found[b].tolist() == pytest.approx(expected, abs=1e-9)


def test_a_pointer_that_repeats_a_row_has_no_probability_and_finite_gradients():
    world = World()
    rows = torch.tensor([[1, 1], [1, 2]]).expand(3, -1, -1)
    found = log_prob(world.selector, world.state, rows)
    assert found[:, 0].eq(-math.inf).all()
    torch.where(found.isfinite(), found, 0.0).sum().backward()
    assert all(each.grad.isfinite().all() for each in world.selector.parameters())


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_log_prob_has_the_right_gradient(own, top_p):
    world = World(seed=1, own=own)
    rows = sample(
        world.selector, world.state, shots=2, num_samples=3, rngs=world.rngs(), top_p=top_p
    ).rows

    def total(query, pool):
        state = initial_state(world.selector, query, pool, world.allowed)
        return log_prob(world.selector, state, rows, temperature=1.3, top_p=top_p)

    inputs = (world.query.requires_grad_(), world.pool.requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)


@settings(max_examples=25, deadline=None)
@given(
    world=worlds,
    shots=st.integers(1, 2),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
    top_p=st.sampled_from([0.5, 1.0]),
)
def test_samples_keep_to_the_masks_and_record_the_log_prob_that_drew_them(
    world, shots, temperature, top_p
):
    distribution = {"temperature": temperature, "top_p": top_p}
    drawn = sample(
        world.selector, world.state, shots=shots, num_samples=6, rngs=world.rngs(), **distribution
    )
    recomputed = log_prob(world.selector, world.state, drawn.rows, **distribution)
    torch.testing.assert_close(drawn.logprobs, recomputed.float(), rtol=0, atol=1e-5)
    assert drawn.logprobs.isfinite().all()
    for b in range(len(world.query)):
        for pointer in drawn.rows[b].tolist():
            assert len(set(pointer)) == shots
            assert set(pointer) <= set(world.rows(b))


def test_in_float32_too_the_recorded_log_prob_is_the_recomputed_one():
    world = World(queries=64, rows=40)
    world.selector.float()
    world.query, world.pool = world.query.float(), world.pool.float()
    drawn = sample(world.selector, world.state, shots=3, num_samples=4, rngs=world.rngs())
    shuffled = torch.randperm(4)
    recomputed = log_prob(world.selector, world.state, drawn.rows[:, shuffled])
    torch.testing.assert_close(drawn.logprobs[:, shuffled], recomputed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("history", ["static", "gated"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.3, 1.0), (1.3, 0.8)])
def test_samples_are_as_frequent_as_they_are_probable(history, temperature, top_p):
    world = World(seed=7, queries=2, rows=4, history=history, masked=True)
    distribution = {"temperature": temperature, "top_p": top_p}
    number = 20_000
    drawn = sample(
        world.selector,
        world.state,
        shots=2,
        num_samples=number,
        rngs=world.rngs(),
        **distribution,
    )
    for b in range(2):
        every = world.all_pointers(b, 2, **distribution)
        pointers, counts = drawn.rows[b].unique(dim=0, return_counts=True)
        seen = dict(zip(map(tuple, pointers.tolist()), counts.tolist(), strict=True))
        assert seen.keys() <= every.keys()
        for pointer, score in every.items():
            probability = math.exp(score)
            deviation = math.sqrt(number * probability * (1 - probability))
            assert abs(seen.get(pointer, 0) - number * probability) <= 4.5 * deviation + 1e-6


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_a_querys_draws_do_not_depend_on_the_batch(own):
    world = World(queries=16, rows=12, own=own, masked=True)
    options = {"shots": 2, "num_samples": 5, "temperature": 1.3, "top_p": 0.9}
    together = sample(world.selector, world.state, rngs=world.rngs(), **options)
    for b in range(16):
        state = initial_state(
            world.selector,
            world.query[b : b + 1],
            world.pool[b : b + 1] if own else world.pool,
            world.allowed[b : b + 1],
        )
        alone = sample(world.selector, state, rngs=world.rngs()[b : b + 1], **options)
        assert torch.equal(alone.rows[0], together.rows[b])
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[b], rtol=0, atol=1e-6)


def test_a_query_takes_one_uniform_a_sample_and_shot():
    world = World()
    used, expected = world.rngs(), world.rngs()
    sample(world.selector, world.state, shots=2, num_samples=7, rngs=used)
    for one, other in zip(used, expected, strict=True):
        other.random((7, 2))
        assert one.random() == other.random()


def test_more_samples_leave_the_first_as_they_were():
    world = World(rows=12)
    few, many = (
        sample(world.selector, world.state, shots=3, num_samples=number, rngs=world.rngs())
        for number in (4, 9)
    )
    assert torch.equal(few.rows, many.rows[:, :4])


class Constant:
    """A generator that always gives the same uniform."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, shape):
        return np.full(shape, self.value)


def test_the_extreme_uniforms_draw_the_first_and_the_last_row_that_may_be_chosen():
    world = World(queries=1, rows=6)
    world.allowed = torch.tensor([[False, True, False, True, True, False]])
    for value, pointer in ((0.0, [1, 3]), (np.nextafter(1.0, 0.0), [4, 3])):
        drawn = sample(world.selector, world.state, shots=2, num_samples=2, rngs=[Constant(value)])
        assert drawn.rows[0].tolist() == [pointer, pointer]


@pytest.mark.parametrize(
    "decode",
    [
        lambda world, shots: greedy(world.selector, world.state, shots=shots),
        lambda world, shots: beam_search(world.selector, world.state, shots=shots, width=2),
        lambda world, shots: sample(
            world.selector, world.state, shots=shots, num_samples=1, rngs=world.rngs()
        ),
        lambda world, shots: log_prob(
            world.selector, world.state, torch.zeros(3, 1, shots, dtype=torch.int64)
        ),
    ],
    ids=["greedy", "beam_search", "sample", "log_prob"],
)
def test_more_shots_than_allowed_rows_are_refused_by_number(decode):
    world = World(rows=5)
    world.allowed[1, :3] = False
    decode(world, 2)
    with pytest.raises(
        InputError, match=r"^query 1 of the batch: 2 rows .* allowed and 3 are want"
    ):
        decode(world, 3)
    with pytest.raises(InputError, match="shots is 0"):
        decode(world, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_sampling_options_that_cannot_be_are_refused(options, message):
    world = World()
    with pytest.raises(InputError, match=message):
        sample(
            world.selector,
            world.state,
            rngs=world.rngs(),
            **{"shots": 1, "num_samples": 1, **options},
        )
    with pytest.raises(InputError, match="width is 0"):
        beam_search(world.selector, world.state, shots=1, width=0)
