"""Embed a split of a dataset batch by batch, so that an interrupted run can resume.

Finished batches are kept in the folder `FILE.partial/` next to the output file. Batches depend only
on the examples and the batch size, so an interrupted run gives a bit-identical file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pointer_rl.datasets.embeddings import Embeddings, load_embeddings, save_embeddings
from pointer_rl.errors import InputError, PluginError
from pointer_rl.files import locked, write_text
from pointer_rl.types import Dataset, Encoder, Example


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

    Called again after an interruption, it resumes; called again when the file is complete, it
    encodes nothing. `encoder_plugin` is the encoder's `ConfiguredEntry.describe`, stored next to
    its fingerprint; `on_batch` is called with the number of rows of each batch, resumed or new.
    Raises InputError for an unreadable image, naming its example, and if the file or the finished
    batches at `output_path` belong to another dataset, encoder or batch size.
    """
    if output_path.suffix != ".safetensors":
        raise InputError(f"{output_path}: embeddings are written to a .safetensors file; name one")
    if not len(dataset.queries if split == "queries" else dataset.pool):
        raise InputError(f"dataset {dataset.name} has no {split} to embed")
    with locked(output_path):
        return _embed(dataset, encoder, output_path, split, encoder_plugin, batch_size, on_batch)


def _embed(
    dataset: Dataset,
    encoder: Encoder,
    output_path: Path,
    split: Literal["queries", "pool"],
    encoder_plugin: Mapping[str, Any] | None,
    batch_size: int,
    on_batch: Callable[[int], object],
) -> Embeddings:
    examples = dataset.queries if split == "queries" else dataset.pool
    ids = [example.id for example in examples]
    examples_digest = digest(examples)
    partial = output_path.with_name(f"{output_path.name}.partial")
    if output_path.exists():
        finished = _finished(output_path, examples_digest, encoder)
        shutil.rmtree(partial, ignore_errors=True)  # left if interrupted at the very end
        return finished
    plan: dict[str, str | int] = {
        "dataset": dataset.name,
        "split": split,
        "examples": examples_digest,
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
    embeddings = Embeddings(
        tuple(ids), vectors, encoder.fingerprint, examples_digest, encoder_plugin
    )
    save_embeddings(output_path, vectors, ids, encoder.fingerprint, examples_digest, encoder_plugin)
    shutil.rmtree(partial)
    return embeddings


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of ids and questions. Images, which may be many gigabytes, are not read."""
    return digest_ids((example.id, example.question) for example in examples)


def digest_examples(examples: Sequence[Example]) -> str:
    """SHA-256 of the examples' ids, image ids, questions and answers."""
    digest = hashlib.sha256()
    for each in examples:
        content = (each.id, each.image_id, each.question, each.answers)
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def digest_ids(ids: Iterable[object]) -> str:
    """SHA-256 of ids in order, which identifies a pool or a set of queries.

    It is that of one JSON list, encoded item by item because it may be large.
    """
    digest = hashlib.sha256(b"[")
    for position, item in enumerate(ids):
        digest.update(f"{', ' if position else ''}{json.dumps(item)}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def _finished(path: Path, examples_digest: str, encoder: Encoder) -> Embeddings:
    existing = load_embeddings(path)
    if existing.examples != examples_digest or existing.encoder != encoder.fingerprint:
        raise InputError(
            f"{path}: exists, with embeddings of other examples or from another encoder "
            f"({existing.encoder or 'unknown'}): remove it, or write to another file"
        )
    return existing


def _begin_or_resume(partial: Path, plan: dict[str, str | int]) -> None:
    file = partial / "plan.json"
    if not file.exists():
        write_text(file, json.dumps(plan, indent=1))
        return
    try:
        begun = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read; remove {partial} to start anew") from error
    for key, value in plan.items():
        if begun.get(key) != value:
            raise InputError(
                f"{partial}: holds an unfinished run with another {key.replace('_', ' ')} "
                f"({begun.get(key)}, now {value}): finish it as it was begun, or remove the folder"
            )


def encode_batch(encoder: Encoder, batch: Sequence[Example]) -> torch.Tensor:
    """The encoder's vectors of a batch, checked: [len(batch), d] on the CPU, all finite.

    Raises InputError for an unreadable image, naming its example, and PluginError if the encoder
    returns another shape, NaN or infinity.
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
