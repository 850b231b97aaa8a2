"""What an encoder promises: `pointer_rl.types.Encoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.testing.examine import Check, examine
from pointer_rl.testing.findings import (
    Broken,
    Result,
    Subject,
    raise_findings,
    require,
)
from pointer_rl.testing.plugin import check_fingerprint
from pointer_rl.testing.tiny import tiny_dataset
from pointer_rl.testing.unreadable import UnreadableImage
from pointer_rl.types import Encoder, Example

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_encoder", "examine_encoder"]


def check_encoder(
    factory: Callable[..., Encoder],
    options: Any = None,
    *,
    variants: Sequence[Any] = (),
    tolerance: float = 1e-3,
) -> None:
    """Raise ContractError unless the encoder that `factory(options)` makes keeps its contract.

    Makes it once more for each value of an option that has finitely many. `variants`: options with
    which it embeds otherwise, so that its fingerprint must differ. `tolerance`: by how much a
    number may differ between batches, as a share of the vector's length.
    """
    __tracebackhide__ = True
    subject = EncoderSubject("encoder", factory, options, variants, tolerance=tolerance)
    raise_findings(subject, examine(subject, _FOUNDATIONS, _FURTHER))


def examine_encoder(factory: Callable[..., Encoder], options: Any) -> Iterator[Result]:
    """Likewise, a result for each check."""
    return examine(EncoderSubject("encoder", factory, options), _FOUNDATIONS, _FURTHER)


@dataclass
class EncoderSubject(Subject[Encoder]):
    """An encoder, and what it made of the examples when it was first asked."""

    tolerance: float = 1e-3

    @property
    def examples(self) -> Sequence[Example]:
        """Pictures and questions of several sizes."""
        return tiny_dataset().pool

    @cached_property
    def vectors(self) -> Tensor:
        """[N, dim], of all examples together."""
        return encode(self.made, self.examples)

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Whether they are equal, within the tolerance."""
        if one.shape != other.shape:
            return False
        length = one.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return bool(((one - other).abs() <= self.tolerance * length).all())


def encode(encoder: Encoder, examples: Sequence[Example]) -> Tensor:
    """Its vectors, on the CPU. Raises Broken where they are not a sound row for each example."""
    import torch

    vectors = encoder.encode(examples)
    require(
        isinstance(vectors, torch.Tensor),
        f"encode gave a {type(vectors).__name__}: return a torch.Tensor",
    )
    wanted = [len(examples), encoder.dim]
    require(
        list(vectors.shape) == wanted,
        f"encode gave the shape {list(vectors.shape)} for {len(examples)} examples and "
        f"dim={encoder.dim}: return {wanted}, a row an example",
    )
    require(
        vectors.dtype == torch.float32,
        f"encode gave {vectors.dtype}: return float32, by .float()",
    )
    require(
        not vectors.requires_grad,
        "what encode gives requires gradients: decorate it with @torch.inference_mode()",
    )
    require(bool(vectors.isfinite().all()), "encode gave NaN or infinity: check each division")
    return vectors.cpu()


def _has_members(subject: EncoderSubject) -> None:
    fingerprint = getattr(subject.made, "fingerprint", None)
    require(
        isinstance(fingerprint, str) and bool(fingerprint),
        f"its fingerprint is {fingerprint!r}: make it a string of all that decides an embedding "
        "(encoder, model, revision, options)",
    )
    dim = getattr(subject.made, "dim", None)
    require(type(dim) is int and dim > 0, f"its dim is {dim!r}: make it the vectors' size")


def _encodes(subject: EncoderSubject) -> None:
    _ = subject.vectors


def _alone_as_in_company(subject: EncoderSubject) -> None:
    for row, example in enumerate(subject.examples):
        alone = encode(subject.made, [example])
        require(
            subject.same(alone, subject.vectors[row : row + 1]),
            f"example {row} has another vector alone than among others: mask the padding, and let "
            "nothing of one example reach another",
        )


def _in_order(subject: EncoderSubject) -> None:
    backwards = encode(subject.made, subject.examples[::-1]).flip(0)
    require(
        subject.same(backwards, subject.vectors),
        "examples in reverse do not give the rows in reverse: return row i for example i",
    )


def _deterministic(subject: EncoderSubject) -> None:
    for again in (subject.made, subject.make()):
        require(
            subject.same(encode(again, subject.examples), subject.vectors),
            "encoded again the examples have other vectors: seed what is drawn, and put the model "
            "in evaluation mode",
        )


def _unreadable(subject: EncoderSubject) -> None:
    image = UnreadableImage()
    try:
        subject.made.encode([replace(subject.examples[0], image=image)])
    except InputError:
        return
    except Exception as error:
        raise Broken(
            f"a picture that cannot be read raised {type(error).__name__} ({first_line(error)}): "
            "let the InputError of image.open() pass"
        ) from error
    require(
        not image.opened,
        "a picture that cannot be read got a vector: let the InputError of image.open() pass",
    )


def _fingerprint(subject: EncoderSubject) -> None:
    check_fingerprint(
        subject, lambda other: not subject.same(subject.vectors, encode(other, subject.examples))
    )


_FOUNDATIONS: dict[str, Check[EncoderSubject]] = {
    "has a fingerprint and dim": _has_members,
    "gives a row for each example": _encodes,
    "encodes again as before": _deterministic,
    "keeps the order": _in_order,
    "encodes alone as in company": _alone_as_in_company,
}
_FURTHER: dict[str, Check[EncoderSubject]] = {
    "passes on an unreadable picture": _unreadable,
    "its fingerprint tells apart what it embeds": _fingerprint,
}
