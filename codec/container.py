"""The container: the bytes one chunk is stored and sent as. ``docs/FORMAT.md`` has the layout for strangers.

A container is a header and segments. One segment holds one (level, layer, K or V) or one (level, block of layers);
segments stand level-major, so a byte prefix that ends where a level ends *is* a coarser container, and any subset of
segments (one level, a range of layers) is a container again once :func:`select` has written it a header. The header
carries the content key, so a chunk can never be taken for another, and a checksum of every segment and of itself.

Here is what is done with whole containers: verify, write, select, join. The bytes of a header are in :mod:`.header`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import limits
from ..errors import BodyTooLarge, KeyMismatch, LevelNotStored, MalformedContainer
from .header import (
    NO_PROFILE,
    UNKEYED,
    Buffer,
    ByteRange,
    ContainerHeader,
    Kind,
    Segment,
    check_table,
    check_tokens,
    checksum,
    generic_digest,
    header_slice,
    parse_header,
    write_header,
)
from .layout import Layout
from .level import EXACT, Level, LossyCodec, require_level

__all__ = [
    "NO_PROFILE",
    "UNKEYED",
    "Buffer",
    "ByteRange",
    "Container",
    "ContainerHeader",
    "ContainerWriter",
    "Kind",
    "Segment",
    "Selection",
    "check_segment",
    "checksum",
    "generic_digest",
    "header_slice",
    "join_layers",
    "parse_header",
    "select",
    "verify",
]


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


def verify(data: Buffer, *, content_key: bytes | None = None, header: ContainerHeader | None = None) -> ContainerHeader:
    """Parse ``data`` as one whole container (or a byte prefix that ends at a level) and check every segment.

    With ``content_key``, a container that names another key raises :class:`KeyMismatch`. ``header`` is what parsing
    ``data`` with its length declared has given already.
    """
    if header is None:
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
        place = _describe(segment.level, segment.layer, segment.kind)
        raise MalformedContainer(f"segment ({place}) does not match its checksum")


def select(header: ContainerHeader, *, level: Level | None = None, layers: range | None = None) -> Selection:
    """Choose the segments that decoding ``level`` (default: everything) of ``layers`` (default: all) takes.

    A lossy level takes all coarser ones too, but CacheGen's stand alone.

    Lossy segments hold blocks of layers: with them, ``layers`` are widened to whole blocks.
    Raises :class:`LevelNotStored` where that level is not there, :class:`MalformedContainer` for layers outside.
    """
    if level is not None:
        require_level(level, header.levels)
    if layers is not None and not (
        layers.step == 1 and header.layers.start <= layers.start < layers.stop <= header.layers.stop
    ):
        raise MalformedContainer(
            f"layers {layers.start}-{layers.stop - 1} (step {layers.step}) asked for, the container has "
            f"{header.layers[0]}-{header.layers[-1]}"
        )
    needed = header.levels if level is None else header.codec.needed_for(level)
    chosen = [segment for segment in header.segments if segment.level in needed]
    if layers is not None:
        lossy = any(segment.kind is None for segment in chosen)
        wanted = header.whole_blocks(layers) if lossy else layers
        chosen = [segment for segment in chosen if segment.layer in wanted]
    ranges: list[ByteRange] = []
    for segment in chosen:
        if ranges and ranges[-1].stop == segment.offset:
            ranges[-1] = ByteRange(ranges[-1].start, segment.byte_range.stop)
        else:
            ranges.append(segment.byte_range)
    return Selection(write_header(header, chosen), tuple(ranges), tuple(chosen))


def join_layers(parts: Sequence[Buffer]) -> bytes:
    """Join containers of one chunk, each holding consecutive layers at the same levels, into one (level-major)."""
    if not parts:
        raise MalformedContainer("no containers to join")
    headers = [parse_header(part, declared_bytes=len(part)) for part in parts]
    writer = ContainerWriter.like(headers[0])
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

    def segment(self, level: Level, layer: int, kind: Kind | None = None) -> memoryview:
        """The bytes of one segment (``kind`` None: of the block that starts at ``layer``).

        :class:`LevelNotStored` where it is not there.
        """
        wanted = _order(level, layer, kind)
        segments = self.header.segments
        index = bisect_left(segments, wanted, key=_place)
        if index == len(segments) or _place(segments[index]) != wanted:
            raise LevelNotStored(f"layer {layer} is not stored at level {level}")
        found = segments[index]
        return self.data[found.offset : found.byte_range.stop]

    def blocks(self, levels: Sequence[Level], starts: Sequence[int]) -> list[list[memoryview]]:
        """As :meth:`segment`, of the blocks that start at ``starts``, each at all of ``levels``."""
        found = {(item.level.code, item.layer): item for item in self.header.segments if item.kind is None}
        payloads: list[list[memoryview]] = []
        for start in starts:
            own = [found.get((level.code, start)) for level in levels]
            payloads.append([])
            for level, item in zip(levels, own, strict=True):
                if item is None:
                    raise LevelNotStored(f"layer {start} is not stored at level {level}")
                payloads[-1].append(self.data[item.offset : item.offset + item.length])
        return payloads

    def truncate(self, level: Level) -> bytes:
        """The container cut down to ``level``: with all coarser ones, but ``exact`` and CacheGen's levels alone."""
        selection = select(self.header, level=level)
        return b"".join([selection.header, *(bytes(self.data[r.start : r.stop]) for r in selection.ranges)])


