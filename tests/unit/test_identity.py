"""Hashes of examples: their content, images included, and nothing else."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pointer_rl.datasets import identity
from pointer_rl.datasets.identity import ExampleHasher, hash_images
from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.types import Example

ONE = Example("q", 0, ImageBytes(b"image", "a"), "what?", ("yes", "no"), 7, "cat")


def digest(*examples: Example) -> str:
    return ExampleHasher()(examples).digest


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files, and a cache of their own that trusts fresh files too."""
    monkeypatch.setenv("POINTER_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED", -1)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


def keys(paths: list[Path]) -> list[str]:
    images = [ImageFile(path) for path in paths]
    hash_images(images)
    return [image.key for image in images]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "p"},
        {"question": "who?"},
        {"answers": ("no", "yes")},
        {"question_id": "7"},
        {"image_id": None},
        {"image": ImageBytes(b"other", "a")},
        {"episode": "3"},
    ],
)
def test_everything_that_an_example_says_is_in_its_hash(change) -> None:
    assert digest(ONE) != digest(replace(ONE, **change))


def test_where_an_image_lies_and_a_row_are_not(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"image")
    moved = replace(ONE, row=5, image=ImageFile(tmp_path / "b.png"))
    assert digest(ONE) == digest(moved)
    assert digest(ONE, replace(ONE, id="p")) != digest(replace(ONE, id="p"), ONE)


def test_an_unreadable_image_is_counted_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    missing = replace(ONE, id="m", image=ImageFile(tmp_path / "none.png"))
    contents = ExampleHasher(said.append)([ONE, missing])
    assert list(contents.unreadable) == [1]
    assert len(contents.hashes) == 2
    assert len(said) == 1
    assert "examples whose image cannot be read: 1; first: m: " in said[0]


def test_a_known_file_is_not_read_again(files: list[Path], tmp_path: Path) -> None:
    before = keys(files)
    with sqlite3.connect(tmp_path / "cache" / "images.sqlite") as kept:
        assert kept.execute("SELECT count(*) FROM hashes").fetchone() == (3,)
        kept.execute("UPDATE hashes SET hash = 'told'")
    kept.close()
    assert keys(files) == ["told"] * 3
    files[1].write_text("B.png")
    assert keys(files) == ["told", ImageBytes(b"B.png", "").key, "told"] != before


def test_a_change_shows_though_size_and_time_stay(files: list[Path]) -> None:
    before = keys(files)
    status = os.stat(files[0])
    files[0].write_text("A.png")
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert keys(files)[0] != before[0]


def test_a_fresh_file_is_read_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within the resolution of its times would not show."""
    monkeypatch.setattr(identity, "_SETTLED", 10**12)
    keys(files)
    with sqlite3.connect(tmp_path / "cache" / "images.sqlite") as kept:
        assert kept.execute("SELECT count(*) FROM hashes").fetchone() == (0,)
    kept.close()


@pytest.mark.parametrize("broken", ["no database", None])
def test_a_cache_that_cannot_be_used_does_no_harm(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    expected = keys(files)
    place = tmp_path / "cache" / "images.sqlite"
    place.unlink()
    place.write_text(broken * 999) if broken else place.mkdir()
    assert keys(files) == expected
    assert len(caplog.messages) == 1
    assert "cannot be used" in caplog.messages[0]


def test_several_may_hash_at_the_same_time(files: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(keys, [files] * 12))
    assert found == [found[0]] * 12


def test_shared_files_are_read_once(files: list[Path]) -> None:
    images = [ImageFile(files[0]) for _ in range(3)]
    hash_images([*images, *images])
    assert all(image.has_key for image in images)
