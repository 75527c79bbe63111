"""The interface every tier has: a small, byte-level surface below which a memory, a disk or a network store lies.

A tier knows nothing of containers, levels or models. It keeps *records* (an opaque payload under a storage key, with
the content key beside it) and gives back byte ranges of them. It may lose a record; it must never give back other
bytes than were put, as far as it can tell (whole-payload and segment checksums are verified above it). Wrappers
(checksum, fault, …) are tiers around tiers. ``kvstore/conformance/`` is the suite every implementation passes,
third-party ones too.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ..codec.container import ByteRange
from .attributes import UNATTRIBUTED, ChunkAttributes
from .key import OWNER_BYTES, ContentKey, OwnerId, StorageKey
from .outcome import Hit, Outcome

__all__ = [
    "NEVER",
    "OWNER_BYTES",
    "UNBOUNDED_BYTES",
    "UNOWNED",
    "Ack",
    "Buffer",
    "Capacity",
    "Holdings",
    "OwnerId",
    "Record",
    "RecordInfo",
    "Slice",
    "Tier",
    "Usage",
    "is_expired",
]

Buffer = bytes | bytearray | memoryview
UNOWNED: Final = OwnerId(bytes(OWNER_BYTES))
"""The owner of records that belong to no tenant."""
NEVER: Final = 0
"""The expiry of a record that does not expire."""


def is_expired(expires_at_ms: int, now_ms: int) -> bool:
    """Whether a record of that expiry is absent at ``now_ms``."""
    return expires_at_ms != NEVER and expires_at_ms <= now_ms


UNBOUNDED_BYTES: Final = 2**63 - 1
"""The limit of a tier whose room is not kvloom's to manage: an engine that many share evicts or grows by itself."""


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
    attributes: ChunkAttributes = UNATTRIBUTED
    """What eviction may go by."""

    @property
    def info(self) -> "RecordInfo":
        """The record without its payload."""
        return RecordInfo(
            self.storage_key,
            self.content_key,
            len(self.payload),
            self.stored_at_ms,
            self.owner,
            self.expires_at_ms,
            self.attributes,
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
    attributes: ChunkAttributes = UNATTRIBUTED

    def with_payload(self, payload: Buffer) -> Record:
        """The record again."""
        return Record(
            self.storage_key,
            self.content_key,
            payload,
            self.stored_at_ms,
            self.owner,
            self.expires_at_ms,
            self.attributes,
        )


@dataclass(frozen=True, slots=True)
class Slice:
    """The ranges asked for, in order; ``parts`` are read-only and stay valid for as long as they are referenced."""

    info: RecordInfo
    parts: tuple[Buffer, ...]
    word_sum: int | None = None
    """What :func:`kvloom.kvstore.sharing.word_sum` of the whole payload was when the tier took it in.

    A reader of all of it compares that; where there is none, it verifies the container."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How full a tier is. ``limit_bytes`` bounds everything the tier occupies, bookkeeping included.

    ``evictions`` counts the records given up to make room since the tier was opened; ``eviction`` names the policy that
    chooses them, empty where somebody else does.
    """

    limit_bytes: int
    used_bytes: int
    records: int
    evictions: int = 0
    eviction: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one owner keeps in a tier."""

    records: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one owner has on a tier, in bytes as the tier charges them, and what it was made to give up."""

    used_bytes: int
    records: int
    evictions: int
    limit_bytes: int | None
    """The owner's quota."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker as it stands: whether operations are refused now, and how often it has opened."""

    is_open: bool
    openings: int


class Tier(ABC):
    """One place that keeps records. All methods are safe to call concurrently and safe to cancel."""

    name: str
    """Short, stable name for metrics and replies: ``memory``, ``ssd``."""

    durable: bool
    """Whether a completed :meth:`put` survives ``kill -9`` and power loss."""

    shared: bool = False
    """Whether other daemons read and write the same records: the slowest tier, behind those of this machine.

    Its :meth:`capacity` is what this process counted last (in a :meth:`scan` to the end), not a live figure.
    The owner of what is put into it stands at the start of the storage key (:func:`.key.owner_of`).
    """

    sums_words: bool = False
    """Whether a :meth:`get` of all of a payload comes with its word sum."""

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
        """For each key, whether a record is here, expired or not. Does not count as a use."""

    @abstractmethod
    async def delete(self, key: StorageKey) -> bool:
        """Forget a record; whether there was one. Durable where the tier is."""

    @abstractmethod
    def scan(self) -> AsyncIterator[RecordInfo]:
        """All records, in no particular order; a record put or deleted meanwhile may or may not appear."""

    async def scan_owner(self, owner: OwnerId) -> AsyncIterator[RecordInfo]:
        """All records of ``owner``, as :meth:`scan` lists them."""
        async for info in self.scan():
            if info.owner == owner:
                yield info

    async def usage(self, owner: OwnerId) -> Usage:
        """How much ``owner`` keeps here, whichever daemon put it. Lists the owner's records: not for every request."""
        records = payload_bytes = 0
        async for info in self.scan_owner(owner):
            records += 1
            payload_bytes += info.payload_bytes
        return Usage(records, payload_bytes)

    async def delete_owner(self, owner: OwnerId) -> int:
        """Forget all records of ``owner``, whichever daemon put them; how many there were."""
        deleted = 0
        for info in [info async for info in self.scan_owner(owner)]:
            deleted += await self.delete(info.storage_key)
        return deleted

    async def ping(self) -> None:
        """Ask the backend for the smallest sign of life; :class:`StorageUnavailable` where there is none.

        Cheap, and never retried. A tier of this machine has no backend that could be away.
        """
        return

    @abstractmethod
    def capacity(self) -> Capacity:
        """How full the tier is now."""

    @abstractmethod
    async def close(self) -> None:
        """Flush and release everything. Idempotent; other calls afterwards raise :class:`StorageUnavailable`."""

    # What a tier may do better than this, or can do without: the store asks every tier, wrappers pass all of it on.

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """:meth:`contains_many` without the records that are expired at ``now_ms``.

        Here each record found is asked for its expiry; a tier that has an index of these answers from it.
        """
        live: list[bool] = []
        for key, present in zip(keys, await self.contains_many(keys), strict=True):
            found = await self.get(key, ()) if present else None
            live.append(isinstance(found, Hit) and not is_expired(found.value.info.expires_at_ms, now_ms))
        return live

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """Up to ``limit`` records that are expired at ``now_ms``; they stay until they are deleted."""
        due: list[StorageKey] = []
        async for info in self.scan():
            if is_expired(info.expires_at_ms, now_ms):
                due.append(info.storage_key)
                if len(due) == limit:
                    break
        return due

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:  # noqa: B027
        """Evict no record for whose key ``pinned`` (cheap, callable from any thread) says true.

        A tier that leaves eviction to somebody else cannot promise that, and does nothing here.
        """

    def watch(self, evicted: Callable[[StorageKey], None]) -> None:  # noqa: B027
        """Call ``evicted`` (cheap; it may come from any thread) for every record given up to make room, from now on.

        A tier that leaves eviction to somebody else never calls it.
        """

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:  # noqa: B027
        """Tell the eviction policy that ``keys`` will not be used again (``finished``), or will after all."""

    def touch(self, keys: Sequence[StorageKey]) -> None:  # noqa: B027
        """Take each of ``keys`` for used just now: it is being used somewhere above. Unknown keys are ignored."""

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What ``owner`` has here, or ``None`` where the tier does not know without looking."""
        return None

    def breaker(self) -> Breaker | None:
        """How the breaker in front of the backend stands; ``None`` where there is none."""
        return None
