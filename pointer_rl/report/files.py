"""Where an evaluation is written to: checked before anything is asked, written at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointer_rl.errors import InputError
from pointer_rl.evaluate.evaluation import Evaluation
from pointer_rl.files import check_writable, write_text
from pointer_rl.report.figure import check_drawable, draw

__all__ = ["ReportFiles"]


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """The files of one evaluation, each written whole or not at all.

    Raises InputError for a file that exists and may not be replaced or that cannot be written, and
    MissingExtraError where a picture is wanted and matplotlib is missing.
    """

    output_path: Path | None = None
    """All of it, query by query (.json)."""
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
                check_writable(path, overwrite=self.overwrite)

    def write(self, evaluation: Evaluation) -> list[Path]:
        """The files written."""
        if self.output_path is not None:
            write_text(self.output_path, evaluation.to_json())
        if self.plot is not None:
            draw(evaluation, self.plot)
        return [path for path in (self.output_path, self.plot) if path is not None]
