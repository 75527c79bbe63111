"""A tier that passes every operation on to another: what wrappers are made of, each adding to the few it is about."""

from collections.abc import AsyncIterator, Callable, Sequence

from ...codec.container import ByteRange
from ..key import OwnerId, StorageKey
from ..outcome import Outcome
from ..tier import Breaker, Capacity, Holdings, Record, RecordInfo, Slice, Tier

__all__ = ["PassingTier"]


class PassingTier(Tier):
    """Has the name, the nature and the capacity of ``inner``, which it owns.

    A wrapper that keeps other payloads than were put says in :meth:`_seen` what of the inner records is to be listed.
    """

    def __init__(self, inner: Tier) -> None:
        self._inner = inner
        self.name = inner.name
        self.durable = inner.durable
        self.shared = inner.shared

    async def put(self, record: Record) -> None:
        """Put into the inner tier."""
        await self._inner.put(record)

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read from the inner tier."""
        return await self._inner.get(key, ranges)

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Ask the inner tier."""
        return await self._inner.contains_many(keys)

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Ask the inner tier."""
        return await self._inner.contains_live(keys, now_ms)

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """Ask the inner tier."""
        return await self._inner.expired(now_ms, limit)

    async def delete(self, key: StorageKey) -> bool:
        """Delete from the inner tier."""
        return await self._inner.delete(key)

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """The records of the inner tier that are to be seen."""
        async for info in self._inner.scan():
            seen = self._seen(info)
            if seen is not None:
                yield seen

    async def scan_owner(self, owner: OwnerId) -> AsyncIterator[RecordInfo]:
        """The owner's records in the inner tier that are to be seen."""
        async for info in self._inner.scan_owner(owner):
            seen = self._seen(info)
            if seen is not None:
                yield seen

    async def delete_owner(self, owner: OwnerId) -> int:
        """Delete from the inner tier, all there is."""
        return await self._inner.delete_owner(owner)

    async def ping(self) -> None:
        """Ask the inner tier."""
        await self._inner.ping()

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Tell the inner tier."""
        self._inner.protect(pinned)

    def watch(self, evicted: Callable[[StorageKey], None]) -> None:
        """Tell the inner tier."""
        self._inner.watch(evicted)

    def breaker(self) -> Breaker | None:
        """The inner tier's."""
        return self._inner.breaker()

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:
        """Tell the inner tier."""
        self._inner.hint(keys, finished=finished)

    def touch(self, keys: Sequence[StorageKey]) -> None:
        """Tell the inner tier."""
        self._inner.touch(keys)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """The inner tier's."""
        return self._inner.holdings(owner)

    def capacity(self) -> Capacity:
        """The inner tier's."""
        return self._inner.capacity()

    async def close(self) -> None:
        """Close the inner tier."""
        await self._inner.close()

    def _seen(self, info: RecordInfo) -> RecordInfo | None:
        """What a listing shows of a record of the inner tier; ``None`` where it hides it."""
        return info
