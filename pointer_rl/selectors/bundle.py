"""A policy bundle: one folder with everything needed to choose demonstrations for new questions.

    model.safetensors, config.json   the selector (`load_selector` reads the folder as well)
    pool.safetensors                 embeddings and ids of the pool
    query_ids.txt                    ids of the queries that it was trained on, one per line
    README.md                        a card for people, written from bundle.json
    bundle.json                      the description of all this; written last

A folder without bundle.json is not a bundle, or its writing was interrupted.

Shapes: K pool rows, d embedding size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointer_rl.datasets.embeddings import (
    Embeddings,
    digest_vectors,
    load_embeddings,
    save_embeddings,
)
from pointer_rl.datasets.identity import digest_ids
from pointer_rl.errors import InputError, first_line
from pointer_rl.files import write_text
from pointer_rl.hub import REPOSITORY, download
from pointer_rl.json_stream import parse_json
from pointer_rl.selectors.card import write_card
from pointer_rl.selectors.checkpoints import load_selector, save_selector
from pointer_rl.selectors.policy import SelectorPolicy
from pointer_rl.selectors.selector import Selector
from pointer_rl.types import Pool

log = logging.getLogger(__name__)

BUNDLE_VERSION = 1
_DOCUMENT = "bundle.json"
_CARD = "README.md"
_POOL = "pool.safetensors"
_QUERY_IDS = "query_ids.txt"
BUNDLE_FILES = ("model.safetensors", "config.json", _POOL, _QUERY_IDS, _CARD, _DOCUMENT)
"""The files that `save_bundle` writes or overwrites."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """The encoder that made the embeddings. None: their file does not say."""

    fingerprint: str | None
    name: str | None = None
    """The encoder's registered name, by which new questions are embedded."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plugin(self) -> dict[str, Any] | None:
        """Its name and options; None if they are not known."""
        return None if self.name is None else {"name": self.name, "options": dict(self.options)}

    @classmethod
    def of(cls, embeddings: Embeddings | Pool) -> EncoderInfo:
        """The encoder that made these embeddings, as far as their file says."""
        plugin = embeddings.encoder_plugin or {}
        return cls(
            fingerprint=embeddings.encoder,
            name=plugin.get("name"),
            options=plugin.get("options", {}),
        )

    def check(self, given: str | None, owner: object) -> None:
        """Raise InputError, naming the owner, if `given` is known to be another encoder.

        Whatever uses a policy calls this. If one of the encoders is not known, it warns.
        """
        own = self.fingerprint
        if not own or not given:
            which = "the policy was trained with" if not own else "made the embeddings"
            log.warning("%s: which encoder %s is not known, and not compared", owner, which)
        elif own != given:
            raise InputError(
                f"{owner}: a bundle for another encoder ({own}); these embeddings come from "
                f"{given}: embed queries and pool with the bundle's"
            )


UNKNOWN = EncoderInfo(fingerprint=None)


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """The file of training data."""

    name: str
    """The file's name without its folder."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """Where a policy comes from. Mappings hold JSON values; NaN is written as null."""

    shots: int
    """Demonstrations that it was trained to choose; a selector that can stop may choose fewer."""
    encoder: EncoderInfo
    dataset: Mapping[str, Any]
    """The dataset plugin's description and size, as in the `_meta` of RL data."""
    data: DataFile | None = None
    """None if all data came from online rounds."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """`options` and `metrics`, each a mapping; `calls`, the trials that it took, None if unknown;
    `calls_by_file`, the same by the hash of the data."""
    evaluation: Mapping[str, Any] | None = None
    """The latest evaluation; its `verdict`, a sentence, opens that part of the card."""

    @property
    def training_calls(self) -> int | None:
        """Trials of its data and of the policies that it started from; None if that is unknown."""
        calls = self.training.get("calls")
        return calls if isinstance(calls, int) else None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose parts were checked to belong together."""

    info: BundleInfo
    policy: SelectorPolicy
    pool_ids: tuple[str, ...]
    pool_embeddings: Tensor
    """[K, d] float32"""


# --- writing ----------------------------------------------------------------------------------


