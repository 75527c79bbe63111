"""What changed of the catalogue since the index was last written: bounded, and never waited for.

Kept by the catalogue under its lock; taken by the thread that writes the index, in parts.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from ... import limits
from ..key import StorageKey

__all__ = ["ABSENT", "ChangeLog", "Changes"]

ABSENT: Final = -1
"""In place of a packed place: there is none."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Some changes, in the order of use: where the index has a record, and where it is now, both packed.

    ``noted`` is set where these are all there are: by segment, the offset of its last frame that the catalogue was told
    of. Whatever lies up to there and is nowhere in the index is resident no more. ``whole`` says that the changes are
    all residents, for an index that is empty.
    """

    rows: list[tuple[int, int]]
    noted: dict[int, int] | None
    whole: bool = False


class ChangeLog:
    """Not thread-safe: the catalogue serialises the calls, but for the events."""

    def __init__(self) -> None:
        self._before: dict[StorageKey, int] = {}
        """By record that changed: where the index has it. Least recently used first."""
        self._stray: list[int] = []
        """Places in the index where no resident lies."""
        self._noted: dict[int, int] = {}
        self._lost = True
        self.some = threading.Event()
        """Something changed."""
        self.many = threading.Event()
        """Enough changed for a write that does not wait for more."""

    def begin(self, unknown: Iterable[StorageKey], stray: Iterable[int], noted: Mapping[int, int]) -> None:
        """The index is as the catalogue, but for residents ``unknown`` to it and ``stray`` entries."""
        self._before = dict.fromkeys(unknown, ABSENT)
        self._stray = list(stray)
        self._noted = dict(noted)
        self._lost = len(self._before) + len(self._stray) > limits.SSD_INDEX_CHANGES_MAX
        self.some.set()

    def note(self, key: StorageKey, before: int | None) -> None:
        """A record was used, put, moved or is gone; it lay at ``before``."""
        if self._lost:
            return
        first = self._before.pop(key, None)
        self._before[key] = (ABSENT if before is None else before) if first is None else first
        if len(self._before) > limits.SSD_INDEX_CHANGES_MAX:
            self.lose()
        elif len(self._before) > limits.SSD_INDEX_BATCH_MAX:
            self.many.set()
        self.some.set()

    def note_frame(self, ordinal: int, offset: int) -> None:
        """The record at ``offset`` of a segment, and all before it, have been noted, or are not wanted."""
        self._noted[ordinal] = offset

    def lose(self) -> None:
        """Remember no changes: the index is to be written anew."""
        self._before.clear()
        self._stray.clear()
        self._lost = True
        self.some.set()

    def take(self, places: Mapping[StorageKey, int]) -> Changes:
        """The next changes to write, at most a batch of them; all residents where changes were lost."""
        whole, self._lost = self._lost, False
        if whole:
            rows = [(ABSENT, place) for place in places.values()]
        else:
            taken = list(islice(self._before, limits.SSD_INDEX_BATCH_MAX))
            rows = [(self._before.pop(key), places.get(key, ABSENT)) for key in taken]
            rows += [(place, ABSENT) for place in self._stray]
        self._stray = []
        if self._before:
            return Changes(rows, None, whole)
        self.some.clear()
        self.many.clear()
        return Changes(rows, dict(self._noted), whole)

    def forget(self, ordinals: Iterable[int]) -> None:
        """Segments that are gone."""
        for ordinal in ordinals:
            self._noted.pop(ordinal, None)
