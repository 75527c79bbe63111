"""How fast a link is at every moment: bandwidth over time, piecewise constant, repeated for ever. Pure.

Bytes are integrated exactly: what a link delivers between two moments is the difference of a cumulative sum, and when
it has delivered a number of bytes is found in that sum, so no time step limits how precise a simulation is.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....errors import InvalidData, TooManyItems
from . import limits

__all__ = ["Bandwidth", "congested", "constant", "lte", "recorded", "saw", "step"]

Floats = NDArray[np.float64]

_LTE_RATES: Final = (0.25e6, 0.6e6, 1.25e6, 2.5e6, 4.0e6, 6.0e6, 8.5e6)
"""2 to 68 Mb/s: the range of the 4G traces of van der Hooft et al., IEEE Communications Letters 20(11), 2016."""
_LTE_STAY: Final = 0.6
"""The chance to be in the same state a second later; else one state up or down. The process is a choice of ours."""
_LTE_GAP: Final = 0.02
"""The chance that a second begins with 300 ms of nothing, as a handover does."""
_LTE_GAP_SECONDS: Final = 0.3
_CONGESTED_SEGMENT_SECONDS: Final = 0.05
_CONGESTED_FLOWS_MEAN: Final = 3.0
_CONGESTED_FLOW_SECONDS: Final = 0.5


class Bandwidth:
    """Bytes per second, constant between edges; after the last edge it begins again.

    ``edges_s``: [segments + 1], ascending from 0. ``bytes_per_s``: [segments], at least 0, not all of them. Raises
    :class:`InvalidData` for others and :class:`TooManyItems` for more than :data:`~.limits.SIMULATED_SEGMENTS_MAX`.
    """

    __slots__ = ("_edges", "_rates", "_sums", "cycle_bytes", "cycle_s", "edges_s", "sums_bytes")

    def __init__(self, edges_s: ArrayLike, bytes_per_s: ArrayLike) -> None:
        edges, rates = np.asarray(edges_s, dtype=np.float64), np.asarray(bytes_per_s, dtype=np.float64)
        if len(rates) > limits.SIMULATED_SEGMENTS_MAX:
            raise TooManyItems(f"{len(rates)} segments of bandwidth, the limit is {limits.SIMULATED_SEGMENTS_MAX}")
        if len(edges) != len(rates) + 1 or not len(rates):
            raise InvalidData(f"{len(edges)} edges and {len(rates)} rates: there is one edge more than rates")
        if not (np.all(np.isfinite(edges)) and edges[0] == 0 and np.all(np.diff(edges) > 0)):
            raise InvalidData("the edges of a bandwidth are seconds from 0 on, each later than the one before")
        if not (np.all(np.isfinite(rates)) and rates.min() >= 0 and rates.max() > 0):
            raise InvalidData("the rates of a bandwidth are at least 0 bytes per second, and not all of them 0")
        self.edges_s = edges
        self.sums_bytes: Floats = np.concatenate(([0.0], np.cumsum(np.diff(edges) * rates)))
        self._edges: list[float] = edges.tolist()
        self._rates: list[float] = rates.tolist()
        self._sums: list[float] = self.sums_bytes.tolist()
        self.cycle_s: float = self._edges[-1]
        self.cycle_bytes: float = self._sums[-1]

    def rate(self, at_s: float) -> float:
        """Bytes per second at a moment; at an edge, those after it."""
        return self._rates[self._segment(at_s % self.cycle_s)]

    def delivered(self, until_s: float) -> float:
        """Bytes from 0 until ``until_s``."""
        cycles, rest = divmod(until_s, self.cycle_s)
        segment = self._segment(rest)
        return cycles * self.cycle_bytes + self._sums[segment] + (rest - self._edges[segment]) * self._rates[segment]

    def when(self, delivered_bytes: float) -> float:
        """The first moment by which so many bytes have come since 0: the inverse of :meth:`delivered`."""
        cycles, rest = divmod(delivered_bytes, self.cycle_bytes)
        if rest <= 0.0:
            if cycles <= 0.0:
                return 0.0
            cycles, rest = cycles - 1, self.cycle_bytes
        segment = min(max(bisect_left(self._sums, rest) - 1, 0), len(self._rates) - 1)
        return cycles * self.cycle_s + self._edges[segment] + (rest - self._sums[segment]) / self._rates[segment]

    def breaks(self, start_s: float, end_s: float) -> Floats:
        """The edges strictly between two moments, ascending."""
        found: list[Floats] = []
        inner = self.edges_s[:-1]
        for cycle in range(int(start_s // self.cycle_s), int(end_s // self.cycle_s) + 1):
            edges = inner + cycle * self.cycle_s
            found.append(edges[np.searchsorted(edges, start_s, "right") : np.searchsorted(edges, end_s, "left")])
        return np.concatenate(found)

    def delivered_many(self, until_s: Floats) -> Floats:
        """:meth:`delivered` of each of several moments."""
        cycles, rest = np.divmod(until_s, self.cycle_s)
        sums: Floats = np.interp(rest, self.edges_s, self.sums_bytes) + cycles * self.cycle_bytes
        return sums

    @property
    def mean_bytes_per_s(self) -> float:
        """Over one cycle."""
        return self.cycle_bytes / self.cycle_s

    def _segment(self, at_s: float) -> int:
        return min(max(bisect_right(self._edges, at_s) - 1, 0), len(self._rates) - 1)


def constant(bytes_per_s: float) -> Bandwidth:
    """Always the same."""
    return Bandwidth((0.0, 3600.0), (bytes_per_s,))


def step(high_bytes_per_s: float, low_bytes_per_s: float, seconds: float) -> Bandwidth:
    """High for ``seconds``, then low for as long, and so on."""
    return Bandwidth((0.0, seconds, 2 * seconds), (high_bytes_per_s, low_bytes_per_s))


def saw(low_bytes_per_s: float, high_bytes_per_s: float, seconds: float, *, steps: int = 32) -> Bandwidth:
    """From low to high in equal steps within ``seconds``, then from low again."""
    return Bandwidth(np.linspace(0.0, seconds, steps + 1), np.linspace(low_bytes_per_s, high_bytes_per_s, steps))


def lte(seed: int, *, scale: float = 1.0, seconds: int = 1800) -> Bandwidth:
    """A mobile link: a Markov chain over seven rates from 2 to 68 Mb/s, a step a second, with gaps of 300 ms."""
    source = np.random.default_rng(seed)
    moves = source.random(seconds)
    gaps = source.random(seconds) < _LTE_GAP
    state = len(_LTE_RATES) // 2
    edges, rates = [0.0], list[float]()
    for second in range(seconds):
        if moves[second] >= _LTE_STAY:
            up = moves[second] >= (1.0 + _LTE_STAY) / 2
            state = min(state + 1, len(_LTE_RATES) - 1) if up else max(state - 1, 0)
        if gaps[second]:
            edges.append(second + _LTE_GAP_SECONDS)
            rates.append(0.0)
        edges.append(second + 1.0)
        rates.append(scale * _LTE_RATES[state])
    return Bandwidth(edges, rates)


def congested(capacity_bytes_per_s: float, seed: int, *, seconds: float = 600.0) -> Bandwidth:
    """A fair share of a link beside other flows: three of them in the mean, half a second each, arriving at random.

    Their number is a birth and death process (M/M/∞) in steps of 50 ms.
    """
    source = np.random.default_rng(seed)
    steps = round(seconds / _CONGESTED_SEGMENT_SECONDS)
    leave = 1.0 - np.exp(-_CONGESTED_SEGMENT_SECONDS / _CONGESTED_FLOW_SECONDS)
    births = source.poisson(_CONGESTED_FLOWS_MEAN * leave, steps)
    flows = np.empty(steps)
    others = source.poisson(_CONGESTED_FLOWS_MEAN)
    for index in range(steps):
        others = others - source.binomial(others, leave) + births[index]
        flows[index] = others
    return Bandwidth(np.arange(steps + 1) * _CONGESTED_SEGMENT_SECONDS, capacity_bytes_per_s / (1.0 + flows))


def recorded(lines: Iterable[str]) -> Bandwidth:
    """From rows ``seconds,bytes_per_s``: each rate holds until the next row, the last as long as the one before it.

    The first moment becomes 0. Empty lines and a heading are passed over. Raises :class:`InvalidData`.
    """
    moments: list[float] = []
    rates: list[float] = []
    for number, line in enumerate(lines, start=1):
        fields = line.strip().split(",")
        if fields == [""] or (number == 1 and fields[0].strip() == "seconds"):
            continue
        if len(moments) >= limits.SIMULATED_SEGMENTS_MAX:
            raise TooManyItems(f"more than {limits.SIMULATED_SEGMENTS_MAX} rows of bandwidth, which is the limit")
        try:
            moment, rate = (float(field) for field in fields)
        except ValueError as error:
            raise InvalidData(f"row {number} of the bandwidth is {line[:60]!r}, not seconds,bytes_per_s") from error
        moments.append(moment)
        rates.append(rate)
    if len(moments) < 2:
        raise InvalidData(f"a recorded bandwidth has at least 2 rows, not {len(moments)}")
    edges = [moment - moments[0] for moment in moments]
    return Bandwidth([*edges, 2 * edges[-1] - edges[-2]], rates)
