"""Experiment trackers: `--log-to tensorboard`, `--log-to trackio`.

They are not a plugin kind, because they do not affect a run. Other programs can follow every epoch
through `Observer.epoch`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.files import write_text

T = TypeVar("T")
TrackerName = Literal["tensorboard", "trackio"]
Line = Mapping[str, Any]
"""A line of metrics.jsonl. Its index is the step."""

EVENTS = "tensorboard"
TRACKIO_ID = "trackio.txt"
TRACKED = (EVENTS, TRACKIO_ID)
"""The trackers' files in the folder of a run."""
PROJECT = "pointer-rl"
"""The Trackio project of all runs."""


class Tracker(Protocol):
    """The log of one run in a tracking program."""

    def write(self, log: Sequence[Line]) -> None:
        """Add the lines that were not written yet."""

    def close(self) -> None:
        """Finish the log."""


class TensorBoard:
    """Writes TensorBoard's event files into the run's folder."""

    def __init__(self, folder: Path, options: Mapping[str, Any], begins: bool) -> None:
        """begins: the run starts now; what is there was written before its first checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        place = str(folder / EVENTS)
        # A kill may have truncated the last step, so it is written again.
        self._next = 0 if begins else _last_step(place)
        self._writer: Any = SummaryWriter(place, purge_step=self._next)

    def write(self, log: Sequence[Line]) -> None:
        for step in range(self._next, len(log)):
            for name, value in _numbers(log[step]).items():
                self._writer.add_scalar(name, value, step)
        self._next = len(log)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _last_step(folder: str) -> int:
    """The last step in a folder of events; 0 if it has none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder, purge_orphaned_data=False)  # purging prints warnings
    if Path(folder).is_dir():
        events.Reload()
    return max((events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]), default=0)


class Trackio:
    """A run in Trackio's database on this machine, which `trackio show` reads.

    `trackio.init` is not used: with a token it asks the Hub for the user's name, and it may send
    metrics to a server. Steps have ids, so none is added twice.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], begins: bool) -> None:
        """begins: the run starts now; what is there was written before its first checkpoint."""
        from trackio.sqlite_storage import SQLiteStorage

        self._storage, self._options, self._next = SQLiteStorage, dict(options), 0
        self._name = "/".join(folder.resolve().parts[-2:])
        path = folder / TRACKIO_ID
        if path.exists():
            self._id = path.read_text(encoding="utf-8").strip()
            if begins:
                self._storage.delete_run(PROJECT, self._name, run_id=self._id)
        else:
            self._id = uuid.uuid4().hex
            write_text(path, self._id + "\n")

    def write(self, log: Sequence[Line]) -> None:
        steps = range(self._next, len(log))
        self._storage.bulk_log(
            PROJECT,
            self._name,
            [_numbers(log[step]) for step in steps],
            steps=list(steps),
            config=self._options,
            log_ids=[f"{self._id}-{step}" for step in steps],
            run_id=self._id,
        )
        self._next = len(log)

    def close(self) -> None:
        pass


def _numbers(line: Line) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, (int, float))}


_TRACKERS: Mapping[TrackerName, Callable[[Path, Mapping[str, Any], bool], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}


def check_trackers(names: Collection[TrackerName]) -> None:
    """Raise MissingExtraError for a tracker that is not installed."""
    modules = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio.sqlite_storage"}
    for name in names:
        try:
            import_module(modules[name])
        except ImportError as error:
            raise MissingExtraError(name, f"--log-to {name}", f"pointer-rl[{name}]") from error


@contextmanager
def open_trackers(
    names: Collection[TrackerName], folder: Path, options: Mapping[str, Any], log: Sequence[Line]
) -> Iterator[Callable[[], None]]:
    """Yield a function that writes the new lines of `log` to the trackers.

    options: the configuration that trackers show. Raises InputError, also from that function, if a
    tracker cannot be written.
    """

    def attempt(name: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except Exception as error:
            raise InputError(
                f"--log-to {name}: {first_line(error)}; the same command without it continues the "
                "training"
            ) from error

    def update() -> None:
        for name, tracker in trackers.items():
            attempt(name, partial(tracker.write, log))

    trackers: dict[str, Tracker] = {}
    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            made = attempt(name, partial(_TRACKERS[name], folder, options, not log))
            trackers[name] = made
            stack.callback(attempt, name, made.close)
        update()
        yield update
