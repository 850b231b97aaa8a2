"""The hf backend's answers, on tiny models of several families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hf_reference import HFReference
from local_backend_checks import CHECKS, LocalCase
from tiny_models import FAMILIES, make_tiny_model

from pointer_rl_hf import HFOptions
from pointer_rl_hf.checkpoint import load_checkpoint
from pointer_rl_hf.model import make_backend

SPECIAL = {
    "llava": "<image>",
    "idefics3": "<end_of_utterance>",
    "gemma3": "<end_of_turn>",
    "internvl": "<IMG_CONTEXT>",
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family → its checkpoint folder, made when first asked for. Not to be written to."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny_model(tmp_path_factory.mktemp("tiny") / family, family)
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_local_backend(tiny_model, family, check):
    folder = tiny_model(family)

    def create(batch_tokens: int | None = None):
        checkpoint = load_checkpoint(HFOptions(model=str(folder), device="cpu"))
        return make_backend(checkpoint, batch_tokens), checkpoint.model.get_decoder()

    check(LocalCase(create, HFReference(folder, family), SPECIAL[family]))
