"""The backend: sends requests concurrently, as many at a time as the servers accept.

A server computes the common beginning of prompts once if it gets them soon after each other.
Requests are therefore sent in the order of their prompts, and of several servers the same one gets
all prompts that begin alike.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from pointer_rl.errors import InputError
from pointer_rl.types import BackendError, Prompt, Request, Response, Usage
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.background import stream
from pointer_rl_openai.chats import Chats, decoding_fields, read_completion
from pointer_rl_openai.options import OpenAIOptions
from pointer_rl_openai.pacing import ConcurrencyLimit
from pointer_rl_openai.scoring import Known, Score, Scorer
from pointer_rl_openai.server import Server, api_key, discover, server_addresses
from pointer_rl_openai.transport import CallError, Transport

logger = logging.getLogger(__name__)

Result = Response | BackendError

_CONNECT_RETRIES = 3
"""Fewer than for a request, so that a wrong address is reported soon."""
_NO_BEAMS = (
    "num_beams: servers with the OpenAI API have no beam search that is the same as ours;"
    " use num_beams=1"
)


@dataclass
class _Endpoint:
    """A server, and what is known of it from one call of `run` to the next."""

    server: Server
    limit: ConcurrencyLimit
    gone: bool = False
    """Whether the last call of `run` lost the server. The next one then gives up sooner, so that a
    long run ends."""
    requests: int = 0
    """Number of requests that were given to it."""


@dataclass(frozen=True)
class _Client:
    """A connection to a server, for one call of `run`."""

    asker: Asker
    chats: Chats
    scorer: Scorer
    kind: str


class OpenAIBackend:
    """A model behind the OpenAI chat API as a `VQABackend`. Holds no key and no connection."""

    batch_invariant = True
    """Requests are sent one by one. An interrupted run keeps the responses that it paid for."""

    def __init__(self, options: OpenAIOptions, servers: Sequence[Server]) -> None:
        """The servers have the same fingerprint."""
        self.fingerprint = servers[0].fingerprint
        self._options = options
        self._endpoints = [
            _Endpoint(server, ConcurrencyLimit(options.max_concurrency)) for server in servers
        ]
        self._homes: dict[tuple[str, ...], int] = {}
        """Beginning of a prompt → index of the server that gets prompts with it."""
        self._scoring = Known()
        self._system_fingerprints: set[str] = set()

    @classmethod
    def connect(cls, options: OpenAIOptions) -> OpenAIBackend:
        """Ask the servers which models they serve. Raises InputError."""
        addresses = server_addresses(options)
        retries = min(options.retries, _CONNECT_RETRIES)

        async def find(emit: Callable[[Server], None]) -> None:
            for address in addresses:
                limit = ConcurrencyLimit(options.max_concurrency)
                async with _asker(options, limit, retries) as asker:
                    emit(await discover(asker, address, options))

        first, *others = servers = list(stream(find))
        for server in others:
            if server.fingerprint != first.fingerprint:
                raise InputError(
                    f"backend openai: {first.address.base_url} serves {first.fingerprint} and"
                    f" {server.address.base_url} {server.fingerprint}: servers that share requests"
                    " must be of the same version and serve the same model from the same path"
                )
        return cls(options, servers)

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
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(self._client(endpoint))
                for endpoint in self._endpoints
            ]

            async def answer(index: int, home: int) -> None:
                result: Result
                for client in clients[home:] + clients[:home]:
                    try:
                        result = await self._answer(requests[index], client)
                    except (CallError, InputError) as error:
                        result = BackendError(str(error))
                        unreachable = isinstance(error, CallError) and error.unreachable
                        if unreachable or client.asker.gone is not None:
                            continue  # Another server may answer.
                    break
                emit((index, result))

            prompts: list[tuple[tuple[str, ...], tuple[str, ...], int]] = []
            for index, request in enumerate(requests):
                try:
                    prompts.append((*_parts_of(request.prompt), index))
                except InputError as error:  # An image cannot be read.
                    emit((index, BackendError(str(error))))
            await asyncio.gather(
                *(answer(index, self._home(beginning)) for beginning, _, index in sorted(prompts))
            )
            for endpoint, client in zip(self._endpoints, clients, strict=True):
                endpoint.gone = client.asker.gone is not None

    def _home(self, beginning: tuple[str, ...]) -> int:
        """The server for a prompt that begins so: for a new beginning, the least asked one."""
        loads = [endpoint.requests for endpoint in self._endpoints]
        home = self._homes.setdefault(beginning, loads.index(min(loads)))
        self._endpoints[home].requests += 1
        return home

    @asynccontextmanager
    async def _client(self, endpoint: _Endpoint) -> AsyncIterator[_Client]:
        retries = self._options.retries
        async with _asker(self._options, endpoint.limit, retries, endpoint.gone) as asker:
            chats = Chats(asker, endpoint.server, self._options)
            yield _Client(asker, chats, Scorer(chats, self._scoring), endpoint.server.kind)

    async def _answer(self, request: Request, client: _Client) -> Response:
        if request.decoding is not None and request.decoding.num_beams > 1:
            raise InputError(_NO_BEAMS)
        scorer, scores = client.scorer, None
        if request.score and not scorer.known.works:
            # If the server cannot score, no generation is paid for.
            async with scorer.trying:
                if not scorer.known.works:
                    scores = [await scorer.score(request.prompt, each) for each in request.score]
        return await self._generate(request, client, scores)

    async def _generate(
        self, request: Request, client: _Client, scores: Sequence[Score] | None
    ) -> Response:
        """Generate if that is asked for, and score the answers if that has not been done."""
        prompt, decoding = request.prompt, request.decoding
        usages = []
        text = completion = None
        if decoding is not None:
            needed = scores is None and bool(request.score)
            fields = decoding_fields(decoding, client.kind, logprobs=needed)
            completion = await client.chats.send(
                prompt, lambda: fields, lambda reply: read_completion(reply, decoding)
            )
            self._note(completion.system_fingerprint)
            text = completion.text
            usages.append(completion.usage)
        if scores is None:
            scores = [await client.scorer.score(prompt, each, completion) for each in request.score]
        usages += [score.usage for score in scores]
        usage = dataclasses.replace(sum(usages, Usage()), images=len(prompt.images))
        return Response(text, tuple(score.logprob for score in scores), usage)

    def _note(self, system_fingerprint: str | None) -> None:
        """Warn if the model may have changed while its name did not."""
        if system_fingerprint is None or system_fingerprint in self._system_fingerprints:
            return
        self._system_fingerprints.add(system_fingerprint)
        if len(self._system_fingerprints) == 2:
            logger.warning(
                "%s: the server's system_fingerprint changed: the model may have, behind its name",
                self._endpoints[0].server.model,
            )


def _parts_of(prompt: Prompt) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts and keys of images up to the first image, and those after it, in reading order.

    Raises InputError.
    """
    parts = [part for message in prompt.messages for part in message.parts]
    first = next((i for i, part in enumerate(parts) if not isinstance(part, str)), len(parts))
    keys = [part if isinstance(part, str) else part.key for part in parts]
    return tuple(keys[: first + 1]), tuple(keys[first + 1 :])


@asynccontextmanager
async def _asker(
    options: OpenAIOptions, limit: ConcurrencyLimit, retries: int, was_gone: bool = False
) -> AsyncIterator[Asker]:
    async with Transport(key=api_key(options), timeout=options.timeout) as transport:
        yield Asker(transport, limit, retries=retries, backoff=options.backoff, was_gone=was_gone)
