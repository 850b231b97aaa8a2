"""Tests of an encoder: `pointer_rl.types.Encoder`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pointer_rl.datasets.embed import encode_batch
from pointer_rl.errors import InputError
from pointer_rl.testing.fakes import UnreadableImage, tiny_dataset
from pointer_rl.testing.plugin import FingerprintTests, explain
from pointer_rl.types import Encoder, Example


class EncoderTests(FingerprintTests[Encoder]):
    """Embeds eight examples, together and one by one."""

    kind = "encoder"
    item = "example"
    how_to_repeat = "seed what is drawn, and put the model in evaluation mode"
    how_to_separate = "mask the padding, and keep examples of a batch independent"
    tolerance: float = 1e-3
    """Largest difference of a number between batches, as a share of the vector's length."""

    @property
    def inputs(self) -> Sequence[Example]:
        """Images and questions of several sizes."""
        return tiny_dataset().pool

    def ask(self, made: Encoder, inputs: Sequence[Example]) -> Sequence[Any]:
        """The vectors, on the CPU."""
        with explain("encode", "return a finite torch.Tensor, with row i for example i"):
            vectors = encode_batch(made, inputs)
        assert vectors.dtype == torch.float32, (
            f"encode gave {vectors.dtype}: return float32, by .float()"
        )
        assert not vectors.requires_grad, (
            "what encode gives requires gradients: decorate it with @torch.inference_mode()"
        )
        return list(vectors)

    def same(self, one: Any, other: Any) -> bool:
        """Whether they are equal, within the tolerance."""
        tolerance = self.tolerance * one.norm().clamp(min=1e-12)
        return one.shape == other.shape and bool(((one - other).abs() <= tolerance).all())

    def test_has_a_dim(self) -> None:
        """`dim` is the size of the vectors."""
        dim = getattr(self.made, "dim", None)
        assert type(dim) is int and dim > 0, f"its dim is {dim!r}: make it the vectors' size"

    def test_passes_on_the_error_of_an_unreadable_image(self) -> None:
        """InputError for an image that cannot be decoded."""
        image, fix = UnreadableImage(), "let the InputError of image.open() pass"
        try:
            with explain("an image that cannot be read", fix, InputError):
                self.made.encode([replace(self.inputs[0], image=image)])
        except InputError:
            return
        assert not image.opened, f"an image that cannot be read got a vector: {fix}"
