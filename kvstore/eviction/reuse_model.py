"""What a policy has learnt of reuse: for each class of chunks, how likely one is used again at each age.

Ages are counted in puts and uses, and fall into buckets whose width grows with the age. A class's *hazard* in a bucket
is the share of its chunks that entered the bucket and were used again in it: the actuary's estimator, which needs no
end of the observation. Classes with few observations lean on all classes of as many uses that are tails like them or
not, and these on all there are, times the square root of the uses.

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
_CLASS_PRIOR: Final = 200.0
"""As many chunks as this have to be seen in a bucket before a class's own hazard outweighs that of its like."""
_GLOBAL_PRIOR: Final = 20.0
_HAZARD_PRIOR: Final = 0.02
"""What is assumed of an age that nothing has reached: high enough to find out."""
_HAZARD_PRIOR_MAX: Final = 0.9
WEIGHTS_PER_OCTAVE: Final = 4


@dataclass(frozen=True, slots=True)
class ReuseClass:
    """What chunks have in common: uses up to a limit, those of the parent, being a tail, the cost of a byte.

    ``weight`` is the logarithm of the recompute cost per byte in steps of a quarter of an octave.
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
        self._entered: list[list[float]] = []
        self._used: list[list[float]] = []

    def add(self, kind: ReuseClass) -> int:
        """Learn about one more class; its number, which counts up from 0."""
        self.classes.append(kind)
        self._entered.append([0.0] * BUCKETS)
        self._used.append([0.0] * BUCKETS)
        return len(self.classes) - 1

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
        groups = np.array([2 * kind.uses + kind.tail for kind in self.classes])
        for group in np.unique(groups):
            members = groups == group
            expected = np.minimum(everywhere * math.sqrt(group // 2), _HAZARD_PRIOR_MAX)
            alike = _blend(used[members].sum(0), entered[members].sum(0), expected)
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
        return np.asarray(index * weights[:, None], np.float64)

    def halve(self) -> None:
        """Give everything seen so far half of its weight."""
        self._entered = [[count / 2.0 for count in row] for row in self._entered]
        self._used = [[count / 2.0 for count in row] for row in self._used]


def _blend(used: NDArray[np.float64], entered: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hazards from counts, drawn to ``prior``."""
    expected = used + _CLASS_PRIOR * prior
    return np.asarray(expected / np.maximum(expected, entered + _CLASS_PRIOR), np.float64)
