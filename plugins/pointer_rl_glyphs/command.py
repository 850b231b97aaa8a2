"""`pointer-rl glyphs DIR`: writes images, and questions and annotations in VQAv2's format."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from pointer_rl.errors import InputError
from pointer_rl.files import new_folder
from pointer_rl.options import build_options, parse_assignments
from pointer_rl_glyphs.options import GlyphsOptions

IMAGE_NAME = "{image_id:012d}.png"


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--dataset-opt",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the dataset glyphs; pointer-rl plugins show dataset:glyphs lists them.",
)
@click.option("--overwrite", is_flag=True, help="Write into a folder that has files already.")
def glyphs(folder: Path, assignments: tuple[str, ...], overwrite: bool) -> None:
    """Write the glyph dataset to FOLDER: images, and questions and annotations in VQAv2's format.

    All splits are written; `--dataset vqa` reads them.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty: name another folder, or give --overwrite")
    values = parse_assignments(assignments, "--dataset-opt")
    options = build_options(GlyphsOptions, values, "dataset glyphs")
    if folder.is_dir():
        export_vqa(options, folder)
    else:
        with new_folder(folder) as made:
            export_vqa(options, made)
    flags = " ".join(
        f"--dataset-opt {shlex.quote(each)}" for each in reading_options(folder, options.split)
    )
    click.echo(f"wrote {folder}; read it with: --dataset vqa {flags}")


def export_vqa(options: GlyphsOptions, folder: Path) -> None:
    """Write every split: `<split>/`, `<split>_questions.json`, `<split>_annotations.json`."""
    from pointer_rl_glyphs.dataset import SPLITS, draw_split

    try:
        for split in SPLITS:
            images = folder / split
            images.mkdir(parents=True, exist_ok=True)
            questions, annotations = [], []
            for example in draw_split(options, split):
                png = example.image.png()  # type: ignore[attr-defined]
                (images / IMAGE_NAME.format(image_id=example.image_id)).write_bytes(png)
                ids = {"image_id": example.image_id, "question_id": example.question_id}
                questions.append({**ids, "question": example.question})
                annotations.append(
                    {
                        **ids,
                        "multiple_choice_answer": example.answer,
                        "answers": [
                            {"answer": answer, "answer_confidence": "yes", "answer_id": index}
                            for index, answer in enumerate(example.answers, start=1)
                        ],
                    }
                )
            head = {"data_type": "glyphs", "data_subtype": split}
            for name, items in (("questions", questions), ("annotations", annotations)):
                text = json.dumps({**head, name: items})
                (folder / f"{split}_{name}.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot write the dataset ({error.strerror})") from error


def reading_options(folder: Path, split: str) -> list[str]:
    """The `--dataset-opt` values with which the `vqa` loader reads a split."""
    return [
        f"root={folder}",
        f"questions={split}_questions.json",
        f"annotations={split}_annotations.json",
        f"images={split}",
        "pool_questions=pool_questions.json",
        "pool_annotations=pool_annotations.json",
        "pool_images=pool",
        f"image_name={IMAGE_NAME}",
    ]
