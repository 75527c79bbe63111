"""Checking a data directory that no daemon uses: every byte of every segment and list, and the index. Changes nothing.

What it finds is what the tier would: a damaged record is a miss once it is read or scrubbed, a damaged list or index is
made anew when the tier is opened. ``kvloom fsck --repair`` opens the tier and scrubs it once.

An index may be a second behind the log, as a crash leaves it, and that is no damage: it may have no entry for a record,
and one for a record that is no longer the newest of its key. It disagrees with the log where it names what the log has
not, or knows of a frame and still has an entry for the record that this frame replaced or deleted.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, InvalidData, KvloomError
from ..key import StorageKey
from .disk import Disk
from .files import DirectoryLock, check_format
from .frame import ALIGNMENT_BYTES, HEAD_BYTES, FrameEntry, find_frames, parse_frame
from .index import INDEX_FILE
from .index_pipe import IndexPipe
from .indexer import CHECK
from .recovery import verify_record
from .segment import Segment, decode_list, parse_name

_INDEX_SECONDS_MAX = 60.0

__all__ = ["Finding", "FsckReport", "check_directory"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written."""

    file: str
    offset: int
    detail: str


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What was read, deleted and replaced records included, and what is wrong with it."""

    segments: int
    records: int
    tombstones: int
    size_bytes: int
    findings: tuple[Finding, ...]


def check_directory(directory: Path) -> FsckReport:
    """Read everything. Blocks; :class:`ConfigError` where a daemon uses the directory or it is none of ours,
    :class:`OSError` where it cannot be read.
    """
    if not (directory / "format").exists():
        raise ConfigError(f"{directory} holds no SSD tier")
    lock = DirectoryLock(directory)
    try:
        check_format(directory)
        disk = _ReadOnlyDisk()
        findings: list[Finding] = []
        by_seed: dict[int, list[FrameEntry]] = {}
        damaged: set[int] = set()
        for path in sorted(directory.glob("*.log")):
            name = parse_name(path.name)
            if name is None:
                findings.append(Finding(path.name, 0, "not the name of a segment"))
                continue
            entries = by_seed[name[1]] = []
            descriptor = disk.open(path)
            try:
                segment = Segment(path, 0, *name, descriptor, os.fstat(descriptor).st_size)
                for found in _check_segment(disk, segment):
                    if isinstance(found, Finding):
                        findings.append(found)
                        damaged.add(segment.seed)
                    else:
                        entries.append(found)
            finally:
                disk.close(descriptor)
        if (directory / INDEX_FILE).exists():
            findings += _check_index(directory / INDEX_FILE, by_seed, damaged)
    finally:
        lock.release()
    everything = [entry for entries in by_seed.values() for entry in entries]
    records = sum(entry.info is not None for entry in everything)
    size_bytes = sum(entry.footprint_bytes for entry in everything)
    return FsckReport(len(by_seed), records, len(everything) - records, size_bytes, tuple(findings))


def _check_index(path: Path, by_seed: Mapping[int, Sequence[FrameEntry]], damaged: set[int]) -> Iterator[Finding]:
    """What is damaged in the index, and where it disagrees with the frames of the segments, in the order of the log.

    In ``damaged`` segments frames are missing, which is said already.
    """
    pipe = None
    try:
        pipe = IndexPipe(path, 0, how=CHECK)
        loaded = pipe.load(_INDEX_SECONDS_MAX)
    except KvloomError as error:
        yield Finding(path.name, 0, str(error))
        return
    finally:
        if pipe is not None:
            pipe.kill()
    if loaded.damage:
        yield Finding(path.name, 0, loaded.damage)
    newest = {entry.key: (seed, entry.offset) for seed, entries in by_seed.items() for entry in entries}
    keys: dict[tuple[int, int], StorageKey] = {
        (seed, entry.offset): entry.key
        for seed, entries in by_seed.items()
        for entry in entries
        if entry.info is not None
    }
    stops = dict(loaded.claims.tolist())
    for seed, position, _ in loaded.entries.tolist():
        offset = position * ALIGNMENT_BYTES
        key = keys.get((seed, offset))
        if seed not in by_seed:
            continue  # reclaimed just before a crash
        if key is None and seed in damaged:
            continue
        if key is None:
            yield Finding(path.name, 0, f"names a record at {offset} of segment {seed:016x}, where the log has none")
            continue
        newer_seed, newer_offset = newest[key]
        if newest[key] != (seed, offset) and newer_offset // ALIGNMENT_BYTES < stops.get(newer_seed, 0):
            yield Finding(path.name, 0, f"names a record at {offset} of segment {seed:016x}, which the log replaced")


def _check_segment(disk: Disk, segment: Segment) -> Iterator[FrameEntry | Finding]:
    """Every frame of a segment, and what is wrong with it."""

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(max(0, min(length, segment.size_bytes - offset)))
        return bytes(memoryview(buffer)[: disk.read(segment.descriptor, [buffer], offset)])

    listed = None
    if segment.list_path.exists():
        listed = decode_list(segment.list_path.read_bytes(), segment.seed, segment.size_bytes)
        if listed is None:
            yield Finding(segment.list_path.name, 0, "damaged, or of more than its segment holds")
    name = segment.path.name
    stop = 0
    for entry in listed[0] if listed else find_frames(read, segment.size_bytes, segment.seed):
        if entry.offset != stop:
            yield Finding(name, stop, f"no frame up to {entry.offset}")
        stop = entry.stop
        try:
            room_bytes = segment.size_bytes - entry.offset
            head = read(entry.offset, HEAD_BYTES)
            if parse_frame(head, seed=segment.seed, offset=entry.offset, room_bytes=room_bytes) != entry:
                raise InvalidData("frame is not the one that is listed")
            if entry.info is not None:
                verify_record(disk, segment, entry)
            elif read(entry.offset + 64, entry.footprint_bytes - 64).strip(b"\0"):
                raise InvalidData("padding behind the tombstone is not zero")
        except InvalidData as error:
            yield Finding(name, entry.offset, str(error))
        else:
            yield entry


class _ReadOnlyDisk(Disk):
    """Opens for reading only: a check changes nothing."""

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
