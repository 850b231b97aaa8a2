"""The backend: requests go out together, as many at a time as the server bears."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from pointer_rl.types import BackendError, Decoding, Prompt, Request, Response, Usage
from pointer_rl_openai import protocol
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.background import stream
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.pacing import ConcurrencyLimit
from pointer_rl_openai.pictures import ImageUrls
from pointer_rl_openai.protocol import Completion
from pointer_rl_openai.scoring import Scorer
from pointer_rl_openai.server import Server, api_key, discover, server_address
from pointer_rl_openai.transport import Call, Failure, Transport

__all__ = ["OpenAIBackend"]

logger = logging.getLogger(__name__)

Result = Response | BackendError

_CONNECT_RETRIES = 3
"""Fewer than for a request: someone is waiting to learn of a wrong address."""
_NO_BEAMS = (
    "num_beams: servers with the OpenAI API have no beam search that is the same as ours;"
    " use num_beams=1"
)


class OpenAIBackend:
    """A model behind the OpenAI chat API as a `VQABackend`. Holds no key and no connection."""

    batch_invariant = True
    """Each request is sent alone (what the server batches is its own affair), and is paid for."""

    def __init__(self, options: OpenAIOptions, server: Server) -> None:
        self.fingerprint = server.fingerprint
        self._options = options
        self._server = server
        self._limit = ConcurrencyLimit(options.max_concurrency)
        self._gone = False
        """Whether there was no server any more when it was last asked: it then gets one chance, so
        that a run of many windows ends soon."""
        self._system_fingerprints: set[str] = set()

    @classmethod
    def connect(cls, options: OpenAIOptions) -> OpenAIBackend:
        """Ask the server what it serves. Raises InputError."""
        address = server_address(options)
        retries = min(options.retries, _CONNECT_RETRIES)

        async def find(emit: Callable[[Server], None]) -> None:
            limit = ConcurrencyLimit(options.max_concurrency)
            async with _asker(options, limit, retries) as asker:
                emit(await discover(asker, address, options))

        [server] = stream(find)
        return cls(options, server)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once, as the answers come, as (its index, its result)."""
        yield from stream(partial(self._run, requests))

    def cost(self, usage: Usage) -> float | None:
        """By the prices in the options, in their currency; None where there are none."""
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
            window = _Window(self._server, self._options, asker, self._note)

            async def answer(index: int, request: Request) -> None:
                emit((index, await window.answer(request)))

            await asyncio.gather(*(answer(*each) for each in enumerate(requests)))
            self._gone = asker.gone is not None

    def _note(self, system_fingerprint: str | None) -> None:
        """Warn when the model may have changed behind its name."""
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


class _Window:
    """The requests of one call of `run`: they share images and what is known of answers."""

    def __init__(
        self,
        server: Server,
        options: OpenAIOptions,
        asker: Asker,
        note: Callable[[str | None], None],
    ) -> None:
        self._server_kind = server.kind
        self._chat_url = server.address.chat
        self._asker = asker
        self._note = note
        self._fields: dict[str, Any] = {"model": server.model}
        if options.seed is not None:
            self._fields["seed"] = options.seed
        self._images = ImageUrls(options.images)
        self._scorer = Scorer(
            asker,
            self._images,
            chat_url=self._chat_url,
            tokenize_url=server.address.beside("tokenize"),
            fields=self._fields,
        )

    async def answer(self, request: Request) -> Result:
        if request.decoding is not None and request.decoding.num_beams > 1:
            return BackendError(_NO_BEAMS)
        usages, logprobs = [], []
        # Scores first: what a server cannot give is found before a generation is paid for.
        for scored in request.score:
            score = await self._scorer.score(request.prompt, scored)
            if isinstance(score, Failure):
                return BackendError(score.message)
            usages.append(score.usage)
            logprobs.append(score.logprob)
        text = None
        if request.decoding is not None:
            completion = await self._generate(request.prompt, request.decoding)
            if isinstance(completion, Failure):
                return BackendError(completion.message)
            self._note(completion.system_fingerprint)
            text = protocol.cut(completion.text, request.decoding.stop)
            usages.append(completion.usage)
        usage = dataclasses.replace(sum(usages, Usage()), images=len(request.prompt.images))
        return Response(text, tuple(logprobs), usage)

    async def _generate(self, prompt: Prompt, decoding: Decoding) -> Completion | Failure:
        def body() -> dict[str, Any]:
            return {
                **self._fields,
                "messages": protocol.messages(prompt, self._images),
                **protocol.decoding_fields(decoding, self._server_kind),
            }

        return await self._asker.ask(
            Call(
                url=self._chat_url,
                body=body,
                read=protocol.read_completion,
                private=protocol.texts(prompt),
            )
        )
