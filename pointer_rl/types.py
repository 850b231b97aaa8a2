"""The nouns that the engine and its plugins share.

A leaf: it imports nothing of ours, and torch and Pillow only for type checkers, so that
a plugin can name these types without paying for either.

Shapes: B queries, K pool rows, N hypotheses a query, S shots, d embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

Pointer = tuple[int, ...]
"""Pool rows of the demonstrations, in the order in which they are shown; () shows none."""

NO_ROW = -1
"""Pads tensors of pointers of different lengths."""


class ImageRef(Protocol):
    """An image by reference: cheap to hold, to pickle and to compare; opened when needed."""

    @property
    def key(self) -> str:
        """Hash of the content: equal keys are equal images, whatever file they came from."""
        ...

    def open(self) -> Image:
        """The decoded image, in RGB. Raises InputError if it cannot be decoded.

        Several threads may open images at the same time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """One VQA item: an image, a question and the annotators' answers.

    Examples that show the same image should share its reference: its key is then computed once.
    """

    id: str
    """Unique within its split; the key of its record in RL data."""
    row: int
    """Its position in its split, and its row in the split's embeddings."""
    image: ImageRef
    question: str
    answers: tuple[str, ...]
    """One string per annotator, repeats included; empty if nobody has answered yet."""
    question_id: int | str | None = None
    image_id: int | str | None = None
    episode: str | None = None
    """A query with an episode may only be shown examples of the same one: in others, equal
    questions have other answers."""

    def __post_init__(self) -> None:
        if isinstance(self.answers, str):  # would pass for a sequence of letters
            raise TypeError(
                f"answers has one string for each annotator; this is the string {self.answers!r}"
            )

    @property
    def answer(self) -> str:
        """The most frequent answer (of equally frequent ones, the first); "" without answers.

        This is the answer that a demonstration shows.
        """
        return _most_frequent(tuple(self.answers))


@lru_cache(maxsize=4096)  # every trial asks for the answers of its demonstrations
def _most_frequent(answers: tuple[str, ...]) -> str:
    return max(dict.fromkeys(answers), key=answers.count) if answers else ""


@dataclass(frozen=True)
class Companions:
    """What a dataset brings along to be tried with, used only where the user names nothing else."""

    model: str
    """Checkpoint folder, for a backend that has a `model` option."""
    encoder: str
    """Name of the encoder that embeds this dataset."""


@dataclass(frozen=True)
class Dataset:
    """Queries and the pool from which their demonstrations are chosen (they may be the same)."""

    name: str
    queries: Sequence[Example]
    pool: Sequence[Example]
    companions: Companions | None = None
    relevant: Sequence[Sequence[Sequence[int]]] | None = None
    """For each query the sets of pool rows of which it needs one row each, if the dataset knows
    them; no set if the query is best answered without demonstrations. Only `evaluate` looks at
    them, to say what could be attained."""


# --- asking a backend -------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """One turn: text and images in reading order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[ImageRef | str, ...]


@dataclass(frozen=True)
class Prompt:
    """What a backend is shown, in no model's syntax."""

    messages: tuple[Message, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images in reading order."""
        return tuple(
            part for message in self.messages for part in message.parts if not isinstance(part, str)
        )

    @property
    def text(self) -> str:
        """The text alone, parts joined by a space."""
        return " ".join(
            part for message in self.messages for part in message.parts if isinstance(part, str)
        )


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a backend generates. Deterministic: the best beam, or greedy with one beam."""

    max_new_tokens: int = 10
    """Longest answer, in tokens."""
    num_beams: int = 1
    """Beam width; 1 is greedy."""
    length_penalty: float = 1.0
    """Exponent of the length by which a beam's log-probability is divided (beam search only)."""
    stop: tuple[str, ...] = ()
    """Strings at which generation ends; they are cut off."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError("max_new_tokens and num_beams must be at least 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError("length_penalty must be finite")


@dataclass(frozen=True)
class Request:
    """A prompt to be answered, to be scored against given answers, or both."""

    prompt: Prompt
    decoding: Decoding | None
    """None: score only."""
    score: tuple[str, ...] = ()
    """Answers whose log-probability after the prompt is wanted."""


@dataclass(frozen=True)
class Usage:
    """What a request cost."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    images: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(sum, zip(astuple(self), astuple(other), strict=True)))


LOGPROB_ROUNDING = 1e-3
"""How far above 0 a log-probability may be: sums in float32 round."""


@dataclass(frozen=True)
class Response:
    """What a backend says to one request."""

    text: str | None
    """The raw generation, without special tokens; None when none was asked for."""
    score_logprobs: tuple[float, ...] = ()
    """Natural log-probability of each answer of `Request.score` (all its tokens, and the end). At
    most 0, up to `LOGPROB_ROUNDING`."""
    usage: Usage = Usage()


@dataclass(frozen=True)
class BackendError:
    """Why one request failed: a value, so that the others are not lost."""

    message: str


class VQABackend(Protocol):
    """Answers prompts. It knows no dataset, metric, pool or file.

    Optional: `CountingBackend`, `PricedBackend`, and `batch_invariant = True` if responses are
    bit-identical however requests are batched. An interrupted run then keeps partial results.
    A backend that sets options of its own by the machine it runs on (how much memory to use, say)
    has `chosen`, a mapping of those that the user did not give to their values (int, float, str).
    They are recorded, and a resumed run gives them to the backend as options. They must not decide
    a response beyond its last digits, and are not in the fingerprint.
    """

    fingerprint: str
    """All that decides a response beside the request: model, revision, dtype, pixels, versions."""

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response | BackendError]]:
        """Answer each request once, in any order, as (its index, its result)."""
        ...


