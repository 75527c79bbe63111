"""The interface every tier has: a small, byte-level surface below which a memory, a disk or a network store lies.

A tier knows nothing of containers, levels or models. It keeps *records* (an opaque payload under a storage key, with
the content key beside it) and gives back byte ranges of them. It may lose a record; it must never give back other
bytes than were put, as far as it can tell (whole-payload and segment checksums are verified above it). Wrappers
(checksum, fault, …) are tiers around tiers. ``kvstore/conformance.py`` is the suite every implementation passes,
third-party ones too.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

from ..codec.container import ByteRange
from .key import ContentKey, StorageKey
from .outcome import Outcome

__all__ = [
    "NEVER",
    "OWNER_BYTES",
    "UNOWNED",
    "Ack",
    "Buffer",
    "Capacity",
    "OwnerId",
    "Record",
    "RecordInfo",
    "Slice",
    "Tier",
]

Buffer = bytes | bytearray | memoryview
OwnerId = NewType("OwnerId", bytes)
"""Whose a record is, in :data:`OWNER_BYTES` bytes: quotas and isolated eviction go by it. Neither name nor secret."""
OWNER_BYTES: Final = 16
UNOWNED: Final = OwnerId(bytes(OWNER_BYTES))
"""The owner of records that belong to no tenant."""
NEVER: Final = 0
"""The expiry of a record that does not expire."""


class Ack(StrEnum):
    """What a put has reached when it is acknowledged."""

    MEMORY = "memory"
    DISK = "disk"
    """Durable: survives ``kill -9`` and power loss."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a tier keeps. ``payload`` is immutable from here on: whoever made the record gives it away."""

    storage_key: StorageKey
    content_key: ContentKey
    payload: Buffer
    stored_at_ms: int
    owner: OwnerId = UNOWNED
    expires_at_ms: int = NEVER
    """From when on the record is absent, in milliseconds since 1970-01-01 UTC, or :data:`NEVER`."""

    @property
    def info(self) -> "RecordInfo":
        """The record without its payload."""
        return RecordInfo(
            self.storage_key, self.content_key, len(self.payload), self.stored_at_ms, self.owner, self.expires_at_ms
        )


@dataclass(frozen=True, slots=True)
class RecordInfo:
    """A record without its payload."""

    storage_key: StorageKey
    content_key: ContentKey
    payload_bytes: int
    stored_at_ms: int
    owner: OwnerId = UNOWNED
    expires_at_ms: int = NEVER


@dataclass(frozen=True, slots=True)
class Slice:
    """The ranges asked for, in order; ``parts`` are read-only and stay valid for as long as they are referenced."""

    info: RecordInfo
    parts: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Capacity:
    """How full a tier is. ``limit_bytes`` bounds everything the tier occupies, bookkeeping included.

    ``evictions`` counts the records given up to make room since the tier was opened.
    """

    limit_bytes: int
    used_bytes: int
    records: int
    evictions: int = 0


class Tier(ABC):
    """One place that keeps records. All methods are safe to call concurrently and safe to cancel."""

    name: str
    """Short, stable name for metrics and replies: ``memory``, ``ssd``."""

    durable: bool
    """Whether a completed :meth:`put` survives ``kill -9`` and power loss."""

    @abstractmethod
    async def put(self, record: Record) -> None:
        """Keep ``record``, replacing one of the same storage key, evicting others to make room.

        When this returns, a durable tier has the record on stable storage. Raises :class:`StorageFull` where room
        cannot be made and :class:`StorageUnavailable` where the backend fails; the old record is then untouched.
        """

    @abstractmethod
    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read ``ranges`` of the payload (default: all of it). A range past the end is clipped to it."""

    @abstractmethod
    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """For each key, whether a record is here. Does not count as a use."""

    @abstractmethod
    async def delete(self, key: StorageKey) -> bool:
        """Forget a record; whether there was one. Durable where the tier is."""

    @abstractmethod
    def scan(self) -> AsyncIterator[RecordInfo]:
        """All records, in no particular order; a record put or deleted meanwhile may or may not appear."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """How full the tier is now."""

    @abstractmethod
    async def close(self) -> None:
        """Flush and release everything. Idempotent; other calls afterwards raise :class:`StorageUnavailable`."""
