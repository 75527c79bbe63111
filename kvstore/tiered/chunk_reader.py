"""Reading one chunk out of one copy of it: the header first, then only the ranges needed, all of it verified."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from ... import limits
from ...codec.container import (
    ByteRange,
    ContainerHeader,
    Selection,
    check_segment,
    header_slice,
    parse_header,
    select,
    verify,
)
from ...codec.level import Level
from ...errors import InvalidData, InvalidRequest, KvloomError, MalformedContainer, TruncatedBody
from ...tracing import traced_async
from ..concurrency import run_sized
from ..key import ContentKey, StorageKey
from ..outcome import Corrupt, Hit, Outcome, Unavailable
from ..sharing import word_sum
from ..tier import Buffer, RecordInfo, Slice

__all__ = [
    "ChunkHead",
    "ChunkRead",
    "Copy",
    "is_sound",
    "read_chunk",
    "read_head",
    "read_whole",
    "select_asked",
    "verified_header",
]

_HEAD_BYTES = 16 * 1024
_SUM_HERE_BYTES_MAX: Final = 8 * 1024 * 1024
"""A word sum of so much takes about as long as handing it to a thread and back does."""
_HEADERS_KEPT: Final = 64
_KEPT_HEADER_BYTES_MAX: Final = 4 * 1024
_REPLACED_MAX = 3
"""How often a read starts again because the record was replaced between its header and its segments."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One place that may hold a chunk, under the keys of the chunk wanted."""

    tier: str
    storage_key: StorageKey
    content_key: ContentKey
    read: Callable[[Sequence[ByteRange] | None], Awaitable[Outcome[Slice]]]
    whole_at_once: bool = False
    """Whether reading all of the chunk is better one read than two: where each costs a round trip, or none anything."""


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """A container in parts: its header, which is verified, then the bytes of its segments in order; read-only."""

    header: ContainerHeader
    parts: tuple[Buffer, ...]
    total_bytes: int
    tier: str
    info: RecordInfo
    """The record that it was read from."""
    word_sum: int | None = None
    """What the words of all parts together add up to, where that is known (:attr:`Slice.word_sum`)."""
    is_verified: bool = True
    """Whether the segments are verified; where not, whoever takes them compares the word sum."""

    @property
    def is_whole(self) -> bool:
        """Whether the parts are all of the record's payload."""
        return self.total_bytes == self.info.payload_bytes


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """The header of a stored container, and the first bytes of the record that it came with."""

    info: RecordInfo
    header: ContainerHeader
    start: Buffer


async def read_chunk(
    copy: Copy, *, level: Level | None, layers: range | None, caller_verifies: bool = False
) -> Outcome[ChunkRead]:
    """Read ``level`` (lossy: with all coarser ones; default: all) of ``layers`` (default: all) from ``copy``.

    Where the ``caller_verifies``, what has a word sum to be verified by is not verified here.
    Where lossy levels are read, ``layers`` are widened to whole blocks. Raises :class:`LevelNotStored` and, for layers
    that the chunk has not, :class:`InvalidRequest`.
    """
    whole = copy.whole_at_once and level is None and layers is None
    for _ in range(_REPLACED_MAX):
        if whole:
            at_once = await copy.read(None)
            if not isinstance(at_once, Hit):
                return at_once
            if at_once.value.word_sum is not None:
                return await _read_summed(copy, at_once.value, caller_verifies)
            try:
                head = _judged_head(copy, at_once.value)
            except KvloomError as error:
                return Corrupt(copy.tier, str(error))
        else:
            found = await read_head(copy)
            if not isinstance(found, Hit):
                return found
            head = found.value
        selection = select_asked(head.header, level, layers)
        ranges = selection.ranges
        if all(item.stop <= len(head.start) for item in ranges):
            start = memoryview(head.start)
            parts: tuple[Buffer, ...] = tuple(start[item.start : item.stop] for item in ranges)
        else:
            body = await copy.read(ranges)
            if not isinstance(body, Hit):
                return body
            if body.value.info != head.info:
                continue
            parts = body.value.parts
        try:
            await _verify_segments(selection, parts)
        except InvalidData as error:
            return Corrupt(copy.tier, str(error))
        header = parse_header(selection.header)
        chunk = ChunkRead(header, (selection.header, *parts), selection.total_bytes, copy.tier, head.info)
        return Hit(chunk, copy.tier)
    return Unavailable(copy.tier, "the chunk is being replaced over and over")


async def read_head(copy: Copy) -> Outcome[ChunkHead]:
    """Read and verify the container header and the identity of the record."""
    for size_bytes in (_HEAD_BYTES, limits.CONTAINER_HEADER_BYTES_MAX):
        found = await copy.read((ByteRange(0, size_bytes),))
        if not isinstance(found, Hit):
            return found
        try:
            return Hit(_judged_head(copy, found.value), copy.tier)
        except TruncatedBody as error:
            if size_bytes == _HEAD_BYTES and len(found.value.parts[0]) < found.value.info.payload_bytes:
                continue
            return Corrupt(copy.tier, str(error))
        except KvloomError as error:
            return Corrupt(copy.tier, str(error))
    raise AssertionError("unreachable: the second round returns")


