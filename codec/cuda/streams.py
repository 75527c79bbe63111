"""Entropy encoding of a batch's main streams on the device, into rooms that grow where they must."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..segment import tables_of_classes
from ..segment_writer import SegmentPlan
from .device import Device, Staging, launch
from .jobs import ENCODE, ENCODED, ROW

__all__ = ["Stream", "code_streams"]

_NO_ROOM = 5
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Stream:
    """A main stream to code: addresses of the block's finest symbols, of its tokens' gains and of the tables.

    ``starts`` is where in the block's symbols the rows of each part start.
    """

    plan: SegmentPlan
    level: int
    left: int
    starts: Sequence[int]
    tokens: int
    symbols: int
    gains: int
    tables: int

    @property
    def count(self) -> int:
        """Symbols."""
        return len(self.plan.classes) * self.tokens

    @property
    def rows(self) -> NDArray[np.void]:
        """As the kernel wants them."""
        rows = np.empty(len(self.plan.classes), ROW)
        rows["table"] = tables_of_classes(self.plan.classes, self.left) * (1 if self.level == 0 else 2)
        pieces = [np.arange(at, at + count) for at, count in zip(self.starts, self.plan.active, strict=True)]
        rows["place"] = np.concatenate(pieces)
        return rows


def code_streams(device: Device, staging: Staging, streams: Sequence[Stream]) -> list[tuple[NDArray[np.int32], bytes]]:
    """The escapes and the bytes of every stream; those without symbols are empty."""
    found: dict[int, tuple[NDArray[np.int32], bytes]] = {}
    waiting = [index for index, stream in enumerate(streams) if stream.count]
    rows = {index: staging.add(streams[index].rows) for index in waiting}
    base = staging.send(device)
    # Half a byte per symbol is what hardly any stream exceeds; where one does, it gets all that it could need.
    for ample in (False, True):
        coded = _attempt(device, [streams[i] for i in waiting], [base + rows[i] for i in waiting], ample=ample)
        found |= {index: item for index, item in zip(waiting, coded, strict=True) if item is not None}
        waiting = [index for index in waiting if index not in found]
        if not waiting:
            break
    nothing = (np.zeros(0, np.int32), b"")
    return [found.get(index, nothing) for index in range(len(streams))]


def _rooms(stream: Stream, *, ample: bool) -> tuple[int, int]:
    """Bytes for words, and places for escapes: a symbol has a word at most, and one escape."""
    states = 4 * stream.plan.lanes
    words, escapes = 2 * stream.count, stream.count if stream.level == 0 else 0
    if not ample:
        words, escapes = min(words, stream.count // 2 + 256), min(escapes, stream.count // 64 + 64)
    return -(-(words + states) // _ALIGNMENT) * _ALIGNMENT, escapes


def _attempt(
    device: Device, streams: Sequence[Stream], rows: Sequence[int], *, ample: bool
) -> list[tuple[NDArray[np.int32], bytes] | None]:
    """The same for streams with symbols; None where the room was too small."""
    rooms = [_rooms(stream, ample=ample) for stream in streams]
    ends = [*accumulate((room for room, _ in rooms))]
    escape_ends = [*accumulate((room for _, room in rooms))]
    if not streams:
        return []
    data = device.xp.empty(ends[-1], np.uint8)
    escapes = device.xp.empty(max(escape_ends[-1], 1), np.int32)
    encoded = device.xp.zeros(len(streams) * ENCODED.itemsize, np.uint8)
    jobs = np.zeros(len(streams), ENCODE)
    for field in ("symbols", "gains", "tables", "tokens", "left"):
        jobs[field] = [getattr(stream, field) for stream in streams]
    jobs["rows"] = rows
    jobs["row_count"] = [len(stream.plan.classes) for stream in streams]
    jobs["lanes"] = [stream.plan.lanes for stream in streams]
    jobs["refining"] = [stream.level > 0 for stream in streams]
    jobs["data_room"], jobs["escape_room"] = np.array(rooms).T
    jobs["data"] = device.address(data) + np.array(ends, np.uint64) - jobs["data_room"]
    jobs["escapes"] = device.address(escapes) + 4 * (np.array(escape_ends, np.uint64) - jobs["escape_room"])
    jobs["encoded"] = device.address(encoded) + ENCODED.itemsize * np.arange(len(streams), dtype=np.uint64)
    sent = launch(device, "kvl_encode", jobs, 1)
    results = device.download(encoded).view(ENCODED)
    del sent
    bytes_of = _collect(device, data, ends, results["data_bytes"])
    escapes_of = _collect(device, escapes, escape_ends, results["escapes"])
    return [
        None if status == _NO_ROOM else (numbers.astype(np.int32), words.tobytes())
        for status, words, numbers in zip(results["status"], bytes_of, escapes_of, strict=True)
    ]


def _collect(device: Device, rooms: Any, ends: Sequence[int], used: NDArray[np.uint32]) -> list[NDArray[Any]]:
    """The last ``used`` items of every room, brought to the host in one copy."""
    pieces = [rooms[end - int(n) : end] for end, n in zip(ends, used, strict=True)]
    together = device.download(device.xp.concatenate(pieces))
    return np.split(together, np.cumsum(used)[:-1])
