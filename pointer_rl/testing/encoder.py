"""Tests of an encoder: `pointer_rl.types.Encoder`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pointer_rl.errors import InputError, first_line
from pointer_rl.testing.fakes import UnreadableImage, tiny_dataset
from pointer_rl.testing.plugin import FingerprintTests
from pointer_rl.types import Encoder, Example


class EncoderTests(FingerprintTests[Encoder]):
    """Embeds eight examples, together and one by one.

    The encoder is built again for every other value of its `bool` and `Literal` options.
    """

    kind = "encoder"
    tolerance: float = 1e-3
    """Largest difference of a number between batches, as a share of the vector's length."""

    @property
    def examples(self) -> Sequence[Example]:
        """Images and questions of several sizes."""
        return tiny_dataset().pool

    @property
    def vectors(self) -> Tensor:
        """[N, dim], of all examples in one call."""
        return self.once("vectors", lambda: encode(self.made, self.examples))

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Whether they are equal, within the tolerance."""
        if one.shape != other.shape:
            return False
        length = one.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return bool(((one - other).abs() <= self.tolerance * length).all())

    def differs(self, other: Encoder) -> bool:
        """Whether any vector differs."""
        return not self.same(self.vectors, encode(other, self.examples))

    def test_has_a_fingerprint_and_dim(self) -> None:
        """The members of `Encoder` exist."""
        fingerprint = getattr(self.made, "fingerprint", None)
        assert isinstance(fingerprint, str) and fingerprint, (
            f"its fingerprint is {fingerprint!r}: make it a string of everything that decides an "
            "embedding (encoder, model, revision, options)"
        )
        dim = getattr(self.made, "dim", None)
        assert type(dim) is int and dim > 0, f"its dim is {dim!r}: make it the vectors' size"

    def test_gives_a_row_for_each_example(self) -> None:
        """`encode` returns a finite float32 matrix."""
        _ = self.vectors

    def test_encodes_again_as_before(self) -> None:
        """Encoding is deterministic."""
        for again in (self.made, self.make()):
            assert self.same(self.vectors, encode(again, self.examples)), (
                "encoded again the examples have other vectors: seed what is drawn, and put the "
                "model in evaluation mode"
            )

    def test_keeps_the_order(self) -> None:
        """Row i belongs to example i."""
        vectors = self.vectors
        assert self.same(vectors, encode(self.made, self.examples[::-1]).flip(0)), (
            "examples in reverse do not give the rows in reverse: return row i for example i"
        )

    def test_encodes_alone_as_in_a_batch(self) -> None:
        """What shares a batch does not matter."""
        for row, example in enumerate(self.examples):
            assert self.same(self.vectors[row : row + 1], encode(self.made, [example])), (
                f"example {row} has another vector alone than in a batch: mask the padding, and "
                "keep examples of a batch independent"
            )

    def test_passes_on_the_error_of_an_unreadable_image(self) -> None:
        """InputError for an image that cannot be decoded."""
        image = UnreadableImage()
        try:
            self.made.encode([replace(self.examples[0], image=image)])
        except InputError:
            return
        except Exception as error:
            raise AssertionError(
                f"an image that cannot be read raised {type(error).__name__} "
                f"({first_line(error)}): let the InputError of image.open() pass"
            ) from error
        assert not image.opened, (
            "an image that cannot be read got a vector: let the InputError of image.open() pass"
        )


def encode(encoder: Encoder, examples: Sequence[Example]) -> Tensor:
    """The vectors, on the CPU. Fails unless there is one sound row for each example."""
    vectors = encoder.encode(examples)
    assert isinstance(vectors, Tensor), (
        f"encode gave a {type(vectors).__name__}: return a torch.Tensor"
    )
    expected = [len(examples), encoder.dim]
    assert list(vectors.shape) == expected, (
        f"encode gave the shape {list(vectors.shape)} for {len(examples)} examples and "
        f"dim={encoder.dim}: return {expected}, a row an example"
    )
    assert vectors.dtype == torch.float32, (
        f"encode gave {vectors.dtype}: return float32, by .float()"
    )
    assert not vectors.requires_grad, (
        "what encode gives requires gradients: decorate it with @torch.inference_mode()"
    )
    assert vectors.isfinite().all(), "encode gave NaN or infinity: check each division"
    return vectors.cpu()