def _place(segment: Segment) -> tuple[int, int, int]:
    """What segments are sorted by."""
    return _order(segment.level, segment.layer, segment.kind)


def _order(level: Level, layer: int, kind: Kind | None) -> tuple[int, int, int]:
    return level.code, layer, -1 if kind is None else kind


def _describe(level: Level, layer: int, kind: Kind | None) -> str:
    return f"level {level}, layer {layer}, {'block' if kind is None else kind.name.lower()}"


class ContainerWriter:
    """Collects segments in any order (a prefill streams layer by layer) and writes them level-major on commit."""

    def __init__(
        self,
        layout: Layout,
        *,
        tokens: int,
        first_position: int,
        block_layers: int = 0,
        content_key: bytes = UNKEYED,
        profile_digest: bytes = NO_PROFILE,
        codec: LossyCodec = LossyCodec.KVLOOM,
    ) -> None:
        check_tokens(tokens, first_position)
        for name, digest in (("content key", content_key), ("profile digest", profile_digest)):
            if len(digest) != len(UNKEYED):
                raise MalformedContainer(f"{name} has {len(digest)} bytes, must have {len(UNKEYED)}")
        self._header = ContainerHeader(
            content_key, profile_digest, layout, tokens, first_position, block_layers, (), 0, codec
        )
        self._payloads: dict[tuple[Level, int, Kind | None], bytes] = {}

    @classmethod
    def like(cls, header: ContainerHeader) -> "ContainerWriter":
        """A writer of a container that says of itself what ``header`` says, but for its segments."""
        return cls(
            header.layout,
            tokens=header.tokens,
            first_position=header.first_position,
            block_layers=header.block_layers,
            content_key=header.content_key,
            profile_digest=header.profile_digest,
            codec=header.codec,
        )

    def put(self, level: Level, layer: int, kind: Kind | None, payload: bytes) -> None:
        """Add the bytes of one segment (``kind`` None: of the block that starts at ``layer``), each once."""
        place = (level, layer, kind)
        if place in self._payloads:
            raise MalformedContainer(f"segment ({_describe(level, layer, kind)}) was put twice")
        self._payloads[place] = payload

    def commit(self) -> bytes:
        """Write the container; a missing segment, or lossy ones and no profile, raise :class:`MalformedContainer`."""
        payloads = sorted(self._payloads.items(), key=lambda item: _order(*item[0]))
        segments = [
            Segment(level, kind, layer, 0, len(payload), checksum(payload))
            for (level, layer, kind), payload in payloads
        ]
        lossy = {segment.level for segment in segments} - {EXACT}
        check_table(
            segments,
            len(self._header.layout.layers),
            len(lossy),
            self._header.block_layers if lossy else 0,
            self._header.codec if lossy else LossyCodec.KVLOOM,
        )
        if lossy and self._header.profile_digest == NO_PROFILE:
            raise MalformedContainer("container has lossy segments but names no profile")
        total = sum(segment.length for segment in segments)
        if total > limits.CONTAINER_BYTES_MAX:
            raise BodyTooLarge(f"container has {total} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
        header = write_header(self._header, segments)
        if len(header) + total > limits.CONTAINER_BYTES_MAX:
            raise BodyTooLarge(f"container has {len(header) + total} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
        return b"".join([header, *(payload for _, payload in payloads)])
