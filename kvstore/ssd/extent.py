"""What is written to a segment together: frames, one after the other, up to the end of a block."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...errors import InvalidData
from ..key import StorageKey
from ..record import HEADER_BYTES, check_payload, parse_record_header
from ..tier import Buffer, RecordInfo
from .disk import Disk
from .frame import HEAD_BYTES, TOMBSTONE_BYTES, FrameEntry, FrameKind, aligned, encode_frame
from .segment import Segment

__all__ = ["BLOCK_BYTES", "Extent", "NewFrame", "extent_of", "has_room", "laid_out", "read_again"]

_log = logging.getLogger(__name__)
BLOCK_BYTES: Final = 4096
FRAME_BYTES_MEAN_MIN: Final = 2048
"""A segment has room for a frame per so many bytes, which bounds its list."""
_ZEROS: Final = memoryview(bytes(BLOCK_BYTES))


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame to be written; a tombstone has neither ``info``, header nor payload."""

    key: StorageKey
    info: RecordInfo | None = None
    record_header: bytes = b""
    payload: Buffer = b""

    @property
    def footprint_bytes(self) -> int:
        """What it takes of a segment, before the padding of what is written together."""
        return aligned(TOMBSTONE_BYTES + len(self.record_header) + len(self.payload))


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


def laid_out(segment: Segment, frames: Sequence[NewFrame]) -> tuple[list[FrameEntry], list[Buffer]]:
    """Where each frame comes to lie, and what is written behind what was, padding included."""
    entries: list[FrameEntry] = []
    buffers: list[Buffer] = []
    offset = segment.reach
    for number, frame in enumerate(frames, 1):
        kind = FrameKind.TOMBSTONE if frame.info is None else FrameKind.RECORD
        stop = offset + frame.footprint_bytes
        if number == len(frames):
            stop = aligned(stop, BLOCK_BYTES)
        head = encode_frame(kind, frame.key, stop - offset, frame.record_header, seed=segment.seed, offset=offset)
        padding_bytes = stop - offset - len(head) - len(frame.payload)
        buffers += [head, frame.payload] if len(frame.payload) else [head]
        if padding_bytes:
            buffers.append(_ZEROS[:padding_bytes])
        entries.append(FrameEntry(kind, offset, stop - offset, frame.key, frame.info))
        offset = stop
    return entries, buffers


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
