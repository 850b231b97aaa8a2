"""Options of the built-in arms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RandomArmOptions:
    """Options of the arm `random`."""

    seeds: int = 3
    """Random pointers per query; the accuracy is their mean."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError("seeds must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions:
    """Options of the arm `similarity`."""

    of: str = "similarity"
    """What is compared: image, text or mixed, or similarity for an encoder with one mode."""


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """Options of the arm `policy`."""

    path: str
    """Policy bundle, or selector checkpoint."""


@dataclass(frozen=True, kw_only=True)
class VoteOptions:
    """Options of the arm `vote`."""

    arm: str
    """The arm whose demonstrations vote."""


@dataclass(frozen=True, kw_only=True)
class OracleOptions:
    """Options of the arm `oracle`."""

    random: int = 4
    """Random pointers that it may choose from, besides those of the other arms."""
    retrieval: int = 4
    """Pointers of the most similar rows that it may choose from."""

    def __post_init__(self) -> None:
        if min(self.random, self.retrieval) < 0:
            raise ValueError("random and retrieval start at 0")
