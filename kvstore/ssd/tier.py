"""The SSD tier: a log of checksummed records, durable when acknowledged, never beyond its quota.

Writing is one thread with group commit (:mod:`.ssd_writer`) that appends to the log (:mod:`.ssd_log`); reading is a
small pool of threads that read just the ranges asked for, into memory of their own. Where a record lies is known in
memory (:mod:`.ssd_catalogue`) and found again from the log when the tier is opened (:mod:`.ssd_recovery`). Each read
verifies the header of the record and compares both keys in full; a read of the whole payload also verifies its
checksum. What lies in the directory is told in :mod:`.ssd_files`, what lies in a segment in :mod:`.ssd_frame`.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from ... import limits
from ...codec.container import ByteRange
from ...errors import ConfigError, InvalidData, StorageFull, StorageUnavailable
from ..concurrency import HERE_BYTES_MAX
from ..eviction import EvictionPolicy
from ..key import OwnerId, StorageKey, owner_of
from ..outcome import Corrupt, Hit, Miss, Outcome, Unavailable
from ..quota import QuotaPolicy
from ..record import open_record_header
from ..tier import Capacity, Holdings, Record, RecordInfo, Slice, Tier
from .catalogue import SsdCatalogue
from .disk import Disk
from .extent import BLOCK_BYTES, NewFrame
from .files import DirectoryLock, check_format, prepare_directory
from .frame import HEAD_BYTES, aligned
from .index import SsdIndex
from .log import SegmentLog
from .reading import Read, ReadAhead, asked_bytes, read_slice
from .recovery import recover
from .walk import LogPosition, LogWalk, Scrubbed
from .writer import DeleteWork, PutWork, SsdWriter, Work, charged_bytes

__all__ = ["SsdTier"]

_log = logging.getLogger(__name__)
_READERS = 4
_SCAN_RECORDS = 1024
_LOOKUPS_MAX = 8
_RECORD_SHARE = 4
"""A record may take a quarter of the quota."""
_BATCH_SHARE = 16
_SEGMENT_SHARE = 16
_SEGMENT_SHARE_MIN = 1024
_SEGMENT_BYTES_MIN = 64 * 1024
_FIXED_BYTES = 64 * 1024 + limits.SSD_INDEX_BYTES_MIN
"""The small files, an empty index, and what the list of a segment being written may take beyond what is kept for it."""


class SsdTier(Tier):
    """Made by :meth:`open`. ``limit_bytes`` bounds the files in the directory, all bookkeeping included."""

    def __init__(
        self,
        name: str,
        directory: Path,
        limit_bytes: int,
        disk: Disk,
        catalogue: SsdCatalogue,
        log: SegmentLog,
        index: SsdIndex,
        lock: DirectoryLock,
    ) -> None:
        self.name = name
        self.durable = True
        self.damaged_segments = 0
        """Segments found damaged when the tier was opened; what is sound in them is kept."""
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._record_bytes_max = min(limit_bytes // _RECORD_SHARE, HEAD_BYTES + limits.RECORD_BYTES_MAX)
        self._disk = disk
        self._catalogue = catalogue
        self._segment_log = log
        self._walk = LogWalk(log, catalogue, disk)
        self._index = index
        self._lock = lock
        batch_bytes_max = min(limits.WRITE_BATCH_BYTES_MAX, limit_bytes // _BATCH_SHARE)
        self._writer = SsdWriter(log, catalogue, batch_bytes_max=batch_bytes_max, name=name)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix=f"kvloom-{name}-reader")
        self._closed = False
        self._released = False
        self._closing = threading.Lock()

    @classmethod
    def open(
        cls,
        directory: Path,
        limit_bytes: int,
        *,
        policy: EvictionPolicy | None = None,
        name: str = "ssd",
        disk: Disk | None = None,
    ) -> "SsdTier":
        """Open or create the tier in ``directory``. Blocks: it reads what the log lists.

        Raises :class:`ConfigError` where the directory is in use by another daemon, cannot be used, or was written
        in another format, :class:`StorageUnavailable` where the disk fails. Damage is survived, logged and counted.
        A quota below what is stored evicts down to it: as the policy says, then the oldest segments, for it writes
        nothing; segments larger than the quota with all they hold.
        """
        if limit_bytes < limits.TIER_BYTES_MIN:
            raise ConfigError(f"{name} tier of {limit_bytes} bytes, at least {limits.TIER_BYTES_MIN} are needed")
        disk = disk or Disk()
        prepare_directory(directory)
        with ExitStack() as undo:
            lock = DirectoryLock(directory)
            undo.callback(lock.release)
            check_format(directory)
            segment_bytes = _segment_bytes(limit_bytes)
            capacity_bytes = limit_bytes - _FIXED_BYTES - segment_bytes // 2
            budget_bytes = (capacity_bytes - 2 * segment_bytes) * 7 // 8
            kept_by = QuotaPolicy.around(policy)
            kept_by.quotas.check_fits(name, budget_bytes)
            catalogue = SsdCatalogue(kept_by, budget_bytes)
            index = SsdIndex(directory, catalogue, name=name)
            undo.callback(index.kill)
            try:
                found = recover(directory, disk)
                for segment in found.segments:
                    undo.callback(disk.close, segment.descriptor)
                catalogue.load(index.hints(found), found.places, found.sizes, found.expiries, found.attributes)
                log = SegmentLog(
                    directory,
                    disk,
                    catalogue,
                    capacity_bytes=capacity_bytes,
                    segment_bytes=segment_bytes,
                    segments=found.segments,
                )
                index.attach(log)
                log.shrink()
            except OSError as error:
                raise StorageUnavailable(f"{name} tier cannot open {directory}: {error}") from error
            tier = cls(name, directory, limit_bytes, disk, catalogue, log, index, lock)
            tier.damaged_segments = found.damaged
            if catalogue.evictions:
                _log.warning("%s tier: %d records given up, its quota is %d", name, catalogue.evictions, limit_bytes)
            index.start()
            undo.pop_all()
            return tier

    @property
    def written_bytes(self) -> int:
        """Bytes written to the log since the tier was opened: those put, their padding, and those moved."""
        return self._segment_log.written_bytes

    @property
    def damaged_records(self) -> int:
        """Records found damaged by the tier itself while it made room, since it was opened."""
        return self._catalogue.damaged

    @property
    def index_failures(self) -> int:
        """How often the index was given up since the tier was opened, to be written anew; damage at open included."""
        return self._index.failures

    async def write_index(self) -> None:
        """Have the index written now rather than within a second: a crash forgets no use and no eviction up to here."""
        self._require_open()
        await asyncio.to_thread(self._index.write)

    async def put(self, record: Record) -> None:
        """Keep ``record``; durable on return. Cancelled while it is being written, it may or may not be kept."""
        self._require_open()
        record_bytes = HEAD_BYTES + len(record.payload)
        if record_bytes > self._record_bytes_max:
            raise StorageFull(
                f"record of {record_bytes} bytes does not fit the {self.name} tier, "
                f"whose largest record is {self._record_bytes_max}"
            )
        quota_bytes = self._catalogue.quota_bytes(owner_of(record.storage_key))
        if quota_bytes is not None and charged_bytes(aligned(record_bytes)) > quota_bytes:
            raise StorageFull(
                f"record of {record_bytes} bytes: its owner may have {quota_bytes} in the {self.name} tier"
            )
        payload = memoryview(record.payload).cast("B")
        await self._submit(PutWork(NewFrame(record.storage_key, record.info, open_record_header(record), payload)))

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """The ranges, read in a worker thread, or at once where they are small and in the page cache."""
        self._require_open()
        place = self._catalogue.place_of(key)
        if place is None:
            return Miss()
        outcome: Outcome[Slice] | None = None
        if asked_bytes(place, ranges) <= HERE_BYTES_MAX:
            with suppress(BlockingIOError):
                outcome = self._read(key, ranges, self._disk.read_cached)
        if outcome is None:
            loop = asyncio.get_running_loop()
            disk = self._disk
            outcome = await loop.run_in_executor(self._readers, self._read, key, ranges, disk.read, disk.read_ahead)
        if isinstance(outcome, Hit):
            self._catalogue.note_use(key)
        return outcome

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Look the keys up in memory."""
        self._require_open()
        return self._catalogue.contains_many(keys)

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Look the keys and their expiries up in memory."""
        self._require_open()
        return self._catalogue.contains_live(keys, now_ms)

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """From the expiries in memory."""
        self._require_open()
        return self._catalogue.expired(now_ms, limit)

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Pinned records stay."""
        self._catalogue.protect(pinned)

    def watch(self, evicted: Callable[[StorageKey], None]) -> None:
        """Tell the policy; it evicts in the writer's thread too."""
        self._catalogue.watch(evicted)

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:
        """Tell the policy."""
        self._catalogue.hint(keys, finished=finished)

    def touch(self, keys: Sequence[StorageKey]) -> None:
        """Count each as used."""
        for key in keys:
            self._catalogue.note_use(key)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What the owner's records are charged."""
        return self._catalogue.holdings(owner)

    async def delete(self, key: StorageKey) -> bool:
        """Forget a record; durable on return."""
        self._require_open()
        return await self._submit(DeleteWork(key))

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """All records that are there when it begins and still there when their page is read, in the log's order."""
        self._require_open()
        keys = await asyncio.get_running_loop().run_in_executor(self._readers, self._catalogue.keys_by_place)
        for start in range(0, len(keys), _SCAN_RECORDS):
            self._require_open()
            page = keys[start : start + _SCAN_RECORDS]
            try:
                infos = await asyncio.get_running_loop().run_in_executor(self._readers, self._walk.listed, page)
            except OSError as error:
                raise StorageUnavailable(f"{self.name} tier cannot be scanned: {error}") from error
            for info in infos:
                yield info

    async def scrub(self, position: LogPosition, *, bytes_max: int) -> Scrubbed:
        """Verify every byte of the records from ``position`` on, of about ``bytes_max``; not counted as uses.

        Damaged ones are deleted, durably, but for those that were put again meanwhile. Raises
        :class:`StorageUnavailable` where the disk cannot be read or the deletion not be written.
        """
        self._require_open()
        try:
            loop = asyncio.get_running_loop()
            step = await loop.run_in_executor(self._readers, self._walk.verify, position, bytes_max)
        except OSError as error:
            raise StorageUnavailable(f"{self.name} tier cannot be scrubbed: {error}") from error
        gone = [await self._submit(DeleteWork(found.info.storage_key, found.place)) for found in step.damaged]
        deleted = tuple(found for found, was_there in zip(step.damaged, gone, strict=True) if was_there)
        return replace(step, damaged=deleted)

    def capacity(self) -> Capacity:
        """Bytes charged for resident records, padding and bookkeeping included."""
        catalogue = self._catalogue
        return Capacity(
            self._limit_bytes, catalogue.used_bytes, len(catalogue), catalogue.evictions, catalogue.eviction
        )

    async def close(self) -> None:
        """Finish reads, write what was submitted and the index, release the directory."""
        self._closed = True
        await asyncio.to_thread(self._close_blocking)

    def _close_blocking(self) -> None:
        with self._closing:
            if self._released:
                return
            self._readers.shutdown(wait=True)
            self._writer.stop()
            self._index.close()
            self._segment_log.close()
            self._lock.release()
            self._released = True

    async def _submit(self, work: Work) -> bool:
        self._writer.submit(work)
        return await asyncio.wrap_future(work.done)

    def _read(
        self, key: StorageKey, ranges: Sequence[ByteRange] | None, read: Read, read_ahead: ReadAhead | None = None
    ) -> Outcome[Slice]:
        for _ in range(_LOOKUPS_MAX):
            place = self._catalogue.place_of(key)
            if place is None:
                return Miss()
            with self._segment_log.reading(place.ordinal) as segment:
                if segment is None:
                    continue  # the record has moved: look it up again
                try:
                    return Hit(read_slice(read, segment, key, place, ranges, read_ahead), self.name)
                except InvalidData as error:
                    return Corrupt(self.name, str(error))
                except BlockingIOError:
                    raise
                except OSError as error:
                    return Unavailable(self.name, f"the disk cannot be read: {error.strerror}")
        return Unavailable(self.name, "the record is being moved over and over")

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnavailable(f"{self.name} tier is closed")


def _segment_bytes(limit_bytes: int) -> int:
    """A file of the log: a 16th of the quota within bounds, and no more than so many files."""
    most = max(limits.SSD_SEGMENT_BYTES_MAX, limit_bytes // _SEGMENT_SHARE_MIN)
    size_bytes = min(most, max(_SEGMENT_BYTES_MIN, limit_bytes // _SEGMENT_SHARE))
    return size_bytes // BLOCK_BYTES * BLOCK_BYTES
