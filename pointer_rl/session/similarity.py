"""What "similar" means for a dataset: the embeddings in which its queries and pool are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from pointer_rl.options import describe_options
from pointer_rl.registry import registry
from pointer_rl.selectors.bundle import UNKNOWN, EncoderInfo
from pointer_rl.session.session import PluginRef, Session
from pointer_rl.types import Example, Pool

MODES = {"image": "image", "text": "text", "mixed": "both"}
"""Name of a similarity → mode of the encoder."""


@dataclass(frozen=True)
class Space:
    """Queries and pool in the same embedding space."""

    queries: Tensor
    """[N, d]"""
    pool: Pool


def similarity_spaces(
    session: Session, queries: Sequence[Example], recorded: EncoderInfo = UNKNOWN
) -> dict[str, Callable[[], Space]]:
    """Name of each similarity → how to embed for it. The last one is what a retriever would use.

    If the session's encoder can embed images, texts and both, and its options leave the mode open,
    there are three similarities: image, text and mixed. Otherwise, and with files, there is one,
    similarity, which compares the session's embeddings; `recorded` as in `Session.embeddings`.
    Raises PointerRLError for an unknown encoder.
    """
    given, companions = session.options, session.dataset.companions
    encoder = given.encoder
    if encoder is None and companions is not None:
        encoder = PluginRef(companions.encoder)
    if encoder is None or given.query_emb is not None or given.cand_emb is not None:
        return {"similarity": lambda: Space(*session.embeddings(queries, recorded))}

    def embed(encoder: PluginRef) -> Space:
        return Space(*session.encoded(queries, encoder.as_encoder))

    options = registry().find("encoder", encoder.name).options
    modes = {
        mode
        for option in (describe_options(options) if options is not None else ())
        if option.name == "mode" and "mode" not in encoder.options
        for mode in option.type.split("|")
    }
    if not modes >= set(MODES.values()):
        return {"similarity": partial(embed, encoder)}
    return {
        name: partial(embed, replace(encoder, options={**encoder.options, "mode": mode}))
        for name, mode in MODES.items()
    }
