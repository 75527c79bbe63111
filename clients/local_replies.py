"""Answers to a read over the Unix socket: places in segments, bytes, or why there are none. Without I/O.

They are the bodies of ``GET`` frames (:mod:`.local_wire`), and held to the same: lengths are judged before anything is
allocated, and what does not hold is :class:`InvalidRequest`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..codec.container import ByteRange
from ..errors import InvalidRequest, KvloomError
from ..kvstore.tier import Buffer
from .local_wire import decode_error, encode_error

__all__ = ["Failed", "GetReply", "Granted", "Inline", "Later", "Mapped", "Result"]

_COUNTS: Final = struct.Struct("<HHH")
_PAIR: Final = struct.Struct("<QQ")
_WORD: Final = struct.Struct("<Q")
_MAPPED: Final = struct.Struct("<QQQIHBB")
_SUMMED: Final = 1
_KEPT: Final = 2
_LENGTH: Final = struct.Struct("<IB")


@dataclass(frozen=True, slots=True)
class Granted:
    """A segment whose descriptor comes with this reply, in the order of the list."""

    segment: int
    size_bytes: int


@dataclass(slots=True)
class Mapped:
    """A container in a segment: ``header`` (empty where the first range begins with one), then ``ranges`` of it.

    ``word_sum`` is that of all the bytes, where ``header`` is empty and the container is all that is stored. ``kept``:
    the lease stands on the board, locked for the client. Not frozen: made for every read, in a quarter of the time.
    """

    lease: int
    segment: int
    ranges: tuple[ByteRange, ...]
    tier: str
    header: bytes = b""
    word_sum: int | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Inline:
    """A container that came through the socket; when sent, in parts."""

    parts: tuple[Buffer, ...]
    tier: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is none."""

    error: KvloomError


@dataclass(frozen=True, slots=True)
class Later:
    """There is one, but not beside the others: ask for it alone."""


Result = Mapped | Inline | Failed | Later


@dataclass(frozen=True, slots=True)
class GetReply:
    """A result per key; segments new to this connection, and those whose memory the daemon has given back."""

    results: tuple[Result, ...]
    granted: tuple[Granted, ...] = ()
    gone: tuple[int, ...] = ()

    def encode(self) -> list[Buffer]:
        """The reply as a body in parts; bytes of containers are not copied."""
        head = [_COUNTS.pack(len(self.granted), len(self.gone), len(self.results))]
        head += [_PAIR.pack(item.segment, item.size_bytes) for item in self.granted]
        head += [_WORD.pack(number) for number in self.gone]
        parts: list[Buffer] = [b"".join(head)]
        for result in self.results:
            parts.extend(_encode_result(result))
        return parts

    @classmethod
    def decode(cls, body: Buffer) -> "GetReply":
        """The reply in a body; :class:`InvalidRequest` where it does not hold."""
        view = memoryview(body)
        try:
            granted_count, gone_count, result_count = _COUNTS.unpack_from(view)
            position = _COUNTS.size
            granted = tuple(
                Granted(*_PAIR.unpack_from(view, position + index * _PAIR.size)) for index in range(granted_count)
            )
            position += granted_count * _PAIR.size
            gone = tuple(_WORD.unpack_from(view, position + index * _WORD.size)[0] for index in range(gone_count))
            position += gone_count * _WORD.size
            results = []
            for _ in range(result_count):
                result, position = _decode_result(view, position)
                results.append(result)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"reply of {len(view)} bytes does not hold: {error}") from error
        if position != len(view):
            raise InvalidRequest(f"reply has {len(view)} bytes, {position} are declared")
        return cls(tuple(results), granted, gone)


_MAPPED_CODE, _INLINE_CODE, _FAILED_CODE, _LATER_CODE = range(4)


def _encode_result(result: Result) -> Iterator[Buffer]:
    match result:
        case Mapped():
            tier = result.tier.encode()
            fields = _MAPPED.pack(
                result.lease,
                result.segment,
                result.word_sum or 0,
                len(result.header),
                len(result.ranges),
                len(tier),
                (result.word_sum is not None) * _SUMMED | result.kept * _KEPT,
            )
            places = b"".join([_PAIR.pack(item.start, item.stop) for item in result.ranges])
            yield b"".join((bytes((_MAPPED_CODE,)), fields, tier, result.header, places))
        case Inline():
            tier = result.tier.encode()
            total_bytes = sum(len(part) for part in result.parts)
            yield bytes((_INLINE_CODE,)) + _LENGTH.pack(total_bytes, len(tier)) + tier
            yield from result.parts
        case Failed():
            body = encode_error(result.error)
            yield bytes((_FAILED_CODE,)) + _LENGTH.pack(len(body), 0) + body
        case Later():
            yield bytes((_LATER_CODE,))


def _decode_result(view: memoryview, start: int) -> tuple[Result, int]:
    """The result at ``start`` and where it ends, which is for the caller to compare with the end of the body."""
    code = view[start]
    if code == _MAPPED_CODE:
        lease, segment, total, header_bytes, range_count, tier_bytes, flags = _MAPPED.unpack_from(view, start + 1)
        name = start + 1 + _MAPPED.size
        header = name + tier_bytes
        places = header + header_bytes
        stop = places + range_count * _PAIR.size
        ranges = tuple([ByteRange(*_PAIR.unpack_from(view, position)) for position in range(places, stop, _PAIR.size)])
        tier = str(view[name:header], "utf-8")
        total_or_none = total if flags & _SUMMED else None
        kept = bool(flags & _KEPT)
        return Mapped(lease, segment, ranges, tier, bytes(view[header:places]), total_or_none, kept), stop
    if code == _LATER_CODE:
        return Later(), start + 1
    if code not in (_INLINE_CODE, _FAILED_CODE):
        raise InvalidRequest(f"reply has a result of kind {code}")
    size_bytes, tier_bytes = _LENGTH.unpack_from(view, start + 1)
    name = start + 1 + _LENGTH.size
    data = name + tier_bytes
    stop = data + size_bytes
    if code == _INLINE_CODE:
        return Inline((view[data:stop],), str(view[name:data], "utf-8")), stop
    return Failed(decode_error(view[data:stop])), stop
