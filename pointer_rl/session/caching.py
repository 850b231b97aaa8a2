"""A backend behind the response cache, and the one place where a backend is asked and checked."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Protocol

from pointer_rl.errors import InputError, PluginError, reproducible
from pointer_rl.session.cache import request_key
from pointer_rl.types import (
    LOGPROB_ROUNDING,
    BackendError,
    Count,
    CountingBackend,
    PricedBackend,
    Request,
    Response,
    Usage,
    VQABackend,
)

log = logging.getLogger(__name__)

Result = Response | BackendError

_BATCH = 64
_SECONDS = 1.0
"""A killed call of a batch-invariant backend loses at most so many responses, or seconds."""
_ONCE = "yield (index, result) once for each request, index being its position counted from 0"


class Cache(Protocol):
    """Where responses are kept: a `ResponseCache` or, in a worker process, a stand-in for it."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Response]:
        """The cached responses among these keys."""
        ...

    def put(self, fingerprint: str, responses: Sequence[tuple[bytes, Response]]) -> None:
        """Keep a backend's responses, all or none."""
        ...


def run_checked(
    backend: VQABackend, requests: Iterable[Request | InputError]
) -> Iterator[tuple[int, Result]]:
    """Each request's result once, in the order in which the backend gives them.

    An InputError stands for a request that cannot be made; its result is a BackendError that says
    why. A response without the text that was asked for, or with NaN as a log-probability, becomes a
    BackendError too. What differs from run to run is left out of messages: they are written to
    files. Raises PluginError for a result that is missing, repeated or out of range, and for one
    that is not a valid `Response` or `BackendError`.
    """
    asked: list[Request] = []
    indices: list[int] = []
    for index, request in enumerate(requests):
        if isinstance(request, InputError):
            yield index, BackendError(reproducible(str(request)))
        else:
            asked.append(request)
            indices.append(index)
    waiting = set(range(len(asked)))
    results: object = backend.run(asked)
    if not isinstance(results, Iterable):
        raise _broken(backend, f"returned {_kind(results)} from run: yield results there")
    for given in results:
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], int)):
            raise _broken(backend, f"gave {_kind(given)}: {_ONCE}")
        position, result = given
        if position not in waiting:
            fault = f"answered request {position} of {len(asked)} twice, or out of range"
            raise _broken(backend, f"{fault}: {_ONCE}")
        waiting.remove(position)
        if wrong := _fault_of(result, asked[position]):
            raise _broken(backend, wrong)
        result = _failed_if_incomplete(result, asked[position])
        if isinstance(result, BackendError):
            result = BackendError(reproducible(result.message))
        yield indices[position], result
    if waiting:
        fault = f"left {len(waiting)} of {len(asked)} requests without a result"
        raise _broken(backend, f"{fault}: {_ONCE}")


def _broken(backend: VQABackend, fault: str) -> PluginError:
    return PluginError(f"the backend {backend.fingerprint} {fault}")


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _fault_of(result: object, request: Request) -> str | None:
    """Why it is not a valid result of the request, and what to do; None if it is one."""
    if isinstance(result, BackendError):
        if isinstance(result.message, str) and result.message.strip():
            return None
        return "gave a BackendError without a message: say why the request failed"
    if not isinstance(result, Response):
        return f"gave {_kind(result)}: yield (index, Response(…)) or (index, BackendError(…))"
    if not isinstance(result.text, str | None):
        return f"gave {_kind(result.text)} as the text of a Response: give a str"
    logprobs = result.score_logprobs
    if not (isinstance(logprobs, tuple) and all(isinstance(each, float) for each in logprobs)):
        return (
            "gave score_logprobs that are not a tuple of Python floats: call tolist() or float() on"
            " what the model returns"
        )
    if len(logprobs) != len(request.score):
        found = f"returned {len(logprobs)} log-probabilities for {len(request.score)} answers"
        return f"{found}: {_ONCE}, and score the answers of that request"
    if any(each > LOGPROB_ROUNDING for each in logprobs):
        return f"gave the log-probability {max(logprobs):g}: give natural logarithms, at most 0"
    counts = astuple(result.usage) if isinstance(result.usage, Usage) else ()
    if not counts or not all(type(each) is int and 0 <= each < 2**63 for each in counts):
        return "gave a usage that is no Usage of numbers of tokens and images: count in Python ints"
    return None


def _failed_if_incomplete(result: Result, request: Request) -> Result:
    """The result, or a BackendError if the response lacks something that was asked for."""
    if isinstance(result, Response):
        if request.decoding is not None and result.text is None:
            return BackendError("the backend returned no text")
        if any(map(math.isnan, result.score_logprobs)):
            return BackendError("the backend returned NaN as a log-probability")
    return result


