"""Pickles jobs for workers. Shared objects are sent once, and tensors are mapped, not copied."""

from __future__ import annotations

import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from pointer_rl.datasets.images import ImageFile, ImageLimits
from pointer_rl.errors import InputError, PluginError, first_line
from pointer_rl.types import Dataset, Example, Pool
from pointer_rl_ray.channel import ImageWanted, channel

if TYPE_CHECKING:
    from torch import Tensor


_NUMBERS = count()
"""Numbers of shared objects, unique in this process: workers cache them by number."""


@dataclass(frozen=True)
class Packed:
    """A pickled object with its buffers, which Ray maps into a worker's memory without a copy."""

    data: bytes
    buffers: tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class Parcel:
    """What is sent for a job: references to its pickle and to the objects it shares."""

    packed: Any
    """A reference to a `Packed`."""
    shared: dict[int, Any]
    """References to a `Packed` each, by number."""


class Packer:
    """Pickles jobs. Each dataset and pool is stored once, however many jobs use it."""

    def __init__(self, put: Callable[[Packed], Any]) -> None:
        """put: stores an object and returns a reference to it."""
        self._put = put
        self._numbers: dict[int, int] = {}
        self._kept: dict[int, tuple[object, Any, set[int]]] = {}
        """By number: the object (kept alive: its id must stay unique), its reference, its needs."""
        self._datasets: list[tuple[int, Dataset]] = []

    def pack(self, job: object) -> Parcel:
        """Pickle a job. Raises PluginError if that fails."""
        pickler = _Pickler(self)
        packed = self._put(pickler.pack(job))
        return Parcel(packed, {number: self._kept[number][1] for number in sorted(pickler.used)})

    def needs(self, number: int) -> set[int]:
        """The numbers of a shared object and of the shared objects inside it."""
        return {number, *self._kept[number][2]}

    def name(self, obj: object) -> tuple[Any, ...] | None:
        """The persistent id of an object; None if it is pickled by value."""
        if isinstance(obj, Dataset | Pool):
            return ("all", self._number(obj))
        if isinstance(obj, list | tuple):
            for number, dataset in self._datasets:
                if obj is dataset.queries or obj is dataset.pool:
                    return ("queries" if obj is dataset.queries else "pool", number)
        elif isinstance(obj, Example):
            for number, dataset in self._datasets:
                for split in ("queries", "pool"):
                    examples = getattr(dataset, split)
                    if (
                        isinstance(examples, list | tuple)
                        and obj.row < len(examples)
                        and examples[obj.row] is obj
                    ):
                        return (split, number, obj.row)
        return None

    def _number(self, obj: Dataset | Pool) -> int:
        number = self._numbers.get(id(obj))
        if number is None:
            pickler = _Pickler(self, apart_from=obj)
            packed = self._put(pickler.pack(obj))
            number = self._numbers[id(obj)] = next(_NUMBERS)
            self._kept[number] = (obj, packed, pickler.used)
            if isinstance(obj, Dataset):
                self._datasets.append((number, obj))
        return number


class _Pickler(pickle.Pickler):
    def __init__(self, packer: Packer, apart_from: object = None) -> None:
        self._file = io.BytesIO()
        self._buffers: list[pickle.PickleBuffer] = []
        super().__init__(self._file, protocol=5, buffer_callback=self._buffers.append)
        self._packer = packer
        self._itself = apart_from
        self.used: set[int] = set()

    def pack(self, obj: object) -> Packed:
        try:
            self.dump(obj)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise PluginError(f"cannot be sent to workers: {first_line(error)}") from error
        arrays = (np.frombuffer(each.raw(), dtype=np.uint8) for each in self._buffers)
        return Packed(self._file.getvalue(), tuple(arrays))

    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        if obj is self._itself or not isinstance(obj, Dataset | Pool | Example | list | tuple):
            return None
        name = self._packer.name(obj)
        if name is not None:
            self.used |= self._packer.needs(name[1])
        return name

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ImageFile):
            key = obj.key if obj.has_key else None
            return SentFile, (obj.name, obj.limits, os.path.abspath(obj.name), key)
        if (
            (torch := sys.modules.get("torch")) is not None
            and type(obj) is torch.Tensor
            and obj.device.type == "cpu"
            and obj.dtype is not torch.bfloat16  # which numpy does not know
            and not obj.requires_grad
        ):
            return _tensor, (obj.contiguous().numpy(),)
        return NotImplemented


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    import torch

    with warnings.catch_warnings():
        # Of read-only memory, to which nobody writes.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


class SentFile(ImageFile):
    """An image file of the driver, read from the same path here or else sent by the driver."""

    __slots__ = ("_path",)
    _path: str

    def __init__(self, name: str, limits: ImageLimits, path: str, key: str | None) -> None:
        super().__init__(name, limits)
        object.__setattr__(self, "_path", path)
        if key is not None:
            self.set_key(key)

    def __reduce__(self) -> tuple[Any, ...]:
        key = self.key if self.has_key else None
        return SentFile, (self.name, self.limits, self._path, key)

    @property
    def place(self) -> str:
        return self._path

    def read(self) -> bytes:
        """The file's content. Raises InputError if the driver cannot read it either."""
        try:
            return ImageFile(self._path, self.limits).read()
        except InputError:
            data: bytes = channel().ask(ImageWanted(self.name, self.limits))
            return data


class Unpacker:
    """Unpickles jobs in a worker. Shared objects are kept as long as the next job needs them."""

    def __init__(self, fetch: Callable[[Any], Packed]) -> None:
        self._fetch = fetch
        self._shared: dict[int, Any] = {}

    def unpack(self, parcel: Parcel) -> Any:
        """The job."""
        self._shared = {n: each for n, each in self._shared.items() if n in parcel.shared}
        for number, reference in parcel.shared.items():
            if number not in self._shared:
                self._shared[number] = self._open(self._fetch(reference))
        return self._open(self._fetch(parcel.packed))

    def _open(self, packed: Packed) -> Any:
        unpickler = pickle.Unpickler(io.BytesIO(packed.data), buffers=packed.buffers)
        unpickler.persistent_load = self._named  # type: ignore[method-assign]
        return unpickler.load()

    def _named(self, name: tuple[Any, ...]) -> Any:
        kind, number, *row = name
        shared = self._shared[number]
        if kind == "all":
            return shared
        examples = getattr(shared, kind)
        return examples[row[0]] if row else examples
