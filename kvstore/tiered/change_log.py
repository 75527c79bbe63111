"""When a key was last changed, for those who read it, wait, and must not bring back what is gone. Pure."""

from collections import OrderedDict

from ... import limits
from ..key import StorageKey

__all__ = ["ChangeLog"]


class ChangeLog:
    """Remembers the last changes, up to ``keys_max`` keys; of what lies further back it says "may have changed"."""

    def __init__(self, keys_max: int = limits.CHANGES_REMEMBERED_MAX) -> None:
        self._keys_max = keys_max
        self._last: OrderedDict[StorageKey, int] = OrderedDict()
        self._count = 0
        self._forgotten = 0

    def mark(self) -> int:
        """Now, to ask about later."""
        return self._count

    def note(self, key: StorageKey) -> None:
        """``key`` was put or deleted, or an attempt at it ended. Call it before the key's lock is let go."""
        self._count += 1
        self._last[key] = self._count
        self._last.move_to_end(key)
        if len(self._last) > self._keys_max:
            self._forgotten = self._last.popitem(last=False)[1]

    def changed_since(self, key: StorageKey, mark: int) -> bool:
        """Whether ``key`` was, or may have been, changed after ``mark``."""
        return self._last.get(key, 0) > mark or self._forgotten > mark
