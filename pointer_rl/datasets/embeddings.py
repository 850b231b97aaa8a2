"""Embeddings of a split: one vector per example, with the examples' ids and the encoder if known.

They are written as safetensors: one tensor `embeddings` [N, d] float32 and, as metadata, one JSON
object with the examples' ids and hashes, the encoder's fingerprint and its plugin's name and
options. Files without this metadata are read too: safetensors with one tensor, `.npy`, and `.pt` or
`.pth` (a tensor, or a dict with one tensor).

Shapes: N rows, B queries, K pool rows, d embedding size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from pointer_rl.datasets.identity import HASH_BYTES, Contents
from pointer_rl.errors import InputError, PointerRLError, first_line
from pointer_rl.files import write_tensors
from pointer_rl.json_stream import parse_json
from pointer_rl.types import Example

log = logging.getLogger(__name__)

TENSOR = "embeddings"
METADATA = "pointer_rl_embeddings"
"""The only metadata key: safetensors writes several keys in no fixed order."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors in file order."""

    ids: tuple[str, ...] | None
    """The id of each row's example; None if the file does not say."""
    vectors: Tensor
    """[N, d] float32, all finite; N and d are at least 1."""
    encoder: str | None
    """Fingerprint of the encoder; None if the file does not say."""
    contents: tuple[bytes, ...] | None = None
    """A hash of each row's example (`ExampleHasher`); None if the file does not say."""
    encoder_plugin: Mapping[str, Any] | None = None
    """Name and options of the encoder (`ConfiguredEntry.describe`); None if the file does not say.
    """

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.vectors.shape))
        ids = "no ids" if self.ids is None else "ids"
        return f"Embeddings({size}, {ids}, encoder={self.encoder!r})"

    def match(self, examples: Sequence[Example], what: str) -> Sequence[int]:
        """The row of each example, in the examples' order.

        Rows are matched by id if the file has ids, otherwise by position, for which the lengths
        must be equal. `what` names the embeddings in error messages. Raises InputError if an
        example has no vector.
        """
        if self.ids is None:
            if len(examples) != len(self.vectors):
                raise InputError(
                    f"{what}: {len(self.vectors)} rows for {len(examples)} examples, and no ids "
                    "to match them by: embed this split again with `pointer-rl embed`"
                )
            return range(len(examples))
        if len(self.ids) == len(examples) and all(
            id == example.id for id, example in zip(self.ids, examples, strict=True)
        ):
            return range(len(examples))
        row_of = {id: row for row, id in enumerate(self.ids)}
        missing = [example.id for example in examples if example.id not in row_of]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"{what}: no row for the example {missing[0]!r}{others} (of {len(examples)}): "
                "embed this split again with `pointer-rl embed`"
            )
        return [row_of[example.id] for example in examples]

    def take(self, rows: Sequence[int]) -> Tensor:
        """The vectors of these rows: [len(rows), d]."""
        return take_rows(self.vectors, rows)

    def check_contents(
        self, rows: Sequence[int], examples: Sequence[Example], contents: Contents, what: str
    ) -> bool:
        """Raise InputError if a row was made of another example; False if the file does not say.

        `contents` are the examples' hashes. An image that cannot be read now is not compared.
        """
        if self.contents is None:
            return False
        changed = [
            example.id
            for index, (row, example, now) in enumerate(
                zip(rows, examples, contents.hashes, strict=True)
            )
            if self.contents[row] != now and index not in contents.unreadable
        ]
        if changed:
            raise InputError(
                f"{what}: {len(changed):,} of {len(examples):,} examples have changed since they "
                f"were embedded (image, question, answers or ids; the first: {changed[0]!r}): "
                "embed this split again with `pointer-rl embed`"
            )
        return True


