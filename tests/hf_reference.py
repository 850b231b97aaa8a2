"""The models of `tiny_models` with hand-written prompts, one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from local_backend_checks import Reference

from pointer_rl.types import Decoding, Prompt

__all__ = ["HFReference"]

# Begin of the text, of a turn, end of a turn, image: as the templates of `tiny_models` write them.
_TURNS = {
    "idefics2": ("<s>", "", "<end_of_utterance>", "<image>"),
    "idefics3": ("<|im_start|>", "", "<end_of_utterance>", "<image>"),
    "gemma3": ("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
    "internvl": ("", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>\n"),
}
_ENDS = {"llava": "</s>", **{family: end for family, (_, _, end, _) in _TURNS.items()}}
_PROCESSORS = {
    "llava": "LlavaProcessor",
    "idefics2": "Idefics2Processor",
    "idefics3": "Idefics3Processor",
    "gemma3": "Gemma3Processor",
}


class HFReference(Reference):
    def __init__(self, folder: Path, family: str) -> None:
        self.family = family
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self.end = self.tokenizer.convert_tokens_to_ids(_ENDS[family])
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float64
        ).eval()
        if family in _PROCESSORS:
            processor_class = getattr(transformers, _PROCESSORS[family])
            self.processor = processor_class.from_pretrained(folder, backend="pil")
        else:
            self.images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    def render(self, prompt: Prompt) -> str:
        if self.family == "llava":
            text = ""
            for message in prompt.messages:
                text += f"{message.role.upper()}: "
                for part in message.parts:
                    text += part if isinstance(part, str) else "<image>\n"
                    text += " "
            return text + "ASSISTANT:"
        begin, start, end, image = _TURNS[self.family]
        text = begin
        for message in prompt.messages:
            text += f"{start}{message.role}\n"
            text += "".join(part if isinstance(part, str) else image for part in message.parts)
            text += f"{end}\n"
        return f"{text}{start}assistant\n"

    def inputs(self, prompt: Prompt) -> dict[str, Any]:
        text = self.render(prompt)
        images = [image.open() for image in prompt.images]
        if self.family == "internvl":
            arguments: dict[str, Any] = {}
            if images:
                cut = self.images(images=images, return_tensors="pt")
                arguments["pixel_values"] = cut["pixel_values"]
                for patches in cut["num_patches"]:
                    expanded = f"<img>{'<CONTEXT>' * 4 * int(patches)}</img>"
                    text = text.replace("<IMG_CONTEXT>", expanded, 1)
            text = text.replace("<CONTEXT>", "<IMG_CONTEXT>")
            arguments |= self.tokenizer(text, return_tensors="pt")
            return arguments
        return dict(
            self.processor(
                text=[text],
                images=[images] if images else None,
                return_tensors="pt",
                add_special_tokens=False,
            )
        )

    def prompt_tokens(self, prompt: Prompt) -> int:
        return int(self.inputs(prompt)["input_ids"].shape[1])

    @torch.no_grad()
    def logits(self, prompt: Prompt, following: Sequence[int]) -> torch.Tensor:
        arguments = self.inputs(prompt)
        length = arguments["input_ids"].shape[1]
        more = torch.tensor([following], dtype=torch.long)
        for name, value in (("input_ids", more), ("token_type_ids", torch.zeros_like(more))):
            if name in arguments:
                arguments[name] = torch.cat([arguments[name], value], dim=1)
        del arguments["attention_mask"]
        if "pixel_values" in arguments:
            arguments["pixel_values"] = arguments["pixel_values"].double()
        return self.model(**arguments).logits[0, length - 1 :]

    @torch.no_grad()
    def beam(self, prompt: Prompt, decoding: Decoding) -> tuple[list[int], float]:
        arguments = self.inputs(prompt)
        if "pixel_values" in arguments:
            arguments["pixel_values"] = arguments["pixel_values"].double()
        output = self.model.generate(
            **arguments,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            num_return_sequences=2,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        first, second = output.sequences_scores.tolist()
        return output.sequences[0, arguments["input_ids"].shape[1] :].tolist(), first - second

    def answer_tokens(self, answer: str) -> list[int]:
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end]

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
