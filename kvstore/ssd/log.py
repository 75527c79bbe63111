"""The log of the SSD tier: segments written one after the other, the oldest reclaimed first.

Only the writer's thread changes the log; readers borrow segments (:meth:`SegmentLog.reading`). What keeps it right:

* A frame counts only once its segment was synced. No block that was synced is written again: what is written together
  ends at a block of 4 KiB. Nothing is appended to a segment of an earlier life.
* A segment whose write or sync failed is not written to again, since nobody knows what the page cache and the disk
  hold of it from there on; what was synced before stays readable.
* The oldest segment goes first. So a tombstone outlives every older copy of its record, and a deletion stays one when
  the catalogue is rebuilt from the log. A reclaimed segment's records that are still wanted move to the end of the log
  and are durable there before it goes; where all of its frames are wanted, it gets a new number instead.
* A reclaimed file is used again under another name: its blocks are allocated already, which makes a sync much cheaper.
"""

import errno
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

from ... import limits
from ...errors import KvloomError, StorageFull
from ..key import OwnerId, owner_of
from .disk import Disk, storage_error
from .extent import BLOCK_BYTES, Extent, NewFrame, extent_of, has_room, laid_out, read_again, runs
from .frame import FrameEntry, FrameKind, aligned
from .leftovers import Leftovers
from .owner import LogOwner
from .segment import (
    LIST_HEAD_BYTES,
    LISTED_BYTES,
    Place,
    Segment,
    give_back,
    new_seed,
    segment_entries,
    segment_name,
)

__all__ = ["FRAME_OVERHEAD_BYTES", "SegmentLog"]

_log = logging.getLogger(__name__)
FRAME_OVERHEAD_BYTES: Final = LISTED_BYTES + limits.SSD_INDEX_FRAME_BYTES
"""What a frame is charged beside its footprint: its line in a list, its entry in the index."""
_SEQUENCE_STEP: Final = 2**20
_ROUNDS_MAX: Final = 8
"""Segments reclaimed for one new one, or all there are if these are more, before more records are given up."""
_KEPT_EIGHTHS: Final = 5
"""While more than this of the capacity is kept, as much is given up as would be moved: what the policy would evict next
is mostly what lies oldest in the log, and writing it twice wears the disk.
"""
_MOVE_BYTES_MAX: Final = 32 * 1024 * 1024
_SCARCE_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE))
"""What giving up a file of ours may help against."""


