"""Pins, hints, prefetches and deletions of many, as records on the wire (:mod:`.wire`)."""

from dataclasses import dataclass

from .. import limits
from .tenancy import TenantStats

__all__ = [
    "BatchQuestion",
    "DeleteManyReply",
    "ErasedReply",
    "HintQuestion",
    "HintReply",
    "NamespaceList",
    "PinQuestion",
    "PinReply",
    "PrefetchReply",
    "ReleaseReply",
]


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """These chunks, each up to ``level`` (absent: everything) and ``layers`` (``A-B``, absent: all)."""

    keys: tuple[str, ...]
    level: str | None = None
    layers: str | None = None


@dataclass(frozen=True, slots=True)
class PinQuestion:
    """Keep these chunks from being evicted, for so long."""

    keys: tuple[str, ...]
    lease_seconds: float = limits.LEASE_SECONDS_DEFAULT


@dataclass(frozen=True, slots=True)
class PinReply:
    """The lease, until when it runs, and for each key whether the chunk is pinned: what is not stored here is not."""

    lease: bytes
    until_ms: int
    pinned: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ReleaseReply:
    """Whether the lease was running."""

    released: bool


@dataclass(frozen=True, slots=True)
class HintQuestion:
    """These chunks will not be used again (``finished``), or will after all."""

    keys: tuple[str, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class HintReply:
    """How many keys were passed on to the eviction."""

    keys: int


@dataclass(frozen=True, slots=True)
class PrefetchReply:
    """For how many of the chunks a copy into memory is under way or not needed."""

    accepted: int


@dataclass(frozen=True, slots=True)
class DeleteManyReply:
    """For each key, whether there was a chunk to forget."""

    deleted: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ErasedReply:
    """Records that were forgotten, each counted once per tier."""

    records: int


@dataclass(frozen=True, slots=True)
class NamespaceList:
    """The namespaces of a daemon, with what they hold and may hold of each tier."""

    namespaces: tuple[TenantStats, ...]
