"""The official VQAv2 and OK-VQA files: a questions file, an annotations file, a folder of images.

Formats: https://visualqa.org/vqa_v2_teaser.html, https://okvqa.allenai.org. The files are streamed
because VQAv2's training annotations take 360 MB, of which only the answers are kept.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pointer_rl.datasets.examples import ExampleBuilder, ExampleColumns, KeyIndex
from pointer_rl.errors import InputError
from pointer_rl.json_stream import find_member, stream_items
from pointer_rl.types import Dataset
from pointer_rl_standard.dataset_options import VQAOptions
from pointer_rl_standard.example_fields import (
    check_ids,
    image_in,
    read_answers,
    read_id,
    read_text,
)

__all__ = ["load_vqa"]


def load_vqa(options: VQAOptions) -> Dataset:
    """Read queries and pool from VQA files, in the order of the questions files.

    Images are not opened: a missing or damaged one fails when it is used. Raises InputError for
    files in another format, questions without annotations, and repeated ids.
    """
    root = Path(options.root).expanduser()
    queries = _read_split(
        root / options.questions,
        root / options.annotations,
        root / options.images,
        options.image_name,
    )
    pool = queries
    if options.pool_questions and options.pool_annotations and options.pool_images:
        pool = _read_split(
            root / options.pool_questions,
            root / options.pool_annotations,
            root / options.pool_images,
            options.image_name,
        )
    return Dataset(name=Path(options.questions).stem, queries=queries, pool=pool)


def _read_split(
    questions: Path, annotations: Path, images: Path, image_name: str
) -> ExampleColumns:
    if not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    subtype = find_member(questions, "data_subtype")
    if "{data_subtype" in image_name and not isinstance(subtype, str):
        raise InputError(f"{questions}: no data_subtype in it, which {image_name} needs")

    def where(row: int) -> str:
        return f"{questions}, questions[{row}]"

    builder: ExampleBuilder[str] = ExampleBuilder()
    for row, item in enumerate(stream_items(questions, "questions")):
        fields = _object(item, where(row))
        question_id = read_id(fields.get("question_id"), "question_id", where(row))
        image_id = read_id(fields.get("image_id"), "image_id", where(row))
        builder.append(
            _file_name(image_name, subtype, image_id, where(row)),
            read_text(fields.get("question"), "question", where(row)),
            question_id=question_id,
            image_id=image_id,
        )
    if not len(builder):
        raise InputError(f'{questions}: no "questions" in it; is it a VQA questions file?')
    index = builder.index()
    check_ids(index, where)
    _read_annotations(annotations, builder, index)
    missing = [row for row in range(len(builder)) if not builder.is_answered(row)]
    if missing:
        raise InputError(
            f"{annotations}: no annotation for {len(missing)} of the {len(builder)} questions of "
            f"{questions} (the first: {builder.id(missing[0])}); are these files of one split?"
        )
    return builder.build(partial(image_in, images))


def _read_annotations(path: Path, builder: ExampleBuilder[str], index: KeyIndex) -> None:
    """The answers to each question; a file may hold annotations of more."""
    number = -1
    for number, item in enumerate(stream_items(path, "annotations")):
        where = f"{path}, annotations[{number}]"
        fields = _object(item, where)
        id = str(read_id(fields.get("question_id"), "question_id", where))
        for row in index.rows(id):
            if builder.is_answered(row):
                raise InputError(f"{where}: a second annotation for the question {id}")
            builder.answer(row, read_answers(fields.get("answers"), where))
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
