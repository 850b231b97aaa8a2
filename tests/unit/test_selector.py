"""The selector against the ancestor's recorded values and against nn.MultiheadAttention."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy, gelu, logsigmoid, normalize
from toy_selectors import perturbed

from pointer_rl.errors import InputError
from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    PointerState,
    SequentialConfig,
    SequentialSelector,
    initial_state,
    log_prob,
)

DATA = Path(__file__).parents[1] / "data"


class Reference:
    """One of the ancestor's recordings: a selector with its weights, inputs and outputs."""

    def __init__(self, name: str) -> None:
        with safe_open(DATA / f"selector_{name}.safetensors", "pt") as file:
            sizes, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.tensors = tensors
        self.selector = PointerSelector(
            PointerConfig(
                d_model=int(sizes["d_model"]),
                hidden_dim=int(sizes["hidden_dim"]),
                num_layers=int(sizes["num_layers"]),
                num_heads=int(sizes["num_heads"]),
                history="gated",
                temperature=float(sizes["temperature"]),
            )
        ).eval()
        prefix = "weights."
        self.selector.load_state_dict(
            {key.removeprefix(prefix): each for key, each in tensors.items() if prefix in key}
        )

    def encode(self) -> PointerState:
        return initial_state(self.selector, self.tensors["query"], self.tensors["candidates"])


@pytest.fixture(params=["a", "b"])
def reference(request):
    return Reference(request.param)


def expect_logits(ours, theirs):
    """Rows already chosen are -inf here and -100 there."""
    assert torch.equal(ours == -torch.inf, theirs == -100)
    torch.testing.assert_close(ours.nan_to_num(neginf=-100), theirs, rtol=0, atol=1e-5)


def test_logits_with_forced_labels_are_the_ancestors(reference):
    labels = reference.tensors["labels"]
    state = reference.encode()
    for step in range(labels.shape[1]):
        logits = reference.selector.step_logits(state)[:, 0]
        expect_logits(logits, reference.tensors["teacher_forced_logits"][:, step])
        state = reference.selector.advance(state, labels[:, step : step + 1])


def test_greedy_logits_and_pointers_are_the_ancestors(reference):
    pointers = reference.tensors["greedy_pointers"]
    state = reference.encode()
    for step in range(pointers.shape[1]):
        logits = reference.selector.step_logits(state)[:, 0]
        expect_logits(logits, reference.tensors["greedy_logits"][:, step])
        assert torch.equal(logits.argmax(-1), pointers[:, step])
        state = reference.selector.advance(state, pointers[:, step : step + 1])


def test_group_log_probs_are_the_ancestors(reference):
    found = log_prob(reference.selector, reference.encode(), reference.tensors["group_pointers"])
    torch.testing.assert_close(found, reference.tensors["group_log_probs"], rtol=0, atol=1e-5)


def test_log_prob_is_the_cross_entropy_of_the_forced_logits(reference):
    labels = reference.tensors["labels"]
    expected = -cross_entropy(
        reference.tensors["teacher_forced_logits"].flatten(0, 1),
        labels.flatten(),
        reduction="none",
    ).view(labels.shape)
    found = log_prob(reference.selector, reference.encode(), labels.unsqueeze(1))
    torch.testing.assert_close(found[:, 0], expected.sum(-1), rtol=0, atol=1e-5)


def config(**changes):
    defaults = {"d_model": 12, "hidden_dim": 8, "num_layers": 2, "num_heads": 2, "history": "gated"}
    return PointerConfig(**{**defaults, **changes})


def make(history="gated", **changes):
    """A `pointer` with this history, or the `sequential` selector."""
    if history == "sequential":
        sizes = {"d_model": 12, "hidden_dim": 8, "num_layers": 2, "num_heads": 2, **changes}
        return SequentialSelector.seeded(SequentialConfig(**sizes), 0)
    return PointerSelector.seeded(config(history=history, **changes), 0)


