"""The JSON of the chat API: the fields of requests, and replies, which are not trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pointer_rl.types import Decoding, Usage
from pointer_rl_openai.transport import BadReplyError, look_up

_MOST_STOPS = 4
"""Hosted servers accept no more stop strings. The backend cuts texts at all of them."""


@dataclass(frozen=True)
class Completion:
    """A completion of a chat."""

    text: str
    usage: Usage
    system_fingerprint: str | None


def decoding_fields(decoding: Decoding, server_kind: str) -> dict[str, Any]:
    """The fields for greedy decoding that every server supports.

    vLLM and SGLang would otherwise apply the checkpoint's repetition penalty.
    """
    fields: dict[str, Any] = {"max_tokens": decoding.max_new_tokens, "temperature": 0}
    if server_kind in ("vllm", "sglang"):
        fields["repetition_penalty"] = 1.0
    if decoding.stop:
        fields["stop"] = list(decoding.stop[:_MOST_STOPS])
    return fields


def read_completion(reply: object) -> Completion:
    """Read the first choice of a chat completion. Raises BadReplyError."""
    error = look_up(reply, "error", "message")
    if isinstance(error, str):
        raise BadReplyError(f"an error instead of an answer: {error}", again=True)
    choices = look_up(reply, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReplyError("the reply is no chat completion", again=True)
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise BadReplyError("the reply has no message", again=True)
    text = message.get("content")
    if finish == "content_filter" or message.get("refusal"):
        raise BadReplyError("the server's filter, or the model, refused to answer", again=False)
    if text is None and finish is not None:
        # The model was cut off while it was thinking, or it called a tool.
        raise BadReplyError(f"the answer has no text (finish_reason {finish})", again=False)
    if not isinstance(text, str):
        raise BadReplyError("the reply has no text", again=True)
    fingerprint = look_up(reply, "system_fingerprint")
    return Completion(
        text, read_usage(reply), fingerprint if isinstance(fingerprint, str) else None
    )


def read_usage(reply: object) -> Usage:
    """The numbers of tokens that the server reports, or 0 if it does not."""
    return Usage(_count(reply, "prompt_tokens"), _count(reply, "completion_tokens"))


def _count(reply: object, name: str) -> int:
    count = look_up(reply, "usage", name)
    # The response cache stores 64 bits. A larger count is wrong anyway.
    return count if type(count) is int and 0 <= count < 2**63 else 0
