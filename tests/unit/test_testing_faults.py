"""Plugins with one fault each: the kit finds it, and its message says what to fix."""

from __future__ import annotations

import itertools
import random
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from plugin_folder import install

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.evaluate.arms import Arm
from pointer_rl.registry import registry
from pointer_rl.testing import (
    ArmTests,
    BackendTests,
    DatasetTests,
    EncoderTests,
    EqualMetric,
    ExecutorTests,
    FakeBackend,
    GeneratorTests,
    MetricTests,
    PlainPrompt,
    PromptTests,
    RewardTests,
    batch,
    fake_policy,
    find_tests,
    pool,
    tiny_dataset,
)
from pointer_rl.types import BackendError, Candidate, Count, Dataset, Judgement, Response, Usage


def broken(results):
    return [each for each in results if each.state == "broken"]


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
            yield index, replace(result, text=secrets.token_hex(4))


class Unyielding(FakeBackend):
    """Chooses its word by the machine, and says so, but does not take it back."""

    fingerprint = "unyielding"
    chosen: ClassVar = {"word": "red"}

    def __init__(self, options: Options) -> None:
        super().__init__(lambda text: "red")


class ChoosesNoOption(Unyielding):
    chosen: ClassVar = {"memory": 64}


class ChoosesAnObject(Unyielding):
    chosen: ClassVar = {"word": np.str_("red")}


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
        """An option of a class that no other process can import."""

    return Local


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


class ClaimsToNeedNothing(Chooses):
    """Ranks rows by the embeddings."""

    needs_embeddings = False

    def propose(self, policy, queries, pool, rngs):
        own = queries.embeddings @ pool.embeddings.T
        ranked = own.masked_fill(~queries.allowed, -torch.inf).sort(descending=True).indices
        return [[Candidate(tuple(each[: queries.shots].tolist()), "chooses")] for each in ranked]


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


class Shorter(Chooses):
    def rows(self, queries, query, rng):
        return super().rows(queries, query, rng)[: queries.shots - 1]


class NumpyRows(Chooses):
    def rows(self, queries, query, rng):
        return list(np.array(super().rows(queries, query, rng)))


class SeedsFromTorch(Chooses):
    """Depends on a random state that it does not change."""

    def rows(self, queries, query, rng):
        rng = np.random.default_rng(torch.initial_seed())
        return rng.permutation(super().rows(queries, query, rng)).tolist()


class Drifts(Chooses):
    """The last digits of a score change from call to call."""

    def __init__(self):
        self.calls = itertools.count()

    def propose(self, policy, queries, pool, rngs):
        score = 1 + next(self.calls) * 1e-9
        return [
            [replace(each, similarity_score=score) for each in candidates]
            for candidates in super().propose(policy, queries, pool, rngs)
        ]


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
    return with_pool(replace(tiny_dataset().pool[0], image=ImageBytes(b"not an image", "x.png")))


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


# --- searches ---------------------------------------------------------------------------------


class Climb:
    """Swaps rows of the best pointer so far, until nothing new is left or the budget is spent."""

    def __init__(self, rows, shots, budget):
        self.rows, self.shots, self.budget = rows, shots, budget
        self.accuracies = {}

    def ask(self):
        best = max(self.accuracies, key=self.accuracies.get, default=tuple(self.rows[: self.shots]))
        near = [best, *((*best[:-1], row) for row in self.rows if row not in best)]
        new = [each for each in dict.fromkeys(near) if each not in self.accuracies]
        return [Candidate(each, "climb") for each in new[: self.budget - len(self.accuracies)][:2]]

    def tell(self, outcomes):
        for candidate, outcome in outcomes:
            self.accuracies[candidate.pointer] = -1 if outcome.failure else outcome.accuracy


class Climbs:
    budget = 6
    search = Climb

    def start(self, policy, queries, pool, rngs):
        return [
            self.search(allowed.nonzero()[:, 0].tolist(), queries.shots, self.budget)
            for allowed in queries.allowed
        ]


class Enumerate(Climb):
    def ask(self):
        new = set(itertools.permutations(self.rows, self.shots)) - self.accuracies.keys()
        return [Candidate(each, "enumerate") for each in sorted(new)[:4]]


class Endless(Climbs):
    search = Enumerate


class Unbudgeted(Climbs):
    budget = None

    def start(self, policy, queries, pool, rngs):
        self.budget = 6
        return super().start(policy, queries, pool, rngs)


