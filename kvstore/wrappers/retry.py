"""A tier that gives every try of an operation a time, and tries again what may succeed then.

Only what comes to the same when it is done twice is repeated, only where the backend failed (a full store or a wrong
record stay so), a bounded number of times, after a random pause whose bound doubles ("full jitter"), so that clients
that failed together do not come back together.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

from ...errors import StorageUnavailable
from .. import network_limits as limits
from ..tier import Tier
from .around import AroundTier, Operation

__all__ = ["RetryPolicy", "RetryTier"]

T = TypeVar("T")
_WHOLE_READ_BYTES: Final = 64 * 1024 * 1024
"""Taken for the size of a read that does not say its own."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``seconds_max`` is what a try without content may take.

    Content may take longer, at ``bytes_per_second_min``, and a question ``item_seconds`` for each thing asked about.
    """

    seconds_max: float
    item_seconds: float = 0.0
    bytes_per_second_min: float = limits.NETWORK_BYTES_PER_SECOND_MIN
    listing_seconds_max: float = 60.0
    tries_max: int = limits.NETWORK_TRIES_MAX
    pause_seconds: float = 0.02
    pause_seconds_max: float = 0.25

    def time_for(self, operation: Operation) -> float:
        """Seconds that one try of ``operation`` may take."""
        if not operation.brief:
            return self.listing_seconds_max
        whole = operation.name == "get" and operation.size_bytes == 0
        content_seconds = (_WHOLE_READ_BYTES if whole else operation.size_bytes) / self.bytes_per_second_min
        return self.seconds_max + content_seconds + (operation.items - 1) * self.item_seconds


class RetryTier(AroundTier):
    """``random`` and ``sleep`` may be replaced; a try out of time is cancelled and counts as failed."""

    def __init__(
        self,
        inner: Tier,
        policy: RetryPolicy,
        *,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(inner)
        self._policy = policy
        self._random = random or Random()  # noqa: S311 - spreads clients in time, no secret
        self._sleep = sleep

    async def around(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it succeeds, or the tries are used up: then the last failure is raised."""
        tries = self._policy.tries_max if operation.repeatable else 1
        bound = self._policy.pause_seconds
        for left in reversed(range(tries)):
            try:
                return await self._timed(operation, call)
            except StorageUnavailable:
                if not left or self._closed:
                    raise
            await self._sleep(self._random.uniform(0, bound))
            bound = min(2 * bound, self._policy.pause_seconds_max)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _timed(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> T:
        seconds = self._policy.time_for(operation)
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except TimeoutError as error:
            raise StorageUnavailable(f"{self.name} tier did not {operation.name} within {seconds:.3g} s") from error
