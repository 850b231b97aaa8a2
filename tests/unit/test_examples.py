"""Examples and references to images."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pointer_rl.datasets import images
from pointer_rl.datasets.images import ImageBytes, ImageFile, ImageLimits
from pointer_rl.errors import InputError
from pointer_rl.types import Example

ANSWERS = st.lists(st.text("ab", max_size=2), max_size=10).map(tuple)


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(stream, "PNG")
    return stream.getvalue()


def example(answers: tuple[str, ...]) -> Example:
    return Example("q", 3, ImageFile("cat.png"), "what?", answers, 7, "cat")


@given(ANSWERS.filter(bool))
def test_a_demonstration_shows_the_most_frequent_answer_and_of_equals_the_first(answers):
    shown = example(answers).answer
    counts = {each: answers.count(each) for each in answers}
    assert counts[shown] == max(counts.values())
    rivals = [each for each in counts if counts[each] == counts[shown]]
    assert answers.index(shown) == min(map(answers.index, rivals))


def test_a_demonstration_without_answers_shows_none():
    assert example(()).answer == ""


def test_an_example_is_small_and_survives_pickling():
    one = example(("yes", "no"))
    assert not hasattr(one, "__dict__")
    assert pickle.loads(pickle.dumps(one)) == one


def test_pickled_examples_still_share_their_image():
    image = ImageFile("cat.png")
    examples = tuple(Example(str(row), row, image, "what?", ()) for row in range(2))
    first, second = pickle.loads(pickle.dumps(examples))
    assert first.image is second.image


def test_a_file_is_hashed_once(tmp_path: Path):
    path = tmp_path / "red.png"
    path.write_bytes(png("red"))
    image, other = ImageFile(path), ImageFile(str(path))
    key = image.key
    path.unlink()
    assert image.key == key == ImageBytes(png("red"), "memory").key
    assert image == other
    assert len({image, other}) == 1
    with pytest.raises(InputError, match=r"red\.png: cannot read the image"):
        other.key  # noqa: B018
    path.write_bytes(png("red"))
    assert other.key == key, "a failure is not kept"


@pytest.mark.parametrize("make", [ImageFile, lambda path: ImageBytes(path.read_bytes(), str(path))])
def test_images_open_in_rgb_and_pickle(tmp_path: Path, make):
    path = tmp_path / "grey.png"
    Image.new("L", (4, 3), 128).save(path)
    image = make(path)
    assert not hasattr(image, "__dict__")
    for each in (image, pickle.loads(pickle.dumps(image))):
        opened = each.open()
        assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (4, 3), (128,) * 3)
        assert (each, each.key) == (image, image.key)
    path.write_bytes(b"GIF?")
    with pytest.raises(InputError, match=r"grey\.png: not a readable image"):
        make(path).open()


# --- what is refused, and depths ---


def encoded(pixels: np.ndarray, kind: str = "PNG") -> ImageBytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return ImageBytes(stream.getvalue(), "image")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_keep_their_upper_8(kind):
    deep = np.arange(0, 2**16, 97, dtype=np.uint16)[:600].reshape(20, 30)
    opened = np.asarray(encoded(deep, kind).open())
    assert opened.shape == (20, 30, 3)
    assert np.array_equal(opened, np.repeat((deep // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_open_in_their_colours(mode):
    """Transparency is ignored, as the processors of models do."""
    stream = io.BytesIO()
    image = Image.new("RGB", (2, 2), (255, 255, 255)).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(7)
    more = {"transparency": b"\x07" * 256} if mode == "P" else {}
    image.save(stream, "TIFF" if mode == "CMYK" else "PNG", **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = ImageBytes(stream.getvalue(), "image").open()
    assert (opened.mode, opened.getpixel((1, 1))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(kind):
    with pytest.raises(InputError, match="unknown range"):
        encoded(np.ones((2, 2), kind), "TIFF").open()


def test_only_regular_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "linked.png").symlink_to("pipe.png")
    for name in ("pipe.png", "zero.png", "linked.png"):
        for use in (ImageFile.open, ImageFile.read, lambda image: image.key):
            with pytest.raises(InputError, match=rf"{name}: .*a pipe or a device") as found:
                use(ImageFile(tmp_path / name))
            assert "\n" not in str(found.value)


def test_a_large_file_is_refused_unread(tmp_path: Path):
    path = tmp_path / "large.png"
    path.write_bytes(png("red"))
    size = path.stat().st_size
    assert ImageFile(path, ImageLimits(bytes=size)).open().size == (4, 3)
    with pytest.raises(InputError, match=f"more than max_image_bytes={size - 1}"):
        ImageFile(path, ImageLimits(bytes=size - 1)).open()
    with path.open("r+b") as file:
        file.truncate(2**36)  # sparse
    with pytest.raises(InputError, match="more than max_image_bytes"):
        ImageFile(path).open()


@pytest.mark.parametrize("side", [9_500, 20_000])
def test_a_bomb_is_refused_in_one_line(side):
    """Pillow would warn of the first, and refuse the second."""
    data = bytearray(png("red"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    images._silence_warnings.cache_clear()
    with warnings.catch_warnings(record=True) as warned, pytest.raises(InputError) as found:
        ImageBytes(bytes(data), "bomb").open()
    assert not warned
    assert str(found.value).startswith("bomb: ")
    assert "pixels" in str(found.value)
    assert "\n" not in str(found.value)


def test_an_image_that_changed_since_it_was_hashed_is_refused(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    image = ImageFile(path)
    image.open()
    assert image.key
    path.write_bytes(png("blue"))
    with pytest.raises(InputError, match="changed since this run began"):
        image.open()