class Forget(Climb):
    def ask(self):
        return [] if self.accuracies else super().ask()[:1] * 2


class Forgets(Climbs):
    search = Forget


class Trust(Climb):
    def tell(self, outcomes):
        for candidate, outcome in outcomes:
            self.accuracies[candidate.pointer] = outcome.accuracy * 1.0


class TrustsOutcomes(Climbs):
    search = Trust


class Gossip(Climb):
    """Starts where all searches together have told it to."""

    told = 0

    def ask(self):
        self.rows = self.rows[Gossip.told % 2 :]
        return super().ask()

    def tell(self, outcomes):
        super().tell(outcomes)
        Gossip.told += 1


class Gossips(Climbs):
    search = Gossip


class OneSearch(Climbs):
    def start(self, policy, queries, pool, rngs):
        return super().start(policy, queries, pool, rngs)[:1]


# --- executors --------------------------------------------------------------------------------


class InOrder:
    def run(self, job, windows):
        for window in windows:
            yield window, job.run(window)


class InPairs:
    """The second of two windows first."""

    def run(self, job, windows):
        windows = iter(windows)
        while pair := list(itertools.islice(windows, 2)):
            for window in reversed(pair):
                yield window, job.run(window)


class RunsTwice(InOrder):
    def run(self, job, windows):
        for result in super().run(job, windows):
            yield from (result, result)


class Loses(InOrder):
    def run(self, job, windows):
        return itertools.islice(super().run(job, windows), 1, None)


class Mixes(InOrder):
    def run(self, job, windows):
        records = {}
        for window, new in super().run(job, windows):
            records = {**records, **new}
            yield window, records


class Eager(InOrder):
    def run(self, job, windows):
        return super().run(job, list(windows))


class Forgives(InOrder):
    def run(self, job, windows):
        for window in windows:
            try:
                records = job.run(window)
            except Exception:
                continue
            yield window, records


class Wraps(InOrder):
    def run(self, job, windows):
        try:
            yield from super().run(job, windows)
        except Exception as error:
            raise RuntimeError("a worker failed") from error


class Stale(InOrder):
    """Keeps the windows of its first run."""

    def __init__(self):
        self.windows = None

    def run(self, job, windows):
        self.windows = self.windows or iter(windows)
        return super().run(job, self.windows)


# --- arms -------------------------------------------------------------------------------------


class First(Arm):
    """The first rows that a query may see."""

    def choose(self, setting):
        return [
            (tuple(allowed.nonzero()[: setting.shots, 0].tolist()),)
            for batch in setting.batches(setting.space)
            for allowed in batch.allowed
        ]


class SeesItself(First):
    def choose(self, setting):
        return [(tuple(range(setting.shots)),)] * len(setting.queries)


class LearnsFromItself(First):
    def choose(self, setting):
        setting.training.ask([(query, (query.row,)) for query in setting.training.queries])
        return super().choose(setting)


class TooMany(First):
    def choose(self, setting):
        return super().choose(replace(setting, shots=setting.shots + 1))


class OneForAll(First):
    def choose(self, setting):
        return super().choose(setting)[:1]


class ShowsNothing(First):
    def choose(self, setting):
        return [()] * len(setting.queries)


class Shuffles(First):
    def choose(self, setting):
        return [(tuple(random.sample(range(4, 8), setting.shots)),) for _ in setting.queries]


class NumpyChoices(First):
    def choose(self, setting):
        return [tuple(tuple(np.array(each)) for each in mine) for mine in super().choose(setting)]


class Percentages(First):
    def accuracies(self, setting, shown, outcomes, metric):
        return 1 + 100 * super().accuracies(setting, shown, outcomes, metric)


class Overall(First):
    def accuracies(self, setting, shown, outcomes, metric):
        return super().accuracies(setting, shown, outcomes, metric).mean()


