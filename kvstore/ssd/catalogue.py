"""What the SSD tier knows in memory: which records are resident, where they lie, who was used when.

The policy is the list of residents and their charges, the dictionary of places their order of use. The event loop, the
readers and the writer all come here, so every method takes the lock, briefly. What changes is noted for the index,
which is written later, by others (:mod:`.index`).
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from ...errors import StorageFull
from ..attributes import UNATTRIBUTED, ChunkAttributes, unpack_attributes
from ..expiry import ExpiryIndex
from ..key import OwnerId, StorageKey, owner_of
from ..quota import QuotaPolicy
from ..tier import NEVER, Holdings
from .changes import ChangeLog, Changes
from .segment import Place

__all__ = ["SsdCatalogue"]


class SsdCatalogue:
    """Thread-safe; ``budget_bytes`` is what all residents together may be charged."""

    def __init__(self, policy: QuotaPolicy, budget_bytes: int) -> None:
        self._policy = policy
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._places: dict[StorageKey, int] = {}
        self._expiry = ExpiryIndex()
        self._evictions = 0
        self._damaged = 0
        self.changes = ChangeLog()
        """What the index is to be told. Only its events are for others than the catalogue."""

    @property
    def eviction(self) -> str:
        """The name of the policy."""
        return self._policy.name

    @property
    def evictions(self) -> int:
        """Records evicted since the tier was opened."""
        return self._evictions

    @property
    def damaged(self) -> int:
        """Records found damaged and given up while their segment was reclaimed."""
        return self._damaged

    @property
    def used_bytes(self) -> int:
        """What all residents are charged."""
        with self._lock:
            return self._policy.total_bytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._places)

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._places

    def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """For each key, whether it is resident."""
        with self._lock:
            return [key in self._places for key in keys]

    def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """For each key, whether it is resident and not expired."""
        with self._lock:
            return [key in self._places and not self._expiry.is_expired(key, now_ms) for key in keys]

    def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """Up to ``limit`` residents that are expired."""
        with self._lock:
            return self._expiry.due(now_ms, limit)

    def protect(self, pinned: Callable[[StorageKey], bool]) -> None:
        """Evict none of which ``pinned`` says true."""
        with self._lock:
            self._policy.pinned = pinned

    def watch(self, evicted: Callable[[StorageKey], None]) -> None:
        """Call ``evicted``, with the lock held, for what is given up."""
        with self._lock:
            self._policy.evicted = evicted

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

    def place_of(self, key: StorageKey) -> Place | None:
        """Where the record lies."""
        with self._lock:
            packed = self._places.get(key)
        return None if packed is None else Place.unpacked(packed)

    def keys(self) -> list[StorageKey]:
        """All residents, least recently used first."""
        with self._lock:
            return list(self._places)

    def keys_by_place(self) -> list[StorageKey]:
        """All residents in the order of the log."""
        with self._lock:
            places = dict(self._places)
        return sorted(places, key=places.__getitem__)

    def load(
        self,
        keys: Iterable[StorageKey],
        places: Mapping[StorageKey, int],
        sizes: Mapping[StorageKey, int],
        expiries: Mapping[StorageKey, int],
        attributes: Mapping[StorageKey, bytes],
    ) -> None:
        """Fill an empty catalogue with ``keys``, least recently used first, then keep within the budget and quotas.

        ``places`` are packed, ``sizes`` what the records are charged, ``expiries`` those of the ones that expire,
        ``attributes`` are packed.
        """
        with self._lock:
            for key in keys:
                self._policy.record_put(key, sizes[key], unpack_attributes(key, attributes[key]))
                self._places[key] = places[key]
            for key, expires_at_ms in expiries.items():
                self._expiry.note(key, expires_at_ms)
            for owner in {owner_of(key) for key in self._places}:
                while self._policy.excess_bytes(owner, 0) > 0 and (own := self._policy.own_victim(owner)) is not None:
                    self._evict(own)
            self._evict_down_to(self._budget_bytes, None)

    def note_use(self, key: StorageKey) -> None:
        """A record was read."""
        with self._lock:
            packed = self._places.pop(key, None)
            if packed is not None:
                self._places[key] = packed
                self._policy.record_use(key)
                self.changes.note(key, packed)

    def make_room(self, incoming: Mapping[StorageKey, int]) -> None:
        """Evict until the incoming records (key → charge) fit the quotas of their owners and the budget.

        Raises :class:`StorageFull` where they cannot, because what is stored is pinned or guaranteed to others.
        """
        by_owner: dict[OwnerId, dict[StorageKey, int]] = {}
        for key, size_bytes in incoming.items():
            by_owner.setdefault(owner_of(key), {})[key] = size_bytes
        with self._lock:
            coming: dict[StorageKey, int] = {}
            for owner, sizes in by_owner.items():
                while self._policy.excess_bytes(owner, self._growth_bytes(sizes)) > 0:
                    own = self._policy.own_victim(owner)
                    if own is None:
                        raise StorageFull("all that the owner of the record has on disk is pinned")
                    self._evict(own)
                coming |= sizes
                while (growth_bytes := self._growth_bytes(coming)) + self._policy.total_bytes > self._budget_bytes:
                    if not self._evict_down_to(self._budget_bytes - growth_bytes, owner):
                        raise StorageFull("all that is on disk is pinned, or guaranteed to other owners")

    def note_put(
        self,
        key: StorageKey,
        size_bytes: int,
        place: Place,
        expires_at_ms: int = NEVER,
        attributes: ChunkAttributes = UNATTRIBUTED,
    ) -> None:
        """A record is durable at ``place``."""
        with self._lock:
            self.changes.note(key, self._places.pop(key, None))
            self.changes.note_frame(place.ordinal, place.offset)
            self._places[key] = place.packed()
            self._policy.record_put(key, size_bytes, attributes)
            self._expiry.note(key, expires_at_ms)

    def note_delete(self, key: StorageKey) -> None:
        """A deletion is durable."""
        with self._lock:
            self.changes.note(key, self._places.pop(key, None))
            self._policy.record_delete(key)
            self._expiry.forget(key)

    def give_up(self, size_bytes: int, owner: OwnerId, *, keep_bytes: int = 0) -> bool:
        """Forget records of at least ``size_bytes`` together, down to ``keep_bytes``: they would have to be moved."""
        with self._lock:
            return self._evict_down_to(max(keep_bytes, self._policy.total_bytes - size_bytes), owner)

    def surrender(self, key: StorageKey, owner: OwnerId) -> bool:
        """Forget a record that found no room, out of turn; ``False`` where it is pinned or guaranteed, and stays."""
        with self._lock:
            if key not in self._places:
                return True
            if not self._policy.may_evict(key, owner):
                return False
            self._evict(key)
            return True

    def holds(self, key: StorageKey, place: Place) -> bool:
        """Whether the record at ``place`` is the resident one of ``key``."""
        with self._lock:
            return self._places.get(key) == place.packed()

    def note_move(self, key: StorageKey, place: Place) -> None:
        """A resident record lies at ``place`` from now on; not a use."""
        with self._lock:
            self.changes.note_frame(place.ordinal, place.offset)
            if key in self._places:
                self.changes.note(key, self._places[key])
                self._places[key] = place.packed()

    def note_lost(self, key: StorageKey, *, damaged: bool) -> None:
        """A record is gone: to make room, or because it was ``damaged``."""
        with self._lock:
            if key not in self._places:
                return
            if damaged:
                self._damaged += 1
                self.changes.note(key, self._places.pop(key))
                self._policy.record_delete(key)
                self._expiry.forget(key)
                self._policy.evicted(key)
            else:
                self._evict(key)

    def begin_changes(
        self, unknown: Iterable[StorageKey], stray: Iterable[int], last_frames: Mapping[int, int]
    ) -> None:
        """Before :meth:`load`: what the index has is what will be loaded, but for these (:meth:`.ChangeLog.begin`)."""
        with self._lock:
            self.changes.begin(unknown, stray, last_frames)

    def take_changes(self) -> Changes:
        """What the index is to be told next."""
        with self._lock:
            return self.changes.take(self._places)

    def lose_changes(self) -> None:
        """The index is to be told everything."""
        with self._lock:
            self.changes.lose()

    def forget_segments(self, ordinals: Iterable[int]) -> None:
        """Segments that are gone."""
        with self._lock:
            self.changes.forget(ordinals)

    def _growth_bytes(self, incoming: Mapping[StorageKey, int]) -> int:
        """By how much the residents grow by ``incoming``, some of which replace others."""
        return sum(incoming.values()) - sum(self._policy.size_of(key) for key in incoming)

    def _evict_down_to(self, size_bytes: int, owner: OwnerId | None) -> bool:
        """Evict for ``owner`` until the residents are charged ``size_bytes``; whether that could be."""
        while self._policy.total_bytes > size_bytes:
            key = self._policy.victim(owner)
            if key is None:
                return False
            self._evict(key)
        return True

    def _evict(self, key: StorageKey) -> None:
        self._policy.record_evict(key)
        self.changes.note(key, self._places.pop(key, None))
        self._expiry.forget(key)
        self._evictions += 1
