"""Iterate over the results of a coroutine in ordinary code."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

T = TypeVar("T")


def stream(work: Callable[[Callable[[T], None]], Coroutine[object, object, None]]) -> Iterator[T]:
    """Yield what `work` passes to its argument, and raise what it raises.

    `work` runs in an event loop in its own thread, so it continues while the caller is busy, and it
    also works in a caller's event loop (a notebook). It is cancelled when the iterator is closed or
    interrupted.
    """
    results: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None] | None]] = []
    started = threading.Event()

    async def main() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        started.set()
        await work(lambda value: results.put((value,)))

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            results.put(error)
        else:
            results.put(None)
        started.set()  # Also if `main` never started.

    thread = threading.Thread(target=run, name="pointer-rl-openai", daemon=True)
    thread.start()
    try:
        while isinstance(result := results.get(), tuple):
            yield result[0]
        if result is not None:
            raise result
    finally:
        started.wait()
        for loop, task in running:
            if task is not None:
                with contextlib.suppress(RuntimeError):  # The loop has ended and is closed.
                    loop.call_soon_threadsafe(task.cancel)
        thread.join()
