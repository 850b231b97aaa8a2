"""Send chats to a server, and read its replies, which are not trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pointer_rl.local.chat import chat_messages
from pointer_rl.types import Decoding, ImageRef, Prompt, Usage
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.images import ImageUrls
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.server import Server
from pointer_rl_openai.transport import Call, CallError, look_up

T = TypeVar("T")

_MOST_STOPS = 4
"""Hosted servers accept no more stop strings. The backend cuts texts at all of them."""


class Chats:
    """Sends chats to one server. They share encoded images.

    Adjacent texts are merged, since servers put line ends between them. A message without images is
    a string, for chat templates that do not accept lists.
    """

    def __init__(self, asker: Asker, server: Server, options: OpenAIOptions) -> None:
        self._asker = asker
        self._server = server
        self._common: dict[str, Any] = {"model": server.model}
        if options.seed is not None:
            self._common["seed"] = options.seed
        self._images = ImageUrls(options.images)

    async def send(
        self,
        prompt: Prompt,
        fields: Callable[[], dict[str, Any]],
        read: Callable[[object], T],
        *,
        answer: str | None = None,
        tokenise: bool = False,
    ) -> T:
        """Ask for a completion or, with `tokenise`, for vLLM's tokens of the chat without images.

        `fields` returns further fields of the request when it is sent, and `read` reads the reply.
        An answer is put after the prompt as a message of the assistant. Raises as `Asker.ask`.
        """
        address = self._server.address
        url = address.next_to_api("tokenize") if tokenise else address.chat
        said = [] if answer is None else [{"role": "assistant", "content": answer}]

        def body() -> dict[str, Any]:
            more = fields()  # First: it may raise, and then no image needs to be encoded.
            if tokenise:
                common = {"model": self._server.model}
                messages = chat_messages(prompt, lambda image: None, merge_text=True)
            else:
                common = self._common
                messages = chat_messages(prompt, self._image_part, merge_text=True)
            return {**common, "messages": messages + said, **more}

        parts = [part for message in prompt.messages for part in message.parts]
        texts = [part for part in (*parts, answer) if isinstance(part, str)]
        return await self._asker.ask(Call(url=url, body=body, read=read, private=texts))

    def _image_part(self, image: ImageRef) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": self._images.url(image)}}


@dataclass(frozen=True)
class Completion:
    """A completion of a chat."""

    text: str
    usage: Usage
    system_fingerprint: str | None
    token_ids: Sequence[int] = ()
    """The generated tokens with the one that ended the generation, if they were asked for."""
    logprobs: Sequence[float] = ()
    """Log-probability of each generated token, if they were asked for."""


def decoding_fields(decoding: Decoding, server_kind: str, *, logprobs: bool) -> dict[str, Any]:
    """The fields for greedy decoding that every server supports.

    vLLM and SGLang would otherwise apply the checkpoint's repetition penalty. With
    `logprobs`, vLLM is asked for the tokens and their log-probabilities, too.
    """
    fields: dict[str, Any] = {"max_tokens": decoding.max_new_tokens, "temperature": 0}
    if server_kind in ("vllm", "sglang"):
        fields["repetition_penalty"] = 1.0
    if logprobs and server_kind == "vllm":
        fields |= {"logprobs": True, "return_token_ids": True}
    if decoding.stop:
        fields["stop"] = list(decoding.stop[:_MOST_STOPS])
    return fields


def read_completion(reply: object) -> Completion:
    """Read the first choice of a chat completion. Raises CallError."""
    error = look_up(reply, "error", "message")
    if isinstance(error, str):
        raise CallError(f"an error instead of an answer: {error}", again=True)
    choices = look_up(reply, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise CallError("the reply is not a chat completion", again=True)
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise CallError("the reply has no message", again=True)
    text = message.get("content")
    if finish == "content_filter" or message.get("refusal"):
        raise CallError("the server's filter, or the model, refused to answer")
    if text is None and finish is not None:
        # The model was cut off while it was thinking, or it called a tool.
        raise CallError(f"the answer has no text (finish_reason {finish})")
    if not isinstance(text, str):
        raise CallError("the reply has no text", again=True)
    fingerprint = look_up(reply, "system_fingerprint")
    return Completion(
        text,
        read_usage(reply),
        fingerprint if isinstance(fingerprint, str) else None,
        *_read_tokens(choices[0]),
    )


def _read_tokens(choice: dict[str, Any]) -> tuple[Sequence[int], Sequence[float]]:
    """The generated tokens and their log-probabilities; none if the reply lacks either."""
    token_ids, content = choice.get("token_ids"), look_up(choice, "logprobs", "content")
    if not isinstance(token_ids, list) or not isinstance(content, list):
        return (), ()
    found = [look_up(entry, "logprob") for entry in content]
    logprobs = [each for each in found if isinstance(each, float) and math.isfinite(each)]
    if len(logprobs) != len(token_ids):
        return (), ()
    return token_ids, logprobs


def read_usage(reply: object) -> Usage:
    """The numbers of tokens that the server reports, or 0 if it does not."""
    return Usage(_count(reply, "prompt_tokens"), _count(reply, "completion_tokens"))


def _count(reply: object, name: str) -> int:
    count = look_up(reply, "usage", name)
    # The response cache stores 64 bits. A larger count is wrong anyway.
    return count if type(count) is int and 0 <= count < 2**63 else 0
