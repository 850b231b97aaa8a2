"""The clip encoder on tiny random CLIP and SigLIP checkpoints."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_clip import QUESTIONS, make_clip, make_siglip
from transformers import (
    BertConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipModel,
)

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.types import Example
from pointer_rl_standard.clip import ClipEncoder
from pointer_rl_standard.options import ClipOptions


def example(row: int, question: str) -> Example:
    image = Image.new("RGB", (30 + row, 40), (40 * row % 256, 90, 200 - 30 * row))
    image.putpixel((row, row), (255, 255, 255))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return Example(f"e{row}", row, ImageBytes(file.getvalue(), f"e{row}.png"), question, ("a",))


EXAMPLES = [example(row, question) for row, question in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    make_siglip(folder)
    return folder


@pytest.fixture(params=["clip", "siglip"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def encoder(folder: Path, mode: str = "both", **options: object) -> ClipEncoder:
    return ClipEncoder(ClipOptions(model=str(folder), mode=mode, device="cpu", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["image", "text", "both"])
def test_batch_is_single(checkpoint: Path, mode: str) -> None:
    clip = encoder(checkpoint, mode)
    batch = clip.encode(EXAMPLES)
    singles = torch.cat([clip.encode([each]) for each in EXAMPLES])
    assert batch.shape == (len(EXAMPLES), clip.dim)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, singles, atol=1e-5, rtol=0)


def test_both_is_image_and_text_of_unit_length(checkpoint: Path) -> None:
    image, text, both = (encoder(checkpoint, mode).encode(EXAMPLES) for mode in MODES)
    torch.testing.assert_close(both, torch.cat([image, text], dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(len(EXAMPLES)))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(len(EXAMPLES)))


MODES = ("image", "text", "both")


def test_vectors_are_the_models_own(clip: Path) -> None:
    model = CLIPModel.from_pretrained(clip)
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    with torch.inference_mode():
        output = model(
            **tokenizer([QUESTIONS[0]], return_tensors="pt"),
            pixel_values=processor(images=[EXAMPLES[0].image.open()], return_tensors="pt")[
                "pixel_values"
            ],
        )
    expected = torch.cat([output.image_embeds, output.text_embeds], dim=1)
    torch.testing.assert_close(encoder(clip).encode(EXAMPLES[:1]), expected, atol=1e-5, rtol=0)


def test_siglip_reads_a_question_padded_to_full_length_without_a_mask(siglip: Path) -> None:
    model = SiglipModel.from_pretrained(siglip)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(siglip)
    ids = tokenizer([QUESTIONS[0]], padding="max_length", max_length=8, return_tensors="pt")
    with torch.inference_mode():
        features = model.get_text_features(input_ids=ids["input_ids"]).pooler_output
    expected = features / features.norm(dim=1, keepdim=True)
    actual = encoder(siglip, "text").encode(EXAMPLES[:1])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_a_long_question_is_cut_not_refused(checkpoint: Path) -> None:
    question = "what is this " * 100
    cut, longer = (example(0, question + tail) for tail in ("", "dog"))
    vectors = encoder(checkpoint, "text").encode([cut, longer])
    torch.testing.assert_close(vectors[0], vectors[1])


def test_examples_differ(checkpoint: Path) -> None:
    for mode in ("image", "text"):
        vectors = encoder(checkpoint, mode).encode(EXAMPLES[:2])
        assert (vectors[0] - vectors[1]).abs().max() > 1e-3


def test_fingerprint_tells_mode_precision_and_weights(clip: Path, tmp_path: Path) -> None:
    make_clip(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    assert encoder(tmp_path).fingerprint == encoder(clip).fingerprint
    model.logit_scale.data += 1
    model.save_pretrained(tmp_path)
    prints = {
        encoder(clip).fingerprint,
        encoder(clip, "text").fingerprint,
        encoder(clip, dtype="bfloat16").fingerprint,
        encoder(tmp_path).fingerprint,
    }
    assert len(prints) == 4


def lacks_weights(folder: Path) -> None:
    make_clip(folder)
    (folder / "model.safetensors").unlink()


def lacks_tokenizer(folder: Path) -> None:
    make_clip(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


def lacks_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    make_clip(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    make_clip(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def other_model(folder: Path) -> None:
    BertConfig(num_hidden_layers=1).save_pretrained(folder)


def unknown_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "dog"}))


@pytest.mark.parametrize(
    "spoil",
    [
        lacks_weights,
        lacks_tokenizer,
        lacks_layer,
        cut_short,
        no_json,
        other_model,
        unknown_model,
        lambda folder: None,
    ],
)
def test_a_folder_that_is_no_checkpoint_is_one_line(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    spoil(tmp_path)
    with pytest.raises(InputError, match=r"encoder clip: .*give a folder") as caught:
        encoder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    make_siglip(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "tokenizer_class": "SiglipTokenizer"}))
    with pytest.raises(MissingExtraError, match="pip install sentencepiece"):
        encoder(tmp_path, "text")


def test_a_missing_folder_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint folder"):
        encoder(tmp_path / "nowhere")


def test_an_unknown_device_is_one_line(clip: Path) -> None:
    with pytest.raises(InputError, match="unknown device 'toaster'"):
        ClipEncoder(ClipOptions(model=str(clip), device="toaster"))


def test_an_image_that_is_none(clip: Path) -> None:
    broken = Example("e9", 9, ImageBytes(b"GIF?", "broken.gif"), "what", ("a",))
    with pytest.raises(InputError, match=r"broken\.gif"):
        encoder(clip).encode([EXAMPLES[0], broken])
