"""Messages that are written to files do not change from run to run."""

from __future__ import annotations

import tempfile

import pytest

from pointer_rl.errors import reproducible
from pointer_rl.session.caching import CachedBackend, run_checked
from pointer_rl.types import BackendError, Prompt, Request


@pytest.mark.parametrize(
    ("message", "written"),
    [
        (
            "cannot identify image file <_io.BytesIO object at 0x7f1d2c3b4a50>",
            "cannot identify image file <_io.BytesIO object>",
        ),
        ("segment 0xdeadbeef01", "segment 0x…"),
        ("worker (pid 4711) left", "worker (pid …) left"),
        ("request req_011CQabcdef123 failed", "request req_… failed"),
        ("at 2026-11-27T15:04:05.123Z it ended", "at (time) it ended"),
        ("trace 123e4567-e89b-12d3-a456-426614174000.", "trace (id)."),
        (
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 3 MiB free. Process 77 …",
            "CUDA out of memory. Tried to allocate 20.00 MiB.",
        ),
        ("the prompt has 812 tokens, at most 512; 0x1 and 2024-01-02 stay", None),
        ("/data/images/COCO_000000000042.jpg: cannot read the image (No such file)", None),
    ],
)
def test_what_changes_is_left_out(message: str, written: str | None) -> None:
    assert reproducible(message) == (written or message)


def test_temporary_names_are_left_out() -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert reproducible(f"{folder}/a.png: broken") == "(temporary)/a.png: broken"


class Failing:
    """Its messages differ each time."""

    fingerprint = "failing"

    def run(self, requests):
        for index, _ in enumerate(requests):
            yield index, BackendError(f"refused by {object()!r}")


def test_a_failed_trial_has_the_same_reason_each_time() -> None:
    request = Request(Prompt(()), None, ("a",))
    (found,) = run_checked(CachedBackend(Failing()), [request])
    assert found == (0, BackendError("refused by <object object>"))
