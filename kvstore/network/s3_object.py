"""How a record lies in S3: the names of objects, and which requests a read of some ranges takes. Pure."""

from collections.abc import Iterable, Sequence
from typing import Final

from ... import limits
from ...codec.container import ByteRange
from ..key import KEY_BYTES, OWNER_BYTES, StorageKey
from ..tier import Buffer, RecordInfo

__all__ = ["attributes", "cut", "frames", "key_of", "object_path", "spans"]

_GAP_BYTES_MAX: Final = 256 * 1024
"""Ranges with less between them are one request."""


def spans(ranges: Sequence[ByteRange]) -> list[ByteRange]:
    """Requests that cover ``ranges``: near ones together, none longer than it must be."""
    found: list[ByteRange] = []
    for item in sorted(ranges, key=lambda item: item.start):
        if found and item.start <= found[-1].stop + _GAP_BYTES_MAX:
            found[-1] = ByteRange(found[-1].start, max(found[-1].stop, item.stop))
        else:
            found.append(item)
    return found


def cut(held: Sequence[tuple[int, memoryview]], wanted: ByteRange) -> Buffer:
    """``wanted`` out of the one view that holds all of it."""
    if wanted.start >= wanted.stop:
        return b""
    for start, view in held:
        if start <= wanted.start and wanted.stop <= start + len(view):
            return view[wanted.start - start : wanted.stop - start]
    raise AssertionError(f"range {wanted} was not fetched")


def frames(header: bytes, payload: Buffer) -> Iterable[Buffer]:
    """The object in pieces small enough to copy."""
    view = memoryview(payload)
    yield header
    for start in range(0, len(view), limits.STREAM_FRAME_BYTES):
        yield bytes(view[start : start + limits.STREAM_FRAME_BYTES])


def attributes(info: RecordInfo) -> dict[str, str]:
    """For people and their tools; nothing here reads it."""
    return {
        "Content-Type": "application/vnd.kvloom.record",
        "kvloom-content-key": info.content_key.hex(),
        "kvloom-stored-at-ms": str(info.stored_at_ms),
        "kvloom-expires-at-ms": str(info.expires_at_ms),
    }


def object_path(key: StorageKey) -> str:
    """The name of a record's object, under the prefix."""
    return f"{key[:OWNER_BYTES].hex()}/{key[OWNER_BYTES:].hex()}"


def key_of(path: str) -> StorageKey | None:
    """The storage key of an object by its name, or ``None`` for a name that is none of ours."""
    owner, _, place = path.partition("/")
    try:
        key = StorageKey(bytes.fromhex(owner) + bytes.fromhex(place))
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES and object_path(key) == path else None
