"""Chunks on their way into a cache: asked for in an order, a few at a time, and given up when nobody waits any more.

A chunk that the engine computes itself is taken (:meth:`Arrivals.came`): whatever comes of it later is not written
into the cache, so a load may be slow, or hang, while the model goes on.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from ..codec.container import Container
from ..codec.level import Level
from ..errors import KvloomError
from ..kvstore.key import ChunkRef
from ..kvstore.outcome import Hit, Outcome, Unavailable
from .protocol import DAEMON

__all__ = [
    "Arrivals",
    "ChunkPlace",
    "Chunks",
    "Halfway",
    "LoadOrder",
    "LoadResult",
    "Loaded",
    "Revise",
    "Work",
]


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """A chunk and the position in the prompt that its first token takes."""

    ref: ChunkRef
    start: int

    @property
    def stop(self) -> int:
        """The position after the last token."""
        return self.start + self.ref.tokens


@dataclass(frozen=True, slots=True)
class Work:
    """Something that took from ``began`` to ``ended``: a transfer or a decoding of ``size_bytes``.

    ``link`` is the tier that it came from, ``None`` where that is not known; ``level`` what it came as.
    """

    link: str | None
    level: Level
    size_bytes: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A chunk to be loaded, and as what; ``link`` and ``size_bytes`` are what a plan expects of it.

    Nobody waits for it after ``until``, nor for what was ordered after it: its link is not what it was thought to be.
    """

    place: ChunkPlace
    level: Level
    link: str | None = None
    size_bytes: int = 0
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Which places were filled, in order, and how many bytes came for them; ``resident`` were decoded already.

    ``missed`` were asked for and did not come, or not in time.
    """

    loaded: tuple[ChunkPlace, ...]
    missed: tuple[ChunkPlace, ...]
    bytes_read: int
    resident: int = 0


class Chunks(Protocol):
    """What an engine asks when it gets to a chunk."""

    def coming(self, place: ChunkPlace) -> bool:
        """Whether the chunk is there or may still come."""
        ...

    def came(self, place: ChunkPlace) -> bool:
        """Whether the chunk is there, or comes in time; if not, it will not come any more: compute it."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """Chunks that are there: nothing more comes."""

    places: frozenset[ChunkPlace]

    def coming(self, place: ChunkPlace) -> bool:
        """As :meth:`Chunks.coming`."""
        return place in self.places

    def came(self, place: ChunkPlace) -> bool:
        """As :meth:`Chunks.came`."""
        return place in self.places


class _State(Enum):
    ASKED = auto()
    DECODING = auto()
    THERE = auto()
    MISSED = auto()
    TAKEN = auto()


@dataclass(frozen=True, slots=True)
class Halfway:
    """How far loads are: which places are ``there``, and which are ``moving``.

    All before position ``front`` is there, loaded or computed.
    """

    there: frozenset[ChunkPlace]
    moving: frozenset[ChunkPlace]
    front: int = 0


Revise = Callable[[Halfway], Mapping[ChunkPlace, float]]
"""Until when each place that is still to be loaded is waited for."""


class Arrivals:
    """Loads under way. ``orders`` are begun in their order, by as many threads as ``workers`` has.

    ``get`` reads a chunk within the seconds it is given; ``ready`` gets whatever decoding takes, which may be long, and
    says whether it is there; ``decode`` brings a container to its place and says how many bytes of KV that made, or
    ``None`` where it cannot be used. No transfer goes on after ``ends`` (by ``clock``), and none begins once
    a read has found no daemon: the caller waits for it once, not once for each chunk. ``revise`` is asked when a chunk
    that is waited for is overdue: without it, nobody waits for that any longer.
    """

    def __init__(
        self,
        orders: Sequence[LoadOrder],
        workers: ThreadPoolExecutor,
        get: Callable[[LoadOrder, float | None], Outcome[Container]],
        ready: Callable[[LoadOrder, Container], bool],
        decode: Callable[[LoadOrder, Container], int | None],
        *,
        ends: float | None = None,
        revise: Revise | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._get, self._ready, self._decode = get, ready, decode
        self._revise = revise
        self._untils = {order.place: order.until for order in orders}
        self._moving: set[ChunkPlace] = set()
        self._ends, self._clock = ends, clock
        self._orders = tuple(orders)
        self._states = dict.fromkeys((order.place for order in orders), _State.ASKED)
        self._changed = threading.Condition()
        self._transfers: list[Work] = []
        self._decodings: list[Work] = []
        self._bytes = 0
        self._daemon_gone = False
        for order in orders:
            workers.submit(self._bring, order)

    def coming(self, place: ChunkPlace) -> bool:
        """As :meth:`Chunks.coming`."""
        with self._changed:
            return self._states.get(place) in (_State.ASKED, _State.DECODING, _State.THERE)

    def came(self, place: ChunkPlace) -> bool:
        """As :meth:`Chunks.came`; what is being decoded is waited for in any case."""
        while self._overdue(place) and self._untils[place] > -math.inf and self._look_again(place.start):
            pass
        with self._changed:
            if self._states.get(place) is _State.ASKED:
                self._states[place] = _State.TAKEN
            self._changed.wait_for(lambda: self._states.get(place) is not _State.DECODING)
            return self._states.get(place) is _State.THERE

    def hold(self, until: float) -> None:
        """Wait until something has come, at most until then; if something has, it is decided anew."""

        def told() -> bool:
            states = self._states.values()
            return _State.THERE in states or (_State.ASKED not in states and _State.DECODING not in states)

        with self._changed:
            while not told() and (left := until - self._clock()) > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            if _State.THERE not in self._states.values():
                return  # the link is not as fast as it might have been: what was planned holds
        self._look_again(0)

    def _look_again(self, front: int) -> bool:
        """Have it decided anew what to wait for, by what has come so far; whether anybody says."""
        if self._revise is None or (self._ends is not None and self._clock() >= self._ends):
            return False
        with self._changed:
            there = frozenset(at for at, state in self._states.items() if state in (_State.THERE, _State.DECODING))
            halfway = Halfway(there, frozenset(self._moving), front)
        untils = self._revise(halfway)
        with self._changed:
            self._untils = {place: untils.get(place, -math.inf) for place in self._untils}
        return True

    def settle(self) -> LoadResult:
        """Wait for all that was asked for; what is not there in time does not come any more."""
        for order in self._orders:
            self.came(order.place)
        return self.result()

    def result(self) -> LoadResult:
        """What is there now of what was asked for; in the order of places."""
        with self._changed:
            there = {place for place, state in self._states.items() if state is _State.THERE}
            places = sorted(self._states, key=lambda place: place.start)
            return LoadResult(
                tuple(place for place in places if place in there),
                tuple(place for place in places if place not in there),
                self._bytes,
            )

    def measured(self) -> tuple[list[Work], list[Work]]:
        """The transfers and the decodings so far.

        A transfer that was given up is among them: in the time that it had its bytes did not come, so the link is as
        slow as that at the least.
        """
        with self._changed:
            return list(self._transfers), list(self._decodings)

    def _overdue(self, place: ChunkPlace) -> bool:
        """Wait for a chunk that was asked for; whether it has not come by when somebody should look at it."""
        with self._changed:
            while self._states.get(place) is _State.ASKED:
                left = self._until(place) - self._clock()
                if left <= 0:
                    return True
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            return False

    def _until(self, place: ChunkPlace) -> float:
        """When somebody should look at it, or at one that was to come before it; what is raced is not waited for."""
        until = math.inf
        for order in self._orders:
            own = self._untils[order.place]
            if order.place == place:
                return min(until, own)
            if own > -math.inf and self._states[order.place] is _State.ASKED:
                until = min(until, own)
        return until

    def _bring(self, order: LoadOrder) -> None:
        """Load one; whatever becomes of it, it is then not asked for any more."""
        try:
            container = self._transferred(order)
            if container is not None and self._ready(order, container):
                self._decoded(order, container)
        except KvloomError:
            pass  # whatever is wrong with the cache, the text is still there
        finally:
            with self._changed:
                if self._states[order.place] in (_State.ASKED, _State.DECODING):
                    self._become(order, _State.MISSED)

    def _transferred(self, order: LoadOrder) -> Container | None:
        began = self._clock()
        left = None if self._ends is None else self._ends - began
        with self._changed:
            too_late = self._daemon_gone or (left is not None and left <= 0)
            if too_late or self._states[order.place] is not _State.ASKED:
                return None
            self._moving.add(order.place)
        try:
            outcome = self._get(order, left)
        finally:
            ended = self._clock()
            with self._changed:
                self._moving.discard(order.place)
        if isinstance(outcome, Hit):
            link, size = (outcome.tier if outcome.tier != DAEMON else order.link), len(outcome.value.data)
        elif left is not None and ended - began >= left:
            link, size = order.link, order.size_bytes
        else:
            with self._changed:
                self._daemon_gone |= isinstance(outcome, Unavailable)
            return None
        with self._changed:
            self._transfers.append(Work(link, order.level, size, began, ended))
        return outcome.value if isinstance(outcome, Hit) else None

    def _decoded(self, order: LoadOrder, container: Container) -> None:
        with self._changed:
            if self._states[order.place] is not _State.ASKED:
                return
            self._become(order, _State.DECODING)
        began = self._clock()
        made = self._decode(order, container)
        with self._changed:
            if made is not None:
                self._bytes += len(container.data)
                self._decodings.append(Work(None, order.level, made, began, self._clock()))
                self._become(order, _State.THERE)

    def _become(self, order: LoadOrder, state: _State) -> None:
        self._states[order.place] = state
        self._changed.notify_all()
