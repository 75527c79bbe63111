"""Putting many chunks with one request: what is asked and what became of each (:mod:`.batches` is the wire)."""
# ruff: noqa: D102 - what request(), parse() and without_daemon() promise is said once, in Operation

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .. import limits
from ..errors import BodyTooLarge, InvalidData, InvalidKey, KvloomError, error_for_code
from ..kvstore.key import KEY_BYTES, ContentKey
from ..kvstore.namespace import check_ttl
from ..kvstore.tier import Ack
from .batches import BATCH_TYPE, PutHead, PutManyReply, encode_head
from .http_message import Buffer, HttpReply, HttpRequest
from .protocol import Operation, read_reply

__all__ = ["ChunkPut", "ChunkToPut", "PutChunks"]


@dataclass(frozen=True, slots=True)
class ChunkToPut:
    """A container, the key to keep it under, for how long, and the key of the chunk before it."""

    key: ContentKey
    container: Buffer
    ttl_seconds: float | None = None
    parent: ContentKey | None = None

    @property
    def size_bytes(self) -> int:
        """Of the container."""
        return memoryview(self.container).nbytes

    def check(self) -> None:
        """Raise the error that no daemon would not raise for this."""
        for key in (self.key,) if self.parent is None else (self.key, self.parent):
            if len(key) != KEY_BYTES:
                raise InvalidKey(f"key {key.hex()[:80]!r} is not {2 * KEY_BYTES} lower-case hexadecimal digits")
        if self.size_bytes > limits.CONTAINER_BYTES_MAX:
            raise BodyTooLarge(f"container has {self.size_bytes} bytes, the limit is {limits.CONTAINER_BYTES_MAX}")
        if self.ttl_seconds is not None:
            check_ttl(self.ttl_seconds)


@dataclass(frozen=True, slots=True)
class ChunkPut:
    """What became of one chunk: the ``ack`` it has reached, or the ``error`` for which it is not known to be stored."""

    key: ContentKey
    ack: Ack | None = None
    error: KvloomError | None = None


@dataclass(frozen=True, slots=True)
class PutChunks(Operation[tuple[ChunkPut, ...]]):
    """Store ``chunks``; each has a result of its own, in their order."""

    answer_seconds_max: ClassVar[float] = limits.PUT_WAIT_SECONDS_MAX + limits.PROGRESS_SECONDS_MAX
    chunks: tuple[ChunkToPut, ...]
    ack: Ack

    @classmethod
    def batches(cls, chunks: Sequence[ChunkToPut], ack: Ack) -> "list[PutChunks]":
        """Operations of a bounded length each; raises for chunks that no daemon would take, before any is sent."""
        found: list[PutChunks] = []
        begun: list[ChunkToPut] = []
        size_bytes = 0
        for chunk in chunks:
            chunk.check()
            full = size_bytes + chunk.size_bytes > limits.CLIENT_BATCH_BYTES_MAX
            if begun and (full or len(begun) == limits.CLIENT_BATCH_CHUNKS_MAX):
                found.append(cls(tuple(begun), ack))
                begun, size_bytes = [], 0
            begun.append(chunk)
            size_bytes += chunk.size_bytes
        return [*found, cls(tuple(begun), ack)] if begun else found

    def failed(self, error: KvloomError) -> tuple[ChunkPut, ...]:
        """What it means for each that all of them came to ``error``."""
        return tuple(ChunkPut(chunk.key, None, error) for chunk in self.chunks)

    def request(self) -> HttpRequest:
        parts: list[Buffer] = []
        for chunk in self.chunks:
            parent = None if chunk.parent is None else chunk.parent.hex()
            parts.append(encode_head(PutHead(chunk.key.hex(), chunk.size_bytes, chunk.ttl_seconds, parent)))
            parts.append(memoryview(chunk.container).cast("B"))
        return HttpRequest("PUT", f"/chunks?ack={self.ack.value}", {"Content-Type": BATCH_TYPE}, tuple(parts))

    def parse(self, reply: HttpReply) -> tuple[ChunkPut, ...]:
        results = read_reply(PutManyReply, reply).results
        if [item.key for item in results] != [chunk.key.hex() for chunk in self.chunks]:
            raise InvalidData(f"daemon answered for {len(results)} other chunks than the {len(self.chunks)} put")
        return tuple(
            ChunkPut(chunk.key, item.ack)
            if item.error is None
            else ChunkPut(chunk.key, None, error_for_code(item.error)(item.message or item.error))
            for chunk, item in zip(self.chunks, results, strict=True)
        )
