"""Embed examples batch by batch, so that an interrupted run can resume.

Finished batches are kept in the folder `FILE.partial/` next to the output file. Batches depend only
on the examples and the batch size, so an interrupted run gives a bit-identical file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from pointer_rl.datasets.embeddings import Embeddings, load_embeddings, save_embeddings
from pointer_rl.datasets.identity import Contents, ExampleHasher, digest_ids
from pointer_rl.errors import InputError, PluginError
from pointer_rl.files import locked, write_text
from pointer_rl.registry import ConfiguredEntry
from pointer_rl.types import Dataset, Encoder, Example

BATCH_SIZE = 64
"""Examples that are embedded together."""


def embed_dataset(
    dataset: Dataset,
    encoder: Encoder,
    output_path: Path,
    *,
    split: Literal["queries", "pool"],
    hasher: ExampleHasher | None = None,
    encoder_plugin: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> Embeddings:
    """Write the embeddings of `dataset.queries` or `dataset.pool`, as `embed_examples` does."""
    examples = dataset.queries if split == "queries" else dataset.pool
    if not examples:
        raise InputError(f"dataset {dataset.name} has no {split} to embed")
    return embed_examples(
        examples,
        encoder,
        output_path,
        plan={"dataset": dataset.name, "split": split},
        hasher=hasher,
        encoder_plugin=encoder_plugin,
        batch_size=batch_size,
        on_batch=on_batch,
    )


def embed_examples(
    examples: Sequence[Example],
    encoder: Encoder,
    output_path: Path,
    *,
    plan: Mapping[str, str] = MappingProxyType({}),
    hasher: ExampleHasher | None = None,
    encoder_plugin: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], object] = lambda rows: None,
    waiting: Callable[[str], object] | None = None,
) -> Embeddings:
    """Write the embeddings of one or more examples to `output_path` (safetensors).

    Called again after an interruption, it resumes; called again when the file is complete, it
    encodes nothing. `plan` says what else an interrupted run must have in common with this one.
    `hasher` makes the hashes of the examples that are kept next to their vectors. `encoder_plugin`
    is what `describe_encoder` says, stored next to the fingerprint; `on_batch` is called with the
    number of rows of each batch, resumed or new; `waiting` is that of `locked`.
    Raises InputError for an unreadable image, naming its example, and if the file or the finished
    batches at `output_path` belong to other examples, another encoder, plan or batch size.
    """
    ids = [example.id for example in examples]
    if output_path.suffix != ".safetensors":
        raise InputError(f"{output_path}: embeddings are written to a .safetensors file; name one")
    contents = (hasher or ExampleHasher())(examples)
    with locked(output_path, waiting):
        about = (encoder.fingerprint, tuple(contents.hashes), encoder_plugin)
        partial = output_path.with_name(f"{output_path.name}.partial")
        if output_path.exists():
            finished = load_finished(output_path, contents, encoder)
            shutil.rmtree(partial, ignore_errors=True)  # left if interrupted at the very end
            return finished
        decided: dict[str, str | int] = {
            **plan,
            "examples": digest_ids(ids),
            "encoder": encoder.fingerprint,
            "batch_size": batch_size,
        }
        _begin_or_resume(partial, decided)
        parts = []
        for start in range(0, len(examples), batch_size):
            rows = slice(start, start + batch_size)
            hashes = tuple(contents.hashes[rows])
            part = partial / f"{start:09d}.safetensors"
            made = load_embeddings(part) if part.exists() else None
            if made is None or made.contents != hashes:  # an image may have been mended since
                vectors = encode_batch(encoder, examples[rows])
                save_embeddings(part, vectors, ids[rows], encoder.fingerprint, hashes)
                made = load_embeddings(part)
            parts.append(made.vectors)
            on_batch(len(ids[rows]))
        embeddings = Embeddings(tuple(ids), torch.cat(parts), *about)
        save_embeddings(output_path, embeddings.vectors, ids, *about)
        shutil.rmtree(partial)
        return embeddings


def describe_encoder(plugin: ConfiguredEntry) -> dict[str, Any]:
    """Name and options of an encoder, as files record them: without the device that it ran on."""
    described = plugin.describe()
    described["options"].pop("device", None)
    return described


def load_finished(path: Path, contents: Contents, encoder: Encoder) -> Embeddings:
    """The complete file of these examples. Raises InputError if it is another one's."""
    existing = load_embeddings(path)
    if existing.contents != tuple(contents.hashes) or existing.encoder != encoder.fingerprint:
        raise InputError(
            f"{path}: exists, with embeddings of other examples (an image, a question or an answer "
            "may have changed) or from another encoder "
            f"({existing.encoder or 'unknown'}): remove it, or write to another file"
        )
    return existing


def _begin_or_resume(partial: Path, plan: Mapping[str, str | int]) -> None:
    file = partial / "plan.json"
    if not file.exists():
        write_text(file, json.dumps(dict(plan), indent=1))
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
