"""Opening the log: what its segments hold, newest copy of each record, minus what was deleted.

A segment with a sound list is believed. Any other is searched frame by frame, and the payload of every record found
there is verified: what a crash cut off or tore was never acknowledged and is left out. Damage is survived: frames
behind it are found again. Nothing is mapped into memory, so a truncated or damaged file can only read short or wrong.
"""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import InvalidData
from ..attributes import pack_attributes
from ..key import StorageKey
from ..record import HEADER_BYTES, check_payload, parse_record_header
from ..tier import NEVER
from .disk import Disk
from .extent import BLOCK_BYTES
from .frame import HEAD_BYTES, TOMBSTONE_BYTES, FrameEntry, aligned, find_frames
from .segment import ListedColumns, Place, Segment, decode_columns, give_back, parse_name
from .writer import charged_bytes

__all__ = ["Recovered", "recover", "verify_record"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """What was found; ``damaged`` counts the segments that are not what they were written as."""

    segments: list[Segment] = field(default_factory=list)
    places: dict[StorageKey, int] = field(default_factory=dict)
    """Packed, of all residents as they were written."""
    sizes: dict[StorageKey, int] = field(default_factory=dict)
    """What they are charged."""
    expiries: dict[StorageKey, int] = field(default_factory=dict)
    """Of those that expire."""
    attributes: dict[StorageKey, bytes] = field(default_factory=dict)
    """Packed."""
    damaged: int = 0


def recover(directory: Path, disk: Disk) -> Recovered:
    """Open all segments in ``directory`` and read them. Raises :class:`OSError`."""
    found = Recovered()
    named = sorted((name, path) for path in directory.iterdir() if (name := parse_name(path.name)) is not None)
    for (sequence, seed), path in named:
        descriptor = disk.open(path)
        segment = Segment(path, len(found.segments), sequence, seed, descriptor, os.fstat(descriptor).st_size)
        segment.frames = _read_segment(disk, segment, found)
        if segment.frames:
            found.segments.append(segment)
            continue
        disk.close(descriptor)
        disk.unlink(segment.list_path)
        disk.unlink(path)
    held = {segment.list_path.name for segment in found.segments}
    for path in directory.glob("*.list"):
        if path.name not in held:
            disk.unlink(path)
    return found


def verify_record(disk: Disk, segment: Segment, entry: FrameEntry) -> None:
    """Read a record and its padding and verify every byte; :class:`InvalidData` for damage, :class:`OSError`."""
    if entry.info is None:
        raise ValueError("a tombstone has no record")
    head = bytearray(HEAD_BYTES)
    body = np.empty(entry.footprint_bytes - HEAD_BYTES, np.uint8).data
    read_bytes = disk.read(segment.descriptor, [head, body], entry.offset)
    if read_bytes != entry.footprint_bytes:
        raise InvalidData(f"record is cut off: {read_bytes} of {entry.footprint_bytes} bytes")
    payload = body[: entry.info.payload_bytes]
    header = parse_record_header(head[TOMBSTONE_BYTES:], record_bytes=HEADER_BYTES + len(payload))
    if header.info != entry.info:
        raise InvalidData("record is of another chunk than the index says")
    check_payload(header, payload)
    if bytes(body[len(payload) :]).strip(b"\0"):
        raise InvalidData("padding behind the record is not zero")


def _read_segment(disk: Disk, segment: Segment, found: Recovered) -> int:
    """Note what a segment holds; its frames. Where it has a list its ``entries`` are ``None`` from then on."""
    columns = None
    try:
        data = segment.list_path.read_bytes()
    except OSError:
        data = b""
    else:
        columns = decode_columns(data, segment.seed, segment.size_bytes)
        found.damaged += columns is None
    if columns is not None:
        _note_columns(segment, columns, found)
        segment.end = columns.end
        segment.entries = None
        give_back(disk, segment)
        return len(columns.keys)
    entries = _searched(disk, segment, found)
    segment.entries = entries
    segment.end = min(aligned(entries[-1].stop, BLOCK_BYTES), segment.size_bytes) if entries else 0
    give_back(disk, segment)
    for entry in entries:
        found.places.pop(entry.key, None)
        found.expiries.pop(entry.key, None)
        if entry.info is not None:
            if entry.info.expires_at_ms != NEVER:
                found.expiries[entry.key] = entry.info.expires_at_ms
            found.places[entry.key] = segment.place(entry).packed()
            found.sizes[entry.key] = charged_bytes(entry.footprint_bytes)
            found.attributes[entry.key] = pack_attributes(entry.key, entry.info.attributes)
    if entries:
        with suppress(OSError):  # a full disk: the entries stay in memory and are searched for again next time
            segment.write_list(disk)
    return len(entries)


def _note_columns(segment: Segment, columns: ListedColumns, found: Recovered) -> None:
    places, sizes, expiries = found.places, found.sizes, found.expiries
    rows = zip(
        columns.is_record,
        columns.keys,
        columns.places,
        columns.footprints_bytes,
        columns.expires_at_ms,
        columns.attributes,
        strict=True,
    )
    for is_record, data, packed, footprint_bytes, expires_at_ms, attributes in rows:
        key = StorageKey(data)
        places.pop(key, None)
        expiries.pop(key, None)
        if is_record:
            if expires_at_ms != NEVER:
                expiries[key] = expires_at_ms
            places[key] = Place.packed_in(segment.ordinal, packed)
            sizes[key] = charged_bytes(footprint_bytes)
            found.attributes[key] = attributes


def _searched(disk: Disk, segment: Segment, found: Recovered) -> list[FrameEntry]:
    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(min(length, segment.size_bytes - offset))
        return bytes(memoryview(buffer)[: disk.read(segment.descriptor, [buffer], offset)])

    entries: list[FrameEntry] = []
    stop = 0
    for entry in find_frames(read, segment.size_bytes, segment.seed):
        if entry.offset != stop:
            found.damaged += 1
            _log.warning("%s is damaged from %d to %d", segment.path.name, stop, entry.offset)
        stop = entry.stop
        try:
            if entry.info is not None:
                verify_record(disk, segment, entry)
        except InvalidData as error:
            _log.warning("%s: the record at %d was not written whole: %s", segment.path.name, entry.offset, error)
        else:
            entries.append(entry)
    return entries
