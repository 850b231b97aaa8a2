"""Plugins with one fault each: the kit finds it, and its sentence says what to mend."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.testing import (
    ContractError,
    EqualMetric,
    FakeBackend,
    PlainPrompt,
    check_backend,
    check_dataset,
    check_encoder,
    check_generator,
    check_metric,
    check_prompt_builder,
    check_reward,
    tiny_dataset,
)
from pointer_rl.types import BackendError, Candidate, Count, Dataset, Judgement, Response, Usage


@dataclass(frozen=True, kw_only=True)
class Options:
    word: str = "red"
    """What is answered."""
    loud: bool = False
    """Whether it is shouted."""
    size: Literal["small", "large"] = "small"
    """How large vectors are."""


# --- backends ---------------------------------------------------------------------------------


class Raises(FakeBackend):
    def run(self, requests):
        for index, result in super().run(requests):
            for image in requests[index].prompt.images:
                image.open()
            yield index, result


class Twice(FakeBackend):
    def run(self, requests):
        for index, result in super().run(requests):
            yield from [(index, result)] * 2


class OutOfRange(FakeBackend):
    def run(self, requests):
        return ((index + 1, result) for index, result in super().run(requests))


class Missing(FakeBackend):
    def run(self, requests):
        return (pair for pair in super().run(requests) if pair[0] != 1)


class Longest(FakeBackend):
    """As one that pads without a mask: the longest prompt of a batch shows in every answer."""

    def run(self, requests):
        longest = max((len(each.prompt.text) for each in requests), default=0)
        for index, result in super().run(requests):
            yield index, replace(result, text=f"{result.text} {longest}")


class ByPlace(FakeBackend):
    def run(self, requests):
        results = [result for _, result in super().run(requests)]
        return enumerate(results)


class SortedScores(FakeBackend):
    def run(self, requests):
        for index, result in super().run(requests):
            yield index, replace(result, score_logprobs=tuple(sorted(result.score_logprobs)))


class Probabilities(FakeBackend):
    def run(self, requests):
        for index, result in super().run(requests):
            yield index, replace(result, score_logprobs=tuple(2.0 for _ in result.score_logprobs))


class Deaf(FakeBackend):
    """Writes on past stop strings."""

    def run(self, requests):
        return super().run([replace(each, decoding=None) for each in requests])


class Swallows(FakeBackend):
    def run(self, requests):
        for index, result in super().run(requests):
            for image in requests[index].prompt.images:
                try:
                    image.open()
                except Exception:
                    result = replace(result, text="blue")
            yield index, result


class Draws(FakeBackend):
    def run(self, requests):
        for index, result in super().run(requests):
            yield index, replace(result, text=str(random.random()))


class Refuses(FakeBackend):
    def run(self, requests):
        return ((index, BackendError("no key")) for index in range(len(requests)))


class Says(FakeBackend):
    fingerprint = "says"

    def __init__(self, options: Options) -> None:
        super().__init__(lambda text: options.word.upper() if options.loud else options.word)


class SaysLoud(Says):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.fingerprint = f"says loud={options.loud}"


class OtherEachTime(FakeBackend):
    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = f"fake at {id(self)}"


class LastDigit(FakeBackend):
    """As sums that a larger batch orders otherwise."""

    batch_invariant = True

    def run(self, requests):
        for index, result in super().run(requests):
            logprobs = tuple(each - 1e-9 * len(requests) for each in result.score_logprobs)
            yield index, replace(result, score_logprobs=logprobs)


class Numpyish(FakeBackend):
    batch_invariant = 1


class Counts(FakeBackend):
    """Words, of which those of all prompts together are different or not."""

    def count(self, requests):
        words = [word for each in requests for word in each.prompt.text.split()]
        return Count(len(words), len(set(words)))


class CountsUsage(FakeBackend):
    def count(self, requests):
        return Usage(prompt_tokens=len(requests))


class CountsPadding(FakeBackend):
    def count(self, requests):
        return Count(len(requests) * max(len(each.prompt.text) for each in requests))


class CountsUpsideDown(Counts):
    def count(self, requests):
        counted = super().count(requests)
        return Count(counted.unique_tokens, counted.prompt_tokens + 1)


class CountsByRunning(FakeBackend):
    def count(self, requests):
        return Count(sum(len(result.text) for _, result in self.run(requests)))


class CountsByComputing(FakeBackend):
    def count(self, requests):
        torch.nn.Linear(1, 1)(torch.ones(1))
        return Count()


class Priced(FakeBackend):
    def cost(self, usage):
        return usage.prompt_tokens / 1e6


class PaysBack(FakeBackend):
    def cost(self, usage):
        return -usage.prompt_tokens / 1e6


def local_options():
    @dataclass(frozen=True, kw_only=True)
    class Local:
        word: str = "red"
        """Of a class that no other process can import."""

    return Local()


@dataclass
class Loose:
    word: str = "red"


class SaysLoose(Says):
    def __init__(self, options: Loose) -> None:
        super().__init__(Options(word=options.word))
        self.fingerprint = f"says {options.word}"


# --- prompt builders and metrics --------------------------------------------------------------


class ShowsAnswer(PlainPrompt):
    def build(self, query, demonstrations):
        hint = replace(query, question=f"{query.question} ({query.answer}?)")
        return super().build(hint, demonstrations)


class Backwards(PlainPrompt):
    def build(self, query, demonstrations):
        return super().build(query, demonstrations[::-1])


class FirstAnnotator(PlainPrompt):
    def build(self, query, demonstrations):
        shown = [replace(each, answers=each.answers[:1]) for each in demonstrations]
        return super().build(query, shown)


class ParsesOneForm(PlainPrompt):
    def parse(self, text):
        return text.split("answer: ")[1]


class Percent(EqualMetric):
    def judge(self, answer, answers):
        verdict = super().judge(answer, answers)
        return Judgement(verdict.correct, 100 * verdict.accuracy)


class Moody(EqualMetric):
    def judge(self, answer, answers):
        verdict = super().judge(answer, answers)
        return verdict if verdict.correct else Judgement(False, random.random() / 2)


class Generous(EqualMetric):
    def judge(self, answer, answers):
        super().judge(answer, answers)
        return Judgement(True, 1.0)


class Sorts(EqualMetric):
    def judge(self, answer, answers):
        answers.sort()
        return super().judge(answer, answers)


# --- generators and rewards -------------------------------------------------------------------


class Chooses:
    """Rows in order, of those that `rows` names for a query."""

    def rows(self, queries, query, rng):
        return queries.allowed[query].nonzero()[:, 0].tolist()

    def propose(self, policy, queries, pool, rngs):
        return [
            [Candidate(tuple(self.rows(queries, query, rng)[: queries.shots]), "chooses")]
            for query, rng in enumerate(rngs)
        ]


class GlobalRandomness(Chooses):
    def rows(self, queries, query, rng):
        return random.sample(super().rows(queries, query, rng), queries.shots)


class BreaksTheMask(Chooses):
    def rows(self, queries, query, rng):
        return rng.permutation(queries.allowed.shape[1]).tolist()


class SharesAnRng(Chooses):
    def propose(self, policy, queries, pool, rngs):
        return super().propose(policy, queries, pool, [rngs[0]] * len(rngs))

    def rows(self, queries, query, rng):
        return rng.permutation(super().rows(queries, query, rng)).tolist()


class Repeats(Chooses):
    def rows(self, queries, query, rng):
        return super().rows(queries, query, rng)[:1] * queries.shots


class Greedy(Chooses):
    """Takes what it chose out of the mask that others share."""

    def rows(self, queries, query, rng):
        rows = super().rows(queries, query, rng)
        queries.allowed[query, rows[0]] = False
        return rows


class NoTemperature(Chooses):
    def propose(self, policy, queries, pool, rngs):
        proposals = super().propose(policy, queries, pool, rngs)
        return [[replace(each, gen_method="sample") for each in some] for some in proposals]


class FourOfThem(Chooses):
    def rows(self, queries, query, rng):
        return rng.choice(super().rows(queries, query, rng), 4, replace=False).tolist()


def not_a_number():
    return lambda outcome, candidate: (
        (outcome.gt_prob or 0.0)
        / len(candidate.pointer)
        * float("nan" if candidate.gen_method == "beam" else 1)
    )


def needs_probability():
    return lambda outcome, candidate: outcome.gt_prob + 1.0


def upside_down():
    return lambda outcome, candidate: -outcome.accuracy


# --- datasets and encoders --------------------------------------------------------------------


def with_pool(*examples):
    return Dataset("faulty", tiny_dataset().queries, examples)


def duplicate_ids():
    return with_pool(*(replace(each, id="same") for each in tiny_dataset().pool))


def rows_from_one():
    return with_pool(*(replace(each, row=each.row + 1) for each in tiny_dataset().pool))


def unanswered():
    return with_pool(replace(tiny_dataset().pool[0], answers=()))


def shuffled():
    pool = random.sample(tiny_dataset().pool, 8)
    return with_pool(*(replace(each, row=row) for row, each in enumerate(pool)))


class OpenFile(ImageBytes):
    def __reduce__(self):
        raise TypeError("cannot pickle an open file")


def unpicklable():
    return with_pool(
        replace(tiny_dataset().pool[0], image=OpenFile(tiny_dataset().pool[0].image.data, "x"))
    )


def damaged():
    return with_pool(replace(tiny_dataset().pool[0], image=ImageBytes(b"no picture", "x.png")))


class Colours:
    """The mean colour, and the question's length."""

    dim = 4

    def __init__(self, options: Options) -> None:
        self.fingerprint = f"colours {options}"

    def encode(self, examples):
        rows = [
            [*each.image.open().resize((1, 1)).getpixel((0, 0)), len(each.question)]
            for each in examples
        ]
        return torch.tensor(rows, dtype=torch.float32)


