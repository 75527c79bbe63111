"""Quotas on a tier that several daemons write to: counted there, by every daemon, and kept by deleting the oldest.

No daemon sees what the others put, so what an owner has is what the tier lists. Between two counts a daemon adds what
it writes itself; past the quota it writes no more. So an owner can pass its quota by what the other daemons write in
one interval, and is back within it at the next count, whoever counts: the oldest records go first, so daemons that
count at the same time delete the same ones.
"""

from .. import limits
from ..errors import StorageFull
from .concurrency import each_in_order
from .key import OwnerId
from .key_locks import KeyLocks
from .quota import Quotas
from .tier import Record, RecordInfo, Tier

__all__ = ["SharedQuota"]


class SharedQuota:
    """The quotas of one shared tier, in payload bytes. ``locks`` are those of the tier's stage."""

    def __init__(self, tier: Tier, quotas: Quotas, locks: KeyLocks) -> None:
        self.tier = tier
        self._quotas = quotas
        self._locks = locks
        self._used_bytes: dict[OwnerId, int] = {}

    def has_limit(self, owner: OwnerId) -> bool:
        """Whether ``owner`` has a quota here."""
        return self._quotas.of(owner).limit_bytes is not None

    def take(self, record: Record) -> None:
        """Count a record that is about to be written; :class:`StorageFull` where its owner is past its quota."""
        limit_bytes = self._quotas.of(record.owner).limit_bytes
        if limit_bytes is None:
            return
        used_bytes = self._used_bytes.get(record.owner, 0) + len(record.payload)
        if used_bytes > limit_bytes:
            raise StorageFull(
                f"record of {len(record.payload)} bytes: its owner has about {used_bytes - len(record.payload)} "
                f"in the {self.tier.name} tier, its quota is {limit_bytes}"
            )
        self._used_bytes[record.owner] = used_bytes

    async def enforce(self, owner: OwnerId) -> int:
        """Count what ``owner`` has and delete its oldest records past the quota; how many were deleted.

        Raises what the tier raises. Reads a listing of the owner's records only where the count is too high.
        """
        limit_bytes = self._quotas.of(owner).limit_bytes
        if limit_bytes is None:
            return 0
        used_bytes = (await self.tier.usage(owner)).payload_bytes
        due: list[RecordInfo] = []
        if used_bytes > limit_bytes:
            infos = [info async for info in self.tier.scan_owner(owner)]
            infos.sort(key=lambda info: (info.stored_at_ms, info.storage_key))
            used_bytes = sum(info.payload_bytes for info in infos)
            for info in infos:
                if used_bytes <= limit_bytes:
                    break
                due.append(info)
                used_bytes -= info.payload_bytes

        async def delete(info: RecordInfo) -> bool:
            async with self._locks.hold(info.storage_key):
                return await self.tier.delete(info.storage_key)

        deleted = sum(await each_in_order(delete, due, at_once=limits.DELETIONS_AT_ONCE_MAX))
        self._used_bytes[owner] = used_bytes
        return deleted
