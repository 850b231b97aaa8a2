"""Qwen-VL models by their documented usage, one prompt at a time. The backend must equal them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.types import Decoding, Message, Prompt

MODEL_NAMES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}


def make_image(seed: int, width: int = 60, height: int = 45) -> ImageBytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImageBytes(file.getvalue(), f"image {seed}")


def ask(*parts: ImageBytes | str) -> Prompt:
    return Prompt((Message("user", parts),))


class Reference:
    """One prompt at a time, unpadded, by the models' documented usage."""

    def __init__(self, folder: Path, family: str) -> None:
        model_class = getattr(transformers, f"{MODEL_NAMES[family]}ForConditionalGeneration")
        self.model = model_class.from_pretrained(folder, dtype=torch.float64).eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.default_system = "" if family == "qwen3_vl" else "You are a helpful assistant."

    def inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        turns = [(message.role, message.parts) for message in prompt.messages]
        if self.default_system and turns[0][0] != "system":
            turns.insert(0, ("system", (self.default_system,)))
        text = ""
        for role, parts in turns:
            text += f"<|im_start|>{role}\n"
            for part in parts:
                pad = "<|vision_start|><|image_pad|><|vision_end|>"
                text += part if isinstance(part, str) else pad
            text += "<|im_end|>\n"
        text += "<|im_start|>assistant\n"
        images = [image.open() for image in prompt.images]
        arrays = self.image_processor(images=images, return_tensors="pt") if images else {}
        for grid in arrays.get("image_grid_thw", []):
            text = text.replace("<|image_pad|>", "<|placeholder|>" * int(grid.prod() // 4), 1)
        ids = self.tokenizer(text.replace("<|placeholder|>", "<|image_pad|>"), return_tensors="pt")
        input_ids = ids["input_ids"]
        return {"input_ids": input_ids, **self.types(input_ids), **arrays}

    def types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (input_ids == self.model.config.image_token_id).long()}

    @torch.no_grad()
    def logits(self, arguments: dict[str, torch.Tensor], following: list[int]) -> torch.Tensor:
        """[1 + len(following), V]: logits after the prompt and after each token that follows it."""
        following_ids = torch.tensor([following], dtype=torch.long)
        input_ids = torch.cat([arguments["input_ids"], following_ids], dim=1)
        whole = {**arguments, "input_ids": input_ids, **self.types(input_ids)}
        return self.model(**whole).logits[0, arguments["input_ids"].shape[1] - 1 :]

    def greedy(self, prompt: Prompt, length: int) -> list[int]:
        arguments, tokens = self.inputs(prompt), []
        for _ in range(length):
            best = self.logits(arguments, tokens)[-1].topk(2)
            assert best.values[0] - best.values[1] > 0.01, "a near-tie: take another seed"
            tokens.append(int(best.indices[0]))
        return tokens

    @torch.no_grad()
    def beam(self, prompt: Prompt, decoding: Decoding) -> list[int]:
        arguments = self.inputs(prompt)
        output = self.model.generate(
            **arguments,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            num_return_sequences=2,
            do_sample=False,
            repetition_penalty=1.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        first, second = output.sequences_scores.tolist()
        assert first - second > 0.001, "a near-tie: take another seed"
        return output.sequences[0, arguments["input_ids"].shape[1] :].tolist()

    def score(self, prompt: Prompt, answer: str) -> float:
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        tokens = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        logprobs = self.logits(self.inputs(prompt), tokens).log_softmax(-1)
        return sum(logprobs[place, token].item() for place, token in enumerate(tokens))

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)
