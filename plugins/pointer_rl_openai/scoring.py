"""Log-probabilities of given answers, in the one form that servers have for it: vLLM's.

The chat with the answer as its last message is sent with `prompt_logprobs`, and the answer's tokens
and the token that ends it are read off the prompt's. Which those are is asked of /tokenize, without
the images: they come before, and the reply's own token ids are checked against them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.types import Prompt, Usage
from pointer_rl_openai import protocol
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.pictures import ImageUrls
from pointer_rl_openai.transport import BadReplyError, Call, Failure

__all__ = ["CANNOT_SCORE", "Score", "Scorer"]

CANNOT_SCORE = (
    "the server cannot score answers, which takes vLLM's prompt_logprobs and /tokenize:"
    " serve the model with vLLM, or do without scores (--score-answers)"
)


@dataclass(frozen=True)
class Score:
    """An answer's log-probability after a prompt."""

    logprob: float
    """Natural; of all its tokens, and of the one that ends the message."""
    usage: Usage


@dataclass(frozen=True)
class _Tail:
    """The last tokens of a chat that ends with an answer."""

    answer: tuple[int, ...]
    """With the token that ends it."""
    after: int
    """How many the template puts after that."""


class Scorer:
    """Scores answers, as long as the server turns out to be able to."""

    def __init__(
        self,
        asker: Asker,
        images: ImageUrls,
        *,
        chat_url: str,
        tokenize_url: str,
        fields: dict[str, Any],
    ) -> None:
        """fields: of every request (model, seed)."""
        self._asker = asker
        self._images = images
        self._chat_url = chat_url
        self._tokenize_url = tokenize_url
        self._fields = fields
        self._tails: dict[str, asyncio.Task[_Tail | Failure]] = {}
        self._able = True

    async def score(self, prompt: Prompt, answer: str) -> Score | Failure:
        """The answer's log-probability after the prompt."""
        # What follows the prompt is the same for all: asked once for each answer.
        if answer not in self._tails:
            self._tails[answer] = asyncio.create_task(self._tail(prompt, answer))
        tail = await self._tails[answer]
        if isinstance(tail, Failure):
            return tail

        def body() -> dict[str, Any]:
            self._check_able()
            said = {"role": "assistant", "content": answer}
            return {
                **self._fields,
                "messages": [*protocol.messages(prompt, self._images), said],
                "add_generation_prompt": False,
                "prompt_logprobs": 1,
                "max_tokens": 1,
                "temperature": 0,
            }

        return await self._asker.ask(
            Call(
                url=self._chat_url,
                body=body,
                read=lambda reply: self._read(reply, tail),
                private=[*protocol.texts(prompt), answer],
            )
        )

    def _check_able(self) -> None:
        """When something is about to be sent: one reply is enough to know."""
        if not self._able:
            raise InputError(CANNOT_SCORE)

    def _read(self, reply: object, tail: _Tail) -> Score:
        entries = protocol.prompt_logprobs(reply)
        if entries is None:
            protocol.read_completion(reply)  # not a chat completion at all?
            self._able = False
            raise BadReplyError(CANNOT_SCORE, again=False)
        first = len(entries) - tail.after - len(tail.answer)
        if first < 1:  # the very first token of a prompt has no log-probability
            raise BadReplyError("the log-probabilities are fewer than the tokens", again=False)
        pairs = zip(entries[first:], tail.answer, strict=False)
        logprob = sum(protocol.logprob_of(entry, token_id) for entry, token_id in pairs)
        return Score(logprob, protocol.read_usage(reply))

    async def _tail(self, prompt: Prompt, answer: str) -> _Tail | Failure:
        asked, private = protocol.text_messages(prompt), [*protocol.texts(prompt), answer]
        told = [*asked, {"role": "assistant", "content": answer}]
        before = await self._tokens(asked, private, add_generation_prompt=True)
        if isinstance(before, Failure):
            return before
        until = await self._tokens(told, private, continue_final_message=True)
        if isinstance(until, Failure):
            return until
        whole = await self._tokens(told, private)
        if isinstance(whole, Failure):
            return whole
        start, end = len(before), len(until)
        if until[:start] != before or whole[:end] != until or len(whole) == end:
            return Failure(
                message="an answer cannot be scored: with this chat template a chat that has it"
                " does not begin with the tokens of the chat that asks for it"
            )
        return _Tail(tuple(whole[start : end + 1]), len(whole) - end - 1)

    async def _tokens(
        self,
        messages: list[dict[str, Any]],
        private: list[str],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> list[int] | Failure:
        def body() -> dict[str, Any]:
            self._check_able()
            return {
                "model": self._fields["model"],
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
            }

        result = await self._asker.ask(
            Call(
                url=self._tokenize_url,
                body=body,
                read=protocol.read_tokens,
                private=private,
            )
        )
        if not isinstance(result, Failure):
            return result
        if result.status in (404, 405, 501):
            self._able = False
            return Failure(message=CANNOT_SCORE)
        return Failure(message=f"scoring an answer, /tokenize: {result.message}")