class Centred(Colours):
    def encode(self, examples):
        vectors = super().encode(examples)
        return vectors - vectors.mean(0)


class Doubles(Colours):
    def encode(self, examples):
        return super().encode(examples).double()


class ByQuestion(Colours):
    def encode(self, examples):
        return super().encode(sorted(examples, key=lambda each: each.id))


class Scaled(Colours):
    def __init__(self, options: Options) -> None:
        self.fingerprint = "colours"
        self._scale = 1.0 if options.size == "small" else 2.0

    def encode(self, examples):
        return super().encode(examples) * self._scale


class Blank(Colours):
    def encode(self, examples):
        try:
            return super().encode(examples)
        except Exception:
            return torch.zeros(len(examples), self.dim)


FAULTS = [
    (check_backend, (Raises,), r"run raised InputError .*: yield \(index, BackendError\(why\)\)"),
    (check_backend, (Twice,), r"two results for request \d: yield one for each"),
    (check_backend, (OutOfRange,), r"request 5 of 5: give the place of the request"),
    (check_backend, (Missing,), r"no result for 1 of 5 requests .*: yield a Response or"),
    (check_backend, (Longest,), "among others and .* alone: mask the padding"),
    (check_backend, (ByPlace,), "yield each result with the index of its own request"),
    (check_backend, (SortedScores,), "give score_logprobs in the order of Request.score"),
    (check_backend, (Probabilities,), "no log-probabilities: give natural logarithms"),
    (check_backend, (Deaf,), "end the text before the first of Decoding.stop"),
    (check_backend, (Swallows,), "cannot be read is answered 'blue': yield a BackendError"),
    (check_backend, (Draws,), "asked again it answers .*: decode as Decoding says"),
    (check_backend, (Refuses,), r"plain question about a picture failed \(no key\)"),
    (check_backend, (Says, Options()), "with loud=True .* put that option into it"),
    (check_backend, (OtherEachTime,), "another fingerprint: leave out what changes by itself"),
    (check_backend, (SaysLoud, Options(), Options(word="blue")), "put every option that decides"),
    (
        check_backend,
        (lambda options: FakeBackend(), local_options()),
        "options cannot be pickled .*:",
    ),
    (check_backend, (SaysLoose, Loose()), r"no frozen dataclass: write @dataclass\(frozen=True"),
    (check_backend, (LastDigit,), "mask the padding, .*, or do not say batch_invariant"),
    (check_backend, (Numpyish,), "batch_invariant is 1: make it True where"),
    (check_backend, (CountsUsage,), r"count gave a Usage: return pointer_rl.types.Count\(…\)"),
    (check_backend, (CountsPadding,), "count each prompt whole, without padding"),
    (check_backend, (CountsUpsideDown,), "more unique_tokens than prompt_tokens: what prompts"),
    (check_backend, (CountsByRunning,), r"count ran \['run'\]: let it look at the requests"),
    (check_backend, (CountsByComputing,), r"count ran \['Linear'\]: let it look"),
    (check_backend, (PaysBack,), "cost gave -0.001: return a float of at least 0"),
    (check_prompt_builder, (ShowsAnswer,), "shows the query's own answer: leave query.answer and"),
    (check_prompt_builder, (Backwards,), "not shown in the order given: keep it"),
    (check_prompt_builder, (FirstAnnotator,), "is not in the prompt: show Example.answer"),
    (check_prompt_builder, (ParsesOneForm,), "raised IndexError: return what can be read"),
    (check_metric, (Percent,), r"accuracy=100.0: make it a float from 0 to 1"),
    (check_metric, (Moody,), "and then .*: let a judgement depend on the two answers"),
    (check_metric, (Generous,), "tell them apart"),
    (check_metric, (Sorts,), "changed the annotators' answers: copy them first"),
    (check_generator, (GlobalRandomness,), r"draw from rngs\[b\] alone"),
    (check_generator, (BreaksTheMask,), "choose among queries.allowed, or a query sees itself"),
    (check_generator, (SharesAnRng,), "let them depend on its own embedding, mask and rngs"),
    (check_generator, (Repeats,), "a pointer is queries.shots rows, all different"),
    (check_generator, (Greedy,), "changes the embeddings or the mask .*: clone them first"),
    (check_generator, (NoTemperature,), "do not fit the schema of RL data .*temperature"),
    (check_generator, (FourOfThem,), "propose raised ValueError .*: give what exists and no more"),
    (check_reward, (not_a_number,), "it gave nan: return a finite number"),
    (check_reward, (needs_probability,), "raised TypeError .* are None; count them as 0"),
    (check_reward, (upside_down,), "a right one -1.0 .*: training maximises it, so turn its sign"),
    (check_dataset, (duplicate_ids,), "rows 0 and 1 of the pool have one id, 'same': give each"),
    (check_dataset, (rows_from_one,), "says row=1: count each split from 0"),
    (check_dataset, (unanswered,), "no answers: a demonstration shows one, so leave it out"),
    (check_dataset, (shuffled,), "are others, or in another order: sort what a folder"),
    (check_dataset, (unpicklable,), "cannot be pickled .*: let an image hold a path or bytes"),
    (check_dataset, (damaged,), "cannot be opened .*: mend the data"),
    (check_encoder, (Centred, Options()), "another vector alone than among others: mask"),
    (check_encoder, (Doubles, Options()), r"encode gave torch.float64: return float32"),
    (check_encoder, (ByQuestion, Options()), "return row i for example i"),
    (check_encoder, (Scaled, Options()), "with size=large .* put that option into it"),
    (check_encoder, (Blank, Options()), r"got a vector: let the InputError of image.open\(\) pass"),
]


