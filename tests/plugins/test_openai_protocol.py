"""The openai backend's JSON: images as URLs, and replies read with suspicion."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
import pytest
from fault_server import FaultServer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.errors import InputError
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request
from pointer_rl_openai import chats, create_backend, images, scoring
from pointer_rl_openai.images import ImageUrls
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.transport import CallError

# --- images ---


def encoded(mode: str, format: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def data_of(url: str) -> tuple[str, bytes]:
    head, _, data = url.partition(";base64,")
    return head, base64.b64decode(data, validate=True)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded("RGB", "JPEG"), "jpeg"),
        (encoded("RGB", "PNG"), "png"),
        (encoded("L", "PNG"), "png"),
    ],
    ids=["jpeg", "png", "grey"],
)
def test_a_plain_file_is_sent_as_it_is(data, kind, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(data)
    for image in (ImageBytes(data, "an image"), ImageFile(path)):
        assert data_of(ImageUrls("data").url(image)) == (f"data:image/{kind}", data)


@dataclass(frozen=True)
class Drawn:
    """An image of which there are no bytes; notes each time it is opened."""

    data: bytes
    opened: list[int] = field(compare=False)

    @property
    def key(self) -> str:
        return str(hash(self.data))

    def open(self) -> Image.Image:
        self.opened.append(1)
        return ImageBytes(self.data, "drawn").open()


@pytest.mark.parametrize(
    "data",
    [
        encoded("RGBA", "PNG"),
        encoded("P", "GIF"),
        encoded("P", "PNG"),
        encoded("CMYK", "JPEG"),
        encoded("RGB", "BMP"),
        encoded("RGB", "PNG", transparency=(1, 2, 3)),
        encoded("RGB", "JPEG", exif=rotated()),
    ],
    ids=["alpha", "gif", "palette", "cmyk", "bmp", "transparency", "turned"],
)
def test_what_decoders_read_differently_is_sent_as_the_image_that_others_see(data):
    for image in (ImageBytes(data, "an image"), Drawn(data, [])):
        head, sent = data_of(ImageUrls("data").url(image))
        assert head == "data:image/png"
        with Image.open(io.BytesIO(sent)) as decoded:
            assert decoded.mode == "RGB"
            assert "transparency" not in decoded.info
            assert decoded.tobytes() == image.open().tobytes()


def test_an_image_is_encoded_once_while_there_is_room(monkeypatch):
    opened: list[int] = []
    one, other = Drawn(encoded("RGB", "PNG"), opened), Drawn(encoded("L", "PNG"), opened)
    urls = ImageUrls("data")
    for _ in range(3):
        urls.url(one), urls.url(other)
    assert len(opened) == 2
    monkeypatch.setattr(images, "_CAPACITY", len(urls.url(one)))
    urls = ImageUrls("data")
    opened.clear()
    for image in (one, one, other, other, one):
        urls.url(image)
    assert len(opened) == 3


def test_a_path_is_sent_and_the_file_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ImageUrls("file").url(ImageFile(tmp_path / "an image.png")) == (
        f"file://{tmp_path}/an%20image.png"
    )
    with pytest.raises(InputError, match="images=data"):
        ImageUrls("file").url(ImageBytes(b"", "in memory"))


def test_images_keep_their_places_and_a_broken_one_fails_alone(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    one, other = (ImageBytes(encoded(mode, "PNG"), mode) for mode in ("RGB", "L"))
    broken = ImageBytes(b"no image", "broken.png")
    prompts = [
        Prompt((Message("user", (one, "first? ", "a cat", other, "second?")),)),
        Prompt((Message("user", (broken, "what?")),)),
    ]
    with FaultServer() as server:
        backend = create_backend(OpenAIOptions(base_url=server.base_url))
        results = dict(backend.run([Request(each, Decoding()) for each in prompts]))
        [body] = server.chats()
    [message] = body["messages"]
    assert [part.get("text") for part in message["content"]] == [
        *(None, "first? a cat", None, "second?")
    ]
    urls = [part["image_url"]["url"] for part in message["content"] if "image_url" in part]
    assert [data_of(url)[1] for url in urls] == [one.data, other.data]
    assert results[0].usage.images == 2
    assert isinstance(results[1], BackendError)
    assert "broken.png: not a readable image" in results[1].message


# --- replies ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
REPLY = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "message": st.fixed_dictionaries(
                        {}, optional={"content": JSON, "refusal": JSON}
                    )
                    | JSON,
                    "finish_reason": st.sampled_from(["stop", "length"]) | JSON,
                },
            )
            | JSON,
            max_size=2,
        )
        | JSON,
        "usage": st.fixed_dictionaries(
            {}, optional={"prompt_tokens": JSON, "completion_tokens": JSON}
        )
        | JSON,
        "error": st.fixed_dictionaries({}, optional={"message": JSON}) | JSON,
        "system_fingerprint": JSON,
    },
)


@given(JSON | REPLY)
def test_any_reply_is_a_completion_or_an_error(reply):
    try:
        completion = chats.read_completion(reply, Decoding())
    except CallError:
        return
    assert completion.text == reply["choices"][0]["message"]["content"]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert 0 <= completion.usage.prompt_tokens < 2**63
    assert 0 <= completion.usage.generated_tokens < 2**63


@given(JSON, JSON)
def test_any_log_probability_is_a_number_or_an_error(entry, value):
    for each in (entry, {"7": entry}, {"7": {"logprob": value}}):
        try:
            logprob = scoring.logprob_of(each, 7)
        except CallError:
            continue
        assert -float("inf") < logprob <= 0


@given(JSON, JSON)
def test_any_tokens_are_integers_or_an_error(reply, tokens):
    for each in (reply, {"tokens": tokens}):
        try:
            read = scoring.read_tokens(each)
        except CallError:
            continue
        assert all(isinstance(token, int) for token in read)
