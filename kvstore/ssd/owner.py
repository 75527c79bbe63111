"""What the log of the SSD tier asks of the catalogue: which records are wanted, and who may go."""

from typing import Protocol

from ..key import OwnerId, StorageKey
from .segment import Place

__all__ = ["LogOwner"]


class LogOwner(Protocol):
    """Who knows which records are wanted: told where they go."""

    def holds(self, key: StorageKey, place: Place) -> bool:
        """Whether the record at ``place`` is the one kept under ``key``."""
        ...

    def note_move(self, key: StorageKey, place: Place) -> None:
        """The record is at ``place`` from now on."""
        ...

    def give_up(self, size_bytes: int, owner: OwnerId, *, keep_bytes: int = 0) -> bool:
        """Evict records of at least ``size_bytes`` together, down to ``keep_bytes`` at most: too much is wanted.

        Room is made for ``owner``. ``False`` where the rest must stay: it is pinned, or guaranteed to others.
        """
        ...

    def surrender(self, key: StorageKey, owner: OwnerId) -> bool:
        """Evict a record that finds no room, for ``owner``; ``False`` where it must stay."""
        ...

    def note_lost(self, key: StorageKey, *, damaged: bool) -> None:
        """The record is gone: to make room, or because it was ``damaged``."""
        ...
