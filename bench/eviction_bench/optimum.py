"""What no policy can beat: Belady's, which saves the most blocks, and a bound on the seconds any could save."""

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence

from .hints import Hints
from .replay import Saved
from .trace import Trace

__all__ = ["belady", "discard_hints", "over_hints", "seconds_bound"]

_MICROSECONDS = 1_000_000


def belady(trace: Trace, capacity: int) -> Saved:
    """The most hits of any policy that may also refuse a block: the resident used furthest in the future goes.

    Between blocks whose next use is in the same request the deeper one goes, so a hit's ancestors are always hits.
    """
    return _belady(trace, capacity)[0]


def discard_hints(trace: Trace, capacity: int) -> Hints:
    """Perfect discard predictions: after each use, whether Belady's cache gives the block up before its next use."""
    return Hints("perfect", _belady(trace, capacity)[1])


def over_hints(trace: Trace) -> Hints:
    """After each use, whether it was the block's last: what a client knows when a conversation is over."""
    return Hints("over", [following < 0 for following in _following_requests(trace)])


def _following_requests(trace: Trace) -> list[int]:
    """For each block use in order, the number of the request that uses the block next, -1 for none."""
    upcoming: dict[int, int] = {}
    found: list[int] = []
    for turn in range(len(trace.requests) - 1, -1, -1):
        for block in reversed(trace.requests[turn]):
            found.append(upcoming.get(block, -1))
            upcoming[block] = turn
    found.reverse()
    return found


def _belady(trace: Trace, capacity: int) -> tuple[Saved, list[bool]]:
    following = _following_requests(trace)
    discard = [False] * len(following)
    resident: dict[int, int] = {}
    """Block to the number of the block use since which it is kept."""
    furthest: list[tuple[int, int, int, int]] = []
    hits, seconds, use = 0, 0.0, 0
    for request in trace.requests:
        for place, block in enumerate(request):
            if resident.pop(block, None) is not None:
                hits += 1
                seconds += trace.seconds[block]
            if following[use] < 0:
                discard[use] = True
            else:
                resident[block] = use
                heapq.heappush(furthest, (-following[use], -place, use, block))
            while len(resident) > capacity:
                _, _, since, far = heapq.heappop(furthest)
                if resident.get(far) == since:
                    del resident[far]
                    discard[since] = True
            use += 1
    return Saved(hits, seconds), discard


def seconds_bound(trace: Trace, capacity: int) -> float:
    """At least as many seconds as any policy of ``capacity`` blocks can save: the optimum of a min-cost flow.

    Time is cut at requests. A unit of flow is a place in the cache; it idles from one request to the next for nothing,
    or takes the arc from one use of a block to the next, which saves the block's seconds. That leaves out that room
    is needed within a request and that a hit needs its ancestors, so the optimum is an upper bound, not always reached.
    """
    import numpy as np
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

    most = belady(trace, capacity)
    if most.hits == trace.references - trace.blocks:
        return most.seconds  # every use but the first is saved: there is no more

    last: dict[int, int] = {}
    arcs: dict[tuple[int, int, int], int] = defaultdict(int)
    for turn, request in enumerate(trace.requests):
        for block in request:
            if block in last:
                arcs[last[block], turn, math.ceil(trace.seconds[block] * _MICROSECONDS)] += 1
            last[block] = turn
    count = len(trace.requests)
    idle = np.arange(count - 1)
    keys: Sequence[tuple[int, int, int]] = list(arcs)
    flow = SimpleMinCostFlow()
    table = np.array(keys, np.int64).reshape(-1, 3)
    flow.add_arcs_with_capacity_and_unit_cost(
        np.concatenate([idle, table[:, 0]]),
        np.concatenate([idle + 1, table[:, 1]]),
        np.concatenate([np.full(count - 1, capacity), np.array([arcs[key] for key in keys], np.int64)]),
        np.concatenate([np.zeros(count - 1, np.int64), -table[:, 2]]),
    )
    flow.set_nodes_supplies(np.array([0, count - 1]), np.array([capacity, -capacity]))
    status = flow.solve()
    if status != flow.OPTIMAL:
        raise RuntimeError(f"the flow of {trace.name} at {capacity} blocks was not solved: {status}")
    return -flow.optimal_cost() / _MICROSECONDS
