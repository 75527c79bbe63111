"""The container: the bytes one chunk is stored and sent as. ``docs/FORMAT.md`` has the layout for strangers.

A container is a header and segments. One segment holds one (level, layer, K or V); segments stand level-major, so a
byte prefix that ends where a level ends *is* a coarser container, and any subset of segments (one level, a range of
layers) is a container again once :func:`select` has written it a header. The header carries the content key, so a
chunk can never be taken for another, and a checksum of every segment and of itself.

Nothing is allocated, followed or decoded before the count, offset or checksum that announces it has been verified.
Checksums are the first 8 bytes of BLAKE3: they find accidents. Forgery is prevented by who may write, not by them.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache

from blake3 import blake3

from .. import limits
from ..errors import (
    BodyTooLarge,
    ChunkTooLong,
    EmptyChunk,
    KeyMismatch,
    LevelNotStored,
    MalformedContainer,
    TruncatedBody,
)
from .layout import Layout
from .level import EXACT, LOSSY_LEVELS, Level

__all__ = [
    "UNKEYED",
    "ByteRange",
    "Container",
    "ContainerHeader",
    "ContainerWriter",
    "Kind",
    "Segment",
    "Selection",
    "join_layers",
    "parse_header",
    "select",
    "verify",
]

MAGIC = b"KVLC"
FORMAT = 1
UNKEYED = bytes(32)
"""The content key of a container made outside a store."""
NO_PROFILE = bytes(32)

_FIXED = struct.Struct("<4sHHIIIHBBII32s32s")
_ENTRY = struct.Struct("<BBHI8s")
_CHECKSUM_BYTES = 8
Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """Which of the two tensors of a layer a segment holds."""

    KEYS = 0
    VALUES = 1


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes ``[start, stop)``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Segment:
    """One entry of the segment table, with the offset its place in the table gives it."""

    level: Level
    kind: Kind
    layer: int
    offset: int
    length: int
    checksum: bytes

    @property
    def byte_range(self) -> ByteRange:
        """Where the segment lies in its container."""
        return ByteRange(self.offset, self.offset + self.length)


@dataclass(frozen=True, slots=True)
class ContainerHeader:
    """A verified header: every field is within its limit and the checksum holds."""

    content_key: bytes
    profile_digest: bytes
    layout: Layout
    tokens: int
    first_position: int
    sink_tokens: int
    segments: tuple[Segment, ...]
    header_bytes: int

    @property
    def total_bytes(self) -> int:
        """Length of the whole container."""
        return self.segments[-1].byte_range.stop if self.segments else self.header_bytes

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels whose segments are listed, coarse to fine, ``exact`` last."""
        return tuple(sorted({segment.level for segment in self.segments}))

    @property
    def layers(self) -> range:
        """The contiguous range of layers listed."""
        return range(self.segments[0].layer, self.segments[-1].layer + 1)

    def level_end(self, level: Level) -> int:
        """The offset at which ``level`` and all coarser lossy levels end."""
        ends = [segment.byte_range.stop for segment in self.segments if segment.level <= level]
        return max(ends, default=self.header_bytes)


@dataclass(frozen=True, slots=True)
class Selection:
    """A header of its own for some segments of a container, and where their bytes lie in the original."""

    header: bytes
    ranges: tuple[ByteRange, ...]
    segments: tuple[Segment, ...]

    @property
    def total_bytes(self) -> int:
        """Length of the container that the header and the ranges make together."""
        return len(self.header) + sum(item.length for item in self.ranges)


def checksum(data: Buffer) -> bytes:
    """First 8 bytes of BLAKE3-256."""
    return blake3(data).digest(length=_CHECKSUM_BYTES)


