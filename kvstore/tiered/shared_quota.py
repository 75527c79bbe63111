"""Quotas on a tier that several daemons write to: counted there, now and then, and kept by deleting the oldest.

No daemon sees what the others put, so what an owner has is what the tier lists; between two counts a daemon adds what
it writes itself. Where a put would go over, the owner's own oldest records make room, nobody else's. So an owner can
be over by what other daemons put between two counts, and is back within its quota at the next one, whoever counts:
daemons that count at the same time delete the same records.
"""

from dataclasses import dataclass
from typing import Final

from ... import limits
from ...errors import StorageFull
from ..concurrency import each_in_order
from ..key import OwnerId, StorageKey
from ..key_locks import KeyLocks
from ..quota import Quotas
from ..tier import Record, RecordInfo, Tier

__all__ = ["SharedQuota"]

_KEPT_SHARE: Final = 0.9
"""Room is made down to this share of the quota, so that not every put has to list."""


@dataclass(frozen=True, slots=True)
class _Doomed:
    """Records to delete, and what is left without them."""

    infos: tuple[RecordInfo, ...]
    left_bytes: int


class SharedQuota:
    """The quotas of one shared tier, in payload bytes."""

    def __init__(self, tier: Tier, quotas: Quotas) -> None:
        self.tier = tier
        self.evictions = 0
        """Records deleted to keep quotas."""
        self._quotas = quotas
        self._counting = KeyLocks()
        self._used_bytes: dict[OwnerId, int] = {}

    def set_quotas(self, quotas: Quotas) -> None:
        """Put other quotas in force: from each owner's next put or count."""
        self._quotas = quotas

    async def make_room(self, record: Record) -> None:
        """Count ``record``, which is about to be written, and delete its owner's oldest records where it goes over.

        Raises :class:`StorageFull` for a record larger than the quota, and what the tier raises.
        """
        owner, size_bytes = record.owner, len(record.payload)
        limit_bytes = self._quotas.of(owner).limit_bytes
        if limit_bytes is None:
            return
        if size_bytes > limit_bytes:
            raise StorageFull(
                f"record of {size_bytes} bytes, its owner's quota in the {self.tier.name} tier is {limit_bytes}"
            )
        async with self._counting.hold(StorageKey(owner)):
            used_bytes = self._used_bytes.get(owner)
            if used_bytes is None:
                used_bytes = (await self.tier.usage(owner)).payload_bytes
            if used_bytes + size_bytes > limit_bytes:
                used_bytes = await self._trim(owner, max(0, int(limit_bytes * _KEPT_SHARE) - size_bytes))
            self._used_bytes[owner] = used_bytes + size_bytes

    async def enforce(self, owner: OwnerId) -> int:
        """Count what ``owner`` has and delete its oldest records past the quota; how many were deleted.

        Raises what the tier raises. The records are listed one by one only where the count is too high.
        """
        limit_bytes = self._quotas.of(owner).limit_bytes
        if limit_bytes is None:
            return 0
        before = self.evictions
        async with self._counting.hold(StorageKey(owner)):
            used_bytes = (await self.tier.usage(owner)).payload_bytes
            if used_bytes > limit_bytes:
                used_bytes = await self._trim(owner, limit_bytes)
            self._used_bytes[owner] = used_bytes
        return self.evictions - before

    async def _trim(self, owner: OwnerId, keep_bytes: int) -> int:
        """Delete the oldest records until no more than ``keep_bytes`` are left; how many bytes are."""
        doomed = _oldest([info async for info in self.tier.scan_owner(owner)], keep_bytes)

        async def delete(info: RecordInfo) -> bool:
            # Without the key's lock: who makes room holds one, and two who do would wait for each other.
            return await self.tier.delete(info.storage_key)

        self.evictions += sum(await each_in_order(delete, doomed.infos, at_once=limits.DELETIONS_AT_ONCE_MAX))
        return doomed.left_bytes


def _oldest(infos: list[RecordInfo], keep_bytes: int) -> _Doomed:
    """The oldest of ``infos`` (of two as old, always the same) without which at most ``keep_bytes`` are left."""
    infos.sort(key=lambda info: (info.stored_at_ms, info.storage_key))
    left_bytes = sum(info.payload_bytes for info in infos)
    count = 0
    while left_bytes > keep_bytes:
        left_bytes -= infos[count].payload_bytes
        count += 1
    return _Doomed(tuple(infos[:count]), left_bytes)
