"""The options of the plugin's prompt builders, generators, rewards and encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BeamOptions",
    "ChatOptions",
    "ClipOptions",
    "ProbeOptions",
    "RandomOptions",
    "RetrievalOptions",
    "RewardOptions",
    "SampleOptions",
    "ShortAnswerOptions",
]

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
    """Temperatures to draw at, one after the other."""
    num_samples: int = 2
    """Draws at each temperature."""
    top_p: float = 1.0
    """Nucleus: draw from the most probable rows that hold this mass together, at each step."""

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
    """Pointers of nearest rows proposed for each query."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class ProbeOptions:
    """Options of the `probe` generator."""

    num: int = 10
    """Rows probed for each query."""
    by: Literal["similarity", "policy"] = "similarity"
    """What ranks the rows of which the highest are probed."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError("num must be at least 1")


@dataclass(kw_only=True, frozen=True, slots=True)
class RewardOptions:
    """Options of every reward; those that its formula does not name are of no effect."""

    hard_weight: float = 1.0
    """Weight of `correct`, as 0 or 1 (every reward but soft_only and legacy)."""
    soft_weight: float = 1.0
    """Weight of `accuracy` or, in the gtprob rewards, of `gt_prob` (not hard_only, legacy)."""
    rel_weight: float = 0.1
    """Weight of `rel_score` where the answer is wrong (hard_plus_gtprob_plus_rel)."""
    alpha: float = 0.2
    """Weight of the candidate's score under the policy (legacy)."""
    beta: float = 1.0
    """Weight of the correctness (legacy)."""
    correctness_mode: Literal["01", "pm1"] = "pm1"
    """Correctness as it is, in [0, 1], or as 2x - 1, in [-1, 1] (legacy)."""
    use_logprob: bool = False
    """Score a candidate by -logprob_score where it has one, not by beam_score (legacy)."""


@dataclass(kw_only=True, frozen=True, slots=True)
class ClipOptions:
    """Options of the `clip` encoder."""

    model: str
    """A CLIP or SigLIP checkpoint: a folder, or an id on the Hugging Face Hub."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    mode: Literal["image", "text", "both"] = "both"
    """What of an example is embedded; `both` joins the two unit vectors, image first."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, …; auto is cuda where there is one, else cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the weights; auto is that in which the checkpoint was saved."""
