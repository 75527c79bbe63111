"""The simulation: requests arrive, chunks come over links and are computed by engines, until each has its first token.

Events, not time steps. An engine does one thing at a time: it prefills a run of chunks or, where decoding competes for
compute, decodes one; of the requests that have something to do the earliest goes first. A chunk is computed once
everything before it is there; an engine that takes only a prefix computes nothing before all that it loads is there.
Each request has one transfer at a time on its node's link, and the transfers on a link share it evenly. What a request
computed is stored when its first token is there; storing uses the other direction of the link and costs nothing here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..request import Ability
from .active import Active, Load, Scene, Sighting, Strategy
from .bandwidth import Bandwidth
from .journal import EngineStep, Log, Result
from .link import SharedLink, Transfer
from .shelf import Shelf
from .workload import Workload

__all__ = ["Simulation"]

Floats = NDArray[np.float64]
_PROGRESS_REQUESTS: Final = 50_000


class _Event(IntEnum):
    CONNECTED = 0
    LINK = 1
    DECODED = 2
    ENGINE = 3
    WAKE = 4


@dataclass(slots=True, eq=False)
class _Engine:
    ready: list[int] = field(default_factory=list)
    """A heap of requests that may have something to do."""
    busy: bool = False
    waiting: dict[int, Active] = field(default_factory=dict)
    """Requests without a first token."""


class Simulation:
    """One workload, one strategy. ``offsets_s``: where in the bandwidth each link begins, [links]."""

    def __init__(
        self,
        workload: Workload,
        scene: Scene,
        strategy: Strategy,
        shelf: Shelf,
        bandwidth: Bandwidth,
        offsets_s: Floats,
        *,
        logged: bool = False,
    ) -> None:
        self.workload, self.scene, self.bandwidth = workload, scene, bandwidth
        self._strategy, self._shelf = strategy, shelf
        self.links = [SharedLink(bandwidth, float(offset), logged=logged) for offset in offsets_s]
        self._engines = [_Engine() for _ in range(scene.nodes)]
        self._events: list[tuple[float, int, _Event, int, object]] = []
        self._turn = 0
        self._active: dict[int, Active] = {}
        prefill = scene.engine.prefill
        costs = prefill.seconds(workload.tokens.astype(np.int64), workload.starts.astype(np.int64))
        self._tokens: list[int] = workload.tokens.tolist()
        self._starts: list[int] = workload.starts.tolist()
        self._costs: list[float] = costs.tolist()
        count = len(workload)
        self._ttft, self._bytes, self._gpu, self._loss = (np.zeros(count) for _ in range(4))
        self._loaded, self._hit = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.log: Log | None = None
        if logged:
            self.log = Log([[] for _ in range(scene.nodes)], [[] for _ in range(count)], [[] for _ in range(count)])

    def run(self, progress: Callable[[int], None] | None = None) -> Result:
        """Serve all requests; ``progress`` is told now and then how many have arrived."""
        arrivals: list[float] = self.workload.arrivals_s.tolist()
        events, at, count = self._events, 0, len(arrivals)
        while at < count or events:
            if at < count and (not events or arrivals[at] <= events[0][0]):
                self._arrive(at, arrivals[at])
                at += 1
                if progress is not None and at % _PROGRESS_REQUESTS == 0:
                    progress(at)
                continue
            now, _, kind, number, detail = heappop(events)
            if kind is _Event.LINK:
                if self.links[number].version == detail:
                    self._transferred(number, now)
            elif kind is _Event.ENGINE:
                self._engine_done(number, now, detail)
            elif kind is _Event.DECODED:
                self._decoded(number, detail, now)
            elif kind is _Event.WAKE:
                self._wake(number, detail, now)
            else:
                self._connected(number, now)
        lengths = self.workload.prompt_tokens()
        return Result(self._ttft, self._bytes, self._gpu, self._loss / lengths, self._loaded, self._hit)

    # A request's life, in the order in which it happens

    def _arrive(self, index: int, now_s: float) -> None:
        blocks: list[int] = self.workload.path(index).tolist()
        resident = self._shelf.resident
        hits = [at for at, block in enumerate(blocks[:-1]) if resident[block]]
        if self.scene.ability is Ability.PREFIX_CUT:
            hits = [at for place, at in enumerate(hits) if at == place]
        self._shelf.use([blocks[at] for at in hits])
        tokens = [self._tokens[block] for block in blocks]
        request = Active(
            index,
            index % self.scene.nodes,
            self.links[index % self.scene.nodes // self.scene.nodes_per_link],
            now_s,
            blocks,
            tokens,
            [self._starts[block] for block in blocks],
            [self._costs[block] for block in blocks],
            hits,
            bytearray(len(blocks)),
            bytearray(len(blocks)),
        )
        self._hit[index] = sum(tokens[at] for at in hits)
        if self.log is not None:
            self.log.hits[index] = hits
        self._active[index] = request
        engine = self._engines[request.node]
        self._strategy.begin(request, now_s, engine.waiting.values())
        engine.waiting[index] = request
        self._fetch(request, now_s)
        self._offer(request, now_s)

    def _wake(self, index: int, moment: object, now_s: float) -> None:
        """The strategy wanted to look at the request now, if it has not changed its mind since."""
        request = self._active.get(index)
        if request is None or request.wake_s != moment:
            return
        request.wake_s = inf
        self._strategy.wake(request, now_s)
        if request.given_up and request.loading is not None:
            request.coming[request.loading.chunk] = 0
            self._stop(request, now_s)
            self._next_load(request, now_s)
            self._watch(self._link_of(request), now_s)
        request.given_up = False
        self._fetch(request, now_s)
        self._offer(request, now_s)

    def _fetch(self, request: Active, now_s: float) -> None:
        """Begin to load where there is something to load and nothing on its way; set the alarm that was asked for."""
        if request.wake_s < inf:
            self._push(max(request.wake_s, now_s), _Event.WAKE, request.index, request.wake_s)
        if request.loads and request.transfer is None and not request.connecting:
            request.connecting = request.first_load = True
            self._push(now_s + self.scene.latency_s, _Event.CONNECTED, request.index)

    def _connected(self, index: int, now_s: float) -> None:
        request = self._active.get(index)
        if request is not None:
            request.connecting = False
            self._next_load(request, now_s)
            self._watch(self._link_of(request), now_s)

    def _next_load(self, request: Active, now_s: float) -> None:
        """Transfer what is to be loaded next, if anything; the caller watches the link."""
        request.transfer = request.loading = None
        if request.loads:
            load = request.loads.popleft()
            size = self.scene.size_bytes(request.tokens[load.chunk], load.level)
            request.loading = load
            request.transfer = request.link.start(request.index, size, now_s)

    def _transferred(self, link_number: int, now_s: float) -> None:
        link = self.links[link_number]
        transfer = link.finish(now_s)
        request = self._active[transfer.owner]
        load = request.loading
        assert load is not None  # noqa: S101 - a transfer has a load
        self._end_transfer(request, transfer, transfer.size_bytes, now_s)
        request.transfer = request.loading = None
        seconds = self.scene.decode_s(request.tokens[load.chunk], load.level)
        if request.probing:
            pass
        elif seconds and self.scene.engine.decoding_competes:
            request.decodes.append(load)
            request.decoding += 1
        elif seconds:
            request.decoder_free_s = max(now_s, request.decoder_free_s) + seconds
            request.decoding += 1
            self._push(request.decoder_free_s, _Event.DECODED, request.index, load)
        else:
            self._there(request, load)
        asked_s = transfer.started_s - (self.scene.latency_s if request.first_load else 0.0)
        request.first_load = False
        sighting = Sighting(load, transfer.size_bytes, now_s - asked_s, now_s - transfer.started_s)
        self._strategy.came(request, sighting, now_s)
        self._next_load(request, now_s)
        self._watch(link_number, now_s)
        self._fetch(request, now_s)
        self._offer(request, now_s)

    def _decoded(self, index: int, load: object, now_s: float) -> None:
        assert isinstance(load, Load)  # noqa: S101 - what was pushed
        request = self._active.get(index)
        if request is not None:  # it may have its first token: the chunk was computed while it came
            request.decoding -= 1
            self._there(request, load)
            self._offer(request, now_s)

    def _there(self, request: Active, load: Load) -> None:
        """A loaded chunk can be used; the engine may have computed it meanwhile."""
        request.coming[load.chunk] = 0
        if not request.present[load.chunk]:
            tokens = request.tokens[load.chunk]
            request.present[load.chunk] = 1
            request.loss += self.scene.levels[load.level].loss * tokens
            request.loaded_tokens += tokens
            if not request.step_chunks:
                self._advance(request)

    def _advance(self, request: Active) -> None:
        front, present, count = request.front, request.present, len(request.present)
        while front < count and present[front]:
            front += 1
        request.front = front

    # Engines

    def _offer(self, request: Active, now_s: float) -> None:
        """Let the engine know that the request may have something to do."""
        engine = self._engines[request.node]
        if not request.queued and request.done_s < 0 and not request.step_chunks:
            request.queued = True
            heappush(engine.ready, request.index)
        if not engine.busy:
            self._dispatch(request.node, now_s)

    def _dispatch(self, node: int, now_s: float) -> None:
        engine = self._engines[node]
        while engine.ready:
            request = self._active[heappop(engine.ready)]
            request.queued = False
            load = self._decodable(request)
            if load is not None:
                self._occupy(request, self.scene.decode_s(request.tokens[load.chunk], load.level), load, now_s)
                return
            chunks = self._computable(request, now_s)
            if chunks:
                request.step_chunks = chunks
                seconds = self.scene.engine.prefill.call_seconds
                seconds += sum(request.compute_s[request.front : request.front + chunks])
                self._occupy(request, seconds, None, now_s)
                return

    def _decodable(self, request: Active) -> Load | None:
        """What the engine is to decode next for a request; not what it has computed meanwhile."""
        while request.decodes:
            load = request.decodes.popleft()
            if not request.present[load.chunk]:
                return load
            request.decoding -= 1
        return None

    def _computable(self, request: Active, now_s: float) -> int:
        """How many chunks from the front on the engine can compute in one step now."""
        if now_s < request.hold_s:
            return 0
        if (
            self.scene.ability is Ability.PREFIX_CUT
            and not request.probing
            and (request.loads or request.transfer is not None or request.connecting or request.decoding)
        ):
            return 0
        front, budget, chunks = request.front, self.scene.engine.step_tokens, 0
        for at in range(front, len(request.present)):
            budget -= request.tokens[at]
            if request.present[at] or (chunks and budget < 0):
                break
            if request.coming[at] and not self._taken(request, at, now_s):
                break
            chunks += 1
        return chunks

    def _taken(self, request: Active, chunk: int, now_s: float) -> bool:
        """Whether the engine computes a chunk that is to be loaded; never one that has come and is being decoded."""
        moving = request.loading is not None and request.loading.chunk == chunk
        if not moving and all(load.chunk != chunk for load in request.loads):
            return False
        taken = self._strategy.takes(request, chunk, now_s)
        if taken and not moving:
            request.forget(chunk)
        return taken

    def _occupy(self, request: Active, seconds: float, load: Load | None, now_s: float) -> None:
        self._engines[request.node].busy = True
        request.gpu_s += seconds
        if self.log is not None:
            self.log.steps[request.node].append(EngineStep(now_s, now_s + seconds, request.index))
        self._push(now_s + seconds, _Event.ENGINE, request.index, load)

    def _engine_done(self, index: int, now_s: float, load: object) -> None:
        request = self._active[index]
        engine = self._engines[request.node]
        engine.busy = False
        if isinstance(load, Load):
            self._decoded(index, load, now_s)
        else:
            self._stepped(request, now_s)
        if not engine.busy:
            self._dispatch(request.node, now_s)

    def _stepped(self, request: Active, now_s: float) -> None:
        """A run of chunks is computed."""
        first, last = request.front, request.front + request.step_chunks
        request.step_chunks = 0
        for at in range(first, last):
            request.present[at] = 1
            request.coming[at] = 0
        if request.loading is not None and first <= request.loading.chunk < last and not request.probing:
            self._stop(request, now_s)
            self._next_load(request, now_s)
            self._watch(self._link_of(request), now_s)
        self._advance(request)
        tokens = sum(request.tokens[first:last])
        seconds = self.scene.engine.prefill.call_seconds + sum(request.compute_s[first:last])
        self._strategy.computed(request, tokens, request.starts[first], seconds, now_s)
        if request.front == len(request.present):
            self._first_token(request, now_s)
            return
        self._fetch(request, now_s)
        self._offer(request, now_s)

    def _first_token(self, request: Active, now_s: float) -> None:
        index = request.index
        request.done_s = now_s
        if request.transfer is not None:
            self._stop(request, now_s)
            self._watch(self._link_of(request), now_s)
        self._ttft[index], self._bytes[index] = now_s - request.arrival_s, request.bytes
        self._gpu[index], self._loss[index] = request.gpu_s, request.loss
        self._loaded[index] = request.loaded_tokens
        self._shelf.put(request.blocks)
        self._strategy.ended(request)
        del self._active[index]
        del self._engines[request.node].waiting[index]

    # Links

    def _link_of(self, request: Active) -> int:
        return request.node // self.scene.nodes_per_link

    def _stop(self, request: Active, now_s: float) -> None:
        """End the transfer that a request has before all of it has come."""
        transfer = request.transfer
        assert transfer is not None  # noqa: S101 - the caller knows
        came = request.link.cancel(transfer, now_s)
        self._end_transfer(request, transfer, came, now_s)
        request.transfer = request.loading = None
        self._strategy.stopped(request, came, now_s - transfer.started_s, now_s)

    def _end_transfer(self, request: Active, transfer: Transfer, came_bytes: float, now_s: float) -> None:
        request.bytes += came_bytes
        if self.log is not None:
            self.log.transfers[request.index].append((transfer.started_s, now_s))

    def _watch(self, link_number: int, now_s: float) -> None:
        """Be told when the next transfer of a link ends."""
        link = self.links[link_number]
        moment = link.next_s()
        if moment < inf:
            self._push(max(moment, now_s), _Event.LINK, link_number, link.version)

    def _push(self, moment_s: float, kind: _Event, number: int, detail: object = None) -> None:
        self._turn += 1
        heappush(self._events, (moment_s, self._turn, kind, number, detail))
