"""The slowest requests of the last minutes, of each tenant, whichever edge they came over.

An edge begins a request's :class:`Work` and finishes it; what the service does in between notes there what it has read
and from where. What is kept is bounded: a few per tenant and minute, for a few minutes.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Final

from ... import limits
from ...kvstore.tiered.chunk_reader import ChunkRead

__all__ = ["SlowRequest", "SlowRequests", "Work", "note_read", "note_tenant", "note_written"]

_BUCKET_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class SlowRequest:
    """A request that took long; ``size_bytes`` are the chunk bytes that it read or wrote, ``at`` is when it ended.

    ``edge`` is what it came over, ``tiers`` are those that it read from, in the order of its reads.
    """

    request_id: str
    tenant: str
    edge: str
    operation: str
    outcome: str
    tiers: tuple[str, ...]
    size_bytes: int
    seconds: float
    at: float


@dataclass(slots=True)
class Work:
    """What a request has done so far, and for whom; nobody's is forgotten."""

    tenant: str | None = None
    tiers: tuple[str, ...] = ()
    size_bytes: int = 0


_current: Final[ContextVar[Work | None]] = ContextVar("kvloom_work", default=None)


def note_tenant(tenant: str) -> None:
    """The request that is served in this context is of ``tenant``."""
    work = _current.get()
    if work is not None:
        work.tenant = tenant


def note_read(*chunks: ChunkRead) -> None:
    """The request that is served in this context has read ``chunks``."""
    work = _current.get()
    if work is not None:
        work.size_bytes += sum(chunk.total_bytes for chunk in chunks)
        work.tiers = tuple(dict.fromkeys((*work.tiers, *(chunk.tier for chunk in chunks))))


def note_written(size_bytes: int) -> None:
    """The request that is served in this context has brought a chunk."""
    work = _current.get()
    if work is not None:
        work.size_bytes += size_bytes


class SlowRequests:
    """``clock`` says monotonic seconds, by which requests are forgotten. Belongs to one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._number = count()
        self._minutes: dict[int, dict[str, list[tuple[float, int, SlowRequest]]]] = {}

    def begin(self) -> Work:
        """A request begins in this context."""
        work = Work()
        _current.set(work)
        return work

    def finish(self, work: Work, request_id: str, edge: str, operation: str, outcome: str, seconds: float) -> None:
        """It has been answered after ``seconds``."""
        tenant = work.tenant
        if tenant is None:
            return
        now = self._clock()
        minute = int(now // _BUCKET_SECONDS)
        if minute not in self._minutes:
            self._forget(minute)
            self._minutes[minute] = {}
        tenants = self._minutes[minute]
        if tenant not in tenants:
            if len(tenants) >= limits.SLOW_TENANTS_MAX:
                return
            tenants[tenant] = []
        slowest = tenants[tenant]
        full = len(slowest) >= limits.SLOW_REQUESTS_PER_TENANT_MAX
        if full and seconds <= slowest[0][0]:
            return
        request = SlowRequest(request_id, tenant, edge, operation, outcome, work.tiers, work.size_bytes, seconds, now)
        add = heapq.heapreplace if full else heapq.heappush
        add(slowest, (seconds, next(self._number), request))

    def slowest(self, most: int, *, tenant: str | None = None) -> Sequence[SlowRequest]:
        """The slowest ``most`` of all tenants or of one, slowest first; older ones than the window are left out."""
        self._forget(int(self._clock() // _BUCKET_SECONDS))
        oldest = self._clock() - limits.SLOW_WINDOW_SECONDS
        found = (
            request
            for tenants in self._minutes.values()
            for name, slowest in tenants.items()
            if tenant is None or name == tenant
            for _, _, request in slowest
            if request.at >= oldest
        )
        return heapq.nlargest(most, found, key=lambda request: request.seconds)

    def age_seconds(self, request: SlowRequest) -> float:
        """How long ago it ended."""
        return max(0.0, self._clock() - request.at)

    def _forget(self, minute: int) -> None:
        oldest = minute - -(-limits.SLOW_WINDOW_SECONDS // _BUCKET_SECONDS)
        for old in [known for known in self._minutes if known < oldest]:
            del self._minutes[old]
