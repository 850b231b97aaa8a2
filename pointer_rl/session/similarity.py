"""What similarity means for a dataset: the embeddings by which its queries and pool compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pointer_rl.options import describe_options
from pointer_rl.registry import registry
from pointer_rl.session.session import Named, Workbench
from pointer_rl.types import Example, Pool

__all__ = ["MODES", "Space", "similarities"]

MODES = {"image": "image", "text": "text", "mixed": "both"}
"""Similarity → mode of the encoder."""


@dataclass(frozen=True)
class Space:
    """Queries and pool, embedded alike."""

    queries: Tensor
    """[N, d]"""
    pool: Pool


def similarities(
    workbench: Workbench, queries: Sequence[Example], encoder: Named | None
) -> dict[str, Callable[[], Space]]:
    """Similarity → how to embed what it compares; the last is what a retriever would use.

    `encoder`, else that of the dataset's companions: image, text and mixed where it can embed each
    and its options leave the mode open, else one, similarity. Without an encoder, similarity
    compares the workbench's own embeddings. Raises PointerRLError for an unknown encoder.
    """
    companions = workbench.dataset.companions
    if encoder is None and companions is not None:
        encoder = Named(companions.encoder)
    if encoder is None:
        return {"similarity": lambda: Space(*workbench.embeddings(queries))}

    def embed(named: Named, more: dict[str, object]) -> Space:
        return Space(*workbench.encoded(queries, named.name, {**named.options, **more}))

    options = registry().find("encoder", encoder.name).options
    modes = {
        mode
        for option in (describe_options(options) if options is not None else ())
        if option.name == "mode" and "mode" not in encoder.options
        for mode in option.type.split("|")
    }
    if not modes >= set(MODES.values()):
        return {"similarity": partial(embed, encoder, {})}
    return {name: partial(embed, encoder, {"mode": mode}) for name, mode in MODES.items()}
