"""The backend: sends requests concurrently, as many at a time as the server accepts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from pointer_rl.errors import InputError
from pointer_rl.local.stop_strings import find_stop
from pointer_rl.types import BackendError, Request, Response, Usage
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.background import stream
from pointer_rl_openai.chats import Chats, decoding_fields, read_completion
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.pacing import ConcurrencyLimit
from pointer_rl_openai.scoring import Scorer
from pointer_rl_openai.server import Server, api_key, discover, server_address
from pointer_rl_openai.transport import CallError, Transport

logger = logging.getLogger(__name__)

Result = Response | BackendError

_CONNECT_RETRIES = 3
"""Fewer than for a request, so that a wrong address is reported soon."""
_NO_BEAMS = (
    "num_beams: servers with the OpenAI API have no beam search that is the same as ours;"
    " use num_beams=1"
)


class OpenAIBackend:
    """A model behind the OpenAI chat API as a `VQABackend`. Holds no key and no connection."""

    batch_invariant = True
    """Requests are sent one by one. An interrupted run keeps the responses that it paid for."""

    def __init__(self, options: OpenAIOptions, server: Server) -> None:
        self.fingerprint = server.fingerprint
        self._options = options
        self._server = server
        self._limit = ConcurrencyLimit(options.max_concurrency)
        self._gone = False
        """Whether the last call of `run` lost the server. The next one then gives up sooner, so
        that a long run ends."""
        self._system_fingerprints: set[str] = set()

    @classmethod
    def connect(cls, options: OpenAIOptions) -> OpenAIBackend:
        """Ask the server which models it serves. Raises InputError."""
        address = server_address(options)
        retries = min(options.retries, _CONNECT_RETRIES)

        async def find(emit: Callable[[Server], None]) -> None:
            limit = ConcurrencyLimit(options.max_concurrency)
            async with _asker(options, limit, retries) as asker:
                emit(await discover(asker, address, options))

        [server] = stream(find)
        return cls(options, server)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once as (its index, its result), in the order of the replies."""
        yield from stream(partial(self._run, requests))

    def cost(self, usage: Usage) -> float | None:
        """The cost at the prices in the options, in their currency; None without prices."""
        prompt, generated = self._options.prompt_price, self._options.generated_price
        if prompt is None and generated is None:
            return None
        return (
            usage.prompt_tokens * (prompt or 0.0) + usage.generated_tokens * (generated or 0.0)
        ) / 1e6

    async def _run(
        self, requests: Sequence[Request], emit: Callable[[tuple[int, Result]], None]
    ) -> None:
        retries = self._options.retries
        async with _asker(self._options, self._limit, retries, self._gone) as asker:
            chats = Chats(asker, self._server, self._options)
            scorer = Scorer(chats)

            async def answer(index: int, request: Request) -> None:
                try:
                    result: Result = await self._answer(request, chats, scorer)
                except (CallError, InputError) as error:
                    result = BackendError(str(error))
                emit((index, result))

            await asyncio.gather(*(answer(*each) for each in enumerate(requests)))
            self._gone = asker.gone is not None

    async def _answer(self, request: Request, chats: Chats, scorer: Scorer) -> Response:
        prompt, decoding = request.prompt, request.decoding
        if decoding is not None and decoding.num_beams > 1:
            raise InputError(_NO_BEAMS)
        usages, logprobs = [], []
        # Scores come first: if the server cannot score, no generation is paid for.
        for scored in request.score:
            score = await scorer.score(prompt, scored)
            usages.append(score.usage)
            logprobs.append(score.logprob)
        text = None
        if decoding is not None:
            fields = decoding_fields(decoding, self._server.kind)
            completion = await chats.send(prompt, lambda: fields, read_completion)
            self._note(completion.system_fingerprint)
            text = completion.text[: find_stop(completion.text, decoding.stop)]
            usages.append(completion.usage)
        usage = dataclasses.replace(sum(usages, Usage()), images=len(prompt.images))
        return Response(text, tuple(logprobs), usage)

    def _note(self, system_fingerprint: str | None) -> None:
        """Warn if the model may have changed while its name did not."""
        if system_fingerprint is None or system_fingerprint in self._system_fingerprints:
            return
        self._system_fingerprints.add(system_fingerprint)
        if len(self._system_fingerprints) == 2:
            logger.warning(
                "%s: the server's system_fingerprint changed: the model may have, behind its name",
                self._server.model,
            )


@asynccontextmanager
async def _asker(
    options: OpenAIOptions, limit: ConcurrencyLimit, retries: int, was_gone: bool = False
) -> AsyncIterator[Asker]:
    async with Transport(key=api_key(options), timeout=options.timeout) as transport:
        yield Asker(transport, limit, retries=retries, backoff=options.backoff, was_gone=was_gone)
