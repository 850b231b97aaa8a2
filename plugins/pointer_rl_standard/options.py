"""The options of what the plugin registers, except rewards. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pointer_rl.datasets.images import LIMITS, ImageLimits
from pointer_rl.options import FileOrName, FilePath

INSTRUCTIONS = (
    "Answer the last question about its image with a single word or a short phrase. "
    "Any question before it is an example that has been answered."
)


@dataclass(kw_only=True, frozen=True, slots=True)
class ShortAnswerOptions:
    """Options of the `short-answer` prompt builder."""

    instructions: str = INSTRUCTIONS
    """The system message; empty for none."""


@dataclass(kw_only=True, frozen=True, slots=True)
class ChatOptions:
    """Options of the `chat` prompt builder."""

    instructions: str = "Answer each question about its image with a single word or a short phrase."
    """The system message; empty for none."""


@dataclass(kw_only=True, frozen=True, slots=True)
class BeamOptions:
    """Options of the `beam` generator."""

    width: int = 5
    """Beam width, and the number of pointers proposed for each query."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class SampleOptions:
    """Options of the `sample` generator."""

    temperatures: tuple[float, ...] = (1.0, 1.3)
    """Temperatures, in the order in which they are used."""
    num_samples: int = 2
    """Draws at each temperature."""
    top_p: float = 1.0
    """Nucleus sampling: at each step, draw from the fewest rows with this total probability."""

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 < value < math.inf for value in self.temperatures):
            raise ValueError("temperatures must be one or more finite numbers above 0")
        if self.num_samples < 1:
            raise ValueError("num_samples must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError("top_p must be above 0 and at most 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class RandomOptions:
    """Options of the `random` generator."""

    num: int = 1
    """Pointers drawn uniformly for each query."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class RetrievalOptions:
    """Options of the `retrieval` generator."""

    num: int = 1
    """Pointers of the most similar rows proposed for each query."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class MMROptions:
    """Options of the `mmr` generator."""

    num: int = 1
    """Pointers proposed for each query."""
    relevance: float = 0.7
    """Weight of a row's similarity to the query, λ; its similarity to the rows chosen before counts
    against it with 1 - λ. At 1 the pointers are those of `retrieval`."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")
        if not 0 <= self.relevance <= 1:
            raise ValueError("relevance must be between 0 and 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class ProbeOptions:
    """Options of the `probe` generator."""

    num: int = 10
    """Rows probed for each query."""
    by: Literal["similarity", "policy"] = "similarity"
    """Score by which the probed rows are chosen."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class FirstSuccessOptions:
    """Options of the search `first-success`."""

    budget: int = 20
    """Most trials for each query."""
    by: Literal["similarity", "policy"] = "similarity"
    """Score by which the probed rows are chosen, best first."""
    answers: bool = False
    """Whether every other row is one that has the query's answer (what most annotators gave), or
    some of its words, as long as there is one."""
    success: float = 0.5
    """Lowest accuracy of a success."""

    def __post_init__(self) -> None:
        if self.budget < 2:
            raise ValueError("budget must be at least 2: a success is compared with a failure")
        if not 0 < self.success <= 1:
            raise ValueError("success must be above 0 and at most 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class GreedyOptions:
    """Options of the search `greedy`."""

    budget: int = 20
    """Most trials for each query, shared out evenly among the steps of a pointer."""
    by: Literal["similarity", "policy"] = "similarity"
    """Score by which the rows to try are chosen, best first."""

    def __post_init__(self) -> None:
        if self.budget < 2:
            raise ValueError("budget must be at least 2: the best row is one of several")


@dataclass(kw_only=True, frozen=True, slots=True)
class ClipOptions:
    """Options of the `clip` encoder."""

    model: FileOrName
    """A CLIP or SigLIP checkpoint: a folder, or an id on the Hugging Face Hub."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    mode: Literal["image", "text", "both"] = "both"
    """Part of an example to embed; `both` concatenates the two unit vectors, image first."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, …; auto is cuda if there is one, else cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the weights; auto is the precision in which the checkpoint was saved."""


# --- datasets ---


@dataclass(kw_only=True, frozen=True, slots=True)
class ImageOptions:
    """What all loaders of images have."""

    max_image_bytes: int = LIMITS.bytes
    """Largest encoded image, in bytes. A larger one fails and is not read."""
    max_image_pixels: int = LIMITS.pixels
    """Largest image, width times height. A larger one fails and is not decoded."""

    def __post_init__(self) -> None:
        if not (self.max_image_bytes > 0 and 0 < self.max_image_pixels <= 2 * LIMITS.pixels):
            raise ValueError(
                "max_image_bytes and max_image_pixels start at 1; Pillow opens no image of more "
                f"than {2 * LIMITS.pixels} pixels"
            )

    @property
    def limits(self) -> ImageLimits:
        """Both."""
        return ImageLimits(self.max_image_bytes, self.max_image_pixels)


@dataclass(kw_only=True, frozen=True, slots=True)
class VQAOptions(ImageOptions):
    """The official files of VQAv2 and OK-VQA."""

    root: FilePath
    """Folder of the files; the other paths are relative to it."""
    questions: str = "v2_OpenEnded_mscoco_train2014_questions.json"
    """Questions file of the queries."""
    annotations: str = "v2_mscoco_train2014_annotations.json"
    """Annotations file of the queries: every question must have one in it."""
    images: str = "train2014"
    """Folder of the queries' images."""
    image_name: str = "COCO_{data_subtype}_{image_id:012d}.jpg"
    """Pattern of image file names, from the questions file's data_subtype and the image_id."""
    pool_questions: str | None = None
    """Questions file of the pool (default: the pool is the queries themselves)."""
    pool_annotations: str | None = None
    """Annotations file of the pool; required with pool_questions."""
    pool_images: str | None = None
    """Folder of the pool's images; required with pool_questions."""
    max_examples: int | None = None
    """Read only the first examples of each questions file (default: all)."""

    def __post_init__(self) -> None:
        ImageOptions.__post_init__(self)
        if self.max_examples is not None and self.max_examples < 1:
            raise ValueError("max_examples starts at 1")
        try:
            self.image_name.format(data_subtype="train2014", image_id=1)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"image_name={self.image_name} does not make a file name of "
                f"{{data_subtype}} and {{image_id}} ({error})"
            ) from error
        pool = (self.pool_questions, self.pool_annotations, self.pool_images)
        if any(pool) and not all(pool):
            raise ValueError(
                "give pool_questions, pool_annotations and pool_images, or none of the three"
            )


@dataclass(kw_only=True, frozen=True, slots=True)
class HFOptions(ImageOptions):
    """A dataset that the `datasets` library reads."""

    path: FileOrName
    """Hub id, folder made by save_to_disk, or folder of Parquet files."""
    name: str | None = None
    """Configuration of the dataset, if it has several."""
    split: str = "validation"
    """Split of the queries."""
    pool_split: str | None = None
    """Split of the pool (default: the pool is the queries themselves)."""
    question_column: str = "question"
    """Column of strings."""
    image_column: str = "image"
    """Column of images: encoded bytes or paths."""
    answers_column: str = "answers"
    """Column of the annotators' answers: strings, {"answer": string}, or one string per row."""
    id_column: str | None = "question_id"
    """Column of the questions' ids, unique in the split (none: row numbers are the ids)."""
    image_id_column: str | None = None
    """Column of the images' ids."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""


@dataclass(kw_only=True, frozen=True, slots=True)
class JSONLOptions(ImageOptions):
    """One JSON object per line: image, question, answers (or answer), and optionally ids."""

    path: FilePath
    """File of the queries."""
    pool: FilePath | None = None
    """File of the pool (default: the pool is the queries themselves)."""
    images: FilePath | None = None
    """Folder that image paths are relative to, and must lie in. Without it they are relative to the
    folder of the JSON lines file, and may lie anywhere."""
    outside: bool = False
    """Accept images outside of the folder `images`."""
    unanswered: bool = False
    """Accept queries without answers; they are then not a pool, so give one if needed."""


@dataclass(kw_only=True, frozen=True, slots=True)
class VLICLOptions(ImageOptions):
    """A task of VL-ICL Bench."""

    root: FilePath
    """Folder of the tasks' folders; image paths are relative to it."""
    task: Literal["open_mi", "operator_induction", "clevr", "textocr"]
    """Task. Those whose examples have two images are not read."""
    split: Literal["query", "support"] = "query"
    """Split of the queries; the pool is the support."""


# --- arms ---


@dataclass(kw_only=True, frozen=True, slots=True)
class RandomArmOptions:
    """Options of the arm `random`."""

    seeds: int = 3
    """Random pointers per query; the accuracy is their mean."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError("seeds must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class SimilarityOptions:
    """Options of the arm `similarity`."""

    of: str = "similarity"
    """What is compared: image, text or mixed, or similarity for an encoder with one mode."""


@dataclass(kw_only=True, frozen=True, slots=True)
class PolicyOptions:
    """Options of the arm `policy`."""

    path: FilePath
    """Policy bundle, or selector checkpoint."""


@dataclass(kw_only=True, frozen=True, slots=True)
class VoteOptions:
    """Options of the arm `vote`."""

    arm: str
    """The arm whose demonstrations vote."""


@dataclass(kw_only=True, frozen=True, slots=True)
class OracleOptions:
    """Options of the arm `oracle`."""

    random: int = 8
    """Random pointers that it chooses from."""
    retrieval: int = 8
    """Pointers of the most similar rows that it chooses from."""

    def __post_init__(self) -> None:
        if min(self.random, self.retrieval) < 0 or not self.random + self.retrieval:
            raise ValueError("random and retrieval start at 0, and are not both 0")


@dataclass(kw_only=True, frozen=True, slots=True)
class FixedOptions:
    """Options of the arm `fixed`."""

    budget: int = 2000
    """Most trials on training queries, for each number of shots."""
    pointers: int = 64
    """Random pointers among which the best one is sought."""

    def __post_init__(self) -> None:
        if self.pointers < 1:
            raise ValueError("pointers must be at least 1")
        least = self.pointers * max(1, (self.pointers - 1).bit_length())
        if self.budget < least:
            raise ValueError(
                f"budget must be at least {least} for {self.pointers} pointers: a trial of each in "
                "each round"
            )
