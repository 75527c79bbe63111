"""A tier that keeps every owner within a quota at another, whoever else puts into it.

For a store that daemons share: what an owner has there is counted by listing it (:meth:`Tier.usage`), and added up from
there on. Between two counts a daemon does not see what the others put, so an owner may be over by what they put within
``recount_seconds``; the next count puts it right. Where a put would go over, the owner's own oldest records make room:
nobody else's are touched.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from ...errors import StorageFull
from ..key import OwnerId, StorageKey
from ..tier import Record, Tier
from .around import AroundTier, Operation

__all__ = ["OwnerQuotaTier"]

T = TypeVar("T")
_KEPT_SHARE: Final = 0.9
"""Room is made down to this share of the quota, so that not every put has to list."""
_RECOUNT_SECONDS_MIN: Final = 1.0
_OWNERS_MAX: Final = 65_536


@dataclass(slots=True)
class _Count:
    payload_bytes: int
    counted_at: float


class OwnerQuotaTier(AroundTier):
    """``quota_bytes`` of payload for every owner; ``clock`` is monotonic seconds. Belongs to one event loop."""

    def __init__(
        self,
        inner: Tier,
        quota_bytes: int,
        *,
        recount_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._quota_bytes = quota_bytes
        self._recount_seconds = recount_seconds
        self._clock = clock
        self._counts: dict[OwnerId, _Count] = {}
        self._making_room = asyncio.Lock()
        self.evictions = 0
        """Records given up to make room, since the tier was made."""

    async def around(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> T:
        """Nothing is added to other operations."""
        return await call()

    async def put(self, record: Record) -> None:
        """Put, after making room; :class:`StorageFull` for a record that is larger than the quota."""
        size_bytes = len(record.payload)
        if size_bytes > self._quota_bytes:
            raise StorageFull(f"record of {size_bytes} bytes, the quota at {self.name} is {self._quota_bytes}")
        count = self._counts.get(record.owner)
        if (
            count is None
            or self._clock() - count.counted_at >= self._recount_seconds
            or count.payload_bytes + size_bytes > self._quota_bytes
        ):
            async with self._making_room:
                await self._make_room(record.owner, size_bytes)
        await super().put(record)
        count = self._counts.get(record.owner)
        if count is not None:
            count.payload_bytes += size_bytes

    async def delete_owner(self, owner: OwnerId) -> int:
        """Delete, and count again before the next put."""
        self._counts.pop(owner, None)
        return await super().delete_owner(owner)

    async def _make_room(self, owner: OwnerId, size_bytes: int) -> None:
        count = self._counts.get(owner)
        since = float("inf") if count is None else self._clock() - count.counted_at
        over = count is not None and count.payload_bytes + size_bytes > self._quota_bytes
        if count is None or since >= self._recount_seconds or (over and since >= _RECOUNT_SECONDS_MIN):
            usage = await self._inner.usage(owner)
            if len(self._counts) >= _OWNERS_MAX:
                self._counts.clear()
            count = self._counts[owner] = _Count(usage.payload_bytes, self._clock())
        if count.payload_bytes + size_bytes <= self._quota_bytes:
            return
        count.payload_bytes = await self._evict(owner, int(self._quota_bytes * _KEPT_SHARE) - size_bytes)
        count.counted_at = self._clock()

    async def _evict(self, owner: OwnerId, keep_bytes: int) -> int:
        """Delete the owner's oldest records until no more than ``keep_bytes`` are left; how many bytes are."""
        held: list[tuple[int, StorageKey, int]] = [
            (info.stored_at_ms, info.storage_key, info.payload_bytes) async for info in self._inner.scan_owner(owner)
        ]
        left_bytes = sum(size_bytes for _, _, size_bytes in held)
        for _, key, size_bytes in sorted(held):
            if left_bytes <= max(0, keep_bytes):
                break
            self.evictions += await self._inner.delete(key)
            left_bytes -= size_bytes
        return left_bytes
