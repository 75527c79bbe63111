"""What the name of a daemon's machine stands for, looked up within a bounded time.

``getaddrinfo`` knows no deadline and cannot be cancelled, so it runs in a thread of its own, one per daemon at most,
which nobody waits for longer than they have time. Who could not wait leaves it running: what it finds is kept for a
while, so that a resolver slower than a lookup's deadline costs the first lookups and not all of them.
"""

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from .. import limits
from .discovery import Endpoint

__all__ = ["Address", "NameLookup"]


@dataclass(frozen=True, slots=True)
class Address:
    """One address to connect to, as the socket module wants it."""

    family: int
    place: Any


class NameLookup:
    """The addresses of one endpoint. Safe to use from several threads at once."""

    def __init__(self, endpoint: Endpoint, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._endpoint, self._clock = endpoint, clock
        self._lock = threading.Lock()
        self._found: Future[tuple[Address, ...]] | None = None
        self._thread: threading.Thread | None = None
        self._until = 0.0

    def addresses(self, seconds_max: float) -> tuple[Address, ...]:
        """Where to connect to; :class:`OSError` where that is nowhere, or not known in time."""
        if self._is_literal():
            return self._ask(socket.AI_NUMERICHOST)
        try:
            return self._under_way().result(seconds_max)
        except TimeoutError as error:
            raise OSError(f"its name was not found within {seconds_max:.3g} s") from error

    async def addresses_async(self, seconds_max: float) -> tuple[Address, ...]:
        """The same for an event loop. Safe to cancel."""
        if self._is_literal():
            return self._ask(socket.AI_NUMERICHOST)
        try:
            async with asyncio.timeout(seconds_max):
                return await asyncio.wrap_future(self._under_way())
        except TimeoutError as error:
            raise OSError(f"its name was not found within {seconds_max:.3g} s") from error

    def forget(self) -> None:
        """Nobody was where the name pointed to: look it up again."""
        with self._lock:
            self._until = 0.0

    def _under_way(self) -> "Future[tuple[Address, ...]]":
        """What was found lately, or is being looked up."""
        with self._lock:
            found = self._found
            if found is not None and not found.done() and self._thread is not None and self._thread.is_alive():
                return found  # the thread of a process that this one was forked from is not alive
            if found is not None and found.done() and self._clock() < self._until:
                return found
            found = self._found = Future()
            found.set_running_or_notify_cancel()  # so that nobody who gives up cancels it for the others
            self._thread = threading.Thread(target=self._look_up, args=(found,), name="kvloom-name", daemon=True)
            self._thread.start()
            return found

    def _look_up(self, found: "Future[tuple[Address, ...]]") -> None:
        try:
            addresses = self._ask(0)
        except (OSError, UnicodeError) as error:
            reason = error if isinstance(error, OSError) else OSError(f"no name of a machine: {error}")
            found.set_exception(reason)
            return
        with self._lock:
            self._until = self._clock() + limits.NAME_KEPT_SECONDS
        found.set_result(addresses)

    def _ask(self, flags: int) -> tuple[Address, ...]:
        host, port = self._endpoint.host, self._endpoint.port
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        return tuple(Address(family, place) for family, _, _, _, place in answers)

    def _is_literal(self) -> bool:
        try:
            ipaddress.ip_address(self._endpoint.host)
        except ValueError:
            return False
        return True
