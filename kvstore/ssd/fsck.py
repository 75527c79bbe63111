"""Checking a data directory that no daemon uses: every byte of every segment, list and order file. Changes nothing.

What it finds is what the tier would: a damaged record is a miss once it is read or scrubbed, a damaged list is made
anew when the tier is opened. ``kvloom fsck --repair`` opens the tier and scrubs it once.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, InvalidData
from .disk import Disk
from .files import DirectoryLock, check_format
from .frame import HEAD_BYTES, FrameEntry, find_frames, parse_frame
from .recovery import ORDER_FILE, order_is_sound, verify_record
from .segment import Segment, decode_list, parse_name

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
        entries: list[FrameEntry] = []
        segments = 0
        for path in sorted(directory.glob("*.log")):
            name = parse_name(path.name)
            if name is None:
                findings.append(Finding(path.name, 0, "not the name of a segment"))
                continue
            segments += 1
            descriptor = disk.open(path)
            try:
                segment = Segment(path, 0, *name, descriptor, os.fstat(descriptor).st_size)
                for found in _check_segment(disk, segment):
                    if isinstance(found, Finding):
                        findings.append(found)
                    else:
                        entries.append(found)
            finally:
                disk.close(descriptor)
        if not order_is_sound(directory):
            findings.append(Finding(ORDER_FILE, 0, "damaged"))
    finally:
        lock.release()
    records = sum(entry.info is not None for entry in entries)
    size_bytes = sum(entry.footprint_bytes for entry in entries)
    return FsckReport(segments, records, len(entries) - records, size_bytes, tuple(findings))


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