def naive_logits(selector, query, pool, chosen):
    """By the definitions, with PyTorch's own attention, for one query: [d], [K, d] → [K].

    With `stop`, [K + 1]: the last is that of the stop.
    """
    x, rows = selector.input_proj(query)[None, None], selector.input_proj(pool)[None]
    for layer, norm in zip(selector.cross_attn_layers, selector.attn_norms, strict=True):
        attention = nn.MultiheadAttention(x.shape[-1], layer.num_heads, batch_first=True).double()
        attention.load_state_dict(layer.state_dict())
        x = norm(x + attention(x, rows, rows)[0])
    x = x[0, 0]
    state = normalize(selector.query_proj(x), dim=0)
    candidates = normalize(selector.cand_proj(rows[0]), dim=1)
    for row in chosen:
        if selector.name == "sequential":
            inner = gelu(selector.history_in(torch.cat([x, candidates[row]])))
            x = x + selector.history_out(inner)
            state = normalize(selector.query_proj(x), dim=0)
        elif selector.config.history == "gated":
            pair = torch.cat([state, candidates[row]])
            gate = torch.sigmoid(selector.query_update_gate(pair))
            state = normalize(gate * state + (1 - gate) * candidates[row], dim=0)
    logits = candidates @ state / selector.config.temperature
    logits[chosen] = -torch.inf
    if not selector.config.stop:
        return logits
    start, by_row = selector.stop(state)
    odds = (start + len(chosen) * by_row) / selector.config.temperature
    return torch.cat([logsigmoid(-odds) + logits.log_softmax(0), logsigmoid(odds)[None]])


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("history", ["static", "gated", "sequential"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("num_heads", [1, 2, 8])
@pytest.mark.parametrize("d_model", [8, 12])
def test_each_step_equals_the_naive_forward_pass(history, own, num_heads, d_model, stop):
    """Up to a constant, with `stop`: then they are compared as log-probabilities."""
    torch.manual_seed(3)
    sizes = {"d_model": d_model, "num_heads": num_heads, "stop": stop}
    selector = perturbed(make(history, **sizes).double())
    query = torch.randn(3, d_model).double()
    pool = torch.randn(3, 6, d_model).double() if own else torch.randn(6, d_model).double()
    # Two hypotheses have fewer rows than the pool, seven have more: both forms of the gate.
    for hypotheses in (1, 7):
        rows = torch.rand(3, hypotheses, 6).argsort(-1)[..., :3]
        state = initial_state(selector, query, pool)
        for step in range(3):
            logits = selector.step_logits(state).expand(-1, hypotheses, -1)
            if stop:
                stops = selector.stop_logit(state).expand(-1, hypotheses).unsqueeze(-1)
                logits = torch.cat([logits, stops], dim=-1).log_softmax(-1)
            for b in range(3):
                for n in range(hypotheses):
                    expected = naive_logits(
                        selector, query[b], pool[b] if own else pool, rows[b, n, :step].tolist()
                    )
                    torch.testing.assert_close(logits[b, n], expected, rtol=0, atol=1e-10)
            state = selector.advance(state, rows[..., step])


def test_float32_stays_within_1e5_of_float64():
    torch.manual_seed(0)
    sizes = config(d_model=256, hidden_dim=256, num_layers=3, num_heads=4)
    selector = PointerSelector.seeded(sizes, 0).eval()
    query, pool = torch.randn(16, 256), torch.randn(16, 64, 256)
    single = selector.step_logits(initial_state(selector, query, pool))
    selector.double()
    double = selector.step_logits(initial_state(selector, query.double(), pool.double()))
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_a_shared_pool_is_projected_once():
    selector = PointerSelector.seeded(config(), 0)
    shapes = []
    for module in (selector.input_proj, selector.cand_proj):
        module.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    initial_state(selector, torch.randn(5, 12), torch.randn(7, 12))
    assert sorted(shapes) == [(5, 12), (7, 8), (7, 12)]


def test_rows_that_are_not_allowed_or_chosen_are_minus_infinity():
    selector = PointerSelector.seeded(config(), 0)
    allowed = torch.tensor([[True, False, True, True], [True, True, True, False]])
    state = initial_state(selector, torch.randn(2, 12), torch.randn(4, 12), allowed)
    first = selector.step_logits(state)
    assert torch.equal(first[:, 0].isfinite(), allowed)
    after = selector.step_logits(selector.advance(state, torch.tensor([[0, 3], [1, 0]])))
    closed = (~after.isfinite()).nonzero().tolist()
    assert closed == [
        [0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 3], [1, 0, 1], [1, 0, 3], [1, 1, 0], [1, 1, 3]
    ]  # fmt: skip
    assert torch.equal(selector.step_logits(state), first), "advance changed the state it was given"


def test_static_history_scores_every_step_alike():
    selector = perturbed(PointerSelector.seeded(config(history="static"), 0))
    state = initial_state(selector, torch.randn(2, 12), torch.randn(4, 12))
    first = selector.step_logits(state)
    second = selector.step_logits(selector.advance(state, torch.tensor([[2], [2]])))
    kept = [0, 1, 3]
    assert torch.equal(first[..., kept], second[..., kept])


def test_an_untrained_sequential_selector_scores_as_the_static_one():
    query, pool = torch.randn(3, 12), torch.randn(7, 12)
    rows, found = torch.tensor([[1, 4], [0, 2], [6, 5]]), []
    for history in ("static", "sequential"):
        selector = make(history)
        state = selector.advance(initial_state(selector, query, pool), rows)
        found.append(selector.step_logits(state))
    assert torch.equal(*found)


@pytest.mark.parametrize("history", ["static", "gated", "sequential"])
@pytest.mark.parametrize("size", [3, 500])
def test_an_untrained_selector_stops_with_a_small_probability_whatever_the_pool(history, size):
    selector = make(history, stop=True)
    state = initial_state(selector, torch.randn(2, 12), torch.randn(size, 12))
    for _ in range(2):
        rows, stop = selector.step_logits(state), selector.stop_logit(state)
        share = torch.cat([rows, stop.unsqueeze(-1).expand(-1, rows.shape[1], -1)], -1).softmax(-1)
        torch.testing.assert_close(share[..., -1], torch.full_like(share[..., -1], 0.05))
        state = selector.advance(state, torch.tensor([[0], [1]]))


@pytest.mark.parametrize("history", ["static", "gated", "sequential"])
def test_the_option_stop_changes_no_other_weight(history):
    without, with_stop = (make(history, stop=stop).state_dict() for stop in (False, True))
    assert with_stop.keys() - without.keys() == {"stop.weight", "stop.bias"}
    assert all(torch.equal(with_stop[name], without[name]) for name in without)


def test_parameters_have_the_ancestors_names():
    names = set(PointerSelector.seeded(config(num_layers=1), 0).state_dict())
    attention = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert names == {
        "input_proj.weight",
        *(f"cross_attn_layers.0.{each}" for each in attention),
        "attn_norms.0.weight",
        "attn_norms.0.bias",
        "query_proj.weight",
        "cand_proj.weight",
        "query_update_gate.weight",
        "query_update_gate.bias",
    }
    bare = set(PointerSelector.seeded(config(d_model=8, history="static"), 0).state_dict())
    assert not any(name.startswith(("input_proj", "query_update_gate")) for name in bare)


def test_initialisation():
    selector = PointerSelector.seeded(config(d_model=32, hidden_dim=64), 0)
    for projection in (selector.query_proj, selector.cand_proj):
        noise = projection.weight.detach() - torch.eye(64)
        assert 0.009 < float(noise.std()) < 0.011
    for weight in (selector.input_proj.weight, selector.query_update_gate.weight):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound
    assert not selector.query_update_gate.bias.any()


def test_the_seed_alone_decides_the_weights_and_the_global_state_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = PointerSelector.seeded(config(), 5).state_dict()
    assert torch.equal(torch.rand(1), expected)
    two, other = (PointerSelector.seeded(config(), seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["query_proj.weight"], other["query_proj.weight"])


def test_dropout_acts_in_training_alone():
    selector = PointerSelector.seeded(config(dropout=0.5), 0)
    query, pool = torch.randn(2, 12), torch.randn(4, 12)

    def logits():
        return selector.step_logits(initial_state(selector, query, pool))

    assert not torch.equal(logits(), logits())
    selector.eval()
    assert torch.equal(logits(), logits())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_embeddings_that_are_not_finite_are_refused_by_row(bad):
    selector = PointerSelector.seeded(config(), 0)
    query, pool, own = torch.randn(3, 12), torch.randn(5, 12), torch.randn(3, 5, 12)
    pool[4, 7] = own[2, 1, 0] = bad
    with pytest.raises(InputError, match=r"^pool embeddings, row 4: .*not.*finite"):
        initial_state(selector, query, pool)
    with pytest.raises(InputError, match=r"^pool embeddings, row 2, 1: "):
        initial_state(selector, query, own)
    query[1, 0] = bad
    with pytest.raises(InputError, match=r"^query embeddings, row 1: "):
        initial_state(selector, query, torch.randn(5, 12))


def test_embeddings_of_another_encoder_are_refused():
    selector = PointerSelector.seeded(config(), 0)
    with pytest.raises(InputError, match=r"pool embeddings have 9 values a row.*takes 12"):
        initial_state(selector, torch.randn(3, 12), torch.randn(5, 9))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 3},
        {"num_layers": 0},
        {"history": "lstm"},
        {"temperature": 0.0},
        {"dropout": 1.0},
    ],
)
def test_configurations_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes)).replace("num_heads", "heads")):
        dataclasses.replace(config(), **changes)
