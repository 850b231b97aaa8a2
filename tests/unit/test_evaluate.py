"""Arms, trials and conclusions, with a backend that copies and a world small enough to count."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pointer_rl.errors import InputError, PluginError
from pointer_rl.evaluate import arms as arms_module
from pointer_rl.evaluate.arms import (
    Arm,
    OracleArm,
    PolicyArm,
    RandomArm,
    Setting,
    SimilarityArm,
    VoteArm,
    ZeroShotArm,
    choose,
    majority,
)
from pointer_rl.evaluate.conclusions import conclude
from pointer_rl.evaluate.evaluation import Evaluation, Leakage
from pointer_rl.evaluate.measure import Asked, EvaluationJob, Measured, measure, pointers_to_ask
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
        "RL": PolicyArm(Odd()),
        "vote mixed": VoteArm("mixed"),
        "vote RL": VoteArm("RL"),
        "oracle": OracleArm(oracle_random, oracle_retrieval),
    }


def setting(shots=2, **more):
    similar = {"image": space(1), "mixed": space(2)}
    defaults = {"queries": QUERIES, "pool": POOL, "seed": 0, "space": space(), "similar": similar}
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
    for window in windows_of(len(examples), 4):
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


def test_the_oracle_has_every_arms_pointers_and_a_fixed_number_more():
    def asked(**more):
        arms = make_arms(**more)
        return pointers_to_ask([choose(setting(), arms)])

    def size(**more):
        return sum(map(len, asked(**more)))

    assert size(oracle_random=0) < size(oracle_random=1) < size(oracle_random=4)
    assert size(oracle_retrieval=0) < size(oracle_retrieval=2) < size(oracle_retrieval=4)
    found, alone = asked(), asked(oracle_random=0, oracle_retrieval=0)
    for number, pointers in enumerate(found):
        shown = [
            each for name, of_arm in chosen().items() if name != "oracle" for each in of_arm[number]
        ]
        assert len(set(pointers)) == len(pointers)
        assert set(shown) == set(alone[number])
        assert set(shown) < set(pointers)
        assert len(pointers) <= len(set(shown)) + 4 + 1  # the first retrieved is mixed's own


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
        choose(setting(), {"RL": PolicyArm(Refusing())})
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

    assert PolicyArm(Stopping()).choose(setting()) == [((3,),)] * 6


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
        "oracle": [(), ((5, 7),)],
    }
    at = setting(queries=QUERIES[:2], chosen=shown)
    asked = ask([at], FakeBackend(answer))
    return measure(at, make_arms(), asked, EqualMetric()), asked


def test_accuracies_by_hand():
    found, _ = measured_by_hand()
    assert {name: values.tolist() for name, values in found.accuracies.items()} == {
        "random": [pytest.approx(2 / 3), pytest.approx(1 / 3)],
        "mixed": [1, 0],
        "RL": [1, 1],
        "vote mixed": [1, 0],
        "vote RL": [1, 1],
        "oracle": [1, 1],
    }
    assert found.by_seed.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert found.oracle_sizes.tolist() == [5, 6]
    assert found.accuracy("random") == pytest.approx(0.5)
    assert found.left_out == 0


def test_a_vote_asks_no_model():
    found, _ = measured_by_hand(lambda text: "x")
    assert found.accuracies["vote RL"].tolist() == [1, 1]
    assert found.accuracies["RL"].tolist() == found.accuracies["oracle"].tolist() == [0, 0]


def test_a_query_with_a_failed_trial_is_left_out_of_every_arm():
    def answer(text):
        return BackendError("too long") if text == "1 1 | question 1" else copying(text)

    found, asked = measured_by_hand(answer)
    for values in found.accuracies.values():
        assert np.isnan(values).tolist() == [False, True]
    assert np.isnan(found.by_seed).tolist() == [[False, True]] * 3
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
    [("a", "a"), ("ab", "b"), ("aab", "a"), ("abba", "a"), ("abcb", "b")],
)
def test_the_majority_or_of_equals_the_last_shown(answers, expected):
    assert majority(list(answers)) == expected


# --- what is concluded ----------------------------------------------------------------------------


def world(queries=200, seed=0, shots=(1, 2), lost=(), **rates):
    """Measured accuracies of arms with these rates of right answers."""
    rng = np.random.default_rng(seed)
    rates = {"image": 0.3, "mixed": 0.4, "SFT": 0.5, "RL": 0.7, "vote RL": 0.3, **rates}

    def right(rate, *shape):
        values = (rng.random((*shape, queries)) < rate).astype(float)
        values[..., list(lost)] = np.nan
        return values

    def at(shots):
        seeds = right(0.1, 3)
        accuracies = {"random": seeds.mean(0), **{arm: right(r) for arm, r in rates.items()}}
        accuracies["oracle"] = right(1.0)
        return Measured(shots, accuracies, seeds, np.full(queries, 9))

    zero = Measured(
        0, {"zero-shot": right(0.0)}, np.empty((0, queries)), np.zeros(queries, dtype=int)
    )
    return [zero, *map(at, shots)]


def concluded(measured=None, primary="RL", shots=2):
    return conclude(
        measured or world(), primary, shots, ["image", "mixed"], ["SFT", "RL"], 0, resamples=2_000
    )


def test_one_comparison_is_primary_and_the_others_share_their_correction():
    found = concluded()
    first = found.primary
    assert (first.arm, first.reference, first.shots) == ("RL", "random", 2)
    assert (first.difference.level, first.family) == (0.99, None)
    assert [(each.arm, each.reference, each.shots) for each in found.rivals] == [
        ("RL", "mixed", 2),
        ("RL", "SFT", 2),
        ("RL", "vote RL", 2),
    ]
    secondary = [*found.rivals, *(c for c in found.against_random.values() if c is not first)]
    assert len(secondary) == 3 + 10  # rivals; five arms at two shots and zero-shot, less RL at 2
    assert {each.family for each in secondary} == {13}
    assert {round(each.difference.level, 9) for each in secondary} == {round(1 - 0.05 / 13, 9)}
    assert found.against_random[0, "zero-shot"].shots == 2
    assert found.against_random[2, "RL"] is first
    share = found.recovered[2, "RL"]
    assert share.low < share.share < share.high
    assert share.share == pytest.approx(0.67, abs=0.07)  # (0.7 - 0.1) / (1 - 0.1)
    assert (2, "oracle") not in found.recovered


def test_the_rival_is_the_best_of_the_similarity_arms_at_the_primarys_shots():
    found = concluded(world(image=0.6))
    assert found.rivals[0].reference == "image"
    assert concluded(primary="mixed").rivals[0].reference == "image"


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
    assert f"an effect of {detectable:.1f} points or more would have been seen" in same.words
    assert "95 % interval" in found.rivals[0].words
    assert "corrected for 13 comparisons" in found.rivals[0].words
    one = concluded(world(queries=1)).primary.words
    assert "not distinguishable" in one
    assert "too few for any effect to be seen" in one


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
            "settings": {"dataset": {"name": "small"}, "primary": "RL", "seed": 0},
            "query_ids": tuple(f"q{k}" for k in range(number)),
            "measured": tuple(measured),
            "conclusions": concluded(measured),
            "leakage": Leakage(0, 0, {}),
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
    assert of_random[4:] == ("", "", "")
    assert of_rl[3] == f"{100 * evaluation().measured[2].accuracy('RL'):.1f}"
    assert of_rl[4].startswith("+")


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
    assert lost.rows()[-1] == ("2", "oracle", "0", "-", "", "", "")
    assert json.loads(lost.to_json())["rows"][-1]["accuracy"] is None


def test_json_holds_everything_and_the_same_bytes_come_out():
    lost = world(lost=[3])
    text = evaluation(lost).to_json()
    assert evaluation(lost, from_cache=5).to_json() == text
    content = json.loads(text)
    assert content["verdict"] == evaluation(lost).verdict
    assert content["comparisons"][0]["primary"] is True
    assert len(content["comparisons"]) == 1 + 13
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

    from pointer_rl.report import figure

    axes = Figure().add_subplot()
    figure._fill(axes, evaluation())
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
    figure.draw(odd, tmp_path / "deeper" / "a.png")
    with Image.open(tmp_path / "deeper" / "a.png") as picture:
        assert picture.size == (1200, 750)


def test_a_picture_of_nothing_is_drawn_too(tmp_path):
    from pointer_rl.report.figure import draw

    draw(evaluation(world(queries=5, lost=range(5))), tmp_path / "a.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    from pointer_rl.errors import MissingExtraError
    from pointer_rl.report import figure

    fake = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(figure, "importlib", fake)
    with pytest.raises(MissingExtraError, match=r"pip install 'pointer-rl\[plot\]'"):
        figure.check_drawable(tmp_path / "a.png")
