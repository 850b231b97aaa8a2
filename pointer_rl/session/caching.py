"""A backend that remembers, and the one place where a backend is asked and its results counted."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence

from pointer_rl.errors import InputError, PluginError
from pointer_rl.session.cache import ResponseCache, request_key
from pointer_rl.types import (
    BackendError,
    Count,
    CountingBackend,
    PricedBackend,
    Request,
    Response,
    Usage,
    VQABackend,
)

__all__ = ["StoredBackend", "ask"]

Result = Response | BackendError

_BATCH = 64
_SECONDS = 1.0
"""What a killed call of a batch-invariant backend may lose: so many responses, or seconds."""


def is_batch_invariant(backend: VQABackend) -> bool:
    """Whether its responses never depend on which requests share a call; see `VQABackend`."""
    return bool(getattr(backend, "batch_invariant", False))


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
    """Collects a call's responses. They are stored together at its end or, `as_they_come`, now."""

    def __init__(self, store: ResponseCache | None, fingerprint: str, as_they_come: bool) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._as_they_come = as_they_come
        self._pending: list[tuple[bytes, Response]] = []
        self._stored_at = time.monotonic()

    def add(self, key: bytes, response: Response) -> None:
        self._pending.append((key, response))
        due = len(self._pending) >= _BATCH or time.monotonic() - self._stored_at >= _SECONDS
        if self._as_they_come and due:
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
    stored, failures excepted: they are asked again. Without a store only equal requests of one call
    share an answer.

    The last digits of a log-probability may depend on which requests share a batch. So the
    responses of a call are stored together, at its end: a call that was cut is asked again whole,
    in the same batches, and a run that is killed and begun again gives the same bytes as one that
    was not, from the same store. A backend that says `batch_invariant` has no such digits, and what
    it answers is stored as it comes.
    """

    def __init__(self, backend: VQABackend, store: ResponseCache | None = None) -> None:
        self.fingerprint = backend.fingerprint
        self.batch_invariant = is_batch_invariant(backend)
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

    def sort_out(self, requests: Sequence[Request]) -> tuple[int, list[Request]]:
        """Of the different ones of them: how many the store answers, and those that it lacks.

        Asks nothing. What cannot be asked, for an image without a key, is in neither.
        """
        first: dict[bytes, Request] = {}
        for request in requests:
            key = self._key(request)
            if isinstance(key, bytes):
                first.setdefault(key, request)
        found = self._found(first)
        return len(found), [request for key, request in first.items() if key not in found]

    def count(self, requests: Sequence[Request]) -> Count:
        """Their tokens, where the backend knows them; asks nothing, and looks nothing up."""
        if isinstance(self._backend, CountingBackend):
            return self._backend.count(requests)
        return Count()

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
        news = _News(self._store, self.fingerprint, self.batch_invariant)
        try:
            for position, result in self._ask([requests[indices[key][0]] for key in keys]):
                key = keys[position]
                if isinstance(result, Response) and _is_complete(requests[indices[key][0]], result):
                    news.add(key, result)
                for index in indices[key]:
                    yield index, result
        except BaseException:  # an interrupt, a backend that breaks, a caller that has enough
            if self.batch_invariant:
                news.flush()
            raise
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