async def read_whole(copy: Copy) -> Outcome[Slice]:
    """Read the whole container and verify every byte of it; the slice has one part."""
    found = await copy.read(None)
    if not isinstance(found, Hit):
        return found
    try:
        _check_identity(copy, found.value.info)
        if found.value.word_sum is not None:
            await _check_sum(found.value)
        await verified_header(found.value.parts[0], copy.content_key)
    except KvloomError as error:
        return Corrupt(copy.tier, str(error))
    return found


async def is_sound(copy: Copy) -> bool:
    """Whether a copy found corrupt is not: gone meanwhile, or whole when read again."""
    return not isinstance(await read_whole(copy), Corrupt)


@traced_async("codec.verify")
async def verified_header(payload: Buffer, key: ContentKey, header: ContainerHeader | None = None) -> ContainerHeader:
    """Verify a whole container, in a worker thread when it is large; ``header`` is its own, parsed already.

    Raises what :func:`verify` raises.
    """
    return await run_sized(len(payload), partial(verify, payload, content_key=key, header=header))


def select_asked(header: ContainerHeader, level: Level | None, layers: range | None) -> Selection:
    """:func:`select`, where layers that the chunk has not are the caller's mistake: :class:`InvalidRequest`."""
    if layers is not None and (
        layers.step != 1 or not layers or layers.start < header.layers.start or layers.stop > header.layers.stop
    ):
        raise InvalidRequest(
            f"layers {layers.start}-{layers.stop - 1} asked for, "
            f"the chunk has {header.layers.start}-{header.layers.stop - 1}"
        )
    return select(header, level=level, layers=layers)


@dataclass(frozen=True, slots=True)
class _Whole:
    """What a read of all of a container goes by: its header as it is sent, and the same in a readable form."""

    header: ContainerHeader
    selection: Selection
    is_as_stored: bool
    """Whether what is sent is byte for byte what is stored."""


async def _read_summed(copy: Copy, found: Slice, caller_verifies: bool) -> Outcome[ChunkRead]:
    """All of a container that was verified when the tier took it in: its words must add up to what they did then.

    They are added up here, or by the caller, as far as it gets just what was added up then.
    """
    payload = memoryview(found.parts[0])
    try:
        _check_identity(copy, found.info)
        start = header_slice(payload)
        parse = _whole_kept if len(start) <= _KEPT_HEADER_BYTES_MAX else _whole
        whole = parse(bytes(start), len(payload))
        is_verified = not (caller_verifies and whole.is_as_stored)
        if is_verified:
            await _check_sum(found)
        if whole.header.content_key != copy.content_key:
            return Corrupt(copy.tier, "the container is of another chunk than its record")
    except KvloomError as error:
        return Corrupt(copy.tier, str(error))
    selection = whole.selection
    parts: tuple[Buffer, ...] = tuple(payload[item.start : item.stop] for item in selection.ranges)
    parts = (selection.header, *parts)
    total = found.word_sum if whole.is_as_stored else None
    chunk = ChunkRead(whole.header, parts, selection.total_bytes, copy.tier, found.info, total, is_verified)
    return Hit(chunk, copy.tier)


def _whole(data: bytes, payload_bytes: int) -> _Whole:
    header = parse_header(data, declared_bytes=payload_bytes)
    selection = select(header)
    is_as_stored = selection.header == data and selection.total_bytes == payload_bytes
    return _Whole(parse_header(selection.header), selection, is_as_stored)


_whole_kept = lru_cache(maxsize=_HEADERS_KEPT)(_whole)
"""Parsing a header takes longer than summing the chunk; those of chunks that everybody reads come again and again."""


@traced_async("codec.verify")
async def _check_sum(found: Slice) -> None:
    """Raise :class:`InvalidData` where the payload's words do not add up to what the tier noted."""
    payload = found.parts[0]
    summing = partial(word_sum, payload)
    if await run_sized(len(payload), summing, here_bytes_max=_SUM_HERE_BYTES_MAX) != found.word_sum:
        raise InvalidData("the record's words do not add up to its word sum")


def _judged_head(copy: Copy, found: Slice) -> ChunkHead:
    """The header that ``found`` begins with; :class:`TruncatedBody` where it is not all there."""
    info, start = found.info, found.parts[0]
    _check_identity(copy, info)
    header = parse_header(start, declared_bytes=info.payload_bytes)
    if header.content_key != copy.content_key:
        raise InvalidData("the container is of another chunk than its record")
    return ChunkHead(info, header, start)


def _check_identity(copy: Copy, info: RecordInfo) -> None:
    if info.storage_key != copy.storage_key or info.content_key != copy.content_key:
        raise InvalidData("the record is of another chunk")


@traced_async("codec.verify")
async def _verify_segments(selection: Selection, parts: tuple[Buffer, ...]) -> None:
    await run_sized(selection.total_bytes, partial(_check_segments, selection, parts))


def _check_segments(selection: Selection, parts: tuple[Buffer, ...]) -> None:
    """Check every segment where it lies in the parts; :class:`MalformedContainer` for the first that is damaged."""
    segments = selection.segments
    position = 0
    for item, part in zip(selection.ranges, parts, strict=True):
        view = memoryview(part)
        while position < len(segments) and segments[position].byte_range.stop <= item.stop:
            segment = segments[position]
            start = segment.offset - item.start
            check_segment(segment, view[start : start + segment.length])
            position += 1
    if position != len(segments):
        raise MalformedContainer(f"{position} of {len(segments)} segments were read")