FAULTS = [
    (BackendTests, (Raises,), r"run raised InputError .*: yield .*\(index, BackendError\(why\)\)"),
    (BackendTests, (Twice,), r"answered request \d of 5 twice, .*once for each request"),
    (BackendTests, (OutOfRange,), r"request 5 of 5 .* out of range: .* counted from 0"),
    (BackendTests, (Missing,), "left 1 of 5 requests without a result: yield"),
    (BackendTests, (Longest,), "alone it gives .* instead of .*: mask the padding"),
    (BackendTests, (ByPlace,), "log-probabilities for .* answers: yield .* its position"),
    (BackendTests, (SortedScores,), "give score_logprobs in the order of Request.score"),
    (BackendTests, (Probabilities,), "gave the log-probability 2: give natural logarithms"),
    (BackendTests, (Deaf,), "end the text before the first of Decoding.stop"),
    (BackendTests, (Swallows,), "cannot be read is answered 'blue': yield a BackendError"),
    (BackendTests, (Draws,), "asked again it gives .*: decode as Decoding says"),
    (BackendTests, (Unyielding, Options), "it chose {'word': 'red'}: use what is given"),
    (BackendTests, (ChoosesNoOption, Options), "let `chosen` hold the names of its options"),
    (BackendTests, (ChoosesAnObject, Options), "make each value an int, a float or a str"),
    (BackendTests, (Refuses,), r"plain question about an image failed \(no key\)"),
    (BackendTests, (Says, Options), "with loud=True .* include that option"),
    (BackendTests, (OtherEachTime,), "another fingerprint: leave out what changes by itself"),
    (BackendTests, (SaysLoud, Options, {"word": "blue"}), "include every option that decides"),
    (
        BackendTests,
        (lambda options: FakeBackend(), local_options()),
        "cannot copy its options: it raised .*: another process",
    ),
    (BackendTests, (SaysLoose, Loose), r"Loose is not frozen .*: write @dataclass\(frozen=True"),
    (BackendTests, (LastDigit,), "mask the padding, .* must not declare batch_invariant"),
    (BackendTests, (Numpyish,), "batch_invariant is 1: make it True if"),
    (BackendTests, (CountsUsage,), r"count gave a Usage: return pointer_rl.types.Count\(…\)"),
    (BackendTests, (CountsPadding,), "count each prompt whole, without padding"),
    (BackendTests, (CountsUpsideDown,), "more unique_tokens than prompt_tokens: what prompts"),
    (BackendTests, (CountsByRunning,), "count ran run: let it look at the requests"),
    (BackendTests, (CountsByComputing,), "count ran Linear: let it look"),
    (BackendTests, (PaysBack,), "cost gave -0.001: return a float of at least 0"),
    (PromptTests, (ShowsAnswer,), "shows the query's own answer: leave query.answer and"),
    (PromptTests, (Backwards,), "not shown in the order given: keep it"),
    (PromptTests, (FirstAnnotator,), "is not in the prompt: show Example.answer"),
    (PromptTests, (ParsesOneForm,), "raised IndexError .*: return what can be read"),
    (MetricTests, (Percent,), r"accuracy=100.0: make it a float from 0 to 1"),
    (MetricTests, (Moody,), "judge.* again it gives .*: let it depend on its arguments"),
    (MetricTests, (Generous,), "tell them apart"),
    (MetricTests, (Sorts,), "changed the annotators' answers: copy them first"),
    (GeneratorTests, (GlobalRandomness,), r"draw from rngs\[b\] alone"),
    (GeneratorTests, (BreaksTheMask,), "that the query may choose: .*, or a query sees itself"),
    (GeneratorTests, (SharesAnRng,), "let them depend on its own embedding, mask and rngs"),
    (GeneratorTests, (Repeats,), "a pointer is 2 different rows .*: "),
    (GeneratorTests, (Shorter,), r"proposed \[\d\]; a pointer is 2 .* or set any_length = True"),
    (GeneratorTests, (NumpyRows,), r"make it a tuple of Python integers, by tolist\(\)"),
    (GeneratorTests, (SeedsFromTorch,), r"again it gives .*: draw from rngs\[b\] alone"),
    (GeneratorTests, (Drifts,), r"asked again it gives .*: draw from rngs\[b\] alone"),
    (GeneratorTests, (Greedy,), "changes the embeddings or the mask .*: clone them first"),
    (GeneratorTests, (NoTemperature,), "do not fit the schema of RL data .*temperature"),
    (GeneratorTests, (FourOfThem,), "it raised ValueError .*: propose fewer candidates"),
    (RewardTests, (not_a_number,), "it gave nan: return a finite number"),
    (RewardTests, (needs_probability,), "raised TypeError .* are None; count them as 0"),
    (RewardTests, (upside_down,), "a right one -1.0 .*: training maximises it, so turn its sign"),
    (DatasetTests, (duplicate_ids,), "rows 0 and 1 of the pool have one id, 'same': give each"),
    (DatasetTests, (rows_from_one,), "says row=1: count each split from 0"),
    (DatasetTests, (unanswered,), "no answers: a demonstration shows one, so leave it out"),
    (DatasetTests, (shuffled,), "built again it gives .*: sort what a folder"),
    (DatasetTests, (unpicklable,), "cannot copy its pool: .*: let an image hold a path or bytes"),
    (DatasetTests, (damaged,), "cannot be opened .*: repair the data"),
    (EncoderTests, (Centred, Options), "alone it gives .*: mask the padding"),
    (EncoderTests, (Doubles, Options), r"encode gave torch.float64: return float32"),
    (EncoderTests, (ByQuestion, Options), "give each result with its own example"),
    (EncoderTests, (Scaled, Options), "with size=large .* include that option"),
    (EncoderTests, (Blank, Options), r"got a vector: let the InputError of image.open\(\) pass"),
    (GeneratorTests, (Endless,), r"asked for \d+ candidates with budget=6: return an empty list"),
    (GeneratorTests, (Unbudgeted,), "its budget is None: make it an int"),
    (GeneratorTests, (Forgets,), "asked for .* again: remember its outcome"),
    (GeneratorTests, (TrustsOutcomes,), "told of outcomes, a search raised TypeError .*: check"),
    (GeneratorTests, (Gossips,), "query 1: alone it gives .*: let them depend"),
    (GeneratorTests, (ClaimsToNeedNothing,), "without embeddings .*: do without them, or leave"),
    (GeneratorTests, (OneSearch,), "start gave 1 searches for 4 queries: give one for each"),
    (ArmTests, (SeesItself,), r"proposed \[0\]; .*: .* choose different rows among"),
    (ArmTests, (LearnsFromItself,), "training query p4 may not be shown row 4"),
    (ArmTests, (TooMany,), "up to 1 different rows .*: .* choose different rows among"),
    (ArmTests, (OneForAll,), "for 1 of 4 queries: give a tuple of pointers for each"),
    (ArmTests, (ShowsNothing,), "no pointer for a query: give at least one, or override"),
    (ArmTests, (Shuffles,), "asked again it gives .*: draw from the setting's seed"),
    (ArmTests, (NumpyChoices,), r"make it a tuple of Python integers, by tolist\(\)"),
    (ArmTests, (Percentages,), "return numbers from 0 to 1"),
    (ArmTests, (Overall,), r"accuracies gave the shape \(\): return one number per query"),
    (ExecutorTests, (RunsTwice,), "came back 2 times: give each once"),
    (ExecutorTests, (Loses,), "came back 0 times: give each once"),
    (ExecutorTests, (Mixes,), "other records than job.run gave: pair each window with its own"),
    (ExecutorTests, (Eager,), "took all of 1000 windows before it gave a result: take the next"),
    (ExecutorTests, (Forgives,), "of a window was lost, and 3 windows came back: raise it"),
    (ExecutorTests, (Wraps,), "became RuntimeError .*: raise the same error"),
    (ExecutorTests, (Stale,), "came back 0 times: give each once"),
]


