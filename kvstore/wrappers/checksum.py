"""A tier that keeps a checksum of its own with every record and verifies each read of a whole payload.

For tiers that cannot tell damage by themselves. The checksum is the last 8 bytes of what the inner tier keeps: the
start of BLAKE3-256 over storage key, content key and payload. Reads of ranges pass through: their segments are
verified above.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from blake3 import blake3

from ...codec.container import ByteRange
from ..key import StorageKey
from ..outcome import Corrupt, Hit, Outcome
from ..tier import Buffer, Record, RecordInfo, Slice
from .passing import PassingTier

__all__ = ["ChecksumTier"]

_CHECKSUM_BYTES = 8


class ChecksumTier(PassingTier):
    """Keeps 8 bytes more of every record than were put."""

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

    def _seen(self, info: RecordInfo) -> RecordInfo:
        return _outer(info)


def _outer(info: RecordInfo) -> RecordInfo:
    return replace(info, payload_bytes=max(0, info.payload_bytes - _CHECKSUM_BYTES))


def _sealed(record: Record) -> Record:
    return replace(record, payload=b"".join((record.payload, _digest(record.info, record.payload))))


def _digest(info: RecordInfo, payload: Buffer) -> bytes:
    hasher = blake3(info.storage_key + info.content_key)
    hasher.update(payload)
    return hasher.digest(length=_CHECKSUM_BYTES)
