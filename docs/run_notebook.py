"""Runs the notebook of the tutorial and keeps what it shows: `make notebook`."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "tutorial" / "notebook.ipynb"


def run(path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells, run one after the other without kept responses.

    Raises CellExecutionError if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "POINTER_RL_CACHE": folder,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # of no use once they are full
            "PYTHONWARNINGS": "ignore:IProgress not found",
        }
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
        client.execute(cwd=folder, env=environment)
    return notebook


if __name__ == "__main__":
    nbformat.write(run(), NOTEBOOK)