@pytest.mark.parametrize(
    ("check", "given", "sentence"),
    FAULTS,
    ids=[f"{check.__name__} {given[0].__name__}" for check, given, _ in FAULTS],
)
def test_a_fault_is_found_and_said(check, given, sentence):
    factory, *options = given
    more = {"variants": options[1:]} if options[1:] else {}
    with pytest.raises(ContractError, match=sentence) as caught:
        check(factory, *options[:1], **more)
    assert len(caught.value.findings) == 1, caught.value


@pytest.mark.parametrize(
    ("check", "given"),
    [
        (check_backend, (FakeBackend,)),
        (check_backend, (Counts,)),
        (check_backend, (Priced,)),
        (check_prompt_builder, (PlainPrompt,)),
        (check_metric, (EqualMetric,)),
        (check_generator, (Chooses,)),
        (check_reward, (lambda: lambda outcome, candidate: outcome.accuracy,)),
        (check_dataset, (tiny_dataset,)),
        (check_encoder, (Colours, Options())),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_faulty_ones_are_made_of_passes(check, given):
    check(*given)


def test_every_finding_is_in_the_one_error():
    class Both(Deaf, Swallows):
        pass

    with pytest.raises(ContractError) as caught:
        check_backend(Both)
    assert len(caught.value.findings) == 2
    assert str(caught.value).startswith("backend Both breaks its contract:\n- ends before a stop")


def test_what_the_plugin_raised_is_the_cause():
    with pytest.raises(ContractError) as caught:
        check_prompt_builder(ParsesOneForm)
    assert isinstance(caught.value.__cause__, IndexError)


def install(folder, monkeypatch, source):
    """Makes a distribution `heavy-dist` with the plugin `heavy`, as if installed."""
    from pointer_rl.registry import registry

    (folder / "heavy_plugin.py").write_text(source)
    info = folder / "heavy_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pointer_rl]\nheavy = heavy_plugin\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("POINTER_RL_PLUGINS", "heavy")
    monkeypatch.delitem(sys.modules, "heavy_plugin", raising=False)
    registry.cache_clear()
    import heavy_plugin

    return heavy_plugin


PLUGIN = """
IMPORT
from pointer_rl import hookimpl
from pointer_rl.testing.fakes import EqualMetric

class Heavy(EqualMetric):
    pass

@hookimpl
def pointer_rl_register_metrics(register):
    register("heavy", Heavy, summary="equal")
"""


@pytest.fixture
def forget_plugins():
    from pointer_rl.registry import registry

    yield
    registry.cache_clear()


@pytest.mark.usefixtures("forget_plugins")
@pytest.mark.parametrize("heavy", [True, False])
def test_a_module_that_imports_torch_is_found(tmp_path, monkeypatch, heavy):
    source = PLUGIN.replace("IMPORT", "import torch" if heavy else "")
    module = install(tmp_path, monkeypatch, source)
    if not heavy:
        check_metric(module.Heavy)
        return
    with pytest.raises(
        ContractError, match=r"loading heavy_plugin imports torch, numpy, .*: import them inside"
    ):
        check_metric(module.Heavy)


def test_a_backend_without_scores_says_so_for_all_or_none():
    class Half(FakeBackend):
        def run(self, requests):
            for index, result in super().run(requests):
                scores = requests[index].score and requests[index].decoding is None
                yield index, BackendError("cannot score") if scores else result

    class No(FakeBackend):
        def run(self, requests):
            for index, result in super().run(requests):
                yield index, BackendError("cannot score") if requests[index].score else result

    check_backend(No)
    with pytest.raises(ContractError, match="score all, or fail all"):
        check_backend(Half)


def test_a_response_of_another_type_is_named():
    class Strings(FakeBackend):
        def run(self, requests):
            return ((index, "red") for index in range(len(requests)))

    class Tensors(FakeBackend):
        def run(self, requests):
            for index, request in enumerate(requests):
                yield index, Response("red", tuple(torch.zeros(len(request.score))))

    with pytest.raises(ContractError, match=r"gave a str: yield \(index, Response"):
        check_backend(Strings)
    with pytest.raises(ContractError, match=r"not a tuple of Python floats: call tolist\(\)"):
        check_backend(Tensors)


def test_the_kit_and_its_pytest_plugin_import_nothing_heavy():
    import subprocess

    code = (
        "import sys, pointer_rl.testing, pointer_rl.testing.pytest_plugin\n"
        "heavy = {'torch', 'numpy', 'PIL', 'click', 'pluggy'} & sys.modules.keys()\n"
        "sys.exit(str(heavy - {'pluggy'}) if heavy - {'pluggy'} else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_fixtures(tiny_dataset, fake_backend, fake_policy):
    from pointer_rl.testing import batch, pool

    assert len(tiny_dataset.pool) == 8
    assert fake_backend.asked == []
    queries = batch(tiny_dataset.queries, 8)
    assert fake_policy.beam(queries, pool(tiny_dataset.pool), 3).rows.shape == (4, 3, 2)
