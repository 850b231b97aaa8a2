"""Send chats to a server, and read its replies, which are not trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pointer_rl.local.chat import chat_messages
from pointer_rl.local.stop_strings import find_stop
from pointer_rl.types import LOGPROB_ROUNDING, Decoding, ImageRef, Prompt, Usage
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.images import ImageUrls
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.server import Server
from pointer_rl_openai.transport import Call, CallError, look_up

T = TypeVar("T")

_MOST_STOPS = 4
"""Hosted servers accept no more stop strings. Texts are cut at all of them here."""
_RAISE = "raise max_new_tokens (--decoding-opt max_new_tokens=N)"
_NO_LOGPROB = "the server returned something that is not a log-probability"
_ENDED = ("stop", "eos_token", "stop_sequence")
"""Finish reasons of a whole answer. The last two are those of text-generation-inference."""
_PASSING = (None, "abort", "error")
"""Finish reasons that say nothing of the answer: the server was interrupted."""


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
    """Cut before the first stop string."""
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


def read_choice(reply: object) -> dict[str, Any]:
    """The first choice of a chat completion. Raises CallError if the reply is none."""
    error = look_up(reply, "error", "message")
    if isinstance(error, str):
        raise CallError(f"an error instead of an answer: {error}", again=True)
    choices = look_up(reply, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise CallError("the reply is not a chat completion", again=True)
    return choices[0]


def read_completion(reply: object, decoding: Decoding) -> Completion:
    """Read a chat completion. Raises CallError unless it is a whole answer."""
    choice = read_choice(reply)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise CallError("the reply has no message", again=True)
    text = _whole_answer(message, choice.get("finish_reason"), decoding)
    fingerprint = look_up(reply, "system_fingerprint")
    return Completion(
        text,
        read_usage(reply),
        fingerprint if isinstance(fingerprint, str) else None,
        *_read_tokens(choice),
    )


def _whole_answer(message: dict[str, Any], finish: object, decoding: Decoding) -> str:
    """The text of a message, up to the first stop string.

    Raises CallError if the finish reason does not say that the text is all that the model had to
    say. An empty text with the reason `stop` is an answer: the model ended its turn at once, or
    began with a stop string. It would do so again, and a model that runs here gives the same.
    """
    text = message.get("content")
    if finish == "content_filter" or message.get("refusal"):
        raise CallError("the server's filter, or the model, refused to answer")
    if finish in ("tool_calls", "function_call") or (not text and message.get("tool_calls")):
        raise CallError("the model called a tool instead of answering")
    if finish == "length" and not text:
        raise CallError(
            f"the model ran out of tokens before it answered (finish_reason length): {_RAISE}"
        )
    if finish not in (*_ENDED, "length"):
        reason = json.dumps(finish) if isinstance(finish, str) else "missing"
        raise CallError(
            f"it is not known whether the answer is whole (finish_reason {reason})",
            again=finish in _PASSING,
        )
    if text is None:
        raise CallError(f"the answer has no text (finish_reason {finish})")
    if not isinstance(text, str):
        raise CallError("the reply has no text", again=True)
    if not text and (message.get("reasoning_content") or message.get("reasoning")):
        # The server put all that was generated elsewhere.
        raise CallError("the model thought and did not answer")
    end = find_stop(text, decoding.stop)
    if finish == "length" and end is None:
        raise CallError(
            f"the answer was cut off (finish_reason length): {_RAISE}, or give a stop string"
        )
    return text[:end]


def _read_tokens(choice: dict[str, Any]) -> tuple[Sequence[int], Sequence[float]]:
    """The generated tokens and their log-probabilities; none if the reply lacks either."""
    token_ids, content = choice.get("token_ids"), look_up(choice, "logprobs", "content")
    if not isinstance(token_ids, list) or not isinstance(content, list):
        return (), ()
    if len(token_ids) != len(content):
        return (), ()
    try:
        return token_ids, [read_logprob(look_up(entry, "logprob")) for entry in content]
    except CallError:
        return (), ()


def read_logprob(value: object) -> float:
    """The log-probability of a token. Raises CallError for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CallError(_NO_LOGPROB)
    if not -sys.float_info.max <= value <= LOGPROB_ROUNDING:
        raise CallError(_NO_LOGPROB)
    return min(float(value), 0.0)


def read_usage(reply: object) -> Usage:
    """The numbers of tokens that the server reports, or 0 if it does not."""
    return Usage(_count(reply, "prompt_tokens"), _count(reply, "completion_tokens"))


def _count(reply: object, name: str) -> int:
    count = look_up(reply, "usage", name)
    # The response cache stores 64 bits. A larger count is wrong anyway.
    return count if type(count) is int and 0 <= count < 2**63 else 0
