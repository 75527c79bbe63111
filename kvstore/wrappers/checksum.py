"""A tier that keeps a checksum of its own with every record and verifies each read of a whole payload.

For tiers that cannot tell damage by themselves. The checksum is the last 8 bytes of what the inner tier keeps: the
start of BLAKE3-256 over storage key, content key and payload. Reads of ranges pass through: their segments are
verified above.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from blake3 import blake3

from ...codec.container import ByteRange
from ..key import OwnerId, StorageKey
from ..outcome import Corrupt, Hit, Outcome
from ..tier import Buffer, Capacity, Holdings, Record, RecordInfo, Slice, Tier

__all__ = ["ChecksumTier"]

_CHECKSUM_BYTES = 8


class ChecksumTier(Tier):
    """Has the name, the durability and the capacity of ``inner``, which it owns."""

    def __init__(self, inner: Tier) -> None:
        self._inner = inner
        self.name = inner.name
        self.durable = inner.durable
        self.shared = inner.shared

    async def put(self, record: Record) -> None:
        """Keep the payload with its checksum."""
        await self._inner.put(await asyncio.to_thread(_sealed, record))

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read and, without ``ranges``, verify."""
        found = await self._inner.get(key, ranges)
        if not isinstance(found, Hit):
            return found
        info, parts = found.value.info, found.value.parts
        if info.payload_bytes < _CHECKSUM_BYTES:
            return Corrupt(
                self.name, f"record has {info.payload_bytes} bytes, its checksum alone has {_CHECKSUM_BYTES}"
            )
        outer = _outer(info)
        if ranges is None:
            whole = memoryview(parts[0])
            payload = whole[: outer.payload_bytes]
            if await asyncio.to_thread(_digest, info, payload) != whole[outer.payload_bytes :]:
                return Corrupt(self.name, "payload does not match its checksum")
            return Hit(Slice(outer, (payload,)), self.name)
        clipped = (
            memoryview(part)[: max(0, outer.payload_bytes - item.start)]
            for item, part in zip(ranges, parts, strict=True)
        )
        return Hit(Slice(outer, tuple(clipped)), self.name)

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Ask the inner tier."""
        return await self._inner.contains_many(keys)

    async def delete(self, key: StorageKey) -> bool:
        """Delete from the inner tier."""
        return await self._inner.delete(key)

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """All records, with the lengths that were put."""
        async for info in self._inner.scan():
            yield _outer(info)

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Ask the inner tier."""
        return await self._inner.contains_live(keys, now_ms)

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """The inner tier's."""
        return await self._inner.expired(now_ms, limit)

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Pass it on."""
        self._inner.protect(pinned)

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:
        """Pass it on."""
        self._inner.hint(keys, finished=finished)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """The inner tier's."""
        return self._inner.holdings(owner)

    def capacity(self) -> Capacity:
        """The inner tier's."""
        return self._inner.capacity()

    async def close(self) -> None:
        """Close the inner tier."""
        await self._inner.close()


def _outer(info: RecordInfo) -> RecordInfo:
    return replace(info, payload_bytes=max(0, info.payload_bytes - _CHECKSUM_BYTES))


def _sealed(record: Record) -> Record:
    return replace(record, payload=b"".join((record.payload, _digest(record.info, record.payload))))


def _digest(info: RecordInfo, payload: Buffer) -> bytes:
    hasher = blake3(info.storage_key + info.content_key)
    hasher.update(payload)
    return hasher.digest(length=_CHECKSUM_BYTES)
