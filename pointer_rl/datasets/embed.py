"""Embed a split of a dataset, batch after batch, so that an interrupted run can go on.

Finished batches lie in `FILE.partial/` beside the file to be. They are planned from the examples
and the batch size alone, so the file comes out the same to the bit, interrupted or not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pointer_rl.datasets.embeddings import (
    Embeddings,
    load_embeddings,
    save_embeddings,
)
from pointer_rl.datasets.examples import values
from pointer_rl.errors import InputError, PluginError
from pointer_rl.files import write_text
from pointer_rl.types import Dataset, Encoder, Example

__all__ = ["digest", "digest_examples", "digest_ids", "embed_dataset", "encode_batch"]


def embed_dataset(
    dataset: Dataset,
    encoder: Encoder,
    output_path: Path,
    *,
    split: Literal["queries", "pool"],
    encoder_plugin: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> Embeddings:
    """Write the embeddings of `dataset.queries` or `dataset.pool` to `output_path` (safetensors).

    Run again after an interruption it goes on; run again when all is done it encodes nothing.
    `encoder_plugin` is the encoder's `Configured.describe`, to be kept beside its fingerprint;
    `on_batch` is called with the number of rows of each batch that is there, old or new.
    Raises InputError, naming the example, for an image that is none, and where the file or the
    unfinished batches at `output_path` are of another dataset, encoder or batch size.
    """
    examples = dataset.queries if split == "queries" else dataset.pool
    ids = list(values(examples, "id"))
    if output_path.suffix != ".safetensors":
        raise InputError(f"{output_path}: embeddings are written to a .safetensors file; name one")
    if not examples:
        raise InputError(f"dataset {dataset.name} has no {split} to embed")
    examined = digest(examples)
    partial = output_path.with_name(f"{output_path.name}.partial")
    if output_path.exists():
        finished = _finished(output_path, examined, encoder)
        if finished.encoder_plugin is None:  # a file of an older version: the fingerprint is equal
            finished = dataclasses.replace(finished, encoder_plugin=encoder_plugin)
        shutil.rmtree(partial, ignore_errors=True)  # there if the end itself was interrupted
        return finished
    plan: dict[str, str | int] = {
        "dataset": dataset.name,
        "split": split,
        "examples": examined,
        "encoder": encoder.fingerprint,
        "batch_size": batch_size,
    }
    _begin_or_resume(partial, plan)
    parts = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        part = partial / f"{start:09d}.safetensors"
        if not part.exists():
            vectors = encode_batch(encoder, batch)
            save_embeddings(part, vectors, ids[start : start + batch_size], encoder.fingerprint)
        parts.append(load_embeddings(part).vectors)
        on_batch(len(batch))
    vectors = torch.cat(parts)
    embeddings = Embeddings(tuple(ids), vectors, encoder.fingerprint, examined, encoder_plugin)
    assembled = partial / "assembled.safetensors"
    save_embeddings(assembled, vectors, ids, encoder.fingerprint, examined, encoder_plugin)
    os.replace(assembled, output_path)
    shutil.rmtree(partial)
    return embeddings


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of ids and questions. Images are not read for it: they may be many gigabytes."""
    return _digest_list(zip(values(examples, "id"), values(examples, "question"), strict=True))


def digest_examples(examples: Sequence[Example]) -> str:
    """SHA-256 of ids, images' ids, questions and answers, example by example."""
    digest = hashlib.sha256()
    fields = ("id", "image_id", "question", "answers")
    for content in zip(*(values(examples, field) for field in fields), strict=True):
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def digest_ids(ids: Iterable[str]) -> str:
    """SHA-256 of ids in their order: names a pool or a set of queries."""
    return _digest_list(ids)


def _digest_list(items: Iterable[object]) -> str:
    """That of the list's JSON, which may be large, piece by piece."""
    digest = hashlib.sha256(b"[")
    for place, item in enumerate(items):
        digest.update(f"{', ' if place else ''}{json.dumps(item)}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def _finished(path: Path, examined: str, encoder: Encoder) -> Embeddings:
    there = load_embeddings(path)
    if there.examples != examined or there.encoder != encoder.fingerprint:
        raise InputError(
            f"{path}: exists, with embeddings of other examples or from another encoder "
            f"({there.encoder or 'unknown'}): remove it, or write to another file"
        )
    return there


def _begin_or_resume(partial: Path, plan: dict[str, str | int]) -> None:
    file = partial / "plan.json"
    if not file.exists():
        write_text(file, json.dumps(plan, indent=1))
        return
    try:
        there = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read; remove {partial} to start anew") from error
    for key, value in plan.items():
        if there.get(key) != value:
            raise InputError(
                f"{partial}: holds an unfinished run with another {key.replace('_', ' ')} "
                f"({there.get(key)}, now {value}): finish it as it was begun, or remove the folder"
            )


def encode_batch(encoder: Encoder, batch: Sequence[Example]) -> torch.Tensor:
    """[len(batch), d] on the CPU, a finite row an example.

    Raises InputError, naming the example, for an image that is none, and PluginError for what an
    encoder may not return.
    """
    try:
        vectors = encoder.encode(batch)
    except InputError:
        _name_unreadable(batch)
        raise
    if vectors.shape != (len(batch), encoder.dim):
        raise PluginError(
            f"the encoder {encoder.fingerprint} returned {list(vectors.shape)} for {len(batch)} "
            f"examples of {encoder.dim} dimensions"
        )
    vectors = vectors.cpu()
    finite = vectors.isfinite().all(dim=1)
    if not finite.all():
        first = batch[int(finite.logical_not().nonzero()[0])]
        raise PluginError(
            f"the encoder {encoder.fingerprint} returned NaN or infinity for example {first.id}"
        )
    return vectors


def _name_unreadable(batch: Sequence[Example]) -> None:
    """Raise InputError with the id of the first example whose image does not open, if any."""
    for example in batch:
        try:
            example.image.open()
        except InputError as error:
            raise InputError(f"example {example.id}: {error}") from error
