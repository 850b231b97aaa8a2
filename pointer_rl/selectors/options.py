"""The options of our selectors. Imports no torch, so that `plugins show` needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class PointerConfig:
    """Options of the `pointer` selector."""

    d_model: int
    """Size of the embeddings. Training fills it in."""
    hidden_dim: int | None = None
    """Size of the hidden layers; embeddings of another size are projected to it. By default the
    size of the embeddings."""
    num_layers: int = 3
    """Number of cross-attention layers."""
    num_heads: int = 8
    """Attention heads of each layer; must divide hidden_dim."""
    history: Literal["static", "gated"] = "static"
    """`gated`: each chosen row updates the query vector. `static`: the query vector stays."""
    temperature: float = 0.1
    """A logit is a cosine divided by this."""
    dropout: float = 0.0
    """Dropout before the query and candidate projections, in training mode. `train` and `sft` keep
    it off."""
    stop: bool = False
    """May choose fewer rows than shots, or none. At first it stops with probability 0.05 at each
    step, whatever the pool."""

    def __post_init__(self) -> None:
        hidden_dim = self.d_model if self.hidden_dim is None else self.hidden_dim
        # Resolved, so that a recorded configuration is complete.
        object.__setattr__(self, "hidden_dim", hidden_dim)
        for name in ("d_model", "hidden_dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim {hidden_dim} is not a multiple of {self.num_heads} heads: give "
                "--heads or --hidden-dim"
            )
        if self.history not in ("static", "gated"):
            raise ValueError(f"history is {self.history!r}; it must be static or gated")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SequentialConfig(PointerConfig):
    """Options of the `sequential` selector: those of `pointer`, whose histories it replaces."""

    history: ClassVar[Literal["static"]] = "static"  # type: ignore[misc]  # no option any more
