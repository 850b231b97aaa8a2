from __future__ import annotations

from pathlib import Path

from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError
from pointer_rl.types import Dataset, Example


def load(options):
    files = sorted(Path(options.path).glob("*.png"))
    if not files:
        raise InputError(f"{options.path}: no .png in it")
    examples = tuple(
        Example(
            id=file.stem,
            row=row,
            image=ImageFile(file),
            question="what is it?",
            answers=(file.stem.split("-")[0],) * 3,
        )
        for row, file in enumerate(files)
    )
    return Dataset("acme", examples, examples)
