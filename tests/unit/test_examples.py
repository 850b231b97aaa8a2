"""Examples and references to images."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pointer_rl.datasets.images import ImageBytes, ImageFile
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
