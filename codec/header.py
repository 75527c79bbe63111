"""The container's header: its fields, its segment table, and the checks that make every one of them safe to follow.

Nothing is allocated, followed or decoded before the count, offset or checksum that announces it has been verified.
Checksums are the first 8 bytes of BLAKE3: they find accidents. Forgery is prevented by who may write, not by them.
``docs/FORMAT.md`` has the layout for strangers.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Final, NamedTuple

import zstandard
from blake3 import blake3

from .. import limits
from ..errors import BodyTooLarge, ChunkTooLong, EmptyChunk, MalformedContainer, TruncatedBody
from .frame import unpack_frame
from .layout import Kind, Layout
from .level import EXACT, LOSSY_LEVELS, Level, LossyCodec

__all__ = [
    "NO_PROFILE",
    "UNKEYED",
    "Buffer",
    "ByteRange",
    "ContainerHeader",
    "Kind",
    "Segment",
    "check_table",
    "check_tokens",
    "checksum",
    "generic_digest",
    "header_slice",
    "named_key",
    "parse_header",
    "write_header",
]

MAGIC = b"KVLC"
FORMAT = 2
UNKEYED = bytes(32)
"""The content key of a container made outside a store."""
NO_PROFILE = bytes(32)

_FIXED = struct.Struct("<4sHHIIIHBBII32s32s")
_CACHEGEN_FLAG = 1
_BLOCK_KIND = 2
_ENTRY = struct.Struct("<BBHI8s")
_ENTRY_CONTENT = struct.Struct("<4xI8s")
_CHECKSUM_BYTES = 8
_GENERIC_NAME = b"kvloom generic profile 4"
Buffer = bytes | bytearray | memoryview
_KINDS = tuple(Kind)
_LEVEL_OF = attrgetter("level")
_HEADER_LENGTH = slice(8, 12)
_CONTENT_KEY = slice(32, 64)
_EXACT_PLACES: dict[tuple[int, int], tuple[Level, Kind | None]] = {
    (EXACT.code, kind.value): (EXACT, kind) for kind in Kind
}
_BLOCK_PLACES = _EXACT_PLACES | {(level.code, _BLOCK_KIND): (level, None) for level in LOSSY_LEVELS}
_CACHEGEN_PLACES = _EXACT_PLACES | {(level.code, kind.value): (level, kind) for level in LOSSY_LEVELS for kind in Kind}


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes ``[start, stop)``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


class Segment(NamedTuple):
    """One entry of the segment table, with the offset its place in the table gives it. A tuple: made sixty at a time.

    A lossy segment is a block's: keys and values (``kind`` None) of the block's layers, ``layer`` the first of them. An
    ``exact`` segment is one layer's keys or values, and so is a lossy one of CacheGen.
    """

    level: Level
    kind: Kind | None
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
    """A verified header: every field is within its limit and the checksum holds.

    ``codec`` is that of the lossy levels, ``kvloom`` where there are none.
    """

    content_key: bytes
    profile_digest: bytes
    layout: Layout
    tokens: int
    first_position: int
    block_layers: int
    segments: tuple[Segment, ...]
    header_bytes: int
    codec: LossyCodec = LossyCodec.KVLOOM

    @property
    def total_bytes(self) -> int:
        """Length of the whole container."""
        return self.segments[-1].byte_range.stop if self.segments else self.header_bytes

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels whose segments are listed, coarse to fine, ``exact`` last."""
        # They stand level-major, and hashing sixty levels takes ten times as long.
        return tuple(level for level, _ in groupby(self.segments, _LEVEL_OF))

    @property
    def layers(self) -> range:
        """The contiguous range of layers listed."""
        last = self.segments[-1]
        if last.kind is None:
            return range(self.segments[0].layer, min(last.layer + self.block_layers, len(self.layout.layers)))
        return range(self.segments[0].layer, last.layer + 1)

    def whole_blocks(self, layers: range) -> range:
        """``layers`` widened to whole blocks: what has to be read for them where there are lossy segments."""
        if not self.block_layers:
            return layers
        stop = -(-layers.stop // self.block_layers) * self.block_layers
        return range(layers.start // self.block_layers * self.block_layers, min(stop, len(self.layout.layers)))

    def level_end(self, level: Level) -> int:
        """The offset at which ``level`` and all coarser lossy levels end."""
        ends = [segment.byte_range.stop for segment in self.segments if segment.level <= level]
        return max(ends, default=self.header_bytes)


def named_key(data: Buffer) -> bytes:
    """The content key in the header at the start of ``data``, which nobody has verified; short where the data is."""
    return bytes(memoryview(data)[_CONTENT_KEY])


def header_slice(data: Buffer) -> memoryview:
    """The bytes that the header at the start of ``data`` says it has; nobody has verified that, or them."""
    view = memoryview(data)
    return view[: int.from_bytes(view[_HEADER_LENGTH], "little")]


def generic_digest(layout: Layout) -> bytes:
    """The name of the generic profile of ``layout``, which both ends make themselves: of what it is made from."""
    return blake3(_GENERIC_NAME + layout.to_bytes()).digest()


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
        block_layers,
        layout_bytes,
        count,
        key,
        profile,
    ) = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise MalformedContainer(f"container starts with {magic!r}, expected {MAGIC!r}")
    if form != FORMAT or flags & ~_CACHEGEN_FLAG:
        raise MalformedContainer(
            f"container has format {form} and flags {flags}, this kvloom reads format {FORMAT}, flags 0 and 1"
        )
    codec = LossyCodec.CACHEGEN if flags & _CACHEGEN_FLAG else LossyCodec.KVLOOM
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
    check_tokens(tokens, first_position)
    table_start = _FIXED.size + layout_bytes
    packed, table = bytes(view[_FIXED.size : table_start]), bytes(view[table_start : header_bytes - _CHECKSUM_BYTES])
    layout = _layout(packed)
    if layers != len(layout.layers) or levels > limits.LOSSY_LEVELS_MAX:
        raise MalformedContainer(
            f"container declares {layers} layers and {levels} levels, its layout has {len(layout.layers)}"
        )
    shape = _shape(tuple(table[start :: _ENTRY.size] for start in range(4)), packed, levels, block_layers, codec)
    segments = _segments(table, shape, layout, header_bytes)
    header = ContainerHeader(key, profile, layout, tokens, first_position, block_layers, segments, header_bytes, codec)
    if header.total_bytes > limits.CONTAINER_BYTES_MAX:
        raise BodyTooLarge(f"container declares {header.total_bytes} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
    if profile == NO_PROFILE and shape.lossy:
        raise MalformedContainer("container has lossy segments but names no profile")
    return header if declared_bytes is None else _cut(header, declared_bytes)


def check_tokens(tokens: int, first_position: int) -> None:
    """Raise :class:`EmptyChunk`, :class:`ChunkTooLong` or :class:`MalformedContainer` for counts out of bounds."""
    if tokens < 1:
        raise EmptyChunk(f"chunk has {tokens} tokens, at least 1 is needed")
    if tokens > limits.CHUNK_TOKENS_MAX:
        raise ChunkTooLong(f"chunk has {tokens} tokens, the limit is {limits.CHUNK_TOKENS_MAX}")
    if not 0 <= first_position <= limits.POSITION_MAX - tokens:
        raise MalformedContainer(f"first position is {first_position}, the limit is {limits.POSITION_MAX - tokens}")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What stands where in a segment table, which is alike for all chunks of a model: checked, lengths apart."""

    levels: tuple[Level, ...]
    kinds: tuple[Kind | None, ...]
    layers: tuple[int, ...]
    widthless: tuple[int, ...]
    """The segments of what their layer does not have: nobody would ever read them, so they take no bytes."""
    lossy: bool


def _new_shape(
    columns: tuple[bytes, ...], packed_layout: bytes, lossy_levels: int, block_layers: int, codec: LossyCodec
) -> _Shape:
    """Of the first four bytes of each entry, by columns; raises :class:`MalformedContainer`."""
    layout = _layout(packed_layout)
    known = _CACHEGEN_PLACES if codec is LossyCodec.CACHEGEN else _BLOCK_PLACES
    segments: list[Segment] = []
    for level_code, kind_code, low, high in zip(*columns, strict=True):
        place = known.get((level_code, kind_code))
        if place is None:
            raise MalformedContainer(
                f"segment {len(segments)} has level code {level_code} and kind {kind_code}, neither is known"
            )
        segments.append(Segment(*place, low | high << 8, 0, 0, b""))
    check_table(segments, len(layout.layers), lossy_levels, block_layers, codec)
    levels, kinds, layers, *_ = zip(*segments, strict=True)
    places = enumerate(zip(kinds, layers, strict=True))
    widthless = tuple(
        index for index, (kind, layer) in places if kind is not None and not layout.layers[layer].width_of(kind)
    )
    return _Shape(levels, kinds, layers, widthless, any(level != EXACT for level in levels))


_shape: Callable[..., _Shape] = lru_cache(maxsize=64)(_new_shape)
_new_segment: Final[Callable[[tuple[object, ...]], Segment]] = partial(tuple.__new__, Segment)
"""Of its fields, in C: a chunk has sixty segments and more."""


def _segments(table: bytes, shape: _Shape, layout: Layout, offset: int) -> tuple[Segment, ...]:
    """The entries of ``table``, the first of whose segments lies at ``offset``."""
    lengths, checksums = zip(*_ENTRY_CONTENT.iter_unpack(table), strict=True)
    for index in shape.widthless:
        if lengths[index]:
            what = _KINDS[shape.kinds[index] or 0].name.lower()
            raise MalformedContainer(f"layer {shape.layers[index]} has no {what} but {lengths[index]} bytes of them")
    offsets = accumulate(lengths[:-1], initial=offset)
    fields = zip(shape.levels, shape.kinds, shape.layers, offsets, lengths, checksums, strict=True)
    return tuple(map(_new_segment, fields))


def check_table(
    segments: Sequence[Segment],
    layer_count: int,
    lossy_levels: int,
    block_layers: int,
    codec: LossyCodec = LossyCodec.KVLOOM,
) -> None:
    """Segments must stand in order, be complete for a contiguous range of layers, and lack no level another needs."""
    if not segments:
        raise MalformedContainer("container has no segments")
    levels = sorted({segment.level for segment in segments})
    lossy = [level for level in levels if level != EXACT]
    missing = {needed for level in lossy for needed in codec.needed_for(level)} - set(lossy)
    if missing or len(lossy) != lossy_levels:
        raise MalformedContainer(
            f"container holds lossy levels {[str(level) for level in lossy]}, declares {lossy_levels}"
        )
    cachegen = codec is LossyCodec.CACHEGEN
    if cachegen and not lossy:
        raise MalformedContainer("container is marked as CacheGen's and has no lossy level")
    if (block_layers > 0) != (bool(lossy) and not cachegen) or block_layers > layer_count:
        raise MalformedContainer(f"container has blocks of {block_layers} layers, {len(lossy)} lossy levels")
    first, last = segments[0].layer, segments[-1].layer
    stop = min(last + block_layers, layer_count) if segments[-1].kind is None else last + 1
    if not 0 <= first < stop <= layer_count:
        raise MalformedContainer(f"segments are of layers {first} to {stop - 1}, the layout has {layer_count}")
    if block_layers and (first % block_layers or (stop % block_layers and stop != layer_count)):
        raise MalformedContainer(f"layers {first} to {stop - 1} are not whole blocks of {block_layers}")
    expected: list[tuple[Level, int, Kind | None]] = []
    for level in levels:
        if level == EXACT or cachegen:
            expected += [(level, layer, kind) for layer in range(first, stop) for kind in _KINDS]
        else:
            expected += [(level, layer, None) for layer in range(first, stop, block_layers)]
    found = [(segment.level, segment.layer, segment.kind) for segment in segments]
    if found != expected:
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


def write_header(header: ContainerHeader, segments: Sequence[Segment]) -> bytes:
    """The bytes of a header like ``header`` whose table lists ``segments``; offsets follow from the lengths."""
    entries = [
        _ENTRY.pack(
            item.level.code,
            _BLOCK_KIND if item.kind is None else item.kind,
            item.layer,
            item.length,
            item.checksum,
        )
        for item in segments
    ]
    lossy = {item.level for item in segments} - {EXACT}
    layout = _packed_layout(header.layout)
    size = _FIXED.size + len(layout) + len(entries) * _ENTRY.size + _CHECKSUM_BYTES
    body = b"".join(
        [
            _FIXED.pack(
                MAGIC,
                FORMAT,
                _CACHEGEN_FLAG if lossy and header.codec is LossyCodec.CACHEGEN else 0,
                size,
                header.tokens,
                header.first_position,
                len(header.layout.layers),
                len(lossy),
                header.block_layers if lossy else 0,
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


@lru_cache(maxsize=64)
def _packed_layout(layout: Layout) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(layout.to_bytes())


def _unpack_layout(packed: bytes) -> Layout:
    return Layout.from_bytes(
        unpack_frame(packed, bytes_max=limits.LAYOUT_BYTES_MAX, what="layout", error=MalformedContainer)
    )


_layout: Callable[[bytes], Layout] = lru_cache(maxsize=64)(_unpack_layout)
