"""The files of an evaluation: checked before anything is asked, written at its end."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pointer_rl.datasets.embeddings import atomic_write
from pointer_rl.errors import InputError, first_line
from pointer_rl.evaluate.evaluation import Evaluation
from pointer_rl.report.figure import check_drawable, draw

__all__ = ["ReportFiles"]


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
                self._check(path)

    def _check(self, path: Path) -> None:
        if path.exists() and not self.overwrite and self.output_path is None:
            raise InputError(f"{path}: exists; remove it, or give --overwrite")
        probe = path.with_name(f"{path.name}.tmp{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({first_line(error)})") from error

    def write(self, evaluation: Evaluation) -> list[Path]:
        """Write the files; returns their paths. `output_path` is last: it marks the end."""
        if self.plot is not None:
            draw(evaluation, self.plot)
        if self.output_path is not None:
            with atomic_write(self.output_path) as temporary:
                temporary.write_text(evaluation.to_json(), encoding="utf-8", newline="\n")
        return [path for path in (self.output_path, self.plot) if path is not None]
