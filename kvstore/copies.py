"""Where a chunk may be found, from fast to slow: the volatile tiers, the write-behind queue, the durable tiers."""

from collections.abc import Iterator, Sequence
from typing import Final

from ..codec.container import ByteRange
from ..errors import StorageUnavailable
from .chunk_reader import Copy
from .key import ContentKey, StorageKey
from .outcome import Hit, Miss, Outcome, Unavailable
from .tier import Slice, Tier
from .write_behind import WriteBehind

__all__ = ["WRITE_BEHIND", "Copies"]

WRITE_BEHIND: Final = "write-behind"
"""The name under which the queue of records not yet durable answers reads."""


class Copies:
    """Lists the places to ask for a chunk, each as something that can be read."""

    def __init__(self, volatile: Sequence[Tier], write_behind: WriteBehind, durable: Sequence[Tier]) -> None:
        self._volatile = tuple(volatile)
        self._write_behind = write_behind
        self._durable = tuple(durable)

    def of(self, place: StorageKey, key: ContentKey) -> Iterator[Copy]:
        """The places, one after another; whether the chunk is there shows when it is read."""
        for tier in self._volatile:
            yield self.in_tier(tier, place, key)
        if self._write_behind.find(place) is not None:
            yield Copy(WRITE_BEHIND, place, key, lambda ranges: self._read_dirty(place, ranges))
        for tier in self._durable:
            yield self.in_tier(tier, place, key)

    def in_tier(self, tier: Tier, place: StorageKey, key: ContentKey) -> Copy:
        """The chunk in one tier; a tier that is closed or fails answers :class:`Unavailable`."""

        async def read(ranges: Sequence[ByteRange] | None) -> Outcome[Slice]:
            try:
                return await tier.get(place, ranges)
            except StorageUnavailable as error:
                return Unavailable(tier.name, str(error))

        return Copy(tier.name, place, key, read)

    async def _read_dirty(self, place: StorageKey, ranges: Sequence[ByteRange] | None) -> Outcome[Slice]:
        record = self._write_behind.find(place)
        if record is None:
            return Miss()
        view = memoryview(record.payload).toreadonly()
        wanted = (ByteRange(0, len(view)),) if ranges is None else ranges
        return Hit(Slice(record.info, tuple(view[item.start : item.stop] for item in wanted)), WRITE_BEHIND)
