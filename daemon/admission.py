"""Who may come in: the daemon's phase, the requests inside it, and the bytes they hold.

Everything is refused early and says so: before a body is read, its length is reserved against one budget, so the
memory that requests in flight can hold is bounded whatever the number of connections. Single-threaded (event loop).
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from .. import limits
from ..errors import Overloaded

__all__ = ["Admission", "Phase"]


class Phase(StrEnum):
    """A daemon's life; requests for data are served only while ``READY``."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Admission:
    """Counts requests and bytes in flight. Not thread-safe: all calls come from the event loop."""

    def __init__(self, *, inflight_bytes_max: int = limits.INFLIGHT_BYTES_MAX) -> None:
        self._phase = Phase.STARTING
        self._requests = 0
        self._bytes = 0
        self._bytes_max = inflight_bytes_max
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def phase(self) -> Phase:
        """Where the daemon is in its life."""
        return self._phase

    @property
    def requests(self) -> int:
        """Requests inside."""
        return self._requests

    @property
    def inflight_bytes(self) -> int:
        """Bytes reserved by the requests inside."""
        return self._bytes

    @property
    def inflight_bytes_max(self) -> int:
        """The budget."""
        return self._bytes_max

    def open(self) -> None:
        """Serve from now on."""
        self._phase = Phase.READY

    def drain(self) -> None:
        """Refuse every new request from now on; those inside go on."""
        self._phase = Phase.DRAINING

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold one request's place; :class:`Overloaded` unless the daemon is ready."""
        if self._phase is not Phase.READY:
            raise Overloaded(f"daemon is {self._phase}, try again in a moment")
        self._requests += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._empty.set()

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Hold ``size_bytes`` of the budget; :class:`Overloaded` where they do not fit beside what is held."""
        if self._bytes + size_bytes > self._bytes_max:
            raise Overloaded(
                f"request needs {size_bytes} bytes beside {self._bytes} in flight, the limit is {self._bytes_max}"
            )
        self._bytes += size_bytes
        try:
            yield
        finally:
            self._bytes -= size_bytes

    async def empty(self) -> None:
        """Wait until no request is inside. Safe to cancel."""
        await self._empty.wait()