@dataclass(frozen=True)
class Count:
    """Tokens that requests would cost. None: unknown until they run."""

    prompt_tokens: int | None = None
    """Every prompt counted in full, with the answers to be scored."""
    unique_tokens: int | None = None
    """Tokens computed: what prompts share is counted once."""


@runtime_checkable
class CountingBackend(Protocol):
    """A `VQABackend` that can count its tokens in advance, for `generate --plan`."""

    def count(self, requests: Sequence[Request]) -> Count:
        """What `run(requests)` would compute; runs nothing."""
        ...


@runtime_checkable
class PricedBackend(Protocol):
    """A `VQABackend` that knows what its answers cost."""

    def cost(self, usage: Usage) -> float | None:
        """The price of this usage in the user's currency; None if no price is known."""
        ...


class PromptBuilder(Protocol):
    """Lays demonstrations and a query out as a prompt, and reads the answer back."""

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        """Demonstrations (with `Example.answer`) in the order given, then the query without."""
        ...

    def parse(self, text: str) -> str:
        """The answer cut out of a raw generation."""
        ...


# --- judging ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """A metric's verdict on one answer."""

    correct: bool
    accuracy: float
    """In [0, 1]."""


class Metric(Protocol):
    """Compares an answer with the annotators'."""

    version: str
    """Changes whenever a judgement may; goes into the data beside the metric's name."""

    def normalise(self, answer: str) -> str:
        """The form in which answers are compared."""
        ...

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        """Judge an answer against one string an annotator."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A pointer and how it was proposed. Fields that do not apply stay None."""

    pointer: Pointer
    gen_method: str
    beam_rank: int | None = None
    beam_score: float | None = None
    """What the beam was ranked by: the pointer's log-probability under the policy."""
    logprob_score: float | None = None
    """Log-probability under the distribution that drew it (temperature, top-p, masks)."""
    temperature: float | None = None
    top_p: float | None = None
    similarity_score: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came back from one trial. A trial that failed has a message and nothing else."""

    raw_generation: str | None = None
    answer: str | None = None
    correct: bool | None = None
    accuracy: float | None = None
    gt_prob: float | None = None
    rel_score: float | None = None
    failure: str | None = None


class Reward(Protocol):
    """Turns a judged candidate into the number that training maximises."""

    def __call__(self, outcome: Outcome, candidate: Candidate) -> float: ...


# --- proposing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """The examples that may be demonstrations, and their embeddings."""

    examples: Sequence[Example]
    embeddings: Tensor
    """[K, d]"""
    encoder: str | None = None
    """Fingerprint of the encoder that they come from; None where it is not known."""
    encoder_plugin: Mapping[str, Any] | None = None
    """Its name and options; None where they are not known."""

    @cached_property
    def rows_of(self) -> Mapping[str, Sequence[int]]:
        """The rows of each answer (`Example.answer`)."""
        rows: dict[str, list[int]] = {}
        for row, example in enumerate(self.examples):
            rows.setdefault(example.answer, []).append(row)
        return rows


@dataclass(frozen=True)
class QueryBatch:
    """Queries that are proposed for together."""

    examples: Sequence[Example]
    embeddings: Tensor
    """[B, d]"""
    allowed: Tensor
    """[B, K] bool: rows that may be chosen (never the query itself nor its image)."""
    shots: int
    """Demonstrations in a pointer; a policy that can stop may choose fewer."""
    any_length: bool = False
    """Whether generators propose shorter pointers too, the empty one included. A policy decides by
    itself."""

    @property
    def lengths(self) -> range:
        """The numbers of rows that a generator's pointers may have."""
        return range(0 if self.any_length else self.shots, self.shots + 1)


