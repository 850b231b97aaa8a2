"""A backend that remembers, and the one place where a backend is asked and its results counted."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence

from pointer_rl.errors import InputError, PluginError
from pointer_rl.trials.keys import request_key
from pointer_rl.trials.store import ResponseStore
from pointer_rl.types import BackendError, PricedBackend, Request, Response, Usage, VQABackend

__all__ = ["StoredBackend", "ask"]

Result = Response | BackendError

_BATCH = 64
_SECONDS = 1.0
"""What a killed run may lose: so many responses, or so many seconds of a slow backend's."""


def ask(backend: VQABackend, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
    """Each request's result once, as the backend gives them.

    Raises PluginError for a result that is one too many, out of range or missing, and for another
    number of log-probabilities than of answers.
    """
    waiting = set(range(len(requests)))
    for index, result in backend.run(requests):
        if index not in waiting:
            raise PluginError(
                f"the backend {backend.fingerprint} answered request {index} of "
                f"{len(requests)} twice, or out of range"
            )
        waiting.remove(index)
        wanted = len(requests[index].score)
        if isinstance(result, Response) and len(result.score_logprobs) != wanted:
            raise PluginError(
                f"the backend {backend.fingerprint} returned {len(result.score_logprobs)} "
                f"log-probabilities for {wanted} answers"
            )
        yield index, result
    if waiting:
        raise PluginError(
            f"the backend {backend.fingerprint} left {len(waiting)} of "
            f"{len(requests)} requests without a result"
        )


class _News:
    """Collects responses and stores them together: a transaction for each would cost more."""

    def __init__(self, store: ResponseStore | None, fingerprint: str) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._pending: list[tuple[bytes, Response]] = []
        self._stored_at = time.monotonic()

    def add(self, key: bytes, response: Response) -> None:
        self._pending.append((key, response))
        if len(self._pending) >= _BATCH or time.monotonic() - self._stored_at >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        if pending and self._store is not None:
            self._store.put(self._fingerprint, pending)
        self._stored_at = time.monotonic()


def _is_complete(request: Request, response: Response) -> bool:
    """Whether it has what was asked for: what has not is not worth keeping."""
    return (request.decoding is None or response.text is not None) and not any(
        map(math.isnan, response.score_logprobs)
    )


class StoredBackend:
    """A backend of which nothing is asked that it has answered before.

    Answers come from the store; what it lacks is asked, once where several requests are equal, and
    stored as it comes, failures excepted: they are asked again. Without a store only equal requests
    of one call share an answer.

    A run that finds all its responses gives what the run gave that stored them, to the bit. One
    that finds some asks the others in other batches than it would have without a store, and
    backends whose floats depend on who shares a batch may then differ from an undisturbed run in
    the last digits of a log-probability: the same bytes come out where the store was the same at
    the start.
    """

    def __init__(self, backend: VQABackend, store: ResponseStore | None = None) -> None:
        self.fingerprint = backend.fingerprint
        self.hits = 0
        """Requests answered from the store."""
        self.asked = 0
        """Trials put to the backend, those that failed included."""
        self.used = Usage()
        """What its answers took: those from the store, and failures, are not in it."""
        self._backend = backend
        self._store = store

    @property
    def cost(self) -> float | None:
        """The price of `used`; None for a backend that knows none."""
        return self._backend.cost(self.used) if isinstance(self._backend, PricedBackend) else None

    def missing(self, requests: Sequence[Request]) -> int:
        """How many trials `run` would put to the backend; asks nothing."""
        keys = {key for key in map(self._key, requests) if isinstance(key, bytes)}
        return len(keys) - len(self._found(keys))

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Each request's result once: first the store's, then the backend's as they come.

        An image whose key cannot be read fails its request. Raises PluginError as `ask` does.
        """
        indices: dict[bytes, list[int]] = {}
        for index, key in enumerate(map(self._key, requests)):
            if isinstance(key, BackendError):
                yield index, key
            else:
                indices.setdefault(key, []).append(index)
        for key, response in self._found(indices).items():
            for index in indices.pop(key):
                self.hits += 1
                yield index, response
        keys = list(indices)
        news = _News(self._store, self.fingerprint)
        # An interrupt, or a caller that has enough, loses nothing of what came.
        try:
            for position, result in self._ask([requests[indices[key][0]] for key in keys]):
                key = keys[position]
                if isinstance(result, Response) and _is_complete(requests[indices[key][0]], result):
                    news.add(key, result)
                for index in indices[key]:
                    yield index, result
        finally:
            news.flush()

    def _ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        if not requests:
            return
        for position, result in ask(self._backend, requests):
            self.asked += 1
            if isinstance(result, Response):
                self.used += result.usage
            yield position, result

    def _key(self, request: Request) -> bytes | BackendError:
        try:
            return request_key(self.fingerprint, request)
        except InputError as error:
            return BackendError(str(error))

    def _found(self, keys: Collection[bytes]) -> dict[bytes, Response]:
        return {} if self._store is None else self._store.get(list(keys))
