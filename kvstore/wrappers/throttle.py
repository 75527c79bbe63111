"""A tier that bounds what is under way at another: operations, and bytes.

What is put is counted here, before the inner tier makes anything of it. How much a read brings is known only to the
inner tier, when it has seen the record's header: it is given the same :class:`InflightBytes` and reserves there.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from ...errors import Overloaded
from .. import network_limits as limits
from ..tier import Tier
from .around import AroundTier, Operation

__all__ = ["InflightBytes", "ThrottleTier"]

T = TypeVar("T")


class InflightBytes:
    """A bound on bytes in memory, handed out in the order in which they are asked for. Belongs to one event loop.

    One holder is always let in, however much it asks for: the largest record may be larger than the bound.
    """

    def __init__(self, bytes_max: int = limits.NETWORK_INFLIGHT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def held_bytes(self) -> int:
        """Bytes handed out now."""
        return self._held_bytes

    @asynccontextmanager
    async def hold(self, size_bytes: int) -> AsyncIterator[None]:
        """Wait for ``size_bytes`` and hold them until the context ends. Safe to cancel."""
        if self._waiting or not self._fits(size_bytes):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size_bytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(size_bytes)
                else:
                    with suppress(ValueError):
                        self._waiting.remove((size_bytes, turn))
                    self._admit()
                raise
        else:
            self._held_bytes += size_bytes
        try:
            yield
        finally:
            self._release(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return self._held_bytes == 0 or self._held_bytes + size_bytes <= self._bytes_max

    def _release(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            if not turn.done():
                self._held_bytes += size_bytes
                turn.set_result(None)


class ThrottleTier(AroundTier):
    """At most ``requests_max`` operations at once; ``waiting_max`` may wait, for a bounded time, the rest is refused.

    Refused means :class:`Overloaded`, and :class:`Throttled` from a read.
    """

    def __init__(
        self,
        inner: Tier,
        inflight: InflightBytes,
        *,
        requests_max: int = limits.NETWORK_REQUESTS_MAX,
        waiting_max: int = limits.NETWORK_WAITING_MAX,
        wait_seconds_max: float = limits.NETWORK_WAIT_SECONDS_MAX,
    ) -> None:
        super().__init__(inner)
        self._inflight = inflight
        self._requests = asyncio.Semaphore(requests_max)
        self._waiting = 0
        self._waiting_max = waiting_max
        self._wait_seconds_max = wait_seconds_max

    async def around(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> T:
        """Call when there is room for it."""
        await self._enter()
        try:
            if operation.name != "put":
                return await call()
            async with self._inflight.hold(operation.size_bytes):
                return await call()
        finally:
            self._requests.release()

    async def _enter(self) -> None:
        if self._waiting >= self._waiting_max:
            raise Overloaded(f"{self._waiting} operations wait for {self.name}, the limit is {self._waiting_max}")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds_max):
                await self._requests.acquire()
        except TimeoutError as error:
            raise Overloaded(f"{self.name} tier: no turn within {self._wait_seconds_max} s") from error
        finally:
            self._waiting -= 1