def save_bundle(
    folder: Path,
    selector: Selector,
    pool_embeddings: Tensor,
    pool_ids: Sequence[str],
    info: BundleInfo,
    query_ids: Sequence[str],
) -> None:
    """Write or overwrite a bundle, each file atomically. Other files in the folder stay.

    Raises InputError if it cannot be written.
    """
    try:
        # Without bundle.json the folder is not a bundle, so that none mixes old and new parts.
        (folder / _DOCUMENT).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({first_line(error)})") from error
    save_selector(folder, selector)
    save_embeddings(
        folder / _POOL, pool_embeddings.detach().cpu(), pool_ids, info.encoder.fingerprint
    )
    write_text(folder / _QUERY_IDS, "".join(_quote(each) + "\n" for each in query_ids))
    policy = SelectorPolicy(load_selector(folder))  # in float32, whatever precision was saved
    document = {
        "bundle_version": BUNDLE_VERSION,
        "pointer_rl_version": version("pointer-rl"),
        **dataclasses.asdict(info),
        "policy": {
            "selector": policy.name,
            "sha256": policy.hash,
            "config": dataclasses.asdict(policy.config),
            "can_stop": policy.can_stop,
        },
        "pool": {
            "size": len(pool_ids),
            "sha256": digest_ids(pool_ids),
            "vectors_sha256": digest_vectors(load_embeddings(folder / _POOL).vectors),
        },
        "queries": {"number": len(query_ids), "sha256": digest_ids(query_ids)},
    }
    _write_documents(folder, _plain(document))


def update_evaluation(folder: Path, evaluation: Mapping[str, Any] | None) -> None:
    """Replace the evaluation in a bundle and on its card. Everything else stays."""
    document = _read_document(folder)
    _write_documents(folder, {**document, "evaluation": _plain(evaluation)})


def _write_documents(folder: Path, document: dict[str, Any]) -> None:
    document = {**document, "sha256": _digest(document)}
    write_text(folder / _CARD, write_card(document))
    write_text(folder / _DOCUMENT, json.dumps(document, indent=2, allow_nan=False) + "\n")


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the content of bundle.json without its entry `sha256`."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The value as JSON: numbers that are not finite become null, unknown types strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _quote(id: str) -> str:
    """The id itself, or a JSON string if a line could not hold it."""
    return id if id.isprintable() and not id.startswith('"') else json.dumps(id)


# --- reading ----------------------------------------------------------------------------------


def seed_folders(folder: Path) -> list[Path]:
    """The folders `seed-N` into which `train --seeds` trains, by N; [] if there are none."""
    found = (path for path in folder.glob("seed-*") if path.name[5:].isdecimal())
    return sorted(found, key=lambda path: int(path.name[5:]))


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the policy of one of several seeds is kept."""
    return folder / f"seed-{seed}"


def is_bundle(path: Path) -> bool:
    """Whether the path is the folder of a finished policy bundle."""
    return (path / _DOCUMENT).is_file()


def encoder_of(path: Path | None) -> EncoderInfo:
    """The encoder that a bundle was trained with; of another checkpoint it is not known."""
    if path is None or not is_bundle(path):
        return UNKNOWN
    return _info(_read_document(path), path / _DOCUMENT).encoder


def load_bundle(folder: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Read a bundle and check that its parts belong together.

    Raises InputError, in one line, if it is not a bundle, if it is damaged or mixed, or if a newer
    version wrote it; PluginError for a selector that is not installed.
    """
    folder = Path(folder)
    document = _read_document(folder)
    info = _info(document, folder / _DOCUMENT)
    policy = SelectorPolicy(load_selector(folder), device)
    if policy.hash != document["policy"]["sha256"]:
        raise _damaged(folder, "model.safetensors or config.json is not what it was saved with")
    pool = load_embeddings(folder / _POOL)
    vectors = digest_vectors(pool.vectors)
    if (
        pool.ids is None
        or digest_ids(pool.ids) != document["pool"]["sha256"]
        or document["pool"].get("vectors_sha256", vectors) != vectors  # not in older bundles
        or pool.encoder != info.encoder.fingerprint
        or pool.vectors.shape[1] != policy.config.d_model
    ):
        raise _damaged(folder, f"{_POOL} is not what it was saved with")
    return Bundle(info, policy, pool.ids, pool.vectors)


def read_query_ids(folder: str | Path) -> tuple[str, ...]:
    """The ids of the queries that the policy was trained on."""
    folder = Path(folder)
    document = _read_document(folder)
    path = folder / _QUERY_IDS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        ids = tuple(parse_json(line) if line.startswith('"') else line for line in lines)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    if digest_ids(ids) != document["queries"]["sha256"]:
        raise _damaged(folder, f"{_QUERY_IDS} is not what it was saved with")
    return ids


