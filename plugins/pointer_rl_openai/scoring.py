"""Log-probabilities of given answers, which only vLLM's API can return.

An answer that was generated needs no request: the generation's reply has its tokens and their
log-probabilities. For others, the chat is sent with the answer as its last message and with
`prompt_logprobs`. The reply has the log-probabilities of all tokens of the prompt, including those
of the answer and of the token that ends it. /tokenize says which these are. It is called without
images, which come before the answer; the reply's token ids are checked against the result.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.types import Prompt, Usage
from pointer_rl_openai.chats import Chats, Completion, read_choice, read_logprob, read_usage
from pointer_rl_openai.transport import CallError, look_up

CANNOT_SCORE = (
    "the server cannot score answers, which takes vLLM's prompt_logprobs and /tokenize:"
    " serve the model with vLLM, or do without scores (--score-answers)"
)


@dataclass(frozen=True)
class Score:
    """An answer's log-probability after a prompt."""

    logprob: float
    """Natural logarithm, summed over the answer's tokens and the token that ends the message."""
    usage: Usage


@dataclass(frozen=True)
class Tail:
    """The last tokens of a chat that ends with an answer."""

    answer: tuple[int, ...]
    """Tokens of the answer, including the one that ends it."""
    after: int
    """Number of tokens that the chat template puts after the answer."""


@dataclass
class Known:
    """What is known of scoring a model, from one event loop to the next."""

    tails: dict[str, Tail] = field(default_factory=dict)
    """Answer → the last tokens of a chat that ends with it."""
    works: bool = False
    """Whether an answer has been scored."""


class Scorer:
    """Scores answers, until a reply shows that the server cannot."""

    def __init__(self, chats: Chats, known: Known) -> None:
        self.known = known
        self.trying = asyncio.Lock()
        """To be held by a request that shows whether scoring works."""
        self._chats = chats
        self._tokenising: dict[str, asyncio.Task[Tail]] = {}
        self._able = True

    async def _tokenise(self, prompt: Prompt, answer: str) -> Tail:
        """The tail of a chat that ends with the answer. Raises as `Asker.ask`.

        It is the same after every prompt, so each answer is tokenised once.
        """
        tails = self.known.tails
        if answer not in tails:
            if answer not in self._tokenising:
                self._tokenising[answer] = asyncio.create_task(self._find_tail(prompt, answer))
            tails[answer] = await self._tokenising[answer]
        return tails[answer]

    async def score(
        self, prompt: Prompt, answer: str, completion: Completion | None = None
    ) -> Score:
        """Compute the answer's log-probability after the prompt. Raises as `Asker.ask`.

        `completion` is what was generated after the prompt, with its log-probabilities.
        """
        tail = await self._tokenise(prompt, answer)
        if completion is not None and tuple(completion.token_ids) == tail.answer:
            return Score(math.fsum(completion.logprobs), Usage())
        score = await self._chats.send(
            prompt,
            lambda: self._if_able(
                add_generation_prompt=False, prompt_logprobs=1, max_tokens=1, temperature=0
            ),
            lambda reply: self._read(reply, tail),
            answer=answer,
        )
        self.known.works = True
        return score

    def _if_able(self, **fields: Any) -> dict[str, Any]:
        """The fields. Raises InputError if an earlier reply showed that scoring is impossible."""
        if not self._able:
            raise InputError(CANNOT_SCORE)
        return fields

    def _read(self, reply: object, tail: Tail) -> Score:
        entries = look_up(reply, "prompt_logprobs")
        if not isinstance(entries, list):
            read_choice(reply)  # Raises an error of its own if it is not a chat completion.
            self._able = False
            raise CallError(CANNOT_SCORE)
        first = len(entries) - tail.after - len(tail.answer)
        if first < 1:  # The first token of a prompt has no log-probability.
            raise CallError("the log-probabilities are fewer than the tokens")
        pairs = zip(entries[first:], tail.answer, strict=False)
        logprob = sum(logprob_of(entry, token_id) for entry, token_id in pairs)
        return Score(logprob, read_usage(reply))

    async def _find_tail(self, prompt: Prompt, answer: str) -> Tail:
        before = await self._tokens(prompt, None, add_generation_prompt=True)
        until = await self._tokens(prompt, answer, continue_final_message=True)
        whole = await self._tokens(prompt, answer)
        start, end = len(before), len(until)
        if until[:start] != before or whole[:end] != until or len(whole) == end:
            raise CallError(
                "an answer cannot be scored: with this chat template a chat that has it"
                " does not begin with the tokens of the chat that asks for it"
            )
        return Tail(tuple(whole[start : end + 1]), len(whole) - end - 1)

    async def _tokens(self, prompt: Prompt, answer: str | None, **flags: bool) -> list[int]:
        """Tokens of the chat, without images."""
        fields = {"add_generation_prompt": False, "continue_final_message": False, **flags}
        try:
            return await self._chats.send(
                prompt, lambda: self._if_able(**fields), read_tokens, answer=answer, tokenise=True
            )
        except (CallError, InputError) as error:
            if isinstance(error, CallError) and error.status in (404, 405, 501):
                self._able = False
                raise CallError(CANNOT_SCORE) from error
            raise CallError(f"scoring an answer, /tokenize: {error}") from error


def logprob_of(entry: object, token_id: int) -> float:
    """A token's log-probability in an entry of `prompt_logprobs`. Raises CallError."""
    given = look_up(entry, str(token_id))
    if given is None:
        raise CallError("the prompt's log-probabilities are not of the tokens that /tokenize gave")
    return read_logprob(look_up(given, "logprob"))


def read_tokens(reply: object) -> list[int]:
    """Read token ids from the reply of /tokenize. Raises CallError."""
    tokens = look_up(reply, "tokens")
    if not isinstance(tokens, list) or not all(type(each) is int for each in tokens):
        raise CallError("/tokenize returned no token ids", again=True)
    return tokens
