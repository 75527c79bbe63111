"""Pins with leases: which chunks may not be evicted for now, for whom, and until when.

A lease names keys of one owner and ends by itself. What is pinned is bounded per owner and in all, so that pins can
never fill a tier. A lease protects from eviction; a chunk that is deleted or that expires goes all the same.

Changes come from the event loop. :meth:`Pins.is_pinned` may be called from any thread: it reads one dictionary entry
and the clock, so a lease that has ended protects nothing from that moment on, even before anybody has noticed.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NewType

from ... import limits
from ...errors import Overloaded, StorageFull
from ..key import OwnerId, StorageKey

__all__ = ["LeaseId", "Pins"]

LeaseId = NewType("LeaseId", bytes)
LEASE_ID_BYTES: Final = 16


@dataclass(slots=True)
class _Pinned:
    size_bytes: int
    leases: dict[LeaseId, int] = field(default_factory=dict)
    """When each lease that holds the chunk ends."""
    until_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Lease:
    owner: OwnerId
    keys: set[StorageKey]
    until_ms: int


class Pins:
    """``bytes_max`` bounds all owners together, ``owner_bytes_max`` one of them."""

    def __init__(
        self,
        clock_ms: Callable[[], int],
        *,
        bytes_max: int,
        owner_bytes_max: Callable[[OwnerId], int],
        make_id: Callable[[], bytes] = lambda: secrets.token_bytes(LEASE_ID_BYTES),
    ) -> None:
        self._clock_ms = clock_ms
        self._bytes_max = bytes_max
        self._owner_bytes_max = owner_bytes_max
        self._make_id = make_id
        self._leases: dict[LeaseId, _Lease] = {}
        self._pinned: dict[StorageKey, _Pinned] = {}
        self._owner_bytes: dict[OwnerId, int] = {}
        self._owner_leases: dict[OwnerId, int] = {}
        self._next_end_ms = 0

    def __len__(self) -> int:
        return len(self._pinned)

    @property
    def leases(self) -> int:
        """Leases that have not been found ended."""
        return len(self._leases)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of all chunks pinned, each counted once."""
        return sum(self._owner_bytes.values())

    def owner_bytes(self, owner: OwnerId) -> int:
        """Bytes that ``owner`` has pinned."""
        return self._owner_bytes.get(owner, 0)

    def is_pinned(self, key: StorageKey) -> bool:
        """Whether a lease on ``key`` is running."""
        held = self._pinned.get(key)
        return held is not None and held.until_ms > self._clock_ms()

    def add(self, owner: OwnerId, sizes: Mapping[StorageKey, int], until_ms: int) -> LeaseId:
        """A lease on the chunks of ``sizes`` (key → bytes), all of ``owner``, that ends at ``until_ms``.

        Raises :class:`StorageFull` past the bounds in bytes and :class:`Overloaded` past that of leases; nothing is
        pinned then.
        """
        self.end_due()
        new_bytes = sum(size for key, size in sizes.items() if key not in self._pinned)
        for what, held, most in (
            ("its owner", self.owner_bytes(owner), self._owner_bytes_max(owner)),
            ("all owners", self.pinned_bytes, self._bytes_max),
        ):
            if held + new_bytes > most:
                raise StorageFull(f"{new_bytes} bytes to pin beside {held} that {what} pinned, the limit is {most}")
        if self._owner_leases.get(owner, 0) >= limits.LEASES_MAX:
            raise Overloaded(f"its owner has {limits.LEASES_MAX} leases, which is the limit; release some")
        lease_id = LeaseId(self._make_id())
        self._next_end_ms = min(self._next_end_ms, until_ms) if self._leases else until_ms
        self._leases[lease_id] = _Lease(owner, set(sizes), until_ms)
        self._owner_leases[owner] = self._owner_leases.get(owner, 0) + 1
        self._owner_bytes[owner] = self.owner_bytes(owner) + new_bytes
        for key, size in sizes.items():
            held_key = self._pinned.setdefault(key, _Pinned(size))
            held_key.leases[lease_id] = until_ms
            held_key.until_ms = max(held_key.until_ms, until_ms)
        return lease_id

    def holds(self, lease_id: LeaseId, key: StorageKey) -> bool:
        """Whether the lease has the chunk pinned."""
        lease = self._leases.get(lease_id)
        return lease is not None and key in lease.keys

    def release(self, owner: OwnerId, lease_id: LeaseId) -> bool:
        """End a lease now; whether it was running and ``owner``'s (somebody else's is like none)."""
        self.end_due()
        lease = self._leases.get(lease_id)
        if lease is None or lease.owner != owner:
            return False
        self._end(lease_id, lease)
        return True

    def drop(self, lease_id: LeaseId, key: StorageKey) -> None:
        """Take one chunk out of a lease."""
        lease = self._leases.get(lease_id)
        if lease is not None and key in lease.keys:
            lease.keys.remove(key)
            self._unpin(lease_id, lease.owner, key)

    def forget(self, key: StorageKey) -> None:
        """The chunk was deleted: take it out of every lease."""
        held = self._pinned.get(key)
        for lease_id in list(held.leases) if held is not None else ():
            self.drop(lease_id, key)

    def end_due(self) -> int:
        """Let go of the leases that have ended, and say how many."""
        now_ms = self._clock_ms()
        if now_ms < self._next_end_ms:
            return 0
        due = [(lease_id, lease) for lease_id, lease in self._leases.items() if lease.until_ms <= now_ms]
        for lease_id, lease in due:
            self._end(lease_id, lease)
        self._next_end_ms = min((lease.until_ms for lease in self._leases.values()), default=0)
        return len(due)

    def _end(self, lease_id: LeaseId, lease: _Lease) -> None:
        del self._leases[lease_id]
        left = self._owner_leases[lease.owner] - 1
        if left:
            self._owner_leases[lease.owner] = left
        else:
            del self._owner_leases[lease.owner]
        for key in lease.keys:
            self._unpin(lease_id, lease.owner, key)

    def _unpin(self, lease_id: LeaseId, owner: OwnerId, key: StorageKey) -> None:
        held = self._pinned[key]
        del held.leases[lease_id]
        if held.leases:
            held.until_ms = max(held.leases.values())
            return
        del self._pinned[key]
        left = self._owner_bytes[owner] - held.size_bytes
        if left:
            self._owner_bytes[owner] = left
        else:
            del self._owner_bytes[owner]
