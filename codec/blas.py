"""Keep NumPy's matrix products on the calling thread.

A product of the codec takes a fraction of a millisecond. A BLAS that spreads it over all cores waits for the slowest of
them, and where another process holds a core that wait is a time slice: measured here, decoding one chunk took 500 ms
instead of 40. Whoever decodes many chunks runs them on threads of its own.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]


class _Limit:
    """The limit is the process's, not a thread's: the first to come sets it, the last to go restores what was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._controller: ThreadpoolController | None = None
        self._limiter: Any = None

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._controller = self._controller or ThreadpoolController()
                self._limiter = self._controller.limit(limits=1, user_api="blas")

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limiter.restore_original_limits()


_limit = _Limit()


@contextmanager
def one_thread() -> Iterator[None]:
    """While this is open, BLAS calls of this process use one thread each. Nests, and may be open in many threads."""
    _limit.enter()
    try:
        yield
    finally:
        _limit.leave()
