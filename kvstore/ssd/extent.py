"""What is written to a segment together: frames, one after the other, up to the end of a block."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...errors import InvalidData
from ..key import StorageKey
from ..record import HEADER_BYTES, check_payload, parse_record_header, seal_record_header
from ..tier import Buffer, RecordInfo
from .disk import Disk
from .frame import HEAD_BYTES, TOMBSTONE_BYTES, FrameEntry, FrameKind, aligned, encode_frame
from .segment import Segment

__all__ = ["BLOCK_BYTES", "Extent", "NewFrame", "Run", "extent_of", "has_room", "laid_out", "read_again", "runs"]

_log = logging.getLogger(__name__)
BLOCK_BYTES: Final = 4096
FRAME_BYTES_MEAN_MIN: Final = 2048
"""A segment has room for a frame per so many bytes, which bounds its list."""
BODY_FIRST_BYTES_MIN: Final = 1024 * 1024
"""Of a payload: from here on it is written before what stands in front of it, and checksummed while the disk writes."""
_ZEROS: Final = memoryview(bytes(BLOCK_BYTES))


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame to be written; a tombstone has no ``info``, no header and no payload.

    ``record_header`` is whole, or without its checksums: they are made when the record is written.
    """

    key: StorageKey
    info: RecordInfo | None = None
    record_header: bytes = b""
    payload: Buffer = b""

    @property
    def footprint_bytes(self) -> int:
        """What it takes of a segment, before the padding of what is written together."""
        return aligned(self.head_bytes + len(self.payload))

    @property
    def head_bytes(self) -> int:
        """What stands before the payload."""
        return TOMBSTONE_BYTES if self.info is None else HEAD_BYTES

    def sealed_header(self) -> bytes:
        """The header with its checksums; where they are not there yet all of the payload is read."""
        if self.info is None or len(self.record_header) == HEADER_BYTES:
            return self.record_header
        return seal_record_header(self.record_header, self.payload)


@dataclass(frozen=True, slots=True)
class Extent:
    """The next frames to be written, and the segment that has room for all of them."""

    segment: Segment
    frames: tuple[NewFrame, ...]


def has_room(segment: Segment, frame_bytes: int) -> bool:
    """Whether a frame of ``frame_bytes`` can still be written to ``segment``, and its list hold it."""
    listed = segment.frames < max(1, segment.size_bytes // FRAME_BYTES_MEAN_MIN)
    return listed and segment.size_bytes - segment.reach >= frame_bytes


def extent_of(segment: Segment, frames: Sequence[NewFrame]) -> Extent:
    """The first of ``frames``, for which there is room, and as many more as fit beside it."""
    free_bytes = segment.size_bytes - segment.reach
    free_frames = segment.size_bytes // FRAME_BYTES_MEAN_MIN - segment.frames
    fitting = 0
    while fitting < min(len(frames), free_frames) and frames[fitting].footprint_bytes <= free_bytes:
        free_bytes -= frames[fitting].footprint_bytes
        fitting += 1
    return Extent(segment, tuple(frames[: max(1, fitting)]))


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes that are written one after the other from ``offset`` of a segment."""

    offset: int
    buffers: list[Buffer]


def laid_out(segment: Segment, frames: Sequence[NewFrame]) -> list[FrameEntry]:
    """Where each frame comes to lie behind what was appended, the padding behind the last one included."""
    entries: list[FrameEntry] = []
    offset = segment.reach
    for number, frame in enumerate(frames, 1):
        kind = FrameKind.TOMBSTONE if frame.info is None else FrameKind.RECORD
        stop = offset + frame.footprint_bytes
        if number == len(frames):
            stop = aligned(stop, BLOCK_BYTES)
        entries.append(FrameEntry(kind, offset, stop - offset, frame.key, frame.info))
        offset = stop
    return entries


def runs(segment: Segment, frames: Sequence[NewFrame], entries: Sequence[FrameEntry]) -> Iterator[Run]:
    """What is written for the frames at ``entries``, each run made once those before it are written.

    The blocks that a large payload fills come first: the disk writes them while the payload is checksummed. No block is
    written twice.
    """
    run = Run(entries[0].offset, [])
    for frame, entry in zip(frames, entries, strict=True):
        start = entry.offset + frame.head_bytes
        payload = memoryview(frame.payload).cast("B")
        padding = _ZEROS[: entry.stop - start - len(payload)]
        is_large = len(payload) >= BODY_FIRST_BYTES_MIN
        split = -start % BLOCK_BYTES if is_large else len(payload)
        if is_large:
            yield Run(start + split, [payload[split:], padding])
        header = frame.sealed_header()
        head = encode_frame(
            entry.kind, frame.key, entry.footprint_bytes, header, seed=segment.seed, offset=entry.offset
        )
        run.buffers.extend((head, payload[:split]))
        if is_large:
            yield run
            run = Run(entry.stop, [])
        else:
            run.buffers.append(padding)
    if run.buffers:
        yield run


def read_again(disk: Disk, segment: Segment, entry: FrameEntry) -> NewFrame | None:
    """The record of ``entry`` as a frame to be written, ``None`` where it is damaged. Raises :class:`OSError`."""
    assert entry.info is not None  # noqa: S101 - only records are wanted
    head = bytearray(HEAD_BYTES)
    payload = np.empty(entry.info.payload_bytes, np.uint8).data
    disk.read(segment.descriptor, [head, payload], entry.offset)
    record_header = bytes(head[TOMBSTONE_BYTES:])
    try:
        header = parse_record_header(record_header, record_bytes=HEADER_BYTES + len(payload))
        check_payload(header, payload)
    except InvalidData as error:
        _log.warning("damaged record in %s at %d: %s", segment.path.name, entry.offset, error)
        return None
    return NewFrame(entry.key, header.info, record_header, payload) if header.info == entry.info else None
