"""Arms, trials and conclusions, with a backend that copies and a world small enough to count."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_selectors import ToyConfig, ToySelector

from pointer_rl.errors import InputError, PluginError
from pointer_rl.evaluate import arms as arms_module
from pointer_rl.evaluate.arms import (
    Arm,
    AttainableArm,
    NumberArm,
    OracleArm,
    PolicyArm,
    RandomArm,
    Setting,
    SimilarityArm,
    Training,
    VoteArm,
    ZeroShotArm,
    choose,
    majority,
)
from pointer_rl.evaluate.conclusions import conclude
from pointer_rl.evaluate.evaluation import Evaluation, Leakage
from pointer_rl.evaluate.measure import Asked, EvaluationJob, Measured, measure, pointers_to_ask
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.session.judge import Judge
from pointer_rl.session.observer import Observer
from pointer_rl.session.similarity import Space
from pointer_rl.session.windows import windows_of
from pointer_rl.testing import EqualMetric, FakeBackend, PlainPrompt, example
from pointer_rl.types import BackendError, Decoded, Pool

QUERIES = [example(row, str(row % 2), id=f"q{row}") for row in range(6)]
POOL = [example(100 + row, str(row % 2)) for row in range(8)]


class Odd:
    """A policy that chooses the highest allowed rows, in falling order."""

    def beam(self, queries, pool, width):
        assert width == 1
        rows = [mask.nonzero().flatten().flip(0)[: queries.shots] for mask in queries.allowed]
        return Decoded(torch.stack(rows).unsqueeze(1), torch.zeros(len(rows), 1))


def space(seed=0, pool=POOL):
    generator = torch.Generator().manual_seed(seed)
    of_queries, of_pool = (torch.randn(n, 4, generator=generator) for n in (6, len(pool)))
    return Space(of_queries, Pool(pool, of_pool))


def make_arms(oracle_random=4, oracle_retrieval=2):
    return {
        "zero-shot": ZeroShotArm(),
        "random": RandomArm(3),
        "image": SimilarityArm("image"),
        "mixed": SimilarityArm("mixed"),
        "RL": PolicyArm([Odd()]),
        "vote mixed": VoteArm("mixed"),
        "vote RL": VoteArm("RL"),
        "oracle": OracleArm(oracle_random, oracle_retrieval),
    }


LEARNED = [example(200 + row, str(row % 2)) for row in range(20)]


def training(answer=None, load=lambda: LEARNED, pool=POOL):
    """Twenty queries to learn from, asked of a model that copies the demonstration shown last."""
    judge = Judge(
        prompt=PlainPrompt(), backend=FakeBackend(answer or copying), metric=EqualMetric()
    )
    return Training(
        load=load,
        pool=pool,
        metric=judge.metric,
        embed=lambda queries: torch.eye(4)[[int(query.answer) for query in queries]],
        judge=judge.judge,
    )


def setting(shots=2, pool=POOL, **more):
    similar = {"image": space(1), "mixed": space(2)}
    defaults = {"queries": QUERIES, "seed": 0, "space": space(), "similar": similar}
    defaults["training"] = training(pool=pool)
    return Setting(shots=shots, **{**defaults, **more})


def chosen(shots=2, oracle_random=4, oracle_retrieval=2, **more):
    arms = make_arms(oracle_random, oracle_retrieval)
    return choose(setting(shots, **more), arms).chosen


def ask(settings, backend):
    """What the backend answers in these settings, through the job of an evaluation."""
    examples = settings[0].queries
    session = SimpleNamespace(
        dataset=SimpleNamespace(pool=POOL),
        observer=Observer(),
        judge=lambda: Judge(prompt=PlainPrompt(), backend=backend, metric=EqualMetric()),
    )
    job = EvaluationJob(session=session, queries=examples, pointers=pointers_to_ask(settings))
    asked = Asked()
    for window in windows_of(range(len(examples)), 4):
        for query, record in job.run(window).items():
            asked.add(query, record)
    return asked


# --- what is shown --------------------------------------------------------------------------------


def test_every_arm_shows_what_its_name_says():
    found = chosen()
    assert list(found) == ["random", "image", "mixed", "RL", "vote mixed", "vote RL", "oracle"]
    assert chosen(shots=0) == {"zero-shot": [((),)] * len(QUERIES)}
    for pointers in found.values():
        assert len(pointers) == len(QUERIES)
    assert all(len(each) == 3 for each in found["random"])
    assert found["RL"] == [((7, 6),)] * 6
    for name, at in (("image", space(1)), ("mixed", space(2))):
        cosine = torch.cosine_similarity(at.queries[:, None], at.pool.embeddings[None], dim=-1)
        nearest = cosine.argsort(dim=1, descending=True)[:, :2].flip(1)  # most similar last
        assert found[name] == [(tuple(rows),) for rows in nearest.tolist()]


def test_the_oracle_is_of_a_fixed_size_whatever_arms_run():
    pointers = chosen(oracle_random=4, oracle_retrieval=2)["oracle"]
    assert all(len(of_query) == 6 for of_query in pointers)
    arms = {"oracle": OracleArm(4, 2)}
    assert choose(setting(), arms).chosen["oracle"] == pointers
    assert [len(each) for each in chosen(oracle_random=0)["oracle"]] == [2] * 6
    assert [len(each) for each in chosen(oracle_retrieval=0)["oracle"]] == [4] * 6


def test_attainable_shows_one_allowed_row_of_each_set_that_the_dataset_knows():
    pool = [*POOL[:7], example(9, "0", image=QUERIES[3].image)]
    relevant = [
        [[5, 2, 1], [6, 0]],
        [[4], []],  # nothing in the pool has the other half
        [],
        [[7, 6], [7, 3]],  # row 7 has the query's own image
        [[0, 1], [0, 2]],  # row 0 is both
        [[3], [2], [1]],  # more sets than shots
    ]
    at = setting(pool=pool, space=space(pool=pool), relevant=relevant)
    assert choose(at, {"attainable": AttainableArm()}).chosen["attainable"] == [
        ((5, 6),), ((4,),), ((),), ((6, 3),), ((0,),), ((3, 2),),
    ]  # fmt: skip
    with pytest.raises(InputError, match="arm attainable: the dataset does not know"):
        choose(setting(), {"attainable": AttainableArm()})


def test_random_pointers_depend_on_nothing_but_seed_and_query(monkeypatch):
    found = chosen()["random"]
    monkeypatch.setattr(arms_module, "WINDOW", 4)
    assert chosen()["random"] == found
    assert chosen(seed=1)["random"] != found
    assert len({pointer for each in found for pointer in each}) > 10


def test_no_arm_shows_a_query_its_own_image():
    pool = [*POOL[:7], example(9, "0", image=QUERIES[3].image)]
    mine = space(pool=pool)
    arms = {**make_arms(8, 8), "random": RandomArm(8)}
    about = {"pool": pool, "space": mine, "similar": {"image": mine, "mixed": mine}}
    found = pointers_to_ask([choose(setting(**about), arms)])
    assert all(7 not in pointer for pointer in found[3])
    assert any(7 in pointer for pointer in found[2])


def test_an_arm_that_cannot_choose_is_named():
    class Refusing:
        def beam(self, *_):
            raise InputError("embeddings of 8 dimensions")

    with pytest.raises(InputError, match=r"arm RL: embeddings of 8 dimensions"):
        choose(setting(), {"RL": PolicyArm([Refusing()])})
    with pytest.raises(InputError, match=r"arm x: no similarity 'text' \(there are: image, mixed"):
        choose(setting(), {"x": SimilarityArm("text")})


@pytest.mark.parametrize(
    ("pointers", "says"),
    [
        ([((0, 1),)] * 5, "arm mine proposed for 5 of 6 queries"),
        ([((0, 1),)] * 3 + [((7, 1),)] + [()] * 2, r"arm mine, query q3: proposed \[7, 1\]"),
        ([((0, 0),)] * 6, r"query q0: proposed \[0, 0\]; a pointer is up to 2 different rows"),
        ([((0, 1, 2),)] * 6, "up to 2 different rows"),
        ([((0, 8),)] * 6, "up to 2 different rows"),
    ],
)
def test_an_arm_shows_only_what_a_query_may_see(pointers, says):
    class Mine(Arm):
        def choose(self, setting):
            return pointers

    pool = [*POOL[:7], example(9, "0", image=QUERIES[3].image)]
    with pytest.raises(PluginError, match=says):
        choose(setting(pool=pool), {"mine": Mine()})


def test_a_policy_that_stops_shows_fewer_demonstrations():
    class Stopping:
        def beam(self, queries, pool, width):
            rows = torch.tensor([[[3, -1]]]).expand(len(queries.examples), 1, 2)
            return Decoded(rows, torch.zeros(len(rows), 1))

    assert PolicyArm([Stopping()]).choose(setting()) == [((3,),)] * 6


class One:
    """A policy that chooses row 1."""

    def beam(self, queries, pool, width):
        rows = torch.tensor([[[1, -1]]]).expand(len(queries.examples), 1, 2)
        return Decoded(rows, torch.zeros(len(rows), 1))


def test_the_seeds_of_a_training_are_one_arm_whose_accuracy_is_their_mean():
    def measured(*policies):
        arms = {"RL": PolicyArm(policies), "vote RL": VoteArm("RL")}
        at = choose(setting(), arms)
        return at, measure(at, arms, ask([at], FakeBackend(copying)), EqualMetric())

    (at, both), (_, first), (_, second) = (
        measured(*policies) for policies in ([Odd(), One()], [Odd()], [One()])
    )
    assert at.chosen["RL"] == [((7, 6), (1,))] * 6
    assert first.accuracies["RL"].tolist() == [1, 0] * 3
    assert second.accuracies["RL"].tolist() == [0, 1] * 3
    assert both.by_seed["RL"].tolist() == [[1, 0] * 3, [0, 1] * 3]
    assert both.seeds("RL") == [0.5, 0.5]
    assert (first.by_seed, first.seeds("RL")) == ({}, [])
    for name in ("RL", "vote RL"):
        mean = (first.accuracies[name] + second.accuracies[name]) / 2
        assert both.accuracies[name].tolist() == mean.tolist()


def test_an_arm_with_seeds_shows_one_pointer_for_each():
    class Mine(Arm):
        seeds = 2

        def choose(self, setting):
            return [((0,), (1,))] * 5 + [((0,),)]

    at = choose(setting(), {"mine": Mine()})
    with pytest.raises(PluginError, match="mine does not show a query one pointer for each seed"):
        measure(at, {"mine": Mine()}, ask([at], FakeBackend(copying)), EqualMetric())


def test_only_an_arm_that_nobody_named_may_be_missing():
    class Refusing(Arm):
        def choose(self, setting):
            raise InputError("no labels")

    at = choose(setting(), {"mine": Refusing(), "RL": PolicyArm([Odd()])}, optional={"mine"})
    assert at.left_out == {"mine": "no labels"}
    assert at.chosen.keys() == {"RL"}
    with pytest.raises(InputError, match="arm mine: no labels"):
        choose(setting(), {"mine": Refusing()})


def test_a_policy_that_can_stop_is_made_to_show_a_fixed_number():
    """What it then shows is what the same selector without a stop shows."""
    stopping, never = (
        ToySelector.seeded(ToyConfig(d_model=4, stops=stops), 0) for stops in (True, False)
    )
    with torch.no_grad():
        stopping.stop.fill_(100)
    policy = SelectorPolicy(stopping)
    arms = {"RL": PolicyArm([policy]), **{str(n): NumberArm([policy], n, 7) for n in (1, 2, 3)}}
    found = choose(setting(2), arms)
    assert list(found.chosen) == ["RL", "1", "2"]
    assert found.training_calls == {"RL": None, "1": 7, "2": 7}
    assert found.chosen["RL"] == [((),)] * 6
    for shots in (1, 2):
        expected = PolicyArm([SelectorPolicy(never)]).choose(setting(shots))
        assert found.chosen[str(shots)] == expected
    assert choose(setting(0), arms).chosen == {}


# --- what comes out -------------------------------------------------------------------------------


def test_a_trial_that_arms_share_is_asked_once():
    arms, backend = make_arms(), FakeBackend(lambda text: "x")
    settings = [choose(setting(shots), arms) for shots in (0, 1, 2)]
    asked = ask(settings, backend)
    texts = [request.prompt.text for request in backend.asked]
    assert len(backend.asked) == len(asked.accuracies)
    assert len(asked.accuracies) == sum(map(len, pointers_to_ask(settings)))
    assert sum(text.startswith(" |") for text in texts) == len(QUERIES)  # zero-shot
    assert asked.failed == 0


def copying(text):
    shown = text.split(" |")[0].split()
    return shown[-1] if shown else "unknown"


def measured_by_hand(answer=copying):
    """Two queries (answers 0 and 1), two shots; the model copies the demonstration shown last."""
    shown = {
        "random": [((0, 1), (1, 0), (2, 4)), ((0, 1), (1, 0), (2, 4))],
        "mixed": [((1, 2),), ((1, 2),)],
        "RL": [((0, 2),), ((4, 3),)],
        "vote mixed": [(), ()],
        "vote RL": [(), ()],
        "oracle": [((1, 2), (0, 6)), ((5, 7),)],
    }
    angles = torch.arange(8) / 8
    rising = torch.stack([angles.sin(), angles.cos()], dim=1)  # later rows are more similar
    similar = {"mixed": Space(torch.tensor([[1.0, 0.0]] * 2), Pool(POOL, rising))}
    at = setting(queries=QUERIES[:2], chosen=shown, similar=similar)
    asked = ask([at], FakeBackend(answer))
    return measure(at, make_arms(), asked, EqualMetric()), asked


def test_accuracies_by_hand():
    found, _ = measured_by_hand()
    assert {name: values.tolist() for name, values in found.accuracies.items()} == {
        "random": [pytest.approx(2 / 3), pytest.approx(1 / 3)],
        "mixed": [1, 0],
        "RL": [1, 1],
        "vote mixed": [1, 0],
        "vote RL": [1, 0],
        "oracle": [1, 1],
    }
    assert {name: values.tolist() for name, values in found.by_seed.items()} == {
        "random": [[0, 1], [1, 0], [1, 0]]
    }
    calls = {name: found.calls(name) for name in found.accuracies}
    votes = {"vote mixed": 0, "vote RL": 0}
    assert calls == {"random": 6, "mixed": 2, "RL": 2, **votes, "oracle": 3}
    assert found.accuracy("random") == pytest.approx(0.5)
    assert found.left_out == 0


def test_a_vote_asks_no_model():
    found, _ = measured_by_hand(lambda text: "x")
    assert found.accuracies["vote RL"].tolist() == [1, 0]
    assert found.accuracies["RL"].tolist() == found.accuracies["oracle"].tolist() == [0, 0]


def test_a_query_with_a_failed_trial_is_left_out_of_every_arm():
    def answer(text):
        return BackendError("too long") if text == "1 1 | question 1" else copying(text)

    found, asked = measured_by_hand(answer)
    for values in found.accuracies.values():
        assert np.isnan(values).tolist() == [False, True]
    assert np.isnan(found.by_seed["random"]).tolist() == [[False, True]] * 3
    assert found.left_out == 1
    assert (asked.failed, asked.first_failure) == (1, "too long")
    assert found.accuracy("RL") == 1


@pytest.mark.parametrize("accuracies", [[1.0, float("nan")], [1.0], 1.0])
def test_an_arm_has_an_accuracy_for_each_query(accuracies):
    class Mine(Arm):
        def accuracies(self, *_):
            return np.array(accuracies)

    at = setting(queries=QUERIES[:2], chosen={"mine": [((0,),), ((1,),)]})
    with pytest.raises(PluginError, match="arm mine does not have an accuracy for each query"):
        measure(at, {"mine": Mine()}, ask([at], FakeBackend(copying)), EqualMetric())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [("a", "a"), ("ab", "a"), ("aab", "a"), ("abba", "a"), ("abcb", "b")],
)
def test_the_majority_or_of_equals_the_first(answers, expected):
    assert majority(list(answers)) == expected


@pytest.mark.parametrize("pointer", [(0, 1), (1, 0)])
def test_votes_tie_for_the_most_similar_demonstration_wherever_it_is_shown(pointer):
    similarities = torch.zeros(8, 4)
    similarities[:, 0], similarities[1, 1] = 1.0, 0.5  # row 0 is nearer than row 1
    at = Space(torch.tensor([[1.0, 0, 0, 0]]), Pool(POOL, similarities))
    mine = setting(queries=QUERIES[:1], similar={"mixed": at}, chosen={"RL": [(pointer,)]})
    found = VoteArm("RL").accuracies(mine, [()], [{}], EqualMetric())
    assert found.tolist() == [1.0]  # row 0's answer is the query's, "0"


# --- what is concluded ----------------------------------------------------------------------------


def world(queries=200, seed=0, shots=(1, 2), lost=(), shown=None, zero_shot=0.0, **rates):
    """Measured accuracies of arms with these rates of right answers."""
    rng = np.random.default_rng(seed)
    rates = {"image": 0.3, "mixed": 0.4, "SFT": 0.5, "RL": 0.7, "vote RL": 0.3, **rates}
    base, best = rates.pop("base", 0.1), rates.pop("best", 1.0)

    pointers, none = [((k, k + 1),) for k in range(queries)], [()] * queries
    voting = [arm for arm in rates if arm.startswith("vote")]

    def right(rate, *shape):
        values = (rng.random((*shape, queries)) < rate).astype(float)
        values[..., list(lost)] = np.nan
        return values

    def at(shots):
        seeds = right(base, 3)
        accuracies = {"random": seeds.mean(0), **{arm: right(r) for arm, r in rates.items()}}
        accuracies["oracle"] = right(best)
        mine = {**dict.fromkeys(accuracies, pointers), **dict.fromkeys(voting, none)}
        return Measured(shots, accuracies, {"random": seeds}, mine | (shown or {}))

    zero = Measured(
        0,
        {"zero-shot": right(zero_shot)},
        {},
        {"zero-shot": [((),)] * queries},
    )
    return [zero, *map(at, shots)]


def concluded(measured=None, primary="RL", shots=2):
    return conclude(measured or world(), primary, shots)


def test_one_comparison_is_primary_and_the_others_share_their_correction():
    found = concluded()
    first = found.primary
    assert (first.arm, first.reference, first.shots) == ("RL", "random", 2)
    assert (first.difference.level, first.family) == (0.99, None)
    assert [(each.arm, each.reference, each.shots) for each in found.rivals] == [
        ("RL", arm, 2) for arm in ("zero-shot", "image", "mixed", "SFT", "vote RL")
    ]
    secondary = [*found.rivals, *(c for c in found.against_random.values() if c is not first)]
    assert len(secondary) == 5 + 10  # rivals; five arms at two shots and zero-shot, less RL at 2
    shares = list(found.recovered.values())
    assert len(shares) == 10  # of five arms at two shots
    assert {each.family for each in secondary} == {25}
    levels = {each.difference.level for each in secondary} | {each.level for each in shares}
    # Together with the primary comparison's .01, they may be wrong in .05 of evaluations.
    assert [round(each, 9) for each in levels] == [round(1 - 0.04 / 25, 9)]
    assert found.against_random[0, "zero-shot"].shots == 2
    assert found.against_random[2, "RL"] is first
    share = found.recovered[2, "RL"]
    assert share.low < share.share < share.high
    assert share.share == pytest.approx(0.67, abs=0.07)  # (0.7 - 0.1) / (1 - 0.1)
    assert (2, "oracle") not in found.recovered
    assert found.of_attainable is None


def test_the_verdict_names_every_arm_that_ran_and_is_not_beaten():
    assert concluded().not_beaten == ()
    assert concluded().verdict.endswith("200 queries). It beats every other arm")
    found = concluded(world(fixed=0.8, SFT=0.69, image=0.7))
    assert found.not_beaten == ("image", "SFT", "fixed")
    assert found.verdict.endswith("). It does not beat: image, SFT, fixed")
    said = list(found.comparisons())
    assert [each.split(" (")[0].partition(": ")[2] for each in said[:2]] == [
        "not distinguishable from image",
        "not distinguishable from SFT",
    ]
    assert said[-1].startswith("RL, 2 shots: better than zero-shot by ")
    assert "mixed by " in said[-1]
    assert "vote RL by " in said[-1]
    useless = concluded(world(RL=0.1, zero_shot=0.1))
    assert useless.not_beaten[:2] == ("random", "zero-shot")


def test_what_is_attainable_is_no_rival_and_has_its_own_share():
    measured = world(RL=0.7)
    for each in measured[1:]:
        each.accuracies["attainable"] = each.accuracies["oracle"]
    found = concluded(measured)
    assert found.of_attainable == found.recovered[2, "RL"]
    assert "attainable" not in {each.reference for each in found.rivals}
    assert (2, "attainable") not in found.against_random
    assert found.primary.words == concluded(world(RL=0.7)).primary.words
    assert any("of the gap to attainable" in each for each in evaluation(measured).sentences())


def test_words():
    found = concluded()
    assert found.primary.words.startswith("RL, 2 shots: better than random by ")
    assert "(99 % interval " in found.primary.words
    assert found.primary.words.endswith("; 200 queries)")
    worse = concluded(world(RL=0.0, shots=(1,)), shots=1).primary.words
    assert worse.startswith("RL, 1 shot: worse than random by ")
    same = concluded(world(RL=0.1)).primary
    assert not same.difference.distinguishable
    detectable = 100 * same.difference.detectable
    assert same.words.startswith("RL, 2 shots: not distinguishable from random (99 % interval -")
    assert f"an improvement of {detectable:.1f} points or more would have been seen" in same.words
    assert "95 % interval" in found.rivals[0].words
    assert "corrected for 25 intervals" in found.rivals[0].words
    one = concluded(world(queries=1)).primary.words
    assert "not distinguishable" in one
    assert "too few for any improvement to be seen" in one


def test_zero_shot_is_compared_where_both_are_there():
    measured = world()
    measured[0].accuracies["zero-shot"][:50] = np.nan
    found = concluded(measured)
    assert found.against_random[0, "zero-shot"].difference.queries == 150
    assert found.primary.difference.queries == 200


def evaluation(measured=None, **fields):
    measured = measured or world()
    number = len(measured[0].kept)
    return Evaluation(
        **{
            "settings": {"dataset": {"name": "small"}, "primary": "RL", "oracle": "the best of 6"},
            "query_ids": tuple(f"q{k}" for k in range(number)),
            "measured": tuple(measured),
            "records": [b'{"pointer_candidates": []}'] * number,
            "conclusions": concluded(measured),
            "leakage": Leakage(0, 0, {}),
            "training_calls": {
                (each.shots, arm): {"RL": 15_000, "SFT": None}.get(arm, 0)
                for each in measured
                for arm in each.accuracies
            },
            "policies": ["SFT", "RL"],
            "left_out": {},
            "trials": 1000,
            "failed": 0,
            "first_failure": None,
            **fields,
        }
    )


def test_the_table_has_a_line_for_each_arm_and_number_of_shots():
    header, *lines = evaluation().rows()
    assert all(len(line) == len(header) for line in lines)
    assert [line[:2] for line in lines[:4]] == [
        ("0", "zero-shot"), ("1", "random"), ("1", "image"), ("1", "mixed"),
    ]  # fmt: skip
    assert len(lines) == 1 + 2 * 7
    of_random, of_rl = (
        next(line for line in lines if line[:2] == ("2", arm)) for arm in ("random", "RL")
    )
    assert of_random[5:] == ("", "", "")
    assert of_rl[4] == f"{100 * evaluation().measured[2].accuracy('RL'):.1f}"
    assert of_rl[5].startswith("+")
    calls = {line[1]: line[3] for line in lines if line[0] != "1"}
    assert (calls["RL"], calls["SFT"], calls["image"]) == ("15,000 + 200", "– + 200", "200")
    assert (calls["zero-shot"], calls["vote RL"]) == ("200", "0")


def test_the_number_of_demonstrations_is_shown_if_a_policy_varies_it():
    assert "shown" not in evaluation().rows()[0]
    shown = {"RL": [((), (1,), (2, 3))[k % 3 : k % 3 + 1] for k in range(200)]}
    found = evaluation(world(shown=shown, lost=(0, 1)))
    header, *lines = found.rows()
    assert header[2] == "shown"
    by_arm = {line[1]: line[2] for line in lines}
    # Of the 198 queries that count, 66 have no demonstration, 66 one and 66 two.
    assert (by_arm["RL"], by_arm["SFT"], by_arm["vote RL"]) == ("1.00", "2.00", "")
    assert by_arm["zero-shot"] == "0.00"
    rows = json.loads(found.to_json())["rows"]
    assert {each["arm"]: each["demonstrations"] for each in rows}["RL"] == pytest.approx(1.0)


def test_a_share_of_nothing_is_a_dash_with_its_reason():
    flat = evaluation(world(**dict.fromkeys(("image", "mixed", "SFT", "RL"), 0.98), base=0.98))
    assert flat.rows()[-2][-1] == "– (gap below 5 points)"
    few = evaluation(world(queries=4))
    assert few.rows()[-2][-1] == "– (too few queries)"
    row = json.loads(few.to_json())["rows"][-2]
    assert row["gap_recovered"] is None


def test_shares_outside_0_to_1_are_named():
    said = "\n".join(evaluation(world(SFT=0.0, RL=1.0, seed=1)).sentences())
    assert "WARNING: shares outside 0 to 1: SFT at 1 shot (-0.1" in said
    assert "RL" not in said.partition("WARNING: shares outside")[2].partition("; below")[0]


# --- what a new user ran into (a small VQA set, 100 questions) ------------------------------------


def collapsed(queries=100):
    """Three different pointers, and one row in all of them."""
    return {"RL": [((7, k % 3),) for k in range(queries)]}


def test_a_collapsed_policy_that_equals_zero_shot_and_loses_to_a_vote_is_said_to():
    rates = {"RL": 0.12, "vote RL": 0.38, "image": 0.12, "mixed": 0.12}
    rates |= {"SFT": 0.03, "base": 0.03, "best": 0.13}
    found = evaluation(world(queries=100, shown=collapsed(), zero_shot=0.11, **rates))
    assert {"zero-shot", "vote RL"} <= set(found.conclusions.not_beaten)
    assert found.verdict.partition("It does not beat: ")[2].startswith("zero-shot, ")
    said = "\n".join(found.sentences())
    assert "RL, 2 shots: worse than vote RL by 2" in said
    assert "not distinguishable from zero-shot" in said
    assert (
        "WARNING: RL hardly tells queries apart at 2 shots: 3 different pointers for 100 queries, "
        "and row 7 in 100 of them" in said
    )
    summary = found.summary()
    assert "zero-shot" in summary["not_beaten"]
    assert found.sentences() == summary["sentences"]


@pytest.mark.parametrize(
    ("pointers", "warned"),
    [
        ([((k, k + 1),) for k in range(100)], False),
        ([((k % 5, 5),) for k in range(100)], True),
        ([((k % 5, 5 + k % 2),) for k in range(100)], False),
        ([((k % 2, 5 + k % 2),) for k in range(100)], True),
        ([((k % 2, 5 + k % 2),) for k in range(19)], False),
        ([((),)] * 100, True),
    ],
)
def test_few_pointers_or_one_row_in_most_of_them_is_a_collapse(pointers, warned):
    at = Measured(2, {"RL": np.zeros(len(pointers))}, np.empty((0, 1)), {"RL": pointers})
    assert (at.collapse("RL") is not None) == warned


def test_what_leaks_is_said():
    def said(*leakage):
        return "\n".join(evaluation(leakage=Leakage(*leakage)).sentences())

    assert "no query shares its image with a pool example" in said(0, 0, {})
    assert "3 of 200 queries share their image with a pool example and are not" in said(3, 0, {})
    assert "3 of 200 queries share" in said(3, 2, {})
    assert "WARNING: 2 may be shown it" in said(3, 2, {})
    assert "RL was trained on none of these queries" in said(0, 0, {"RL": 0})
    assert "WARNING: RL was trained on 7 of these 200 queries" in said(0, 0, {"RL": 7})


def test_queries_left_out_are_counted_and_many_of_them_are_loud():
    assert evaluation().warnings() == []
    few, many = (
        evaluation(world(lost=range(number)), first_failure="too long").warnings()
        for number in (10, 11)
    )
    assert len(few) == len(many) == 3  # 0, 1 and 2 shots
    assert few[1] == (
        "10 of 200 queries left out at 1 shot, where a trial failed (first: too long)"
    )
    assert many[1].startswith("WARNING, not to be trusted: 11 of 200 queries")


def test_where_every_query_fails_nothing_is_concluded():
    lost = evaluation(world(queries=20, lost=range(20)), first_failure="no network")
    assert lost.conclusions is None
    assert lost.verdict == "nothing measured: a trial of every query failed (no network)"
    assert lost.rows()[-1] == ("2", "oracle", "0", "20", "-", "", "", "")
    assert json.loads(lost.to_json())["rows"][-1]["accuracy"] is None


def test_the_spread_over_training_seeds_is_in_table_verdict_and_json():
    measured = world(RL=0.7)
    of_rl = measured[2].accuracies["RL"]
    other = np.zeros_like(of_rl)
    measured[2].by_seed["RL"] = np.array([of_rl, other])
    measured[2].accuracies["RL"] = (of_rl + other) / 2
    found = evaluation(measured)
    seeds = [100 * of_rl.mean(), 0.0]
    deviation = f"{np.std(seeds, ddof=1):.1f}"
    row = next(each for each in found.rows() if each[:2] == ("2", "RL"))
    assert row[4] == f"{np.mean(seeds):.1f} ±{deviation}"
    assert found.verdict.endswith(
        f". RL is the mean of 2 training seeds: {seeds[0]:.1f}, 0.0 (standard deviation "
        f"{deviation}); intervals are for these seeds"
    )
    content = json.loads(found.to_json())
    assert len(content["accuracies"]["2"]["RL by seed"]) == 2
    entry = next(r for r in content["rows"] if (r["arm"], r["shots"]) == ("RL", 2))
    assert entry["accuracy_by_seed"] == pytest.approx([each / 100 for each in seeds])
    assert "±" not in next(each for each in found.rows() if each[:2] == ("2", "random"))[4]


def test_json_holds_everything_and_the_same_bytes_come_out():
    lost = world(lost=[3])
    text = evaluation(lost).to_json()
    assert evaluation(lost, from_cache=5).to_json() == text
    content = json.loads(text)
    assert content["verdict"] == evaluation(lost).verdict
    assert content["comparisons"][0]["primary"] is True
    assert len(content["comparisons"]) == 1 + 15
    of_rl = content["accuracies"]["2"]["RL"]
    assert of_rl[3] is None
    kept = [value for value in of_rl if value is not None]
    row = next(r for r in content["rows"] if (r["arm"], r["shots"]) == ("RL", 2))
    assert np.mean(kept) == pytest.approx(row["accuracy"])
    assert len(content["accuracies"]["1"]["random by seed"]) == 3
    assert len(content["query_ids"]) == 200
    assert not {"accuracies", "query_ids"} & set(evaluation().summary())
    assert evaluation().summary()["verdict"] == evaluation().verdict


# --- the picture ----------------------------------------------------------------------------------


def test_the_picture_has_a_line_for_each_arm(tmp_path):
    from matplotlib.figure import Figure
    from PIL import Image

    from pointer_rl.report import plot

    axes = Figure().add_subplot()
    plot._fill(axes, evaluation())
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"zero-shot", "oracle", *world()[1].accuracies}
    assert lines["RL"].get_xdata().tolist() == [0, 1, 2]
    expected = [0.0, *(100 * each.accuracy("RL") for each in evaluation().measured[1:])]
    assert lines["RL"].get_ydata().tolist() == pytest.approx(expected)
    assert lines["vote RL"].get_xdata().tolist() == [1, 2]
    assert lines["oracle"].get_linestyle() == "--"
    assert lines["RL"].get_linewidth() > lines["SFT"].get_linewidth()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert (legend[0], legend[-1]) == ("oracle", "zero-shot")

    odd = evaluation(settings={"dataset": {"name": "$a_$ $"}, "primary": "RL"})
    plot.draw(odd, tmp_path / "deeper" / "a.png")
    with Image.open(tmp_path / "deeper" / "a.png") as picture:
        assert picture.size == (1200, 750)


def test_a_picture_of_nothing_is_drawn_too(tmp_path):
    from pointer_rl.report.plot import draw

    draw(evaluation(world(queries=5, lost=range(5))), tmp_path / "a.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    from pointer_rl.errors import MissingExtraError
    from pointer_rl.report import plot

    fake = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(plot, "importlib", fake)
    with pytest.raises(MissingExtraError, match=r"pip install 'pointer-rl\[plot\]'"):
        plot.check_drawable(tmp_path / "a.png")
