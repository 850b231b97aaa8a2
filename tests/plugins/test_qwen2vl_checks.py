"""qwen2vl held to what every local backend is held to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from local_backend_checks import CHECKS, LocalCase, Reference
from qwen_reference import Reference as QwenModel

from pointer_rl.types import Decoding, Prompt
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.options import Qwen2VLOptions


class QwenReference(Reference):
    def __init__(self, model: QwenModel) -> None:
        self.model = model

    def prompt_tokens(self, prompt: Prompt) -> int:
        return int(self.model.inputs(prompt)["input_ids"].shape[1])

    def logits(self, prompt: Prompt, following: Sequence[int]) -> torch.Tensor:
        return self.model.logits(self.model.inputs(prompt), list(following))

    def beam(self, prompt: Prompt, decoding: Decoding) -> tuple[list[int], float]:
        return self.model.beam(prompt, decoding), 1.0  # refuses near-ties itself

    def answer_tokens(self, answer: str) -> list[int]:
        tokenizer = self.model.tokenizer
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        return [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]

    def text(self, tokens: Sequence[int]) -> str:
        return self.model.text(list(tokens))


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_local_backend(tiny_qwen, engine, check):
    folder = tiny_qwen("qwen2_5_vl")

    def create(batch_tokens: int | None = None):
        checkpoint = load_checkpoint(Qwen2VLOptions(model=str(folder), device="cpu"))
        backend = Qwen2VLBackend(checkpoint, engine=engine, batch_tokens=batch_tokens)
        return backend, checkpoint.model.model.language_model

    reference = QwenReference(QwenModel(folder, "qwen2_5_vl"))
    check(LocalCase(create, reference, "<|image_pad|>"))
