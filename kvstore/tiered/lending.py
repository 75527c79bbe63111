"""Lending one chunk out of shared memory: which bytes of the record make the container that was asked for."""

from dataclasses import dataclass

from ...codec.container import ByteRange, ContainerHeader, Selection, parse_header
from ...codec.level import EXACT, Level
from ...errors import KvloomError, LevelNotStored
from ..key import ContentKey, StorageKey
from ..sharing import Lease, SharesMemory
from ..tier import NEVER
from .chunk_reader import select_asked

__all__ = ["LentChunk", "LentUses", "lend_chunk"]


@dataclass(slots=True, eq=False)
class LentChunk:
    """A container in parts: ``header``, then ``ranges`` of the lease's payload.

    Where the parts are one byte prefix of what is stored, ``header`` is empty and the one range is that prefix.
    """

    lease: Lease
    header: bytes
    ranges: tuple[ByteRange, ...]
    tier: str

    @property
    def total_bytes(self) -> int:
        """Length of the container."""
        return len(self.header) + sum([item.stop - item.start for item in self.ranges])

    @property
    def is_whole(self) -> bool:
        """Whether it is all that is stored."""
        return not self.header and self.ranges[0].length == self.lease.payload_bytes


@dataclass(frozen=True, slots=True)
class LentUses:
    """A chunk of ``size_bytes`` that was lent once, and how often it was read since."""

    key: ContentKey
    size_bytes: int
    reads: int


def lend_chunk(
    tier: SharesMemory, place: StorageKey, key: ContentKey, *, level: Level | None, layers: range | None, now_ms: int
) -> LentChunk | None:
    """Lend the chunk, or the part of it that was asked for, at once; None where an ordinary read has to judge.

    Raises :class:`InvalidRequest` for layers that the chunk has not.
    """
    lease = tier.lease(place)
    if lease is None or lease.content_key != key or (lease.expires_at_ms != NEVER and lease.expires_at_ms <= now_ms):
        return None
    if level is None and layers is None:
        return LentChunk(lease, b"", (ByteRange(0, lease.payload_bytes),), tier.name)
    try:
        header = parse_header(lease.payload, declared_bytes=lease.payload_bytes)
    except KvloomError:
        return None
    try:
        selection = select_asked(header, level, layers)
    except LevelNotStored:
        return None
    if _is_prefix(header, selection):
        return LentChunk(lease, b"", (ByteRange(0, selection.ranges[-1].stop),), tier.name)
    return LentChunk(lease, selection.header, selection.ranges, tier.name)


def _is_prefix(header: ContainerHeader, selection: Selection) -> bool:
    """Whether the header as it stands and the bytes behind it, up to a level's end, are what was chosen."""
    if len(selection.ranges) != 1 or selection.ranges[0].start != header.header_bytes:
        return False
    stop = selection.ranges[0].stop
    levels = (level for level in header.levels if level != EXACT)
    return stop == header.total_bytes or any(stop == header.level_end(level) for level in levels)
