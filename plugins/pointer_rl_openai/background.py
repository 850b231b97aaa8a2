"""A coroutine's results as an ordinary iterator."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["stream"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def stream(work: Callable[[Callable[[T], None]], Coroutine[object, object, None]]) -> Iterator[T]:
    """What `work` hands to its argument, as it comes; what it raises is raised here.

    It runs in an event loop and a thread of its own: it goes on while the caller is busy, and works
    where the caller has an event loop (a notebook). When the iterator is closed, or an interrupt
    comes, it is cancelled.
    """
    results: queue.SimpleQueue[_Item[T] | _End] = queue.SimpleQueue()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None] | None]] = []
    started = threading.Event()

    async def main() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        started.set()
        await work(lambda value: results.put(_Item(value)))

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            results.put(_End(error))
        else:
            results.put(_End(None))
        started.set()  # also where it never came to it

    thread = threading.Thread(target=run, name="pointer-rl-openai", daemon=True)
    thread.start()
    try:
        while isinstance(item := results.get(), _Item):
            yield item.value
        if item.error is not None:
            raise item.error
    finally:
        started.wait()
        for loop, task in running:
            if task is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                    loop.call_soon_threadsafe(task.cancel)
        thread.join()
