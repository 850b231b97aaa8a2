"""The options of the plugin's prompt builders, generators and encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INSTRUCTIONS = (
    "Answer the last question about its image with a single word or a short phrase. "
    "Any question before it is an example that has been answered."
)


@dataclass(kw_only=True, frozen=True, slots=True)
class ShortAnswerOptions:
    """Options of the `short-answer` prompt builder."""

    instructions: str = INSTRUCTIONS
    """The system message; empty for none."""


@dataclass(kw_only=True, frozen=True, slots=True)
class ChatOptions:
    """Options of the `chat` prompt builder."""

    instructions: str = "Answer each question about its image with a single word or a short phrase."
    """The system message; empty for none."""


@dataclass(kw_only=True, frozen=True, slots=True)
class BeamOptions:
    """Options of the `beam` generator."""

    width: int = 5
    """Beam width, and the number of pointers proposed for each query."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class SampleOptions:
    """Options of the `sample` generator."""

    temperatures: tuple[float, ...] = (1.0, 1.3)
    """Temperatures, in the order in which they are used."""
    num_samples: int = 2
    """Draws at each temperature."""
    top_p: float = 1.0
    """Nucleus sampling: at each step, draw from the fewest rows with this total probability."""

    def __post_init__(self) -> None:
        if not self.temperatures or not all(value > 0 for value in self.temperatures):
            raise ValueError("temperatures must be one or more numbers above 0")
        if self.num_samples < 1:
            raise ValueError("num_samples must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError("top_p must be above 0 and at most 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class RandomOptions:
    """Options of the `random` generator."""

    num: int = 1
    """Pointers drawn uniformly for each query."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class RetrievalOptions:
    """Options of the `retrieval` generator."""

    num: int = 1
    """Pointers of the most similar rows proposed for each query."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class ProbeOptions:
    """Options of the `probe` generator."""

    num: int = 10
    """Rows probed for each query."""
    by: Literal["similarity", "policy"] = "similarity"
    """Score by which the probed rows are chosen."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class ClipOptions:
    """Options of the `clip` encoder."""

    model: str
    """A CLIP or SigLIP checkpoint: a folder, or an id on the Hugging Face Hub."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    mode: Literal["image", "text", "both"] = "both"
    """Part of an example to embed; `both` concatenates the two unit vectors, image first."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, …; auto is cuda if there is one, else cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the weights; auto is the precision in which the checkpoint was saved."""
