"""Operations beside reading and writing (:mod:`.protocol`): pins, advice, deletions of many."""
# ruff: noqa: D102 - what request(), parse() and without_daemon() promise is said once, in Operation

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from .. import limits
from ..errors import DaemonUnavailable, InvalidData, InvalidRequest, TooManyItems
from ..kvstore.key import ContentKey
from ..kvstore.tiered.pins import LEASE_ID_BYTES
from . import leases, wire
from .http_message import HttpReply, HttpRequest
from .protocol import Operation, batches_of, post, read_reply

__all__ = [
    "DeleteChunks",
    "EraseNamespace",
    "HintChunks",
    "PinChunks",
    "PrefetchChunks",
    "ReleaseLease",
]

_BUSY: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class PinChunks(Operation[leases.PinReply]):
    """Keep chunks from being evicted until the lease ends. Not tried twice: nobody would know the first lease."""

    repeatable: ClassVar[bool] = False
    keys: tuple[ContentKey, ...]
    lease_seconds: float

    def question(self) -> leases.PinQuestion:
        """What is asked; raises as :meth:`request` does."""
        if len(self.keys) > limits.KEYS_PER_REQUEST_MAX:
            raise TooManyItems(f"a pin names {len(self.keys)} keys, the limit is {limits.KEYS_PER_REQUEST_MAX}")
        if not 0 < self.lease_seconds <= limits.LEASE_SECONDS_MAX:
            raise InvalidRequest(
                f"lease is {self.lease_seconds} s, must be over 0 and up to {limits.LEASE_SECONDS_MAX}"
            )
        return leases.PinQuestion(_names(self.keys), float(self.lease_seconds))

    def request(self) -> HttpRequest:
        return post("/pins", self.question())

    def parse(self, reply: HttpReply) -> leases.PinReply:
        record = read_reply(leases.PinReply, reply)
        _check_count(len(record.pinned), self.keys)
        return record


@dataclass(frozen=True, slots=True)
class ReleaseLease(Operation[bool]):
    """End a lease; whether it was running."""

    lease: bytes

    def request(self) -> HttpRequest:
        if len(self.lease) != LEASE_ID_BYTES:
            raise InvalidRequest(f"lease has {len(self.lease)} bytes, must have {LEASE_ID_BYTES}")
        return HttpRequest("DELETE", f"/pins/{self.lease.hex()}", {})

    def parse(self, reply: HttpReply) -> bool:
        return read_reply(leases.ReleaseReply, reply).released


@dataclass(frozen=True, slots=True)
class HintChunks(Operation[int]):
    """Say that chunks will not be used again, or will. Advice: to nobody, or to who has too much to do, it is 0."""

    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    keys: tuple[ContentKey, ...]
    finished: bool

    @classmethod
    def batches(cls, keys: Sequence[ContentKey], *, finished: bool) -> "list[HintChunks]":
        """As many operations as ``keys`` need within the limit of one request."""
        return [cls(batch, finished) for batch in batches_of(keys)]

    def question(self) -> leases.HintQuestion:
        """What is asked."""
        return leases.HintQuestion(_names(self.keys), self.finished)

    def request(self) -> HttpRequest:
        return post("/hints", self.question())

    def parse(self, reply: HttpReply) -> int:
        return 0 if reply.status in _BUSY else read_reply(leases.HintReply, reply).keys

    def without_daemon(self, error: DaemonUnavailable) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class PrefetchChunks(Operation[int]):
    """Have chunks copied into memory in the background. Advice, as above."""

    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    keys: tuple[ContentKey, ...]

    @classmethod
    def batches(cls, keys: Sequence[ContentKey]) -> "list[PrefetchChunks]":
        """As many operations as ``keys`` need within the limit of one request."""
        return [cls(batch) for batch in batches_of(keys)]

    def request(self) -> HttpRequest:
        return post("/prefetch", wire.KeysQuestion(_names(self.keys)))

    def parse(self, reply: HttpReply) -> int:
        return 0 if reply.status in _BUSY else read_reply(leases.PrefetchReply, reply).accepted

    def without_daemon(self, error: DaemonUnavailable) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class DeleteChunks(Operation[tuple[bool, ...]]):
    """Forget chunks; for each, whether there was one."""

    keys: tuple[ContentKey, ...]

    @classmethod
    def batches(cls, keys: Sequence[ContentKey]) -> "list[DeleteChunks]":
        """As many operations as ``keys`` need within the limit of one request."""
        return [cls(batch) for batch in batches_of(keys)]

    def request(self) -> HttpRequest:
        return post("/chunks/delete", wire.KeysQuestion(_names(self.keys)))

    def parse(self, reply: HttpReply) -> tuple[bool, ...]:
        deleted = read_reply(leases.DeleteManyReply, reply).deleted
        _check_count(len(deleted), self.keys)
        return deleted


@dataclass(frozen=True, slots=True)
class EraseNamespace(Operation[int]):
    """Forget every chunk of the caller's namespace; how many records there were, each once per tier."""

    answer_seconds_max: ClassVar[float] = limits.PUT_WAIT_SECONDS_MAX + limits.PROGRESS_SECONDS_MAX

    def request(self) -> HttpRequest:
        return HttpRequest("DELETE", "/chunks", {})

    def parse(self, reply: HttpReply) -> int:
        return read_reply(leases.ErasedReply, reply).records


def _names(keys: Sequence[ContentKey]) -> tuple[str, ...]:
    return tuple(key.hex() for key in keys)


def _check_count(count: int, keys: Sequence[ContentKey]) -> None:
    if count != len(keys):
        raise InvalidData(f"daemon answered for {count} keys, {len(keys)} were named")