def take_rows(vectors: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows [len(rows), d] of vectors [N, d]: no copy, which may take gigabytes, of all."""
    every = range(len(vectors))
    return vectors if rows == every or rows == list(every) else vectors[list(rows)]


def check_dims(query: Tensor, pool: Tensor) -> None:
    """Raise InputError unless queries [B, d] and pool [K, d] have the same size d."""
    if query.shape[1] != pool.shape[1]:
        raise InputError(
            f"the query embeddings have {query.shape[1]} dimensions and the pool embeddings "
            f"{pool.shape[1]}: embed both with the same encoder"
        )


def digest_vectors(vectors: Tensor) -> str:
    """SHA-256 of the values."""
    return hashlib.sha256(vectors.detach().cpu().contiguous().numpy().data).hexdigest()


def save_embeddings(
    path: str | Path,
    vectors: Tensor,
    ids: Sequence[str],
    encoder: str | None = None,
    contents: Sequence[bytes] | None = None,
    encoder_plugin: Mapping[str, Any] | None = None,
) -> None:
    """Write vectors [N, d] and their examples' ids; the file is complete or not written at all."""
    assert vectors.ndim == 2
    assert len(ids) == len(vectors)
    about: dict[str, Any] = {"encoder": encoder, "ids": list(ids)}
    if contents is not None:
        about["contents"] = b"".join(contents).hex()
    if encoder_plugin is not None:
        about["encoder_plugin"] = encoder_plugin
    metadata = {METADATA: json.dumps(about, ensure_ascii=False)}
    write_tensors(Path(path), {TENSOR: vectors.to(torch.float32).contiguous()}, metadata)


def load_embeddings(path: str | Path) -> Embeddings:
    """Read embeddings from `.safetensors`, `.npy`, `.pt` or `.pth`; no code in them is run.

    Raises InputError if the file is missing, unreadable or not a matrix of finite numbers.
    """
    path = Path(path)
    readers = {".safetensors": _read_safetensors, ".npy": _read_npy, ".pt": _read_pt}
    read = readers.get(".pt" if path.suffix == ".pth" else path.suffix)
    if read is None:
        raise InputError(f"{path}: embeddings are .safetensors, .npy, .pt or .pth files")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        vectors, about = read(path)
        vectors = _checked(vectors, path)
    except PointerRLError:
        raise
    except Exception as error:  # damaged bytes can make numpy's and torch's parsers raise anything
        raise InputError(
            f"{path}: cannot be read as {path.suffix} ({first_line(error)})"
        ) from error
    log.debug("%s: read, %d rows", path, len(vectors))
    ids, plugin = about.get("ids"), about.get("encoder_plugin")
    if ids is not None and not (
        isinstance(ids, list)
        and all(isinstance(each, str) for each in ids)
        and len(ids) == len(set(ids)) == len(vectors)
    ):
        raise InputError(f"{path}: its ids are not one unique id per row; embed again")
    if not (
        isinstance(about.get("encoder"), str | None)
        and isinstance(plugin, dict | None)
        and isinstance((plugin or {}).get("name"), str | None)
        and isinstance((plugin or {}).get("options", {}), dict)
    ):
        raise InputError(f"{path}: its metadata {METADATA} is not as it was made; embed again")
    contents = _contents(about.get("contents"))
    if contents is not None and len(contents) != len(vectors):
        raise InputError(f"{path}: its contents are not one hash per row; embed again")
    return Embeddings(
        ids=None if ids is None else tuple(ids),
        vectors=vectors,
        encoder=about.get("encoder"),
        contents=contents,
        encoder_plugin=plugin,
    )


def _contents(joined: Any) -> tuple[bytes, ...] | None:
    """The hashes of the rows, from one string of hex digits."""
    try:
        data = None if joined is None else bytes.fromhex(joined)
    except (TypeError, ValueError):
        return ()
    if data is None:
        return None
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def _read_safetensors(path: Path) -> tuple[Tensor, dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensor = _only({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118
    about = parse_json(metadata.get(METADATA, "{}"))
    if not isinstance(about, dict):
        raise ValueError(f"its metadata {METADATA} is not an object")
    return tensor, about


def _read_npy(path: Path) -> tuple[Tensor, dict[str, Any]]:
    # Mapping the file fails if its header claims more than it holds, before any memory is taken.
    # np.load would also accept a zip of arrays.
    array = np.lib.format.open_memmap(path, mode="r")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(f"{path}: holds {array.dtype}, not floating-point numbers")
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C")), {}


def _read_pt(path: Path) -> tuple[Tensor, dict[str, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "pickle protocol 4 might not be supported"
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes can make an unpickler raise anything
        raise InputError(
            f"{path}: cannot be read as tensors alone, and other objects are not unpickled because "
            "that would run code: save the tensor itself, torch.save(tensor, path)"
        ) from error
    return _only(content, path) if isinstance(content, dict) else content, {}


def _only(content: dict[str, object], path: Path) -> Tensor:
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if len(tensors) != 1:
        raise InputError(f"{path}: holds {len(tensors)} tensors; embeddings are one alone")
    return tensors[0]


def _checked(vectors: object, path: Path) -> Tensor:
    if not isinstance(vectors, Tensor):
        raise InputError(f"{path}: holds a {type(vectors).__name__}, not a tensor")
    if not vectors.is_floating_point():
        raise InputError(f"{path}: holds {vectors.dtype}, not floating-point numbers")
    if vectors.ndim != 2 or vectors.numel() == 0:
        raise InputError(
            f"{path}: embeddings are a matrix [rows, dimensions]; this has the shape "
            f"{list(vectors.shape)}"
        )
    if (
        vectors.layout != torch.strided
        or vectors.is_meta
        or vectors.is_nested
        or vectors.untyped_storage().nbytes() < vectors.numel() * vectors.element_size()
    ):
        raise InputError(
            f"{path}: holds no plain tensor but a sparse, nested, meta or expanded one: save "
            "tensor.to_dense().contiguous()"
        )
    vectors = vectors.detach().to(torch.float32).contiguous()
    if not torch.stack(vectors.aminmax()).isfinite().all():
        row = int(vectors.isfinite().all(dim=1).logical_not().nonzero()[0])
        raise InputError(f"{path}: row {row} holds NaN or infinity; embed again without it")
    return vectors