class CachedBackend:
    """A backend that is never asked the same request twice.

    Failures are not cached, so they are asked again. Without a cache, only equal requests of one
    call share an answer.

    The last digits of a log-probability may depend on which requests share a batch. Responses
    therefore enter the cache together, when the call ends (or the `window`, if one is open). A call
    that was interrupted is repeated whole, in the same batches, so that a run that is killed and
    started again gives the same bytes. The responses of a `batch_invariant` backend have no such
    digits and enter the cache as they arrive.
    """

    def __init__(self, backend: VQABackend, cache: Cache | None = None) -> None:
        """Raises PluginError if the object is not a backend."""
        fingerprint = getattr(backend, "fingerprint", None)
        if not isinstance(fingerprint, str) or not hasattr(backend, "run"):
            raise PluginError(
                f"{_kind(backend)} was made as a backend, and has no fingerprint (a str) or no "
                "method run: see pointer_rl.types.VQABackend"
            )
        self.fingerprint = fingerprint
        self.batch_invariant = bool(getattr(backend, "batch_invariant", False))
        self.hits = 0
        """Requests answered from the cache."""
        self.asked = 0
        """Requests put to the backend, failures included."""
        self.used = Usage()
        """Tokens and images of its answers; cache hits and failures count nothing."""
        self._backend = backend
        self._cache = cache
        self._pending: dict[bytes, Response] = {}
        self._committed_at = time.monotonic()
        self._open_window = False

    @property
    def cost(self) -> float | None:
        """The price of `used`; None if the backend knows no price."""
        return self._backend.cost(self.used) if isinstance(self._backend, PricedBackend) else None

    def split_cached(self, requests: Sequence[Request]) -> tuple[int, list[Request]]:
        """Deduplicate; return the number of cache hits and the uncached requests.

        Asks nothing. A request with an unreadable image is in neither.
        """
        first: dict[bytes, Request] = {}
        for request in requests:
            key = self._key(request)
            if isinstance(key, bytes):
                first.setdefault(key, request)
        cached = self._cached(first)
        return len(cached), [request for key, request in first.items() if key not in cached]

    def count(self, requests: Sequence[Request]) -> Count:
        """The tokens of these requests, if the backend can count them; asks nothing."""
        if isinstance(self._backend, CountingBackend):
            return self._backend.count(requests)
        return Count()

    @contextmanager
    def window(self) -> Iterator[None]:
        """Responses of every call inside enter the cache together, at the end of the block."""
        self._open_window = True
        try:
            yield
        except BaseException:  # an interrupt, a backend that breaks
            self._open_window = False
            self._abandon()
            raise
        self._open_window = False
        self._commit()

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Each request's result once: cache hits first, then the backend's as they arrive.

        An unreadable image fails its request. Raises PluginError as `run_checked` does.
        """
        indices: dict[bytes, list[int]] = {}
        for index, key in enumerate(map(self._key, requests)):
            if isinstance(key, BackendError):
                yield index, key
            else:
                indices.setdefault(key, []).append(index)
        hits = self._cached(indices)
        for key, response in hits.items():
            for index in indices.pop(key):
                self.hits += 1
                yield index, response
        keys = list(indices)
        log.debug(
            "%d requests: %d from the response cache, %d to ask",
            len(requests),
            len(hits),
            len(keys),
        )
        try:
            for position, result in self._ask([requests[indices[key][0]] for key in keys]):
                key = keys[position]
                if isinstance(result, Response):
                    self._keep(key, result)
                for index in indices[key]:
                    yield index, result
        except BaseException:  # as in `window`, or a caller that stops early
            self._abandon()
            raise
        if not self._open_window:
            self._commit()

    def _ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        if not requests:
            return
        for position, result in run_checked(self._backend, requests):
            self.asked += 1
            if isinstance(result, Response):
                self.used += result.usage
            yield position, result

    def _key(self, request: Request) -> bytes | BackendError:
        try:
            return request_key(self.fingerprint, request)
        except InputError as error:
            return BackendError(str(error))

    def _cached(self, keys: Collection[bytes]) -> Mapping[bytes, Response]:
        pending = {key: self._pending[key] for key in keys if key in self._pending}
        if self._cache is None:
            return pending
        return {**self._cache.get([key for key in keys if key not in pending]), **pending}

    # --- filling the cache ---

    def _keep(self, key: bytes, response: Response) -> None:
        self._pending[key] = response
        late = time.monotonic() - self._committed_at >= _SECONDS
        if self.batch_invariant and (late or len(self._pending) >= _BATCH):
            self._commit()

    def _commit(self) -> None:
        pending, self._pending = self._pending, {}
        if pending and self._cache is not None:
            self._cache.put(self.fingerprint, list(pending.items()))
        self._committed_at = time.monotonic()

    def _abandon(self) -> None:
        """The call will be repeated whole, unless batches make no difference."""
        if self.batch_invariant:
            self._commit()
        self._pending.clear()
