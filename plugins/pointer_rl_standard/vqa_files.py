"""The official VQAv2 and OK-VQA files: a questions file, an annotations file, a folder of images.

Formats: https://visualqa.org/vqa_v2_teaser.html, https://okvqa.allenai.org. The files are streamed
because VQAv2's training annotations take 360 MB, of which only the answers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError
from pointer_rl.json_stream import find_member, stream_items
from pointer_rl.types import Dataset, Example
from pointer_rl_standard.example_fields import (
    check_ids,
    check_inside,
    make_example,
    read_answers,
    read_id,
    read_text,
)
from pointer_rl_standard.options import VQAOptions


def load_vqa(options: VQAOptions) -> Dataset:
    """Read queries and pool from VQA files, in the order of the questions files.

    Images are not opened: a missing or damaged one fails when it is used. Raises InputError for
    files in another format, questions without annotations, and repeated ids.
    """
    root = Path(options.root).expanduser()
    files = (root / options.questions, root / options.annotations, root / options.images)
    pool = queries = _read_split(*files, options)
    if options.pool_questions and options.pool_annotations and options.pool_images:
        of_pool = (
            root / options.pool_questions,
            root / options.pool_annotations,
            root / options.pool_images,
        )
        if of_pool != files:
            pool = _read_split(*of_pool, options)
    return Dataset(name=Path(options.questions).stem, queries=queries, pool=pool)


def _read_split(
    questions: Path, annotations: Path, images: Path, options: VQAOptions
) -> tuple[Example, ...]:
    image_name, limits = options.image_name, options.limits
    if not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    subtype = find_member(questions, "data_subtype") if "{data_subtype" in image_name else ""
    if not isinstance(subtype, str):
        raise InputError(f"{questions}: no data_subtype in it, which {image_name} needs")

    def where(row: int) -> str:
        return f"{questions}, questions[{row}]"

    @cache
    def image(name: str) -> ImageFile:
        check_inside(images, name, str(questions), "give the folder that it lies in")
        return ImageFile(images / name, limits)

    image_ids: dict[int | str, int | str] = {}  # one object per image saves memory
    examples: list[Example] = []
    for row, item in enumerate(islice(stream_items(questions, "questions"), options.max_examples)):
        fields = _object(item, where(row))
        question_id = read_id(fields.get("question_id"), "question_id", where(row))
        image_id = read_id(fields.get("image_id"), "image_id", where(row))
        image_id = image_ids.setdefault(image_id, image_id)
        name = _file_name(image_name, subtype, image_id, where(row))
        question = read_text(fields.get("question"), "question", where(row))
        examples.append(
            make_example(row, image(name), question, question_id=question_id, image_id=image_id)
        )
    if not examples:
        raise InputError(f'{questions}: no "questions" in it; is it a VQA questions file?')
    _add_answers(annotations, examples, check_ids(examples, where))
    missing = [example.id for example in examples if not example.answers]
    if missing:
        raise InputError(
            f"{annotations}: no annotation for {len(missing)} of the {len(examples)} questions of "
            f"{questions} (the first: {missing[0]}); are these files of one split?"
        )
    return tuple(examples)


def _add_answers(path: Path, examples: list[Example], rows: Mapping[str, int]) -> None:
    """Give each example its answers. The file may also hold annotations of other questions."""
    number = -1
    for number, item in enumerate(stream_items(path, "annotations")):
        where = f"{path}, annotations[{number}]"
        fields = _object(item, where)
        id = str(read_id(fields.get("question_id"), "question_id", where))
        row = rows.get(id)
        if row is None:
            continue
        if examples[row].answers:
            raise InputError(f"{where}: a second annotation for the question {id}")
        answers = read_answers(fields.get("answers"), where)
        examples[row] = replace(examples[row], answers=answers)
    if number < 0:
        raise InputError(f'{path}: no "annotations" in it; is it a VQA annotations file?')


def _object(item: object, where: str) -> dict[str, object]:
    if not isinstance(item, dict):
        raise InputError(f"{where}: must be an object, not {type(item).__name__}")
    return item


def _file_name(image_name: str, subtype: object, image_id: int | str, where: str) -> str:
    try:
        return image_name.format(data_subtype=subtype, image_id=image_id)
    except ValueError as error:
        raise InputError(f"{where}: image_id {image_id!r} in {image_name}: {error}") from error
