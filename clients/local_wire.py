"""The frames of the Unix socket, without I/O: what goes over it and what it means. ``docs/LOCAL.md`` is for strangers.

A frame is a fixed header and a body whose length the header declares. Every length is judged before anything is
allocated for it. Daemon and clients share this module; a frame that does not hold is :class:`InvalidRequest`, after
which nothing on the connection can be believed.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from .. import limits
from ..codec.level import EXACT, LOSSY_LEVELS, Level
from ..errors import InvalidRequest, KvloomError, TooManyItems, UnknownLevel, error_for_code
from ..kvstore.key import KEY_BYTES, ContentKey
from ..kvstore.namespace import check_ttl
from ..kvstore.tier import Ack, Buffer
from . import wire

__all__ = [
    "FRAME_BYTES",
    "PUT_BYTES",
    "SOCKET_NAME",
    "USE_BYTES",
    "VERSION",
    "Frame",
    "GetQuestion",
    "Hello",
    "Kind",
    "PutQuestion",
    "decode_error",
    "decode_keys",
    "encode_error",
    "socket_path",
]

VERSION: Final = 3
SOCKET_NAME: Final = "daemon.sock"
_MAGIC: Final = b"KVLL"
_FRAME: Final = struct.Struct("<4sBBHII")
FRAME_BYTES: Final = _FRAME.size
_GET: Final = struct.Struct("<BBHHH")
_PUT: Final = struct.Struct("<32sBBHIQQ32sQ")
_NO_PARENT: Final = bytes(KEY_BYTES)
PUT_BYTES: Final = _PUT.size
_PAIR: Final = struct.Struct("<QQ")
_WORD: Final = struct.Struct("<Q")
_KEY: Final = struct.Struct(f"{KEY_BYTES}s")
USE_BYTES: Final = _PAIR.size
_EVERYTHING: Final = 254
_WHOLE_FLAG: Final = 1
_ACKS: Final = (Ack.MEMORY, Ack.DISK)
_LEVELS: Final = {level.code: level for level in (*LOSSY_LEVELS, EXACT)}
_RESULTS_BYTES_MAX: Final = limits.LOCAL_GET_KEYS_MAX * (limits.CONTAINER_HEADER_BYTES_MAX + 65_536)


class Kind(IntEnum):
    """What a frame asks; its answer has the same kind, or ``ERROR``."""

    HELLO = 1
    CONTAINS = 2
    PREFIX = 3
    GET = 4
    PUT = 5
    RELEASE = 6
    """Has no answer."""
    DELETE = 7
    STATS = 8
    POOL = 9
    """The asker has a pool of decoded chunks (:mod:`.pool_wire`), for as long as the connection lasts."""
    HELD = 10
    RESIDENT = 11
    BOARD = 12
    """The asker would keep leases (:mod:`.local_board`); the answer brings the board's descriptor, if it may."""
    USED = 13
    """Kept leases by which chunks were read, and how often. Has no answer."""
    ERROR = 255


_KINDS: Final = {kind.value: kind for kind in Kind}
_KEYS_BYTES_MAX: Final = limits.KEYS_PER_REQUEST_MAX * KEY_BYTES
_QUESTION_BYTES_MAX: Final = {
    Kind.HELLO: limits.CREDENTIAL_CHARS_MAX,
    Kind.CONTAINS: _KEYS_BYTES_MAX,
    Kind.PREFIX: _KEYS_BYTES_MAX,
    Kind.GET: _GET.size + limits.LOCAL_GET_KEYS_MAX * KEY_BYTES,
    Kind.PUT: _PUT.size + limits.CONTAINER_BYTES_MAX,
    Kind.RELEASE: limits.LOCAL_LEASES_MAX * _WORD.size,
    Kind.DELETE: KEY_BYTES,
    Kind.STATS: 0,
    Kind.POOL: limits.LOCAL_POOL_BYTES_MAX,
    Kind.HELD: limits.LOCAL_POOL_BYTES_MAX + limits.POOL_REPORT_KEYS_MAX * KEY_BYTES,
    Kind.RESIDENT: _KEYS_BYTES_MAX,
    Kind.BOARD: 0,
    Kind.USED: limits.LOCAL_LEASES_MAX * USE_BYTES,
}
_REPLY_BYTES_MAX: Final = {
    Kind.HELLO: limits.KEYS_BODY_BYTES_MAX,
    Kind.CONTAINS: limits.KEYS_PER_REQUEST_MAX,
    Kind.PREFIX: _WORD.size,
    Kind.GET: limits.CONTAINER_BYTES_MAX + limits.LOCAL_INLINE_BYTES_MAX + _RESULTS_BYTES_MAX,
    Kind.PUT: 1,
    Kind.DELETE: 1,
    Kind.STATS: limits.JSON_BODY_BYTES_MAX,
    Kind.POOL: 0,
    Kind.HELD: 0,
    Kind.RESIDENT: limits.KEYS_BODY_BYTES_MAX,
    Kind.BOARD: 0,
    Kind.ERROR: limits.KEYS_BODY_BYTES_MAX,
}


def socket_path(data_dir: Path) -> Path:
    """Where the daemon that owns ``data_dir`` listens."""
    return data_dir / SOCKET_NAME


