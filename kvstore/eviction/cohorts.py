"""Chunks of one class touched at about the same time, told by number so that whoever is in one stores 4 bytes."""

from array import array
from typing import Final

from .prefix_slots import NO_SLOT

__all__ = ["NO_COHORT", "Cohort", "CohortTable"]

NO_COHORT: Final = 0


class Cohort:
    """Chunks that age as one; ``first`` and ``last`` are the ends of the list of those that may be evicted."""

    __slots__ = ("born", "bucket", "first", "gone", "kind", "last", "number", "resident")

    def __init__(self, number: int, kind: int, born: int) -> None:
        self.number = number
        self.kind = kind
        """Its class in the model."""
        self.born = born
        self.bucket = 0
        self.resident = 0
        self.gone = 0
        """Evicted, still remembered, and not asked for since."""
        self.first = NO_SLOT
        self.last = NO_SLOT

    @property
    def size(self) -> int:
        """Chunks that would be noticed if they were used now."""
        return self.resident + self.gone


class CohortTable:
    """Cohorts by number; the numbers of those that are released are given again."""

    __slots__ = ("_cohorts", "_free")

    def __init__(self) -> None:
        self._cohorts: list[Cohort | None] = [None]
        self._free = array("I")

    def open(self, kind: int, born: int) -> Cohort:
        """A new cohort."""
        if self._free:
            number = self._free.pop()
        else:
            number = len(self._cohorts)
            self._cohorts.append(None)
        cohort = self._cohorts[number] = Cohort(number, kind, born)
        return cohort

    def release(self, cohort: Cohort) -> None:
        """Nobody is in it, and nobody will be."""
        self._cohorts[cohort.number] = None
        self._free.append(cohort.number)

    def get(self, number: int) -> Cohort | None:
        """The cohort with that number, ``None`` for :data:`NO_COHORT`."""
        return self._cohorts[number]

    def __len__(self) -> int:
        return len(self._cohorts) - 1 - len(self._free)
