"""Which records of a tier expire, and when: an index of those that do, so that the others cost nothing. Pure."""

import heapq

from .key import StorageKey
from .tier import NEVER, is_expired

__all__ = ["ExpiryIndex", "later_expiry"]

_STALE_MAX = 64


def later_expiry(one: int, other: int) -> int:
    """The later of two expiries; :data:`NEVER` is the latest."""
    return NEVER if NEVER in (one, other) else max(one, other)


class ExpiryIndex:
    """Not thread-safe: its tier serialises the calls. A key is 32 bytes; what it costs here is about 200."""

    def __init__(self) -> None:
        self._expires: dict[StorageKey, int] = {}
        self._heap: list[tuple[int, StorageKey]] = []

    def __len__(self) -> int:
        return len(self._expires)

    def note(self, key: StorageKey, expires_at_ms: int) -> None:
        """``key`` is resident with this expiry, whatever it was before."""
        if expires_at_ms == NEVER:
            self.forget(key)
        elif self._expires.get(key) != expires_at_ms:
            self._expires[key] = expires_at_ms
            heapq.heappush(self._heap, (expires_at_ms, key))
            if len(self._heap) > 2 * len(self._expires) + _STALE_MAX:
                self._heap = [(expires, item) for item, expires in self._expires.items()]
                heapq.heapify(self._heap)

    def forget(self, key: StorageKey) -> None:
        """``key`` is resident no more, or does not expire."""
        self._expires.pop(key, None)

    def of(self, key: StorageKey) -> int:
        """The expiry of ``key``."""
        return self._expires.get(key, NEVER)

    def is_expired(self, key: StorageKey, now_ms: int) -> bool:
        """Whether ``key`` is expired at ``now_ms``."""
        return is_expired(self._expires.get(key, NEVER), now_ms)

    def due(self, now_ms: int, limit: int) -> list[StorageKey]:
        """Up to ``limit`` keys that are expired at ``now_ms``, longest expired first; they stay in the index."""
        found: list[tuple[int, StorageKey]] = []
        while self._heap and len(found) < limit and self._heap[0][0] <= now_ms:
            item = heapq.heappop(self._heap)
            if self._expires.get(item[1]) == item[0] and item not in found[-1:]:
                found.append(item)
        for item in found:
            heapq.heappush(self._heap, item)
        return [key for _, key in found]
