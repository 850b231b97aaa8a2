"""Writes the dataset as files: images, and questions and annotations in VQAv2's format."""

from __future__ import annotations

import json
from pathlib import Path

from pointer_rl.errors import InputError
from pointer_rl_glyphs.dataset import SPLITS, draw_split
from pointer_rl_glyphs.options import GlyphsOptions

IMAGE_NAME = "{image_id:012d}.png"


def export_vqa(options: GlyphsOptions, folder: Path) -> None:
    """Write every split: `<split>/`, `<split>_questions.json`, `<split>_annotations.json`."""
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
            _write(folder / f"{split}_questions.json", {**head, "questions": questions})
            _write(folder / f"{split}_annotations.json", {**head, "annotations": annotations})
    except OSError as error:
        raise InputError(f"{folder}: cannot write the dataset ({error.strerror})") from error


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


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
