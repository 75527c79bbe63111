"""What has changed in a pool since somebody last looked: for telling the daemon."""

from collections import Counter
from dataclasses import dataclass, field

from ..key import ContentKey

__all__ = ["Changes", "Journal"]


@dataclass(frozen=True, slots=True)
class Changes:
    """Chunks that came, went, and were used; each stands in one of them only."""

    added: frozenset[ContentKey] = frozenset()
    gone: frozenset[ContentKey] = frozenset()
    used: frozenset[ContentKey] = frozenset()


@dataclass(slots=True)
class Journal:
    """The chunks of one owner that are resident at any level and position. Callers serialise."""

    _held: Counter[ContentKey] = field(default_factory=Counter)
    _added: set[ContentKey] = field(default_factory=set)
    _gone: set[ContentKey] = field(default_factory=set)
    _used: set[ContentKey] = field(default_factory=set)

    def record_added(self, key: ContentKey) -> None:
        """One more of ``key`` is resident."""
        self._held[key] += 1
        if key in self._gone:
            self._gone.discard(key)
        elif self._held[key] == 1:
            self._added.add(key)

    def record_gone(self, key: ContentKey) -> None:
        """One of ``key`` is resident no more."""
        self._held[key] -= 1
        if self._held[key]:
            return
        del self._held[key]
        if key in self._added:
            self._added.discard(key)
        else:
            self._gone.add(key)

    def record_used(self, key: ContentKey) -> None:
        """``key`` was read."""
        self._used.add(key)

    def take(self) -> Changes:
        """The changes since the last call."""
        changes = Changes(frozenset(self._added), frozenset(self._gone), frozenset(self._used & self._held.keys()))
        self._added, self._gone, self._used = set(), set(), set()
        return changes