def parse_header(data: Buffer, *, declared_bytes: int | None = None) -> ContainerHeader:
    """Parse and verify the header at the start of ``data``, which may end anywhere after it.

    ``declared_bytes`` is the length of the whole container where it is known; it must then be the full length or end
    at a lossy level, and the header returned lists the segments that are really there. Raises
    :class:`MalformedContainer`, :class:`TruncatedBody`, :class:`EmptyChunk`, :class:`ChunkTooLong` or
    :class:`BodyTooLarge`.
    """
    view = memoryview(data)
    if len(view) < _FIXED.size:
        raise TruncatedBody(f"container has {len(view)} bytes, its fixed header needs {_FIXED.size}")
    (
        magic,
        form,
        flags,
        header_bytes,
        tokens,
        first_position,
        layers,
        levels,
        sinks,
        layout_bytes,
        count,
        key,
        profile,
    ) = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise MalformedContainer(f"container starts with {magic!r}, expected {MAGIC!r}")
    if form != FORMAT or flags != 0:
        raise MalformedContainer(
            f"container has format {form} and flags {flags}, this kvloom reads format {FORMAT}, flags 0"
        )
    if layout_bytes > limits.LAYOUT_BYTES_MAX or count > limits.SEGMENTS_MAX:
        raise MalformedContainer(
            f"container declares {layout_bytes} layout bytes and {count} segments, "
            f"the limits are {limits.LAYOUT_BYTES_MAX} and {limits.SEGMENTS_MAX}"
        )
    expected = _FIXED.size + layout_bytes + count * _ENTRY.size + _CHECKSUM_BYTES
    if header_bytes != expected:
        raise MalformedContainer(f"container declares a header of {header_bytes} bytes, its counts give {expected}")
    if len(view) < header_bytes:
        raise TruncatedBody(f"container has {len(view)} bytes, its header needs {header_bytes}")
    if checksum(view[: header_bytes - _CHECKSUM_BYTES]) != view[header_bytes - _CHECKSUM_BYTES : header_bytes]:
        raise MalformedContainer("container header does not match its checksum")
    _check_tokens(tokens, first_position, sinks)
    layout = _layout(bytes(view[_FIXED.size : _FIXED.size + layout_bytes]))
    if layers != len(layout.layers) or levels > limits.LOSSY_LEVELS_MAX:
        raise MalformedContainer(
            f"container declares {layers} layers and {levels} levels, its layout has {len(layout.layers)}"
        )
    segments = _segments(view, _FIXED.size + layout_bytes, count, header_bytes)
    _check_table(segments, len(layout.layers), levels)
    header = ContainerHeader(key, profile, layout, tokens, first_position, sinks, segments, header_bytes)
    if header.total_bytes > limits.CONTAINER_BYTES_MAX:
        raise BodyTooLarge(f"container declares {header.total_bytes} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
    if any(segment.level != EXACT for segment in segments) and profile == NO_PROFILE:
        raise MalformedContainer("container has lossy segments but names no profile")
    return header if declared_bytes is None else _cut(header, declared_bytes)


def verify(data: Buffer, *, content_key: bytes | None = None) -> ContainerHeader:
    """Parse ``data`` as one whole container (or a byte prefix that ends at a level) and check every segment.

    With ``content_key``, a container that names another key raises :class:`KeyMismatch`.
    """
    header = parse_header(data, declared_bytes=len(data))
    if content_key is not None and header.content_key != content_key:
        raise KeyMismatch(f"container is of chunk {header.content_key.hex()[:16]}…, not of {content_key.hex()[:16]}…")
    view = memoryview(data)
    for segment in header.segments:
        check_segment(segment, view[segment.offset : segment.offset + segment.length])
    return header


def check_segment(segment: Segment, data: Buffer) -> None:
    """Raise :class:`MalformedContainer` unless ``data`` is exactly the segment's bytes."""
    if len(data) != segment.length or checksum(data) != segment.checksum:
        place = f"level {segment.level}, layer {segment.layer}, {segment.kind.name.lower()}"
        raise MalformedContainer(f"segment ({place}) does not match its checksum")


def select(header: ContainerHeader, *, level: Level | None = None, layers: range | None = None) -> Selection:
    """Choose the segments that ``level`` (lossy: it and all coarser; default: everything) of ``layers`` need.

    Raises :class:`LevelNotStored` where that level is not there, :class:`MalformedContainer` for layers outside.
    """
    if level is not None and level not in header.levels:
        stored = ", ".join(item.name for item in header.levels) or "none"
        raise LevelNotStored(f"level {level} is not stored for this chunk; stored: {stored}")
    if layers is not None and (not layers or layers[0] < header.layers[0] or layers[-1] > header.layers[-1]):
        raise MalformedContainer(
            f"layers {layers.start}-{layers.stop - 1} asked for, the container has "
            f"{header.layers[0]}-{header.layers[-1]}"
        )
    chosen = [
        segment
        for segment in header.segments
        if (layers is None or segment.layer in layers) and _belongs(segment.level, level)
    ]
    ranges: list[ByteRange] = []
    for segment in chosen:
        if ranges and ranges[-1].stop == segment.offset:
            ranges[-1] = ByteRange(ranges[-1].start, segment.byte_range.stop)
        else:
            ranges.append(segment.byte_range)
    return Selection(_write_header(header, chosen), tuple(ranges), tuple(chosen))


def join_layers(parts: Sequence[Buffer]) -> bytes:
    """Join containers of one chunk, each holding consecutive layers at the same levels, into one (level-major)."""
    headers = [parse_header(part, declared_bytes=len(part)) for part in parts]
    writer = ContainerWriter(
        headers[0].layout,
        tokens=headers[0].tokens,
        first_position=headers[0].first_position,
        sink_tokens=headers[0].sink_tokens,
        content_key=headers[0].content_key,
        profile_digest=headers[0].profile_digest,
    )
    for header, part in zip(headers, parts, strict=True):
        if replace(header, segments=(), header_bytes=0) != replace(headers[0], segments=(), header_bytes=0):
            raise MalformedContainer("the containers to join are not of one chunk")
        view = memoryview(part)
        for segment in header.segments:
            check_segment(segment, view[segment.offset : segment.offset + segment.length])
            writer.put(
                segment.level, segment.layer, segment.kind, bytes(view[segment.offset : segment.byte_range.stop])
            )
    return writer.commit()


@dataclass(frozen=True, slots=True)
class Container:
    """A verified container in memory; ``data`` is borrowed, not copied."""

    header: ContainerHeader
    data: memoryview

    @classmethod
    def parse(cls, data: Buffer, *, content_key: bytes | None = None) -> "Container":
        """Verify ``data`` whole (see :func:`verify`)."""
        return cls(verify(data, content_key=content_key), memoryview(data))

    def segment(self, level: Level, layer: int, kind: Kind) -> memoryview:
        """The bytes of one segment; :class:`LevelNotStored` where it is not there."""
        for item in self.header.segments:
            if item.level == level and item.layer == layer and item.kind == kind:
                return self.data[item.offset : item.byte_range.stop]
        raise LevelNotStored(f"layer {layer} is not stored at level {level}")

    def truncate(self, level: Level) -> bytes:
        """The container cut down to ``level`` (lossy: with all coarser levels; ``exact``: alone)."""
        selection = select(self.header, level=level)
        return b"".join([selection.header, *(bytes(self.data[r.start : r.stop]) for r in selection.ranges)])


class ContainerWriter:
    """Collects segments in any order (a prefill streams layer by layer) and writes them level-major on commit."""

    def __init__(
        self,
        layout: Layout,
        *,
        tokens: int,
        first_position: int,
        sink_tokens: int = 0,
        content_key: bytes = UNKEYED,
        profile_digest: bytes = NO_PROFILE,
    ) -> None:
        _check_tokens(tokens, first_position, sink_tokens)
        self._header = ContainerHeader(content_key, profile_digest, layout, tokens, first_position, sink_tokens, (), 0)
        self._payloads: dict[tuple[Level, int, Kind], bytes] = {}

    def put(self, level: Level, layer: int, kind: Kind, payload: bytes) -> None:
        """Add the bytes of one segment; each may be put once."""
        place = (level, layer, kind)
        if place in self._payloads:
            raise MalformedContainer(f"segment (level {level}, layer {layer}, {kind.name.lower()}) was put twice")
        self._payloads[place] = payload

    def commit(self) -> bytes:
        """Write the container; a missing segment raises :class:`MalformedContainer`."""
        places = sorted(self._payloads)
        segments = [
            Segment(
                level,
                kind,
                layer,
                0,
                len(self._payloads[level, layer, kind]),
                checksum(self._payloads[level, layer, kind]),
            )
            for level, layer, kind in places
        ]
        lossy = {segment.level for segment in segments} - {EXACT}
        _check_table(tuple(segments), len(self._header.layout.layers), len(lossy))
        data = b"".join([_write_header(self._header, segments), *(self._payloads[place] for place in places)])
        if len(data) > limits.CONTAINER_BYTES_MAX:
            raise BodyTooLarge(f"container has {len(data)} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
        return data


def _belongs(stored: Level, asked: Level | None) -> bool:
    if asked is None or stored == asked:
        return True
    return asked != EXACT and stored != EXACT and stored <= asked


def _check_tokens(tokens: int, first_position: int, sink_tokens: int) -> None:
    if tokens == 0:
        raise EmptyChunk("chunk has 0 tokens, at least 1 is needed")
    if tokens > limits.CHUNK_TOKENS_MAX:
        raise ChunkTooLong(f"chunk has {tokens} tokens, the limit is {limits.CHUNK_TOKENS_MAX}")
    if not 0 <= first_position <= limits.POSITION_MAX - tokens:
        raise MalformedContainer(f"first position is {first_position}, the limit is {limits.POSITION_MAX - tokens}")
    if sink_tokens > min(tokens, limits.SINK_TOKENS_MAX):
        raise MalformedContainer(
            f"{sink_tokens} sink tokens in a chunk of {tokens}, the limit is {limits.SINK_TOKENS_MAX}"
        )


def _segments(view: memoryview, start: int, count: int, offset: int) -> tuple[Segment, ...]:
    levels = {level.code: level for level in (*LOSSY_LEVELS, EXACT)}
    segments: list[Segment] = []
    for level_code, kind, layer, length, digest in _ENTRY.iter_unpack(view[start : start + count * _ENTRY.size]):
        level = levels.get(level_code)
        if level is None or kind not in (0, 1):
            raise MalformedContainer(
                f"segment {len(segments)} has level code {level_code} and kind {kind}, neither is known"
            )
        segments.append(Segment(level, Kind(kind), layer, offset, length, digest))
        offset += length
    return tuple(segments)


def _check_table(segments: tuple[Segment, ...], layer_count: int, lossy_levels: int) -> None:
    """Segments must stand in order, be complete for a contiguous range of layers, and skip no coarser level."""
    if not segments:
        raise MalformedContainer("container has no segments")
    first, last = segments[0].layer, segments[-1].layer
    if not 0 <= first <= last < layer_count:
        raise MalformedContainer(f"segments are of layers {first} to {last}, the layout has {layer_count}")
    levels = sorted({segment.level for segment in segments})
    lossy = [level for level in levels if level != EXACT]
    if lossy != list(LOSSY_LEVELS[: len(lossy)]) or len(lossy) != lossy_levels:
        raise MalformedContainer(
            f"container holds lossy levels {[str(level) for level in lossy]}, declares {lossy_levels}"
        )
    expected = ((level, layer, kind) for level in levels for layer in range(first, last + 1) for kind in Kind)
    found = [(segment.level, segment.layer, segment.kind) for segment in segments]
    if found != list(expected):
        raise MalformedContainer("segments are missing, doubled or out of order")


def _cut(header: ContainerHeader, present_bytes: int) -> ContainerHeader:
    if present_bytes == header.total_bytes:
        return header
    for level in header.levels:
        if level != EXACT and present_bytes == header.level_end(level):
            return replace(header, segments=tuple(item for item in header.segments if item.level <= level))
    raise TruncatedBody(
        f"container has {present_bytes} bytes, its header declares {header.total_bytes} and no level ends there"
    )


def _write_header(header: ContainerHeader, segments: Iterable[Segment]) -> bytes:
    entries = [_ENTRY.pack(item.level.code, item.kind, item.layer, item.length, item.checksum) for item in segments]
    lossy = {item.level for item in segments} - {EXACT}
    layout = header.layout.to_bytes()
    size = _FIXED.size + len(layout) + len(entries) * _ENTRY.size + _CHECKSUM_BYTES
    body = b"".join(
        [
            _FIXED.pack(
                MAGIC,
                FORMAT,
                0,
                size,
                header.tokens,
                header.first_position,
                len(header.layout.layers),
                len(lossy),
                header.sink_tokens,
                len(layout),
                len(entries),
                header.content_key,
                header.profile_digest,
            ),
            layout,
            *entries,
        ]
    )
    return body + checksum(body)


_layout: Callable[[bytes], Layout] = lru_cache(maxsize=64)(Layout.from_bytes)
