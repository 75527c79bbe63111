"""The interface of an eviction policy: it is told what happens and asked who goes next.

A policy is pure: it has no clock, no randomness, no I/O, and sees only keys, sizes, what a chunk costs to compute again
and the order of calls, so a trace of calls replays to the same victims. It is also the tier's list of what is resident,
so that a million records are not listed twice. A policy is not thread-safe: its tier serialises the calls.

A tier makes room before it puts, so a policy refuses a newcomer by naming it as the next victim: one record of slack.
"""

from abc import ABC, abstractmethod

from ..attributes import UNATTRIBUTED, ChunkAttributes
from ..key import StorageKey

__all__ = ["EvictionPolicy"]


class EvictionPolicy(ABC):
    """Chooses the record to give up. Sizes are whatever the tier charges for a record, in bytes."""

    name: str
    """What it is called in a configuration."""
    resident_bytes: int
    """What it takes in memory per resident record at most, the key apart: measured, with room for tables that grow."""

    @abstractmethod
    def record_put(self, key: StorageKey, size_bytes: int, attributes: ChunkAttributes = UNATTRIBUTED) -> None:
        """``key`` is resident from now on, or is replaced by a record of another size. Counts as a use.

        ``attributes`` are what a client says: they may name any parent, absent ones and circles included.
        """

    @abstractmethod
    def record_use(self, key: StorageKey) -> None:
        """``key`` was read. A key that is not resident is ignored."""

    def record_hint(self, key: StorageKey, *, discard: bool) -> None:  # noqa: B027  (most policies take no hints)
        """Somebody predicts that ``key`` is not worth keeping until its next use (``discard``), or that it is.

        It holds until the next put or use of ``key``. A key that is not resident is ignored; most policies ignore all.
        """

    @abstractmethod
    def record_delete(self, key: StorageKey) -> None:
        """``key`` was deleted or lost: forget it, history included. A key that is not resident is ignored."""

    def record_evict(self, key: StorageKey) -> None:
        """``key`` was given up to make room. Policies with a memory of what they evicted override this."""
        self.record_delete(key)

    @abstractmethod
    def victim(self) -> StorageKey | None:
        """The resident record to evict next, or ``None`` when nothing is resident.

        It stays resident until :meth:`record_evict`; asking twice in a row gives the same answer.
        """

    @abstractmethod
    def size_of(self, key: StorageKey) -> int:
        """The size of a resident record, 0 for others."""

    def attributes_of(self, key: StorageKey) -> ChunkAttributes:
        """What a resident record was put with, as far as the policy goes by it."""
        return UNATTRIBUTED

    @property
    @abstractmethod
    def total_bytes(self) -> int:
        """The sum of all resident sizes."""

    @abstractmethod
    def __contains__(self, key: object) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...
