"""The files of an evaluation: checked before anything is asked, written at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointer_rl.errors import InputError
from pointer_rl.evaluate.evaluation import Evaluation
from pointer_rl.files import AtomicFile, check_writable
from pointer_rl.report.plot import check_drawable, draw


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """The files of one evaluation, each written whole or not at all.

    An existing `output_path` is left to the evaluation, which knows whether it is its own. Raises
    InputError for a plot that exists without one and may not be replaced, and for a file that
    cannot be written; MissingExtraError if a plot is wanted and matplotlib is missing.
    """

    output_path: Path | None = None
    """Everything, query by query (.json)."""
    plot: Path | None = None
    """Accuracy by shots (.png)."""
    overwrite: bool = False
    """Replace files that exist."""

    def __post_init__(self) -> None:
        if self.plot is not None:
            check_drawable(self.plot)
        if self.output_path is not None and self.output_path.suffix != ".json":
            raise InputError(f"{self.output_path}: the result is a .json file; name one")
        for path in (self.output_path, self.plot):
            if path is not None:
                check_writable(path, overwrite=self.overwrite or self.output_path is not None)

    def write(self, evaluation: Evaluation) -> list[Path]:
        """Write the files; returns their paths. `output_path` is last: it marks the end."""
        if self.plot is not None:
            draw(evaluation, self.plot)
        if self.output_path is not None:
            with AtomicFile(self.output_path) as file:
                for part in evaluation.parts_of_json():
                    file.write(part.encode("utf-8", "backslashreplace"))
        return [path for path in (self.output_path, self.plot) if path is not None]
