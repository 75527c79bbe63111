"""A few daemon threads for a client library whose calls block and may never come back.

Not a :class:`~concurrent.futures.ThreadPoolExecutor`: that one waits for its threads when the interpreter ends, and a
call that hangs in a dead network would keep the daemon from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["BlockingCalls"]

T = TypeVar("T")


class BlockingCalls:
    """Up to ``threads_max`` threads, made when needed. A call that hangs keeps its thread; the others go on."""

    def __init__(self, threads_max: int, *, name: str) -> None:
        self._threads_max = threads_max
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0

    async def run(self, call: Callable[[], T]) -> T:
        """The result of ``call``, made in a thread. Cancelled before it began it is not made; else it goes on."""
        future: Future[T] = Future()
        with self._lock:
            self._busy += 1
            if self._busy > self._threads and self._threads < self._threads_max:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._calls.put((future, call))
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Let the threads end after the calls that are queued; does not wait."""
        with self._lock:
            for _ in range(self._threads):
                self._calls.put(None)

    def _work(self) -> None:
        while True:
            item = self._calls.get()
            if item is None:
                return
            future, call = item
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the call gets whatever it raised
                future.set_exception(error)
            finally:
                with self._lock:
                    self._busy -= 1
