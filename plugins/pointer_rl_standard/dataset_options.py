"""Options of the dataset loaders. Every command imports them, so they import no loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OKVQA: Mapping[str, object] = {
    "questions": "OpenEnded_mscoco_train2014_questions.json",
    "annotations": "mscoco_train2014_annotations.json",
}
"""Options of `vqa` for OK-VQA, whose file names differ from VQAv2's."""


@dataclass(kw_only=True, frozen=True, slots=True)
class VQAOptions:
    """The official files of VQAv2 and OK-VQA."""

    root: str
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

    def __post_init__(self) -> None:
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
class HFOptions:
    """A dataset that the `datasets` library reads."""

    path: str
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
class JSONLOptions:
    """One JSON object per line: image, question, answers (or answer), and optionally ids."""

    path: str
    """File of the queries."""
    pool: str | None = None
    """File of the pool (default: the pool is the queries themselves)."""
    images: str | None = None
    """Folder that image paths are relative to (default: the folder of the JSON lines file)."""
    unanswered: bool = False
    """Accept queries without answers; they are then not a pool, so give one if needed."""
