"""Replays a trace through a policy, with the semantics of a prefix cache."""

from dataclasses import dataclass

from kvloom.kvstore.eviction import UNATTRIBUTED, EvictionPolicy

from .hints import Hints
from .trace import Trace

__all__ = ["Saved", "replay"]

BLOCK_BYTES = 1
"""Every block is charged alike, as in the published hit rates on these traces."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a cache saved: blocks not computed, and the seconds they would have taken."""

    hits: int
    seconds: float


def replay(
    trace: Trace, policy: EvictionPolicy, capacity: int, *, hints: Hints | None = None, attributed: bool = True
) -> Saved:
    """Feed ``trace`` to ``policy`` as a tier of ``capacity`` blocks would.

    A block is a hit where it is resident and all blocks before it in its chain are hits, as the request finds them.
    Hits are used, front to back; everything else is computed and put, front to back, or used where it is still
    resident behind a gap. Room is made before a put. A hint follows each put or use.
    """
    keys, parents = trace.keys, trace.parents
    table = trace.attributes if attributed else [UNATTRIBUTED] * len(keys)
    hits, seconds, first = 0, 0.0, 0
    for request in trace.requests:
        found = {-1}
        for block in request:
            if parents[block] in found and keys[block] in policy:
                found.add(block)
                seconds += trace.seconds[block]
        hits += len(found) - 1
        for place, block in enumerate(request):
            if block in found:
                policy.record_use(keys[block])
                if hints is not None:
                    policy.record_hint(keys[block], discard=hints.discard[first + place])
        for place, block in enumerate(request):
            if block in found:
                continue
            if keys[block] in policy:
                policy.record_use(keys[block])
            else:
                while len(policy) >= capacity and (victim := policy.victim()) is not None:
                    policy.record_evict(victim)
                policy.record_put(keys[block], BLOCK_BYTES, table[block])
            if hints is not None:
                policy.record_hint(keys[block], discard=hints.discard[first + place])
        first += len(request)
    return Saved(hits, seconds)