@dataclass(frozen=True, slots=True)
class Hello:
    """Which daemon this is, in which phase of its life, and how much it takes at a time."""

    version: str
    phase: str
    pid: int
    keys_max: int = limits.KEYS_PER_REQUEST_MAX
    get_keys_max: int = limits.LOCAL_GET_KEYS_MAX
    leases_max: int = limits.LOCAL_LEASES_MAX
    container_bytes_max: int = limits.CONTAINER_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header. ``number`` is the asker's; the answer repeats it. ``descriptors`` come with its first byte."""

    kind: Kind
    number: int
    body_bytes: int
    descriptors: int = 0

    def encode(self) -> bytes:
        """The header's bytes."""
        return _FRAME.pack(_MAGIC, VERSION, self.kind, self.descriptors, self.number, self.body_bytes)

    @classmethod
    def decode(cls, data: Buffer, *, reply: bool) -> "Frame":
        """The header that ``data`` begins with; its body is no longer than one of its kind can be."""
        magic, version, code, descriptors, number, body_bytes = _FRAME.unpack_from(data)
        if magic != _MAGIC or version != VERSION:
            raise InvalidRequest(f"frame starts with {magic!r}, version {version}; expected {_MAGIC!r}, {VERSION}")
        bounds = _REPLY_BYTES_MAX if reply else _QUESTION_BYTES_MAX
        kind = _KINDS.get(code)
        if kind is None or kind not in bounds:
            raise InvalidRequest(f"frame is of kind {code}, which is not one of {sorted(bounds)}")
        if body_bytes > bounds[kind]:
            raise TooManyItems(f"{kind.name} frame declares {body_bytes} bytes, the limit is {bounds[kind]}")
        if descriptors > (limits.LOCAL_GET_KEYS_MAX if reply else 1):
            raise TooManyItems(f"{kind.name} frame declares {descriptors} descriptors")
        return cls(kind, number, body_bytes, descriptors)


def decode_keys(body: Buffer) -> list[ContentKey]:
    """The keys that stand one behind the other in ``body``."""
    if len(body) % KEY_BYTES:
        raise InvalidRequest(f"keys have {len(body)} bytes together, not a multiple of {KEY_BYTES}")
    return [key for (key,) in _KEY.iter_unpack(body)]


def encode_error(error: KvloomError) -> bytes:
    """An error as a body."""
    return wire.encode(wire.ErrorBody(error.code, str(error)))


def decode_error(body: Buffer) -> KvloomError:
    """The error in a body."""
    record = wire.decode(wire.ErrorBody, bytes(body), strict=False)
    return error_for_code(record.error)(record.message)


@dataclass(frozen=True, slots=True)
class GetQuestion:
    """Read ``keys``, all at ``level`` (default: everything) of ``layers`` (default: all).

    ``through_socket`` asks for bytes that the daemon has verified just now, and for none that are mapped.
    """

    keys: Sequence[ContentKey]
    level: Level | None = None
    layers: range | None = None
    through_socket: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it asks for all that is stored."""
        return self.level is None and self.layers is None

    def encode(self) -> bytes:
        """The question as a body."""
        code = _EVERYTHING if self.level is None else self.level.code
        first, stop = (0, 0) if self.layers is None else (self.layers.start, self.layers.stop)
        return _GET.pack(code, self.through_socket, first, stop, len(self.keys)) + b"".join(self.keys)

    @classmethod
    def decode(cls, body: Buffer) -> "GetQuestion":
        """The question in a body, as long as its frame said."""
        if len(body) < _GET.size:
            raise InvalidRequest(f"GET has {len(body)} bytes, needs {_GET.size}")
        code, flag, first, stop, count = _GET.unpack_from(body)
        if code != _EVERYTHING and code not in _LEVELS:
            raise UnknownLevel(f"level code {code} is unknown")
        if (first, stop) != (0, 0) and not 0 <= first < stop <= limits.LAYERS_MAX:
            raise InvalidRequest(f"layers {first} to {stop} are none")
        keys = decode_keys(memoryview(body)[_GET.size :])
        if flag > _WHOLE_FLAG or not 1 <= len(keys) == count <= limits.LOCAL_GET_KEYS_MAX:
            raise InvalidRequest(f"GET has flag {flag}, {len(keys)} keys and declares {count}")
        return cls(keys, _LEVELS.get(code), range(first, stop) if stop else None, bool(flag))


@dataclass(frozen=True, slots=True)
class PutQuestion:
    """Keep ``length`` bytes under ``key``: those behind the question, or ``offset`` into the file passed with it.

    ``parent`` is the key of the chunk before it; ``ttl_seconds`` travels in whole milliseconds.
    """

    key: ContentKey
    ack: Ack
    length: int
    offset: int | None = None
    parent: ContentKey | None = None
    ttl_seconds: float | None = None

    def encode(self) -> bytes:
        """The question as a body, or as the beginning of one."""
        passed, parent = self.offset is not None, self.parent or _NO_PARENT
        ttl_ms = 0 if self.ttl_seconds is None else max(1, round(self.ttl_seconds * 1000))
        return _PUT.pack(self.key, _ACKS.index(self.ack), passed, 0, 0, self.offset or 0, self.length, parent, ttl_ms)

    @classmethod
    def decode(cls, body: Buffer) -> "PutQuestion":
        """The question in :data:`PUT_BYTES` of a body; whether bytes follow as declared is for the reader to see."""
        if len(body) != _PUT.size:
            raise InvalidRequest(f"a PUT's question has {len(body)} bytes, must have {_PUT.size}")
        key, ack, passed, *_, offset, length, parent, ttl_ms = _PUT.unpack(body)
        if ack >= len(_ACKS) or passed > 1 or offset >= 2**62:
            raise InvalidRequest(f"PUT has ack {ack}, source {passed}, offset {offset}")
        if length > limits.CONTAINER_BYTES_MAX:
            raise TooManyItems(f"container declares {length} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
        if ttl_ms:
            check_ttl(ttl_ms / 1000)
        above = None if parent == _NO_PARENT else ContentKey(parent)
        ttl_seconds = ttl_ms / 1000 if ttl_ms else None
        return cls(ContentKey(key), _ACKS[ack], length, offset if passed else None, above, ttl_seconds)
