"""Embedding files: what is read, what is refused, how rows are matched."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pointer_rl.datasets.embed import embed_dataset
from pointer_rl.datasets.embeddings import (
    Embeddings,
    check_dims,
    load_embeddings,
    save_embeddings,
)
from pointer_rl.datasets.identity import digest_ids
from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError, PluginError
from pointer_rl.types import Dataset, Example

VECTORS = torch.arange(12, dtype=torch.float32).reshape(4, 3)
IDS = ("a", "ü", "c", '"d"')


def example(name: str) -> Example:
    return Example(name, 0, ImageBytes(b"", name), "?", ("yes",))


def refused(path: Path, *saying: str) -> None:
    with pytest.raises(InputError) as caught:
        load_embeddings(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for words in saying:
        assert words in message


# --- our own files ---


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "e.safetensors"
    save_embeddings(path, VECTORS, IDS, "clip x")
    loaded = load_embeddings(path)
    assert (loaded.ids, loaded.encoder) == (IDS, "clip x")
    assert torch.equal(loaded.vectors, VECTORS)
    assert [each.name for each in path.parent.iterdir()] == ["e.safetensors"]


def test_equal_embeddings_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        save_embeddings(tmp_path / name, VECTORS, IDS, "clip x")
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.safetensors"
    save_embeddings(path, VECTORS, IDS)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written"):
        save_embeddings(path, VECTORS + 1, IDS)
    assert torch.equal(load_embeddings(path).vectors, VECTORS)
    assert list(tmp_path.iterdir()) == [path]


def test_what_embeds_is_kept_where_it_is_known(tmp_path: Path) -> None:
    plugin = {"name": "clip", "options": {"model": "ü", "mode": "both"}}
    for name, given_ in (("new.safetensors", plugin), ("old.safetensors", None)):
        save_embeddings(tmp_path / name, VECTORS, IDS, "clip x", None, given_)
        assert load_embeddings(tmp_path / name).encoder_plugin == given_
    assert b"encoder_plugin" not in (tmp_path / "old.safetensors").read_bytes()


def test_metadata_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_file({"embeddings": VECTORS}, path, metadata={"pointer_rl_embeddings": "[1]"})
    refused(path, "is not an object")


def test_ids_that_are_not_one_of_a_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_embeddings(path, VECTORS, ("a", "b", "a", "c"))
    refused(path, "ids")


# --- foreign files ---


def write_safetensors(path: Path, tensor: torch.Tensor) -> None:
    save_file({"anything": tensor}, path)


def write_npy(path: Path, tensor: torch.Tensor) -> None:
    np.save(path, tensor.numpy())


WRITERS: dict[str, Callable[[Path, torch.Tensor], None]] = {
    "e.safetensors": write_safetensors,
    "e.npy": write_npy,
    "e.pt": lambda path, tensor: torch.save(tensor, path),
    "e.pth": lambda path, tensor: torch.save({"embeddings": tensor, "epoch": 3}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_plain_matrix_is_read_without_ids(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path, VECTORS.double())
    loaded = load_embeddings(path)
    assert (loaded.ids, loaded.encoder) == (None, None)
    assert loaded.vectors.dtype == torch.float32
    assert torch.equal(loaded.vectors, VECTORS)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("tensor", "saying"),
    [
        (torch.zeros(3), "[3]"),
        (torch.zeros(2, 3, 4), "[2, 3, 4]"),
        (torch.zeros(0, 3), "[0, 3]"),
        (torch.zeros(3, 0), "[3, 0]"),
        (torch.zeros(3, 2, dtype=torch.int64), "int64"),
        (torch.tensor([[1.0], [2.0], [float("nan")], [float("inf")]]), "row 2 holds NaN"),
        (torch.tensor([[1.0], [float("-inf")]]), "row 1 holds NaN"),
        (torch.tensor([[1e300]], dtype=torch.float64), "row 0"),
    ],
)
def test_what_is_no_matrix_of_finite_numbers_is_refused(
    name: str, tensor: torch.Tensor, saying: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, tensor)
    refused(tmp_path / name, saying)


@pytest.mark.parametrize("name", WRITERS)
def test_missing_empty_and_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    refused(path, "no such file")
    path.write_bytes(b"")
    refused(path)
    WRITERS[name](path, VECTORS)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path)


@pytest.mark.parametrize("name", WRITERS)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(
    name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    refused(path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(marker),))

    torch.save(Bomb(), tmp_path / "bomb.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    refused(tmp_path / "bomb.pt", "not unpickled")
    refused(tmp_path / "raw.pt", "not unpickled")
    refused(tmp_path / "bomb.npy")
    assert not marker.exists()


def test_several_tensors_are_ambiguous(tmp_path: Path) -> None:
    two = {"queries": VECTORS, "pool": VECTORS + 1}
    save_file(two, tmp_path / "e.safetensors")
    torch.save(two, tmp_path / "e.pt")
    torch.save([VECTORS], tmp_path / "list.pt")
    refused(tmp_path / "e.safetensors", "2 tensors")
    refused(tmp_path / "e.pt", "2 tensors")
    refused(tmp_path / "list.pt", "list")


def test_an_array_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", VECTORS.numpy().astype(">f4"))
    assert torch.equal(load_embeddings(tmp_path / "e.npy").vectors, VECTORS)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "e.csv", ".safetensors, .npy")


# --- matching ---


@given(st.permutations(IDS), st.integers(1, 4))
def test_matching_by_id_follows_the_examples(order: list[str], count: int) -> None:
    embeddings = Embeddings(IDS, VECTORS, None)
    matched = embeddings.take(embeddings.match([example(i) for i in order[:count]], "pool"))
    assert torch.equal(matched, VECTORS[[IDS.index(i) for i in order[:count]]])


def test_an_example_without_a_row_is_named() -> None:
    with pytest.raises(InputError, match="query embeddings: no row for the example 'x' and 1 more"):
        Embeddings(IDS, VECTORS, None).match(
            [example("a"), example("x"), example("y")], "query embeddings"
        )


def test_without_ids_the_lengths_must_be_equal() -> None:
    plain = Embeddings(None, VECTORS, None)
    examples = [example(name) for name in "wxyz"]
    assert torch.equal(plain.take(plain.match(examples, "pool")), VECTORS)
    with pytest.raises(InputError, match="pool: 4 rows for 3 examples"):
        plain.match(examples[:3], "pool")


def test_dimensions_must_be_equal() -> None:
    check_dims(torch.zeros(2, 3), torch.zeros(5, 3))
    with pytest.raises(InputError, match=r"3 dimensions.* 4:"):
        check_dims(torch.zeros(2, 3), torch.zeros(5, 4))


# --- making them ---


class Constant:
    """Encodes an example as what it is told to."""

    dim = 2

    def __init__(self, vector: list[float], fingerprint: str = "constant") -> None:
        self.vector = vector
        self.fingerprint = fingerprint

    def encode(self, examples: list[Example]) -> torch.Tensor:
        return self.vector_of(examples)

    def vector_of(self, examples: list[Example]) -> torch.Tensor:
        return torch.tensor([self.vector] * len(examples))


DATASET = Dataset("toy", [example(name) for name in "abc"], [example(name) for name in "de"])


def test_either_split_is_embedded(tmp_path: Path) -> None:
    for split, ids in (("queries", ("a", "b", "c")), ("pool", ("d", "e"))):
        path = tmp_path / f"{split}.safetensors"
        made = embed_dataset(DATASET, Constant([1, 2]), path, split=split, batch_size=2)  # type: ignore[arg-type]
        assert made.ids == load_embeddings(path).ids == ids


@pytest.mark.parametrize(
    ("vector", "saying"), [([1.0], r"returned \[2, 1\]"), ([1.0, float("nan")], "example a")]
)
def test_a_broken_encoder_is_named(vector: list[float], saying: str, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    with pytest.raises(PluginError, match=f"the encoder constant .*{saying}"):
        embed_dataset(DATASET, Constant(vector), path, split="queries", batch_size=2)
    assert list((tmp_path / "e.safetensors.partial").iterdir()) == [
        tmp_path / "e.safetensors.partial" / "plan.json"
    ]


def test_a_finished_file_is_kept_and_no_others_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    embed_dataset(DATASET, Constant([1, 2]), path, split="queries")
    again = embed_dataset(DATASET, Constant([7, 7]), path, split="queries")
    assert again.vectors[0].tolist() == [1, 2]
    for split, name in (("pool", "constant"), ("queries", "another")):
        with pytest.raises(InputError, match="exists, with embeddings of other"):
            embed_dataset(DATASET, Constant([1, 2], name), path, split=split)  # type: ignore[arg-type]


def test_other_images_are_not_taken_for_the_embedded_ones(tmp_path: Path) -> None:
    """A finished file is refused; of an unfinished one, only what changed is embedded again."""
    path = tmp_path / "e.safetensors"
    embed_dataset(DATASET, Constant([1, 2]), path, split="queries", batch_size=1)
    first, *others = DATASET.queries
    changed = replace(DATASET, queries=[replace(first, image=ImageBytes(b"another", "a")), *others])
    with pytest.raises(InputError, match="an image, a question or an answer may have changed"):
        embed_dataset(changed, Constant([1, 2]), path, split="queries", batch_size=1)
    path.unlink()
    encoder, broken = Constant([1, 2]), Constant([1, float("nan")])
    encoder.encode = lambda examples: (  # type: ignore[method-assign]
        (encoder if examples[0].id != "c" else broken).vector_of(examples)
    )
    with pytest.raises(PluginError):
        embed_dataset(DATASET, encoder, path, split="queries", batch_size=1)
    embed_dataset(changed, Constant([7, 7]), path, split="queries", batch_size=1)
    assert load_embeddings(path).vectors.tolist() == [[7, 7], [1, 2], [7, 7]]


def test_a_file_names_the_encoders_plugin(tmp_path: Path) -> None:
    path, plugin = tmp_path / "e.safetensors", {"name": "constant", "options": {}}
    embed_dataset(DATASET, Constant([1, 2]), path, split="pool", encoder_plugin=plugin)
    assert load_embeddings(path).encoder_plugin == plugin


def test_the_end_may_be_interrupted_too(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    embed_dataset(DATASET, Constant([1, 2]), path, split="queries")
    (tmp_path / "e.safetensors.partial").mkdir()
    embed_dataset(DATASET, Constant([1, 2]), path, split="queries")
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_embed_is_an_error(tmp_path: Path) -> None:
    empty = Dataset("toy", [], [])
    with pytest.raises(InputError, match="dataset toy has no pool"):
        embed_dataset(empty, Constant([1, 2]), tmp_path / "e.safetensors", split="pool")
    with pytest.raises(InputError, match=r"written to a \.safetensors file"):
        embed_dataset(DATASET, Constant([1, 2]), tmp_path / "e.pt", split="pool")


@pytest.mark.parametrize("names", [(), IDS[:1], IDS])
def test_digests_of_ids_are_those_of_one_json_text(names: tuple[str, ...]) -> None:
    assert digest_ids(names) == hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


# --- what attacks found ---


@pytest.mark.parametrize(
    ("about", "saying"),
    [
        ({"ids": 5}, "ids"),
        ({"ids": "abcd"}, "ids"),
        ({"ids": {"a": 1, "b": 2, "c": 3, "d": 4}}, "ids"),
        ({"ids": [1, 2, 3, 4]}, "ids"),
        ({"ids": [["a"], ["b"], ["c"], ["d"]]}, "ids"),
        ({"encoder": 7}, "not as it was made"),
        ({"contents": []}, "contents"),
        ({"encoder_plugin": "clip"}, "not as it was made"),
        ({"encoder_plugin": {"name": 1}}, "not as it was made"),
        ({"encoder_plugin": {"name": "clip", "options": []}}, "not as it was made"),
    ],
)
def test_odd_metadata_is_refused(tmp_path: Path, about: object, saying: str) -> None:
    path = tmp_path / "e.safetensors"
    save_file({"embeddings": VECTORS}, path, {"pointer_rl_embeddings": json.dumps(about)})
    refused(path, saying)


def test_deeply_nested_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    deep = "[" * 100_000 + "]" * 100_000
    save_file({"embeddings": VECTORS}, path, {"pointer_rl_embeddings": deep})
    refused(path, "cannot be read")


@pytest.mark.parametrize("rows", ["1" + "0" * 12, "1" + "0" * 400, "-1"], ids=len)
def test_an_npy_header_that_claims_more_than_the_file_holds_is_refused(
    tmp_path: Path, rows: str
) -> None:
    path = tmp_path / "e.npy"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 3), }}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"0" * 48)
    refused(path)


def test_npy_files_in_every_order_of_bytes_and_axes_are_read(tmp_path: Path) -> None:
    for array in (VECTORS.numpy().astype(">f8"), np.asfortranarray(VECTORS.numpy())):
        np.save(tmp_path / "e.npy", array)
        assert torch.equal(load_embeddings(tmp_path / "e.npy").vectors, VECTORS)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize(
    "make",
    [
        lambda: VECTORS.to_sparse(),
        lambda: VECTORS.to_sparse_csr(),
        lambda: VECTORS.to("meta"),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.nested.nested_tensor([VECTORS[0], VECTORS[0]]),
        lambda: torch.nested.nested_tensor([VECTORS[0], VECTORS[0]], layout=torch.jagged),
    ],
    ids=["sparse", "csr", "meta", "expanded", "nested", "jagged"],
)
def test_tensors_that_are_not_plain_are_refused(
    tmp_path: Path, make: Callable[[], torch.Tensor]
) -> None:
    path = tmp_path / "e.pt"
    torch.save(make(), path)
    refused(path)