@pytest.mark.parametrize(
    ("cls", "given", "sentence"),
    FAULTS,
    ids=[f"{cls.__name__} {given[0].__name__}" for cls, given, _ in FAULTS],
)
def test_a_fault_is_found_and_explained(check, cls, given, sentence):
    factory, *options = given
    more = {"variants": options[1:]} if options[1:] else {}
    first, *_ = broken(check(cls, factory, *options[:1], **more))
    assert re.search(sentence, first.message)


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (BackendTests, (FakeBackend,)),
        (BackendTests, (Counts,)),
        (BackendTests, (Priced,)),
        (PromptTests, (PlainPrompt,)),
        (MetricTests, (EqualMetric,)),
        (GeneratorTests, (Chooses,)),
        (GeneratorTests, (Climbs,)),
        (RewardTests, (lambda: lambda outcome, candidate: outcome.accuracy,)),
        (DatasetTests, (tiny_dataset,)),
        (EncoderTests, (Colours, Options)),
        (ArmTests, (First,)),
        (ExecutorTests, (InOrder,)),
        (ExecutorTests, (InPairs,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_faulty_ones_are_made_of_passes(check, cls, given):
    results = check(cls, *given)
    assert broken(results) == []
    assert sum(each.state == "ok" for each in results) >= 4


def test_every_fault_is_reported(check):
    class Both(Deaf, Swallows):
        pass

    assert [each.check for each in broken(check(BackendTests, Both))] == [
        "ends before a stop string",
        "failures are values",
    ]


def test_a_fault_that_others_depend_on_is_reported_once(check):
    results = check(BackendTests, Twice)
    assert [each.check for each in broken(results)] == ["gives sound results"]
    assert results[-4].message == "an earlier check failed on what this one needs"


def test_what_the_plugin_raised_is_the_cause(register):
    register("prompt", ParsesOneForm)
    with pytest.raises(AssertionError) as caught:
        find_tests("prompt", "mine", {}).test_gives_sound_results()
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_factory_refuses_what_it_cannot_use_or_is_broken(check):
    def refuse():
        raise InputError("no model at that place")

    def fail():
        raise KeyError("model")

    with pytest.raises(InputError, match="no model at that place"):
        check(MetricTests, refuse)
    (found,) = broken(check(MetricTests, fail))
    assert found.check == "is made"
    assert "the factory raised KeyError (no 'model'): raise InputError or" in found.message


def test_pytest_runs_inherited_tests(tmp_path):
    path = tmp_path / "test_vqa.py"
    path.write_text(
        "from pointer_rl.testing import MetricTests\n"
        "class TestVqa(MetricTests):\n"
        "    name = 'vqa'\n"
        "    def test_one_more(self):\n"
        "        assert self.made.judge('red', ['blue'] * 10).accuracy == 1\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "1 failed, 6 passed, 2 skipped" in done.stdout
    assert "FAILED test_vqa.py::TestVqa::test_one_more" in done.stdout


PLUGIN = """
IMPORT
from pointer_rl import hookimpl
from pointer_rl.types import Judgement

class Equal:
    version = "1"

    def normalise(self, answer):
        return answer

    def judge(self, answer, answers):
        return Judgement(answer in answers, float(answer in answers))

@hookimpl
def pointer_rl_register_metrics(register):
    register("heavy", Equal, summary="equal")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a plugin of that source, as `heavy`."""

    def install_plugin(source):
        install(tmp_path / "site", "heavy", source)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.setenv("POINTER_RL_PLUGINS", "heavy")
        registry.cache_clear()

    yield install_plugin
    registry.cache_clear()
    sys.modules.pop("heavy_plugin", None)


@pytest.mark.parametrize("heavy", [True, False])
def test_a_module_that_imports_torch_is_found(installed, heavy):
    installed(PLUGIN.replace("IMPORT", "import torch" if heavy else ""))
    messages = [each.message for each in broken(find_tests("metric", "heavy", {}).run_checks())]
    if heavy:
        (message,) = messages
        assert message.startswith("loading heavy_plugin imports torch, numpy")
        assert "import them inside the factory" in message
    else:
        assert messages == []


def test_a_backend_without_scores_says_so_for_all_or_none(check):
    class Half(FakeBackend):
        def run(self, requests):
            for index, result in super().run(requests):
                scores = requests[index].score and requests[index].decoding is None
                yield index, BackendError("cannot score") if scores else result

    class No(FakeBackend):
        def run(self, requests):
            for index, result in super().run(requests):
                yield index, BackendError("cannot score") if requests[index].score else result

    assert broken(check(BackendTests, No)) == []
    (found,) = broken(check(BackendTests, Half))
    assert "score all, or fail all" in found.message


def test_a_response_of_another_type_is_named(check):
    class Strings(FakeBackend):
        def run(self, requests):
            return ((index, "red") for index in range(len(requests)))

    class Tensors(FakeBackend):
        def run(self, requests):
            for index, request in enumerate(requests):
                yield index, Response("red", tuple(torch.zeros(len(request.score))))

    first, *_ = broken(check(BackendTests, Strings))
    assert "gave a str: yield (index, Response" in first.message
    first, *_ = broken(check(BackendTests, Tensors))
    assert "not a tuple of Python floats: call tolist()" in first.message


def test_the_fakes():
    assert len(tiny_dataset().pool) == 8
    queries = batch(tiny_dataset().queries, 8)
    assert fake_policy().beam(queries, pool(tiny_dataset().pool), 3).rows.shape == (4, 3, 2)