class SegmentLog:
    """``capacity_bytes`` bounds the files of all segments and lists; ``segments`` are those found, in their order."""

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        owner: LogOwner,
        *,
        capacity_bytes: int,
        segment_bytes: int,
        segments: Sequence[Segment],
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._owner = owner
        self._capacity_bytes = capacity_bytes
        self._segment_bytes = segment_bytes
        self._segments = list(segments)
        self._active: Segment | None = None
        self._appended: list[FrameEntry] = []
        """Written to the active segment and not synced."""
        self._broken = False
        """Whether the active segment could not be written."""
        self._leftovers = Leftovers(directory, disk)
        self._next_sequence = max((item.sequence for item in segments), default=0) + _SEQUENCE_STEP
        self._next_ordinal = max((item.ordinal for item in segments), default=-1) + 1
        self._changed = threading.Condition()
        self._by_ordinal = {item.ordinal: item for item in segments}
        self.written_bytes = 0
        """Bytes written to segments since the log was opened, padding and moved records included."""
        self.moved_bytes = 0
        """Of these, records moved out of reclaimed segments."""
        self.index_bytes = 0
        """What the file of the index takes, or was allowed to."""

    @property
    def taken_bytes(self) -> int:
        """What the files take of the quota."""
        files: list[Segment] = [*self._segments, *self._leftovers]
        frames = sum(item.frames for item in files)
        index_bytes = max(frames * limits.SSD_INDEX_FRAME_BYTES, self.index_bytes - limits.SSD_INDEX_BYTES_MIN)
        return sum(item.size_bytes + LIST_HEAD_BYTES for item in files) + frames * LISTED_BYTES + index_bytes

    def allowed_index_bytes(self) -> int:
        """What the index may take of the quota; any thread may ask."""
        frames = sum(item.frames for item in self.segments())
        return limits.SSD_INDEX_BYTES_MIN + frames * limits.SSD_INDEX_FRAME_BYTES

    @property
    def _reserve_bytes(self) -> int:
        """Kept free for the records of a reclaimed segment, the largest, and for what lists may grow by meanwhile."""
        largest_bytes = max((item.size_bytes for item in self._segments), default=0)
        return max(self._segment_bytes, min(largest_bytes, self._capacity_bytes // 4)) + self._segment_bytes // 4

    @contextmanager
    def reading(self, ordinal: int) -> Iterator[Segment | None]:
        """Borrow a segment: it is not reclaimed meanwhile. ``None`` where it is gone."""
        with self._changed:
            segment = self._by_ordinal.get(ordinal)
            if segment is not None:
                segment.readers += 1
        try:
            yield segment
        finally:
            if segment is not None:
                with self._changed:
                    segment.readers -= 1
                    self._changed.notify_all()

    def segments(self) -> list[Segment]:
        """All segments now, oldest first; for reading, borrow them."""
        with self._changed:
            return list(self._segments)

    def prepare(self, frames: Sequence[NewFrame]) -> Extent:
        """Make room for the first of ``frames``; with it go as many more as fit beside it.

        Raises :class:`StorageFull` and :class:`StorageUnavailable`; what was stored is then as it was, but for
        records given up to make room.
        """
        try:
            segment = self._room_for(frames[0].footprint_bytes, owner_of(frames[0].key))
        except OSError as error:
            raise storage_error("make room for records", error) from error
        return extent_of(segment, frames)

    def extension(self, frames: Sequence[NewFrame]) -> Extent | None:
        """As many of ``frames`` as fit behind what was appended; None where the first of them does not."""
        segment = self._active
        if segment is None or self._broken or not frames or not has_room(segment, frames[0].footprint_bytes):
            return None
        return extent_of(segment, frames)

    def append(self, extent: Extent) -> None:
        """Write frames behind what was appended; they count when :meth:`commit` has synced them; raises as it does."""
        segment = extent.segment
        entries = laid_out(segment, extent.frames)
        try:
            for run in runs(segment, extent.frames, entries):
                self._disk.write(segment.descriptor, run.buffers, run.offset)
        except OSError as error:
            self._broken = True
            raise storage_error("write records", error) from error
        segment.reach = entries[-1].stop
        segment.frames += len(entries)
        self._appended += entries

    def commit(self) -> list[Place]:
        """Sync what was appended since the last time: durable on return. Where that fails, none of it counts.

        A segment that was not written or synced is left. Raises :class:`StorageFull`, :class:`StorageUnavailable`.
        """
        segment, entries, broken = self._active, self._appended, self._broken
        self._appended, self._broken = [], False
        assert segment is not None and segment.entries is not None  # noqa: PT018, S101 - it is being written to
        try:
            if entries:
                self._disk.sync(segment.descriptor)
        except OSError as error:
            segment.frames -= len(entries)
            self._abandon(segment)
            raise storage_error("write records", error) from error
        self.written_bytes += segment.reach - segment.end
        segment.end = segment.reach
        segment.entries.extend(entries)
        if broken:
            self._abandon(segment)
        return [segment.place(entry) for entry in entries]

    def write(self, extent: Extent) -> list[Place]:
        """:meth:`append` and :meth:`commit`, where nothing else was appended."""
        try:
            self.append(extent)
        except KvloomError:
            self.commit()
            raise
        return self.commit()

    def shrink(self) -> None:
        """Give up the oldest segments until the files fit the capacity. At open, before the log is used."""
        while self._segments and self.taken_bytes > self._capacity_bytes + self._segment_bytes // 4:
            self._leftovers.discard(self._reclaimed(self._segments[0], None))

    def close(self) -> None:
        """Seal the segment being written, close all files. No reader may be left."""
        self._seal_active()
        for segment in self._segments:
            self._disk.close(segment.descriptor)
        self._segments = []
        self._by_ordinal = {}

    def _room_for(self, frame_bytes: int, owner: OwnerId) -> Segment:
        """The active segment, or a new one, with at least ``frame_bytes`` to write for ``owner``."""
        size_bytes = max(self._segment_bytes, aligned(frame_bytes, BLOCK_BYTES))
        freed: Segment | None = None
        for rounds in count():
            if self._active is not None and not has_room(self._active, frame_bytes):
                self._seal_active()
            if freed is not None and self._active is not None:
                self._leftovers.discard(freed)
                freed = None
            room_bytes = self._capacity_bytes - self._reserve_bytes - self.taken_bytes
            if self._active is not None and (room_bytes >= 0 or self._segments == [self._active]):
                return self._active
            if self._active is None and size_bytes <= room_bytes and len(self._segments) < limits.SSD_SEGMENTS_MAX:
                try:
                    return self._start(size_bytes, frame_bytes, freed)
                except OSError as error:
                    if not self._segments or rounds > 4 * _ROUNDS_MAX or error.errno not in _SCARCE_ERRNOS:
                        raise
                    freed = None  # it was given up, and with it what was scarce
                    if rounds == 0:
                        self._owner.give_up(size_bytes, owner)
            elif freed is not None:
                self._leftovers.discard(freed)
                freed = None
            if not self._segments:
                raise StorageFull(f"no room for a segment of {size_bytes} bytes")
            due = rounds and rounds % max(_ROUNDS_MAX, len(self._segments)) == 0
            if due and not self._owner.give_up(size_bytes, owner):
                raise StorageFull("all that is on disk is pinned, or guaranteed to other owners")
            freed = self._freed(owner)
        raise AssertionError("unreachable: counting does not end")

    def _freed(self, owner: OwnerId) -> Segment | None:
        """Reclaim the oldest segment: its file, to be used again or discarded; ``None`` where it stays."""
        self._leftovers.clear()
        oldest = self._segments[0]
        entries = segment_entries(self._disk, oldest)
        wanted_bytes = sum(entry.footprint_bytes for entry in entries if self._wanted(oldest, entry))
        if wanted_bytes:
            self._owner.give_up(wanted_bytes, owner, keep_bytes=self._capacity_bytes * _KEPT_EIGHTHS // 8)
        if entries and all(self._wanted(oldest, entry) for entry in entries):
            self._requeue(oldest)
            return None
        return self._reclaimed(oldest, owner)

    def _reclaimed(self, oldest: Segment, owner: OwnerId | None) -> Segment:
        """Take ``oldest`` out of the log for ``owner``, once no reader has it.

        Its wanted records are moved, those that find no room evicted; for ``None``, all are. Raises
        :class:`StorageFull` where one that finds no room must stay: then the segment does too.
        """
        wanted = [entry for entry in segment_entries(self._disk, oldest) if self._wanted(oldest, entry)]
        if owner is not None:
            self._move(oldest, wanted)
        for entry in wanted:
            if not self._wanted(oldest, entry):
                continue
            if owner is None:
                self._owner.note_lost(entry.key, damaged=False)
            elif not self._owner.surrender(entry.key, owner):
                raise StorageFull("records that are pinned, or guaranteed to other owners, find no room elsewhere")
        with self._changed:
            self._segments.remove(oldest)
            del self._by_ordinal[oldest.ordinal]
            self._changed.wait_for(lambda: oldest.readers == 0)
        return oldest

    def _move(self, oldest: Segment, wanted: Sequence[FrameEntry]) -> None:
        """Write the wanted records again at the end of the log; those that find no room stay where they are."""
        waiting: list[NewFrame] = []
        waiting_bytes = 0
        for entry in wanted:
            frame = read_again(self._disk, oldest, entry)
            if frame is None:
                self._owner.note_lost(entry.key, damaged=True)
                continue
            waiting.append(frame)
            waiting_bytes += frame.footprint_bytes
            if waiting_bytes > _MOVE_BYTES_MAX:
                self._write_moved(waiting)
                waiting, waiting_bytes = [], 0
        self._write_moved(waiting)

    def _write_moved(self, frames: Sequence[NewFrame]) -> None:
        while frames:
            active = self._active
            if active is None or not has_room(active, frames[0].footprint_bytes):
                size_bytes = max(self._segment_bytes, aligned(frames[0].footprint_bytes, BLOCK_BYTES))
                self._seal_active()
                if self.taken_bytes + size_bytes > self._capacity_bytes:
                    return
                try:
                    active = self._start(size_bytes, frames[0].footprint_bytes)
                except OSError as error:
                    _log.warning("records of a reclaimed segment are not moved: %s", error.strerror)
                    return
            extent = extent_of(active, frames)
            for frame, place in zip(extent.frames, self.write(extent), strict=True):
                self._owner.note_move(frame.key, place)
                self.moved_bytes += frame.footprint_bytes
            frames = frames[len(extent.frames) :]

    def _wanted(self, segment: Segment, entry: FrameEntry) -> bool:
        return entry.kind is FrameKind.RECORD and self._owner.holds(entry.key, segment.place(entry))

    def _requeue(self, oldest: Segment) -> None:
        """Make the oldest segment the youngest of the sealed ones: below the active one, above all others.

        Nothing is lost should a power cut undo it: all of its frames are the newest of their keys either way.
        """
        sealed = [item for item in self._segments if item is not self._active]
        sequence = max(item.sequence for item in sealed) + 1
        path = self._directory / segment_name(sequence, oldest.seed)
        with suppress(OSError):  # without its list it is searched
            self._disk.rename(oldest.list_path, path.with_suffix(".list"))
        self._disk.rename(oldest.path, path)
        oldest.path, oldest.sequence = path, sequence
        with self._changed:
            self._segments.remove(oldest)
            self._segments.insert(len(self._segments) - (self._active is not None), oldest)

    def _start(self, size_bytes: int, least_bytes: int, recycled: Segment | None = None) -> Segment:
        """A new active segment, in the file of ``recycled`` where one is given, which keeps its size if it must."""
        sequence, seed = self._next_sequence, new_seed()
        path = self._directory / segment_name(sequence, seed)
        if recycled is None:
            descriptor = self._disk.create(path, size_bytes)
        else:
            descriptor = recycled.descriptor
            try:
                try:
                    self._disk.resize(descriptor, recycled.size_bytes, size_bytes)
                except OSError:
                    size_bytes = recycled.size_bytes
                    if size_bytes < least_bytes:
                        raise
                self._disk.unlink(recycled.list_path)
                self._disk.rename(recycled.path, path)
            except OSError:
                self._leftovers.discard(recycled)
                raise
        segment = Segment(path, self._next_ordinal, sequence, seed, descriptor, size_bytes)
        self._next_sequence += _SEQUENCE_STEP
        self._next_ordinal += 1
        with self._changed:
            self._segments.append(segment)
            self._by_ordinal[segment.ordinal] = segment
        self._active = segment
        try:
            self._disk.sync_directory(self._directory)
        except OSError as error:
            self._abandon(segment)
            raise storage_error("make a new file durable", error) from error
        return segment

    def _seal_active(self) -> None:
        """No more goes into the active segment: give back what it has too much and write its list."""
        segment, self._active = self._active, None
        if segment is None:
            return
        try:
            give_back(self._disk, segment)
            if segment.end:
                segment.write_list(self._disk)
        except OSError as error:
            _log.warning("%s has no list and will be searched: %s", segment.path.name, error.strerror)
        if not segment.end:
            self._drop(segment)

    def _abandon(self, segment: Segment) -> None:
        """Write no more to a segment that failed; what was synced in it stays."""
        _log.error("%s failed at %d and is written to no more", segment.path.name, segment.end)
        self._active = segment
        with suppress(OSError):  # the list that follows says where it ends too
            self._disk.truncate(segment.descriptor, segment.end)
            segment.size_bytes = segment.end
        segment.reach = segment.end
        self._seal_active()

    def _drop(self, segment: Segment) -> None:
        """Take a segment without a frame out of the log."""
        with self._changed:
            self._segments.remove(segment)
            del self._by_ordinal[segment.ordinal]
        try:
            self._leftovers.discard(segment)
        except OSError as error:
            _log.warning("%s could not be removed: %s", segment.path.name, error.strerror)
