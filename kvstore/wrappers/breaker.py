"""A circuit breaker: a tier that is answered for at once while its backend is away.

A failure, or operations under way and none of them done for ``stall_seconds``, is a suspicion; a ping is the verdict.
So one slow value or one dead node of many opens nothing, and a black hole is found within ``stall_seconds`` +
``ping_seconds`` whatever the size of what hangs in it. While the breaker is open every operation fails at once, those
that were under way too; only pings go to the backend (half open), at pauses that double up to a bound, without anyone
having to ask. The first that is answered closes the breaker.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from ...errors import StorageUnavailable
from ..tier import Breaker, Tier
from .around import AroundTier, Operation

__all__ = ["BreakerPolicy", "BreakerTier"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """A dead backend is found within ``stall_seconds + ping_seconds``; one that is back within
    ``1.25 * pause_seconds_max + ping_seconds``.
    """

    stall_seconds: float = 0.3
    ping_seconds: float = 0.4
    pause_seconds: float = 0.25
    pause_seconds_max: float = 4.0


class BreakerTier(AroundTier):
    """``clock`` (monotonic seconds), ``sleep`` and ``random`` may be replaced. Belongs to one event loop.

    The one task that watches is started by the first operation and ended by :meth:`close`.
    """

    def __init__(
        self,
        inner: Tier,
        policy: BreakerPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Random | None = None,
    ) -> None:
        super().__init__(inner)
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self._random = random or Random()  # noqa: S311 - spreads clients in time, no secret
        self._running: set[asyncio.Future[Any]] = set()
        self._progress_at = clock()
        self._reason: str | None = None
        self._busy = asyncio.Event()
        self._suspicion = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.openings = 0
        """How often the breaker has opened."""

    @property
    def is_open(self) -> bool:
        """Whether operations are refused now."""
        return self._reason is not None

    def breaker(self) -> Breaker:
        """As it stands now."""
        return Breaker(self.is_open, self.openings)

    async def around(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> T:
        """Call, unless the breaker is open; give up when it opens meanwhile."""
        self._require_closed_circuit()
        if not self._running:
            self._progress_at = self._clock()
        task = asyncio.ensure_future(_awaited(call))
        self._running.add(task)
        self._start_watching()
        try:
            await asyncio.wait((task,))
        finally:
            self._running.discard(task)
            await _ended(task)
        try:
            result = await task
        except StorageUnavailable:
            self._suspicion.set()
            self._busy.set()
            raise
        except asyncio.CancelledError as error:
            self._require_closed_circuit()
            raise StorageUnavailable(f"{self.name} tier: given up while it was away") from error
        self._progress_at = self._clock()
        return result

    async def close(self) -> None:
        """End the watch, then close the inner tier."""
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        await super().close()

    def _require_closed_circuit(self) -> None:
        if self._reason is not None:
            raise StorageUnavailable(f"{self.name} tier is away (breaker open): {self._reason}")

    def _start_watching(self) -> None:
        if not self._closed and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.create_task(self._watch(), name=f"kvloom-{self.name}-breaker")
        self._busy.set()

    async def _watch(self) -> None:
        while True:
            await self._busy.wait()
            self._busy.clear()
            while self._running or self._suspicion.is_set():
                quiet = self._clock() - self._progress_at
                if self._suspicion.is_set() or quiet >= self._policy.stall_seconds:
                    await self._judge()
                else:
                    await self._pause(self._policy.stall_seconds - quiet)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not past a suspicion."""
        sleeping = asyncio.ensure_future(_awaited(lambda: self._sleep(seconds)))
        waking = asyncio.ensure_future(self._suspicion.wait())
        try:
            await asyncio.wait((sleeping, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _ended(sleeping, waking)

    async def _judge(self) -> None:
        """Ping; open if there is no answer, and stay open until there is one."""
        self._suspicion.clear()
        reason = await self._ping()
        pause = self._policy.pause_seconds
        if reason is not None:
            self._open(reason)
        while reason is not None:
            await self._sleep(pause * self._random.uniform(0.75, 1.25))
            pause = min(2 * pause, self._policy.pause_seconds_max)
            reason = await self._ping()
        if self._reason is not None:
            _log.warning("%s tier: breaker closed, the backend answers again", self.name)
        self._reason = None
        self._progress_at = self._clock()

    def _open(self, reason: str) -> None:
        self._reason = reason
        self.openings += 1
        _log.warning("%s tier: breaker open: %s", self.name, reason)
        for task in self._running:
            task.cancel()

    async def _ping(self) -> str | None:
        """What is wrong, or ``None``. The ping itself and the injected clock's sleep race."""
        pinging = asyncio.ensure_future(_awaited(self._inner.ping))
        limit = asyncio.ensure_future(_awaited(lambda: self._sleep(self._policy.ping_seconds)))
        try:
            await asyncio.wait((pinging, limit), return_when=asyncio.FIRST_COMPLETED)
            if not pinging.done():
                return f"no answer within {self._policy.ping_seconds} s"
            await pinging
        except StorageUnavailable as error:
            return str(error)
        finally:
            await _ended(pinging, limit)
        return None


async def _awaited(call: Callable[[], Awaitable[T]]) -> T:
    return await call()


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel ``tasks`` and wait until they have ended, so that none is left behind."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
