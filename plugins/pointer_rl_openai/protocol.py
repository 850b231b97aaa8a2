"""The chat API's JSON: prompts as messages, and replies read with suspicion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pointer_rl.types import Decoding, Prompt, Usage
from pointer_rl_openai.pictures import ImageUrls
from pointer_rl_openai.transport import BadReplyError

__all__ = [
    "Completion",
    "cut",
    "decoding_fields",
    "logprob_of",
    "messages",
    "prompt_logprobs",
    "read_completion",
    "read_tokens",
    "read_usage",
    "text_messages",
    "texts",
]

_MOST_STOPS = 4
"""Hosted servers take no more stop strings. All are cut here in any case."""


@dataclass(frozen=True)
class Completion:
    """What a server wrote."""

    text: str
    usage: Usage
    system_fingerprint: str | None


# --- what is sent -------------------------------------------------------------------------------


def messages(prompt: Prompt, images: ImageUrls) -> list[dict[str, Any]]:
    """The prompt's messages. Text that follows text is joined: servers put line ends between.

    A message without images is a string, which chat templates take that know no lists.
    """
    sent: list[dict[str, Any]] = []
    for message in prompt.messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            if not isinstance(part, str):
                parts.append({"type": "image_url", "image_url": {"url": images.url(part)}})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += part
            else:
                parts.append({"type": "text", "text": part})
        if all(part["type"] == "text" for part in parts):
            sent.append({"role": message.role, "content": parts[0]["text"] if parts else ""})
        else:
            sent.append({"role": message.role, "content": parts})
    return sent


def text_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages without their images."""
    return [
        {
            "role": message.role,
            "content": "".join(part for part in message.parts if isinstance(part, str)),
        }
        for message in prompt.messages
    ]


def texts(prompt: Prompt) -> list[str]:
    """The prompt's texts, part by part."""
    return [part for message in prompt.messages for part in message.parts if isinstance(part, str)]


def decoding_fields(decoding: Decoding, server_kind: str) -> dict[str, Any]:
    """Greedy decoding, in the fields that every server knows.

    vLLM and SGLang would apply the checkpoint's repetition penalty, which greedy decoding has not.
    """
    fields: dict[str, Any] = {"max_tokens": decoding.max_new_tokens, "temperature": 0}
    if server_kind in ("vllm", "sglang"):
        fields["repetition_penalty"] = 1.0
    if decoding.stop:
        fields["stop"] = list(decoding.stop[:_MOST_STOPS])
    return fields


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The text before the first stop string."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=None)]


# --- what comes back ----------------------------------------------------------------------------


def read_completion(reply: object) -> Completion:
    """The one choice of a chat completion. Raises BadReplyError."""
    choice = _choice(reply)
    message, finish = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict):
        raise BadReplyError("the reply has no message", again=True)
    text = message.get("content")
    if finish == "content_filter" or message.get("refusal"):
        raise BadReplyError("the server's filter, or the model, refused to answer", again=False)
    if text is None and finish is not None:
        # A model that thinks first, and was cut off while it did; or one that called a tool.
        raise BadReplyError(f"the answer has no text (finish_reason {finish})", again=False)
    if not isinstance(text, str):
        raise BadReplyError("the reply has no text", again=True)
    return Completion(text, read_usage(reply), _system_fingerprint(reply))


def read_usage(reply: object) -> Usage:
    """The tokens that the server counted, 0 where it does not say."""
    return Usage(_count(reply, "prompt_tokens"), _count(reply, "completion_tokens"))


def prompt_logprobs(reply: object) -> list[object] | None:
    """vLLM's log-probabilities of the prompt's tokens, unread; None where there are none."""
    found = reply.get("prompt_logprobs") if isinstance(reply, dict) else None
    return found if isinstance(found, list) else None


def logprob_of(entry: object, token_id: int) -> float:
    """A token's log-probability in one of them. Raises BadReplyError."""
    found = entry.get(str(token_id)) if isinstance(entry, dict) else None
    logprob = found.get("logprob") if isinstance(found, dict) else None
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        raise BadReplyError(
            "the prompt's log-probabilities are not of the tokens that /tokenize gave", again=False
        )
    return float(logprob)


def read_tokens(reply: object) -> list[int]:
    """Token ids, from vLLM's /tokenize. Raises BadReplyError."""
    tokens = reply.get("tokens") if isinstance(reply, dict) else None
    if not isinstance(tokens, list) or not all(type(each) is int for each in tokens):
        raise BadReplyError("/tokenize returned no token ids", again=True)
    return tokens


def _choice(reply: object) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise BadReplyError("the reply is no chat completion", again=True)
    error = reply.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        raise BadReplyError(f"an error instead of an answer: {error['message']}", again=True)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReplyError("the reply is no chat completion", again=True)
    choice: dict[str, Any] = choices[0]
    return choice


def _count(reply: object, name: str) -> int:
    usage = reply.get("usage") if isinstance(reply, dict) else None
    count = usage.get(name) if isinstance(usage, dict) else None
    # Kept in 64 bits; a server that counts more counts wrong.
    return count if type(count) is int and 0 <= count < 2**63 else 0


def _system_fingerprint(reply: object) -> str | None:
    found = reply.get("system_fingerprint") if isinstance(reply, dict) else None
    return found if isinstance(found, str) else None
