"""What the SSD tier knows in memory: which records are resident, what they are charged, who was used when.

The policy is the list of residents. The event loop, the readers and the writer all come here, so every method takes
the lock, briefly. Last uses are noted here and written behind with the next transaction: after a crash the order of
eviction is approximately, not exactly, what it was.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import StorageFull
from .eviction import EvictionPolicy
from .expiry import ExpiryIndex
from .key import OwnerId, StorageKey, owner_of
from .quota import QuotaPolicy
from .tier import NEVER, Holdings

__all__ = ["USES_PENDING_MAX", "SsdCatalogue", "Use", "Victim", "charged_bytes"]

USES_PENDING_MAX = 4096
_PAGE_HEADER_BYTES = 16
_NODE_BYTES = 40
"""What LMDB stores beside a value in a leaf: its node header (8) and our key (32)."""
_TREE_BYTES_PER_RECORD = 320
"""Leaf entries of a record in both trees (146 bytes) at the half-full pages of random inserts, and their branches."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A record taken out to make room, and what it was charged."""

    key: StorageKey
    size_bytes: int
    expires_at_ms: int = NEVER


@dataclass(frozen=True, slots=True)
class Use:
    """A record was last used at ``sequence``."""

    key: StorageKey
    sequence: int


def charged_bytes(record_bytes: int, page_bytes: int) -> int:
    """What a record of ``record_bytes`` takes of the map: whole pages past half a page, tree entries always."""
    largest_node_bytes = (page_bytes - _PAGE_HEADER_BYTES) // 4 * 2 - 2
    if _NODE_BYTES + record_bytes > largest_node_bytes:
        return -(-(record_bytes + _PAGE_HEADER_BYTES) // page_bytes) * page_bytes + _TREE_BYTES_PER_RECORD
    return 2 * record_bytes + _TREE_BYTES_PER_RECORD


class SsdCatalogue:
    """Thread-safe; ``budget_bytes`` is what all residents together may be charged."""

    def __init__(self, policy: EvictionPolicy, budget_bytes: int) -> None:
        self._policy = QuotaPolicy.around(policy)
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._expiry = ExpiryIndex()
        self._uses: dict[StorageKey, int] = {}
        self._sequence = 0
        self._evictions = 0

    @property
    def evictions(self) -> int:
        """Records evicted since the tier was opened."""
        return self._evictions

    @property
    def used_bytes(self) -> int:
        """What all residents are charged."""
        with self._lock:
            return self._policy.total_bytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._policy)

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._policy

    def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """For each key, whether it is resident."""
        with self._lock:
            return [key in self._policy for key in keys]

    def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """For each key, whether it is resident and not expired."""
        with self._lock:
            return [key in self._policy and not self._expiry.is_expired(key, now_ms) for key in keys]

    def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """Up to ``limit`` residents that are expired."""
        with self._lock:
            return self._expiry.due(now_ms, limit)

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Evict none of which ``pinned`` says true."""
        with self._lock:
            self._policy.pinned = pinned

    def hint(self, keys: Sequence[StorageKey], *, finished: bool) -> None:
        """Tell the policy."""
        with self._lock:
            for key in keys:
                self._policy.record_hint(key, discard=finished)

    def holdings(self, owner: OwnerId) -> Holdings | None:
        """What an owner is charged."""
        with self._lock:
            return self._policy.holdings(owner)

    def quota_bytes(self, owner: OwnerId) -> int | None:
        """What an owner may be charged."""
        return self._policy.quotas.of(owner).limit_bytes

    def load(self, residents: Iterable[Victim], sequence: int) -> None:
        """Fill an empty catalogue, least recently used first; ``sequence`` is the last one ever given out."""
        with self._lock:
            for resident in residents:
                self._policy.record_put(resident.key, resident.size_bytes)
                self._expiry.note(resident.key, resident.expires_at_ms)
            self._sequence = sequence

    def next_sequence(self) -> int:
        """A number larger than all before."""
        with self._lock:
            self._sequence += 1
            return self._sequence

    def note_use(self, key: StorageKey) -> bool:
        """A record was read; whether so many uses are noted that they should be written now."""
        with self._lock:
            if key not in self._policy:
                return False
            self._policy.record_use(key)
            self._sequence += 1
            self._uses[key] = self._sequence
            return len(self._uses) == USES_PENDING_MAX

    def take_uses(self) -> list[Use]:
        """The uses noted and not yet written; they are the caller's to write now."""
        with self._lock:
            taken, self._uses = self._uses, {}
        return [Use(key, sequence) for key, sequence in taken.items()]

    def note_put(self, key: StorageKey, size_bytes: int, expires_at_ms: int = NEVER) -> None:
        """A record is committed."""
        with self._lock:
            self._policy.record_put(key, size_bytes)
            self._expiry.note(key, expires_at_ms)

    def note_delete(self, key: StorageKey) -> None:
        """A deletion is committed."""
        with self._lock:
            self._policy.record_delete(key)
            self._expiry.forget(key)

    def evict_for(self, incoming: Mapping[StorageKey, int]) -> list[Victim]:
        """Take out victims until the incoming records (key → charge) fit the budget and the quotas of their owners.

        Raises :class:`StorageFull` where a quota cannot be kept because what its owner has is pinned.
        """
        with self._lock:
            victims: list[Victim] = []
            by_owner: dict[OwnerId, dict[StorageKey, int]] = {}
            for key, size_bytes in incoming.items():
                by_owner.setdefault(owner_of(key), {})[key] = size_bytes
            for owner, sizes in by_owner.items():
                while self._policy.excess_bytes(owner, self._growth_bytes(sizes)) > 0:
                    own = self._policy.own_victim(owner)
                    if own is None:
                        self._restore(victims)
                        raise StorageFull("all that the owner of the record has on disk is pinned or being written")
                    victims.append(self._evict(own))
            giver = next(iter(by_owner), None)
            while self._policy.total_bytes + self._growth_bytes(incoming) > self._budget_bytes:
                victim = self._policy.victim(giver)
                if victim is None:
                    break
                victims.append(self._evict(victim))
            return victims

    def evict_bytes(self, size_bytes: int, owner: OwnerId | None = None) -> list[Victim]:
        """Take out victims charged at least ``size_bytes`` together to make room for ``owner``, or all that may go."""
        with self._lock:
            victims: list[Victim] = []
            while size_bytes > 0 and (key := self._policy.victim(owner)) is not None:
                victim = self._evict(key)
                size_bytes -= victim.size_bytes
                victims.append(victim)
            return victims

    def restore(self, victims: Iterable[Victim]) -> None:
        """Put victims back whose eviction could not be committed."""
        with self._lock:
            self._restore(victims)

    def _restore(self, victims: Iterable[Victim]) -> None:
        for victim in victims:
            self._policy.record_put(victim.key, victim.size_bytes)
            self._expiry.note(victim.key, victim.expires_at_ms)
            self._evictions -= 1

    def _growth_bytes(self, incoming: Mapping[StorageKey, int]) -> int:
        """By how much the residents grow by ``incoming``, some of which replace others."""
        return sum(incoming.values()) - sum(self._policy.size_of(key) for key in incoming)

    def _evict(self, key: StorageKey) -> Victim:
        victim = Victim(key, self._policy.size_of(key), self._expiry.of(key))
        self._policy.record_evict(key)
        self._expiry.forget(key)
        self._evictions += 1
        return victim