def check_bundle(folder: Path) -> Bundle:
    """`load_bundle` that also checks the hashes of bundle.json and the query ids.

    `load_bundle` itself accepts an edited bundle.json. The card may be edited: nothing reads it.
    Raises InputError if a file differs from what was saved.
    """
    bundle = load_bundle(folder)
    read_query_ids(folder)
    document = _read_document(folder)
    if document.get("sha256", _digest(document)) != _digest(document):  # older bundles have none
        raise _damaged(folder, f"{_DOCUMENT} is not what was saved")
    return bundle


def pull_bundle(repository: str) -> Path:
    """Download a bundle from the Hugging Face Hub: OWNER/NAME or OWNER/NAME@REVISION.

    Returns its folder in the Hub's cache. Only the files of a bundle are downloaded. Raises
    InputError if the download fails, or a file differs from what was saved.
    """
    match = re.fullmatch(f"({REPOSITORY})(?:@(.+))?", repository)
    if match is None:
        raise InputError(
            f"{repository!r} is not the name of a repository; write OWNER/NAME or "
            "OWNER/NAME@REVISION"
        )
    folder = download(match[1], match[2], BUNDLE_FILES)
    if not is_bundle(folder):
        raise InputError(f"{repository}: not a policy bundle (no {_DOCUMENT})")
    try:
        check_bundle(folder)
    except InputError as error:
        again = f"delete {folder.parents[1]} to download it again"
        raise InputError(f"{repository}: {error}".replace(_AGAIN, again)) from error
    return folder


_LAYOUT: dict[str, Any] = {
    "shots": int,
    "encoder": {"fingerprint": str | None, "name": str | None, "options": dict},
    "dataset": dict,
    "training": dict,
    "evaluation": dict | None,
    "policy": {"sha256": str, "config": dict},
    "pool": {"size": int, "sha256": str},
    "queries": {"number": int, "sha256": str},
}
"""The parts of bundle.json that are read, with their types; `data` may be missing."""


def _read_document(folder: Path) -> dict[str, Any]:
    """The content of bundle.json, checked for version and layout."""
    path = folder / _DOCUMENT
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a policy bundle")
    try:
        document: dict[str, Any] = parse_json(path.read_bytes())
    except FileNotFoundError:
        if seeds := seed_folders(folder):
            raise InputError(f"{folder}: bundles of several seeds; give one, {seeds[0]}") from None
        raise InputError(
            f"{folder}: not a policy bundle, or one whose writing was cut off (no {_DOCUMENT}); "
            "give a folder that training has finished"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{_DOCUMENT}: {first_line(error)}") from error
    written = document.get("bundle_version") if isinstance(document, dict) else None
    if not isinstance(written, int):
        raise InputError(f"{path}: not a policy bundle's; give a folder that training has finished")
    if written > BUNDLE_VERSION:
        raise InputError(
            f"{folder}: a bundle of version {written}, and this pointer-rl reads up to "
            f"{BUNDLE_VERSION}: upgrade pointer-rl"
        )
    data = document.get("data")
    layout = _LAYOUT if data is None else {**_LAYOUT, "data": {"name": str, "sha256": str}}
    wrong = _misfit(document, layout)
    if wrong is not None:
        raise _damaged(folder, f"{_DOCUMENT} has no proper {wrong!r}")
    return document


def _misfit(value: Any, layout: Any, name: str = "") -> str | None:
    """The dotted name of the first part that is missing or has another type; None if all fit."""
    if not isinstance(layout, dict):
        return None if isinstance(value, layout) else name
    if not isinstance(value, dict):
        return name
    for key, below in layout.items():
        path = f"{name}.{key}".lstrip(".")
        if key not in value:
            return path
        wrong = _misfit(value[key], below, path)
        if wrong is not None:
            return wrong
    return None


def _info(document: Mapping[str, Any], path: Path) -> BundleInfo:
    encoder, data = document["encoder"], document.get("data")
    if document["shots"] < 1:
        raise InputError(f"{path}: shots is {document['shots']}; it must be at least 1")
    return BundleInfo(
        shots=document["shots"],
        encoder=EncoderInfo(**{key: encoder[key] for key in _LAYOUT["encoder"]}),
        dataset=document["dataset"],
        data=None if data is None else DataFile(name=data["name"], sha256=data["sha256"]),
        training=document["training"],
        evaluation=document["evaluation"],
    )


_AGAIN = "copy or train it again"
"""Advice for a damaged bundle that was not downloaded."""


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(f"{folder}: a damaged policy bundle ({what}); {_AGAIN}")
