"""The optimum: for each request, a time to first token that nobody can undercut who knew the link beforehand. Pure.

It is a bound for one request at the cache and the queues of the simulation that it is taken from: others do what they
did there. Given, for a request ``r`` that arrives at ``t0``:

* ``B(t)``, the bytes that it can get until ``t``: the bandwidth over one plus the number of *other* transfers on its
  link, from ``t0`` and the latency on. A link shares evenly, so ``r`` gets exactly that while it transfers and nothing
  while it does not: what it gets is at most ``B``.
* ``S(t)``, the seconds that its engine can give it until ``t``: all but those in which it works for requests that came
  earlier. The engine prefers the earlier request, and what later ones take of ``r``'s time only lengthens it.

**Any chunk.** Let ``r`` load ``j >= 1`` of its stored chunks, whichever and in whatever order, and let ``D`` be when
the last of them is there.

1. The chunks behind the last stored one attend to all of them, so they are computed after ``D``: the first token comes
   no earlier than ``S`` has given, after ``D``, what they take and their calls, of which there are at least as many as
   their tokens take steps.
2. ``B(D)`` is at least the sum of the ``j`` smallest sizes.
3. The engine computes every chunk that is not loaded: all compute less that of the ``j`` dearest stored chunks, at the
   least, and the calls for that many tokens. The first token comes no earlier than ``S`` has given that.
4. Decoding that competes for compute adds its seconds to 3, and the least of any chunk after ``D``'s last byte to 1. A
   decoder beside the engine takes the least of any chunk after the last byte, and all of them after the first.
5. Levels differ in size and in decoding. Whatever is mixed, the means per token lie in the convex hull of the levels',
   so not below some corner under the hull's lower edge (:func:`_corners`). Sizes and seconds in 2 and 4 are a corner's.

The bound is the least over ``j`` and corners, and for ``j = 0`` when ``S`` has given all compute and calls. Racing a
chunk changes nothing: in the end each chunk was loaded or was computed.

**Prefix cut.** The same with the first ``j`` stored chunks that follow each other from the front, exactly: nothing is
computed before all of them are there.

The bound is attained, but for the length of a step and single calls, where no later request holds the engine: load
from the back at the smallest size, compute from the front, and stop where the best ``j`` says.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..request import Ability
from .active import Scene
from .run import Simulation

__all__ = ["Bound", "optimum"]

Floats = NDArray[np.float64]
_ROUNDING: Final = 1e-7
_CORNERS: Final = 12


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """The optimum of each request, [requests] each."""

    ttft_s: Floats
    bytes: Floats
    gpu_s: Floats
    loss: Floats
    """Nats per token of the prompt, had everything that is loaded the smallest size allowed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """A sum that never falls, linear between moments."""

    moments_s: Floats
    sums: Floats

    def at(self, moments_s: Floats) -> Floats:
        found: Floats = np.interp(moments_s, self.moments_s, self.sums)
        return found

    def first(self, sums: Floats) -> Floats:
        """The first moments at which the sum is there; infinite where it never is."""
        place = np.searchsorted(self.sums, sums * (1.0 - 1e-9), "left")
        inside = np.clip(place, 1, len(self.sums) - 1)
        before, after = self.sums[inside - 1], self.sums[inside]
        rise = np.where(after > before, after - before, 1.0)
        share = np.clip((sums - before) / rise, 0.0, 1.0)
        moments = self.moments_s[inside - 1] + share * (self.moments_s[inside] - self.moments_s[inside - 1])
        moments = np.where(place == 0, self.moments_s[0], moments)
        return np.where(place >= len(self.sums), np.inf, moments)


@dataclass(frozen=True, slots=True, eq=False)
class _Choices:
    """What a request might do, [choices] each: when its first token is there, and what that takes."""

    ends_s: Floats
    work_s: Floats
    tokens: Floats
    bytes: Floats

    def joined(self, other: "_Choices") -> "_Choices":
        return _Choices(
            np.concatenate((self.ends_s, other.ends_s)),
            np.concatenate((self.work_s, other.work_s)),
            np.concatenate((self.tokens, other.tokens)),
            np.concatenate((self.bytes, other.bytes)),
        )


