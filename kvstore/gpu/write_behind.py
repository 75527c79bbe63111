"""Chunks that an engine has computed and that are nowhere but in the pool, on their way to the store beneath.

They are written as soon as they come, not when they have to go: whoever needs room never waits for an encoder, and a
process that dies loses little. Each is leased until it is stored, so it is never a victim before; how many bytes that
may be is bounded, and who brings more waits. A chunk that the store refuses stays, and is lost when it is evicted.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ... import limits
from ...errors import KvloomError, Overloaded
from .lease import PoolLease
from .source import Encoding

__all__ = ["WriteBehind"]


@dataclass(frozen=True, slots=True)
class _Waiting:
    lease: PoolLease
    encoding: Encoding
    size_bytes: int


class WriteBehind:
    """The queue and the one task that empties it, which runs while there is something in it."""

    def __init__(self, store: Callable[[PoolLease, Encoding], Awaitable[None]], *, bytes_max: int) -> None:
        self._store = store
        self.bytes_max = bytes_max
        self.dirty_bytes = self.stored = self.failures = 0
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()

    async def reserve(self, size_bytes: int, *, seconds_max: float = limits.PUT_WAIT_SECONDS_MAX) -> None:
        """Wait for room; one chunk is always let in. :class:`Overloaded` after ``seconds_max``. Safe to cancel."""
        try:
            async with asyncio.timeout(seconds_max), self._changed:
                await self._changed.wait_for(
                    lambda: not self.dirty_bytes or self.dirty_bytes + size_bytes <= self.bytes_max
                )
                self.dirty_bytes += size_bytes
        except TimeoutError as error:
            raise Overloaded(
                f"{self.dirty_bytes} bytes of the pool wait to be stored, {self.bytes_max} may; "
                f"none of them were in {seconds_max} s"
            ) from error

    async def cancel(self, size_bytes: int) -> None:
        """Give back what was reserved and is not needed."""
        self.dirty_bytes -= size_bytes
        async with self._changed:
            self._changed.notify_all()

    def add(self, lease: PoolLease, encoding: Encoding, size_bytes: int) -> None:
        """Take over a lease, in room that was reserved."""
        self._waiting.append(_Waiting(lease, encoding, size_bytes))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def drained(self) -> None:
        """Wait until nothing is left to store."""
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    async def close(self, seconds_max: float = limits.POOL_CLOSE_SECONDS_MAX) -> int:
        """Store what is left for as long as that may take, and give up the rest; how many chunks that was."""
        try:
            async with asyncio.timeout(seconds_max):
                await self.drained()
        except TimeoutError:
            pass
        finally:
            given_up = len(self._waiting)
            if self._task is not None and not self._task.done():
                self._task.cancel()
                await asyncio.wait((self._task,))
                given_up += 1
            while self._waiting:
                self._waiting.popleft().lease.release()
            self.failures += given_up
        return given_up

    async def _run(self) -> None:
        while self._waiting:
            item = self._waiting.popleft()
            try:
                await self._store(item.lease, item.encoding)
                self.stored += 1
            except KvloomError:
                self.failures += 1
            finally:
                item.lease.release()
                await self.cancel(item.size_bytes)
