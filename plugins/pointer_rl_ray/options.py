"""Options of the executor `ray`."""

from __future__ import annotations

from dataclasses import dataclass

from pointer_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where the workers are, and how many."""

    address: str | None = None
    """The cluster to join: `auto`, or the HOST:PORT of its head. By default Ray starts on this
    machine, on loopback, and ends with the run."""
    num_workers: int | None = None
    """Number of workers. By default, as many as the GPUs allow, including nodes that join later."""
    gpus_per_worker: float | None = None
    """GPUs of a worker: 1 by default, or 0 where there is no GPU."""
    dashboard: bool = False
    """Start Ray's dashboard too, on loopback; only where Ray is started here."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise InputError(f"num_workers is {self.num_workers}: at least one worker")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise InputError(f"gpus_per_worker is {self.gpus_per_worker}: it starts at 0")
        if self.dashboard and self.address is not None:
            raise InputError("dashboard=true: only for a Ray that starts here, so without address")
        if self.gpus_per_worker == 0 and self.num_workers is None:
            raise InputError("gpus_per_worker=0: give num_workers too")
