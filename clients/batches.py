"""Several chunks in one HTTP body, without I/O: for each a head (JSON, its length in front), then its bytes.

    u32, little-endian: bytes of the head | the head | ``payload_bytes`` bytes | the next one's length | …

The body ends after the last chunk. A head of more than :data:`limits.BATCH_HEAD_BYTES_MAX` is refused.
"""

import struct
from dataclasses import dataclass
from typing import Final, TypeVar

from .. import limits
from ..errors import BodyTooLarge, InvalidRequest, KvloomError
from ..kvstore.tier import Ack
from . import wire

__all__ = [
    "BATCH_TYPE",
    "LENGTH_BYTES",
    "ChunkHead",
    "PutHead",
    "PutManyReply",
    "PutResult",
    "decode_head",
    "encode_head",
    "head_bytes",
]

BATCH_TYPE: Final = "application/vnd.kvloom.batch"
_LENGTH: Final = struct.Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size
Head = TypeVar("Head", "PutHead", "ChunkHead")


@dataclass(frozen=True, slots=True)
class PutHead:
    """A chunk to store: what a put of it alone says in its path, its parameters and its headers."""

    key: str
    payload_bytes: int
    ttl_seconds: float | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """A chunk that was asked for; one that there is not has an ``error``, a ``message`` and no bytes."""

    key: str
    payload_bytes: int
    tier: str | None = None
    levels: tuple[str, ...] = ()
    tokens: int | None = None
    error: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class PutResult:
    """What became of one chunk: the ``ack`` that it has reached, or an error."""

    key: str
    ack: Ack | None = None
    error: str | None = None
    message: str | None = None

    @classmethod
    def of_error(cls, key: str, error: KvloomError) -> "PutResult":
        """A chunk that was refused."""
        return cls(key, None, error.code, str(error))


@dataclass(frozen=True, slots=True)
class PutManyReply:
    """What became of each chunk, in their order."""

    results: tuple[PutResult, ...]


def encode_head(head: PutHead | ChunkHead) -> bytes:
    """The head with its length in front."""
    data = wire.encode(head)
    return _LENGTH.pack(len(data)) + data


def head_bytes(length: bytes | bytearray | memoryview) -> int:
    """The length of the head that follows; :class:`BodyTooLarge` past the limit."""
    (size_bytes,) = _LENGTH.unpack(length)
    if size_bytes > limits.BATCH_HEAD_BYTES_MAX:
        raise BodyTooLarge(f"a head declares {size_bytes} bytes, the limit is {limits.BATCH_HEAD_BYTES_MAX}")
    return int(size_bytes)


def decode_head(kind: type[Head], data: bytes | bytearray | memoryview) -> Head:
    """The head; :class:`InvalidRequest` for one that does not hold, :class:`BodyTooLarge` for too many bytes."""
    head: Head = wire.decode(kind, data)
    if head.payload_bytes < 0:
        raise InvalidRequest(f"payload_bytes is {head.payload_bytes}, must not be negative")
    if head.payload_bytes > limits.CONTAINER_BYTES_MAX:
        raise BodyTooLarge(f"a chunk declares {head.payload_bytes} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
    return head
