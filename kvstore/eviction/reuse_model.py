"""What a policy has learnt of reuse: for each class of chunks, how likely one is used again at each age.

Ages are counted in puts and uses, and fall into buckets whose width grows with the age. A class's *hazard* in a bucket
is the share of its chunks that entered the bucket and were used again in it: the actuary's estimator, which needs no
end of the observation. Classes with few observations lean on all classes of the same number of uses, and these on all
there are.

From the hazards follows the Gittins index: the most uses per unit of time and memory that keeping a chunk from its
present age on, for the best length of time, can be expected to bring (Gittins, "Bandit processes and dynamic
allocation indices", JRSS B 1979; as hit density per class and age, Beckmann, Chen and Cidon, "LHD", NSDI 2018).
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKETS", "EDGES", "ReuseClass", "ReuseModel", "bucket_of"]

BUCKETS: Final = 48
_FIRST_EDGE: Final = 32.0
_GROWTH: Final = 1.4
EDGES: Final = (0, *(math.floor(_FIRST_EDGE * _GROWTH**power) for power in range(BUCKETS)))
"""Bucket ``n`` holds the ages ``[EDGES[n], EDGES[n + 1])``; the last one holds all above it too."""
_WIDTHS: Final = np.diff(np.array(EDGES, np.float64))
_CLASS_PRIOR: Final = 50.0
"""As many chunks as this have to be seen in a bucket before a class's own hazard outweighs that of its like."""
_GLOBAL_PRIOR: Final = 20.0
_HAZARD_PRIOR: Final = 0.001
"""The same everywhere, so over buckets that widen the index falls with the age: before it knows, it is an LRU."""
WEIGHTS_PER_OCTAVE: Final = 2


@dataclass(frozen=True, slots=True)
class ReuseClass:
    """What chunks have in common: uses counted up to a limit, those of the parent, being a tail, cost per byte.

    ``weight`` is the logarithm of the recompute cost per byte in steps of half an octave.
    """

    uses: int
    parent_uses: int
    tail: bool
    weight: int


def bucket_of(age: int) -> int:
    """The bucket of ``age`` puts and uses."""
    return min(bisect_right(EDGES, age) - 1, BUCKETS - 1)


class ReuseModel:
    """Counts by class and bucket, and the order of all (class, bucket) cells that follows from them."""

    def __init__(self) -> None:
        self.classes: list[ReuseClass] = []
        self._numbers: dict[ReuseClass, int] = {}
        self._entered: list[list[float]] = []
        self._used: list[list[float]] = []

    def number(self, kind: ReuseClass) -> int:
        """The number of a class, given out in order of first use."""
        found = self._numbers.get(kind)
        if found is None:
            found = self._numbers[kind] = len(self.classes)
            self.classes.append(kind)
            self._entered.append([0.0] * BUCKETS)
            self._used.append([0.0] * BUCKETS)
        return found

    def note_entered(self, number: int, bucket: int, chunks: int) -> None:
        """``chunks`` of a class have reached the age of ``bucket`` without another use."""
        self._entered[number][bucket] += chunks

    def note_used(self, number: int, bucket: int) -> None:
        """A chunk of a class was used again at an age in ``bucket``, or would have been, had it been kept."""
        self._used[number][bucket] += 1.0

    def hazards(self) -> NDArray[np.float64]:
        """``[classes, BUCKETS]`` in [0, 1]."""
        entered, used = np.array(self._entered), np.array(self._used)
        everywhere = (used.sum(0) + _GLOBAL_PRIOR * _HAZARD_PRIOR) / (entered.sum(0) + _GLOBAL_PRIOR)
        result = np.empty_like(used)
        groups = np.array([kind.uses for kind in self.classes])
        for uses in np.unique(groups):
            members = groups == uses
            alike = _blend(used[members].sum(0), entered[members].sum(0), np.minimum(everywhere, 1.0))
            result[members] = _blend(used[members], entered[members], alike)
        return result

    def indices(self) -> NDArray[np.float64]:
        """The Gittins index times the cost, ``[classes, BUCKETS]``."""
        hazards = self.hazards()
        index = np.empty_like(hazards)
        for age in range(BUCKETS):
            ahead = hazards[:, age:]
            alive = np.cumprod(1.0 - ahead, axis=1)
            alive = np.concatenate([np.ones((len(alive), 1)), alive[:, :-1]], axis=1)
            uses = np.cumsum(alive * ahead, axis=1)
            time = np.cumsum(alive * (1.0 - ahead / 2.0) * _WIDTHS[age:], axis=1)
            index[:, age] = (uses / time).max(axis=1)
        weights = np.array([2.0 ** (kind.weight / WEIGHTS_PER_OCTAVE) for kind in self.classes])
        return index * weights[:, None]

    def halve(self) -> None:
        """Give everything seen so far half of its weight."""
        self._entered = [[count / 2.0 for count in row] for row in self._entered]
        self._used = [[count / 2.0 for count in row] for row in self._used]


def _blend(
    used: NDArray[np.float64], entered: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Hazards from counts, drawn to ``prior``."""
    expected = used + _CLASS_PRIOR * prior
    blended: NDArray[np.float64] = expected / np.maximum(expected, entered + _CLASS_PRIOR)
    return blended
