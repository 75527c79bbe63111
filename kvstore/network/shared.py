"""What the tiers have in common that daemons share: who may stand where, how they are listed, what they count."""

from abc import abstractmethod
from collections.abc import AsyncIterator

from ...errors import InvalidData, StorageUnavailable
from ..key import OwnerId, owner_of
from ..tier import UNBOUNDED_BYTES, Capacity, Record, RecordInfo, Tier, Usage

__all__ = ["SharedTier", "require_own_place"]


class SharedTier(Tier):
    """An engine that other daemons use, too: it has no limit here, and is counted when it is listed to the end."""

    shared = True

    def __init__(self, name: str, *, durable: bool) -> None:
        self.name = name
        self.durable = durable
        self._counted = Usage(0, 0)
        self._closed = False

    @abstractmethod
    def records(self, owner: OwnerId | None) -> AsyncIterator[RecordInfo]:
        """The records of ``owner``, or of everybody; one that is damaged is not shown."""

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """Everybody's records."""
        records = payload_bytes = 0
        async for info in self.records(None):
            records += 1
            payload_bytes += info.payload_bytes
            yield info
        self._counted = Usage(records, payload_bytes)

    async def scan_owner(self, owner: OwnerId) -> AsyncIterator[RecordInfo]:
        """Those whose keys begin with the owner."""
        async for info in self.records(owner):
            yield info

    def capacity(self) -> Capacity:
        """What the last complete :meth:`scan` counted; the limit is the engine's."""
        return Capacity(UNBOUNDED_BYTES, self._counted.payload_bytes, self._counted.records)

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnavailable(f"{self.name} tier is closed")


def require_own_place(record: Record) -> None:
    """:class:`InvalidData` unless the storage key begins with the owner, by which records are listed and deleted."""
    if owner_of(record.storage_key) != record.owner:
        raise InvalidData("the storage key does not begin with the record's owner")