def _corners(scene: Scene) -> Floats:
    """Bytes and seconds of decoding per token, [corners, 2]: each mix of levels has at least those of one of them."""
    levels = range(len(scene.levels))
    points = sorted((scene.size_bytes(1, level), scene.decode_s(1, level)) for level in levels)
    hull: list[tuple[float, float]] = []
    for size, decode in points:
        if hull and decode >= hull[-1][1]:
            continue  # larger, and no faster to decode
        while len(hull) > 1 and _above(hull[-2], hull[-1], (size, decode)):
            hull.pop()
        hull.append((size, decode))
    sizes, decodes = np.array(hull).T
    if len(hull) == 1:
        return np.array(hull)
    grid = np.geomspace(sizes[0], sizes[-1], _CORNERS + 1)
    corners: Floats = np.stack((grid[:-1], np.interp(grid[1:], sizes, decodes)), axis=1)
    return corners


def _above(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether the middle one lies on or above the line between the others."""
    rise = (last[1] - first[1]) * (middle[0] - first[0])
    return (middle[1] - first[1]) * (last[0] - first[0]) >= rise


def optimum(simulation: Simulation, ttft_s: Floats) -> Bound:
    """The bound of every request of a simulation that ran with a log; ``ttft_s`` is what it came to, [requests].

    Only moments before the first token that a request really had are looked at: the bound lies there.
    """
    return _Optimum(simulation, ttft_s).bound()


class _Optimum:
    def __init__(self, simulation: Simulation, ttft_s: Floats) -> None:
        if simulation.log is None:
            raise ValueError("the optimum needs a simulation with a log")
        self._log, self._simulation, self._ttft = simulation.log, simulation, ttft_s
        self._scene, self._workload = simulation.scene, simulation.workload
        self._changes = [np.array(link.changes or [(0.0, 0)], dtype=np.float64) for link in simulation.links]
        self._starts: list[Floats] = []
        self._ends: list[Floats] = []
        self._whose: list[NDArray[np.int64]] = []
        for steps in self._log.steps:
            self._starts.append(np.array([step.start_s for step in steps]))
            self._ends.append(np.array([step.end_s for step in steps]))
            self._whose.append(np.array([step.request for step in steps], dtype=np.int64))
        engine = self._scene.engine
        self._mixes = _corners(self._scene)
        self._decode_min = min(self._scene.decode_s(1, level) for level in range(len(self._scene.levels)))
        self._loss = self._scene.levels[0].loss
        self._call = engine.prefill.call_seconds

    def bound(self) -> Bound:
        count = len(self._workload)
        found = Bound(*(np.zeros(count) for _ in range(4)))
        for request in range(count):
            self._one(request, found)
        return found

    def _one(self, request: int, found: Bound) -> None:
        blocks = self._workload.path(request)
        tokens = self._workload.tokens[blocks].astype(np.int64)
        prefill = self._scene.engine.prefill
        compute = prefill.seconds(tokens, self._workload.starts[blocks].astype(np.int64))
        hits = np.array(self._log.hits[request], dtype=np.int64)
        arrival = float(self._workload.arrivals_s[request])
        end = arrival + float(self._ttft[request]) * (1.0 + _ROUNDING) + _ROUNDING
        given = self._given(request, arrival, end)
        whole = float(compute.sum() + self._calls(tokens, tokens.sum()))
        choices = _Choices(given.first(np.array([whole])), np.array([whole]), np.zeros(1), np.zeros(1))
        if len(hits):
            came = self._bytes(request, arrival, end)
            plans = self._prefix if self._scene.ability is Ability.PREFIX_CUT else self._any
            choices = choices.joined(plans(tokens, compute, hits, came, given))
        best = int(np.argmin(choices.ends_s))
        found.ttft_s[request] = choices.ends_s[best] - arrival
        found.bytes[request] = choices.bytes[best]
        found.gpu_s[request] = choices.work_s[best]
        found.loss[request] = choices.tokens[best] * self._loss / tokens.sum()

    def _any(
        self, tokens: NDArray[np.int64], compute: Floats, hits: NDArray[np.int64], bytes_: _Curve, given: _Curve
    ) -> "_Choices":
        """By the number of chunks loaded, from 1, at each mix of levels."""
        loaded = np.cumsum(np.sort(tokens[hits])).astype(np.float64)
        dearest = np.cumsum(np.sort(compute[hits])[::-1])
        longest = np.cumsum(np.sort(tokens[hits])[::-1])
        after_hits = slice(hits[-1] + 1, None)
        behind = float(compute[after_hits].sum() + self._calls(tokens, tokens[after_hits].sum()))
        computed = float(compute.sum()) - dearest + self._calls(tokens, tokens.sum() - longest)
        last = float(tokens[hits].min()) * self._decode_min
        sizes, decoding = np.outer(self._mixes[:, 0], loaded), np.outer(self._mixes[:, 1], loaded)
        came = bytes_.first(sizes)
        if self._scene.engine.decoding_competes:
            work = computed + decoding
            after = given.at(came) + last + behind
        else:
            work = np.broadcast_to(computed, sizes.shape)
            after = np.maximum(given.at(came + last), given.at(bytes_.moments_s[0] + decoding)) + behind
        ends = np.where(np.isinf(came), np.inf, given.first(np.maximum(after, work)))
        return _Choices(ends.ravel(), work.ravel(), np.tile(loaded, len(self._mixes)), sizes.ravel())

    def _prefix(
        self, tokens: NDArray[np.int64], compute: Floats, hits: NDArray[np.int64], bytes_: _Curve, given: _Curve
    ) -> "_Choices":
        """The same where the chunks loaded are the first ones, and nothing is computed before they are there."""
        loaded = np.cumsum(tokens[hits]).astype(np.float64)
        rest = float(compute.sum()) - np.cumsum(compute[hits]) + self._calls(tokens, tokens.sum() - loaded)
        rest = np.broadcast_to(rest, (len(self._mixes), len(hits)))
        last = tokens[hits] * self._decode_min
        sizes, decoding = np.outer(self._mixes[:, 0], loaded), np.outer(self._mixes[:, 1], loaded)
        came = bytes_.first(sizes)
        if self._scene.engine.decoding_competes:
            work = rest + decoding
            after = np.maximum(given.at(came) + last, decoding) + rest
        else:
            work = rest
            after = np.maximum(given.at(came + last), given.at(bytes_.moments_s[0] + decoding)) + rest
        ends = np.where(np.isinf(came), np.inf, given.first(after))
        return _Choices(ends.ravel(), work.ravel(), np.tile(loaded, len(self._mixes)), sizes.ravel())

    def _calls(self, tokens: NDArray[np.int64], computed: ArrayLike) -> Floats:
        """Seconds for the calls that computing so many of a request's tokens takes at the least."""
        most = max(self._scene.engine.step_tokens, int(tokens.max()))  # a chunk is never cut
        return np.asarray(np.ceil(np.asarray(computed) / most) * self._call)

    def _bytes(self, request: int, arrival: float, end: float) -> _Curve:
        """``B``, from the arrival to the first token."""
        link_number = request % self._scene.nodes // self._scene.nodes_per_link
        link = self._simulation.links[link_number]
        changes = self._changes[link_number]
        begin = min(arrival + self._scene.latency_s, end)
        own = self._log.transfers[request]
        low, high = np.searchsorted(changes[:, 0], (begin, end), "right")
        edges = [np.array([begin, end]), changes[low:high, 0]]
        edges.append(self._simulation.bandwidth.breaks(begin + link.offset_s, end + link.offset_s) - link.offset_s)
        if own:
            edges.append(np.array(own).ravel())
        moments = np.unique(np.clip(np.concatenate(edges), begin, end))
        middle = (moments[1:] + moments[:-1]) / 2
        place = np.searchsorted(changes[:, 0], middle, "right") - 1
        others = np.where(place >= 0, changes[np.maximum(place, 0), 1], 0.0)
        for start, stop in own:
            others -= (middle > start) & (middle < stop)
        came = np.diff(self._simulation.bandwidth.delivered_many(moments + link.offset_s))
        return _Curve(moments, np.concatenate(([0.0], np.cumsum(came / (others + 1.0)))))

    def _given(self, request: int, arrival: float, end: float) -> _Curve:
        """``S``, from the arrival to the first token."""
        node = request % self._scene.nodes
        starts, ends, whose = self._starts[node], self._ends[node], self._whose[node]
        low, high = np.searchsorted(ends, arrival, "right"), np.searchsorted(starts, end, "left")
        earlier = whose[low:high] < request
        begins = np.clip(starts[low:high][earlier], arrival, end)
        stops = np.clip(ends[low:high][earlier], arrival, end)
        moments = np.concatenate(([arrival], np.stack((begins, stops), axis=1).ravel(), [end]))
        free = np.diff(moments)
        free[1::2] = 0.0  # while the engine works for earlier ones
        return _Curve(moments, np.concatenate(([0.0], np.cumsum(free))))
