"""Goes over the records of the log in its order: those of a listing, and those that a scrub verifies."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InvalidData
from ..key import StorageKey
from ..tier import RecordInfo
from .catalogue import SsdCatalogue
from .disk import Disk
from .frame import FrameEntry
from .log import SegmentLog
from .recovery import verify_record
from .segment import Place, segment_entries

__all__ = ["DamagedRecord", "LogPosition", "LogWalk", "Scrubbed"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """A place in the order of the log; later records have later ones."""

    sequence: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A record that was found damaged where it lies."""

    info: RecordInfo
    place: Place


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What one step of a scrub read; it goes on at ``position``, or is at the end of the log."""

    position: LogPosition
    at_end: bool
    records: int
    size_bytes: int
    damaged: tuple[DamagedRecord, ...]


class LogWalk:
    """Reads records where they lie, from any thread; only those that are resident count."""

    def __init__(self, log: SegmentLog, catalogue: SsdCatalogue, disk: Disk) -> None:
        self._segment_log = log
        self._catalogue = catalogue
        self._disk = disk

    def listed(self, keys: Sequence[StorageKey]) -> list[RecordInfo]:
        """Those of ``keys``, best in the log's order, that are still there."""
        infos: list[RecordInfo] = []
        ordinal, listed = -1, dict[int, FrameEntry]()
        for key in keys:
            place = self._catalogue.place_of(key)
            if place is None:
                continue
            if place.ordinal != ordinal:
                with self._segment_log.reading(place.ordinal) as segment:
                    entries = [] if segment is None else segment_entries(self._disk, segment)
                ordinal, listed = place.ordinal, {entry.offset: entry for entry in entries}
            entry = listed.get(place.offset)
            if entry is not None and entry.key == key and entry.info is not None:
                infos.append(entry.info)
        return infos

    def verify(self, position: LogPosition, bytes_max: int) -> Scrubbed:
        """Read every byte of the records from ``position`` on, of about ``bytes_max``; ``OSError`` as the disk's."""
        records = size_bytes = 0
        damaged: list[DamagedRecord] = []
        for known in self._segment_log.segments():
            if known.sequence < position.sequence:
                continue
            with self._segment_log.reading(known.ordinal) as segment:
                if segment is None:
                    continue
                for entry in segment_entries(self._disk, segment):
                    here = LogPosition(segment.sequence, entry.offset)
                    if here < position or entry.info is None:
                        continue
                    place = segment.place(entry)
                    if not self._catalogue.holds(entry.key, place):
                        continue
                    if size_bytes >= bytes_max:
                        return Scrubbed(here, False, records, size_bytes, tuple(damaged))
                    records += 1
                    size_bytes += entry.footprint_bytes
                    try:
                        verify_record(self._disk, segment, entry)
                    except InvalidData as error:
                        _log.warning("damaged record in %s at %d: %s", segment.path.name, entry.offset, error)
                        damaged.append(DamagedRecord(entry.info, place))
        return Scrubbed(LogPosition(), True, records, size_bytes, tuple(damaged))