@dataclass(frozen=True)
class Decoded:
    """Pointers that a policy proposed."""

    rows: Tensor
    """[B, N, S] int64, padded with NO_ROW after a stop"""
    logprobs: Tensor
    """[B, N] float32; -inf where fewer than N pointers exist (those rows mean nothing)"""

    def pointers(self) -> list[list[Pointer]]:
        """The N pointers of each query, without padding."""
        return [
            [tuple(row for row in pointer if row != NO_ROW) for pointer in query]
            for query in self.rows.tolist()
        ]


class Policy(Protocol):
    """p(pointer given query and pool), as a generator sees it."""

    def beam(self, queries: QueryBatch, pool: Pool, width: int) -> Decoded:
        """The `width` best pointers that beam search finds, best first."""
        ...

    def sample(
        self,
        queries: QueryBatch,
        pool: Pool,
        num_samples: int,
        rngs: Sequence[np.random.Generator],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Decoded:
        """Independent draws; query b's depend on its own logits and rngs[b] alone."""
        ...


class Generator(Protocol):
    """Proposes candidates, batched over queries.

    Its pointers have `queries.shots` rows; they may have fewer if `queries.any_length`, or if the
    policy that proposes them stops. Optional: `any_length = True` if they always may, and
    `needs_embeddings = False` if it uses neither the policy nor embeddings: a run whose generators
    all say so asks for none, and gives NaN.
    """

    def propose(
        self,
        policy: Policy,
        queries: QueryBatch,
        pool: Pool,
        rngs: Sequence[np.random.Generator],
    ) -> list[list[Candidate]]:
        """A list of candidates for each query; rngs[b] is the only randomness of query b."""
        ...


class Search(Protocol):
    """Proposes candidates for one query in rounds, learning from the outcomes of each round."""

    def ask(self) -> Sequence[Candidate]:
        """Candidates to try next; empty when the search is over."""
        ...

    def tell(self, outcomes: Sequence[tuple[Candidate, Outcome]]) -> None:
        """The outcomes of the candidates last asked for, in their order, failures included."""
        ...


@runtime_checkable
class SearchGenerator(Protocol):
    """A candidate generator that sees outcomes: it starts a `Search` for each query.

    It is registered like a `Generator`. No state is shared between queries.
    """

    budget: int
    """Most trials per query; the engine holds every search to it."""

    def start(
        self,
        policy: Policy,
        queries: QueryBatch,
        pool: Pool,
        rngs: Sequence[np.random.Generator],
    ) -> Sequence[Search]:
        """One search per query; rngs[b] is the only randomness of query b."""
        ...


class Encoder(Protocol):
    """Embeds examples (image, question or both)."""

    fingerprint: str
    """All that decides an embedding: encoder, model, revision, mode."""
    dim: int

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """[N, d] float32, a row an example. Raises InputError for an image that is none."""
        ...


# --- running ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A block of queries that are proposed for and judged together."""

    queries: range
    """Indices into the job's queries."""
    todo: tuple[int, ...]
    """Those of them that are wanted; the others were done before."""


class Job(Protocol):
    """Work on queries, split into windows. Picklable: it can run in another process."""

    def run(self, window: Window) -> Mapping[int, dict[str, Any]]:
        """The record of every query in `window.todo`, by its index.

        A window's records depend on nothing but the job and the window, so it may run anywhere, in
        any order, and more than once. The responses it paid for are in the response cache when it
        returns.
        """
        ...


class Executor(Protocol):
    """Runs the windows of a job: in this process, in others, or on other machines."""

    def run(
        self, job: Job, windows: Iterable[Window]
    ) -> Iterator[tuple[Window, Mapping[int, dict[str, Any]]]]:
        """Each window with its records, in any order.

        `windows` is lazy: taking the next one commits to running it, and it ends where the budget
        does.
        """
        ...


@runtime_checkable
class LoadingExecutor(Executor, Protocol):
    """An executor whose workers load the backend, in place of the process of the command."""

    def load(self, backend: str, options: Mapping[str, object]) -> VQABackend:
        """A proxy of the backend with this name and options, loaded by the workers.

        It may have an attribute `window`: the default number of queries to ask together.
        """
        ...


# --- registering --------------------------------------------------------------------------------


class Register(Protocol):
    """What a registering hook is handed."""

    def __call__(
        self,
        name: str,
        factory: Callable[..., Any] | str,
        *,
        options: type | str | None = None,
        summary: str,
        aliases: Mapping[str, Mapping[str, object]] | None = None,
        needs: Mapping[str, str] | None = None,
    ) -> None:
        """Register `factory(options)`, or `factory()` where there is no options class.

        `options` is a keyword-only frozen dataclass; its fields, their defaults and the docstring
        under each are what a user sees. Both may be strings, "package.module:name", which are
        imported when they are first needed: heavy imports belong there. `needs` maps
        optional packages, by the name to import, to what pip installs. If one is missing,
        `pointer-rl plugins` says so and the factory is not called.
        """
        ...
