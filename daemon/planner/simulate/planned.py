"""kvloom's planner as a strategy: it learns from what comes when, plans every request, and plans again on the way."""

from collections.abc import Collection, Mapping
from math import inf
from types import MappingProxyType
from typing import Final

import numpy as np

from ..model import CostModel, LearntEstimates, Situation
from ..plan import Action, Plan, Progress
from ..planner import make_plan
from ..request import Ability, Executor, Fastest, PlanRequest, Way
from .active import Active, Load, Scene, Sighting, Strategy
from .experiment import BASELINES, Make

__all__ = ["STRATEGIES", "Planned"]

_LINK: Final = "store"
_OVERDUE: Final = 2.0
"""A load is looked at again after so many times what it was expected to take."""
_PATIENCE: Final = 0.5
"""An engine that computes nothing meanwhile waits at least this part of what computing everything takes."""
_PROBE_SHARE: Final = 10.0
"""A node whose plans load nothing loads something after so many times what its last load took."""


class Planned(Strategy):
    """One cost model per engine, as each has a daemon of its own; the objective is the lowest time to first token."""

    name = "kvloom"

    def __init__(self, scene: Scene, assumed_bytes_per_s: float) -> None:
        self._scene = scene
        self._models = [CostModel() for _ in range(scene.nodes)]
        self._served: list[dict[int, Active]] = [{} for _ in range(scene.nodes)]
        self._requests: dict[int, PlanRequest] = {}
        self._raced: dict[int, set[int]] = {}
        self._probe_s = [0.0] * scene.nodes
        """By node: when it may see how fast its link is by a load that nobody waits for."""
        self._ways = tuple(Way(_LINK, level.name) for level in scene.levels)
        per_token = [
            (scene.size_bytes(1, level), scene.decode_s(1, level), scene.levels[level].loss)
            for level in range(len(scene.levels))
        ]
        self._size, self._decode, self._loss = (np.array(column) for column in zip(*per_token, strict=True))
        self._executor = Executor(
            scene.ability, decoding_competes=scene.engine.decoding_competes, step_tokens=scene.engine.step_tokens
        )
        self._kv_bytes = scene.size_bytes(1, len(scene.levels) - 1)

    def begin(self, request: Active, now_s: float, ahead: Collection[Active]) -> None:
        """Plan it."""
        self._served[request.node][request.index] = request
        if not request.hits:
            return
        tokens = np.array(request.tokens, dtype=np.int64)
        hits = np.array(request.hits)
        size_bytes = np.full((len(tokens), len(self._ways)), np.inf)
        size_bytes[hits] = tokens[hits, None] * self._size
        wanted = PlanRequest(
            tokens,
            np.array(request.starts, dtype=np.int64),
            self._ways,
            size_bytes,
            tokens[:, None] * self._decode,
            np.broadcast_to(self._loss, size_bytes.shape),
        )
        self._requests[request.index] = wanted
        plan = self._plan(request, now_s, None)
        self._follow(request, plan, now_s)
        if not len(plan.load_order) and now_s >= self._probe_s[request.node]:
            self._probe_s[request.node] = inf
            request.probe(Load(request.hits[0], 0))

    def came(self, request: Active, sighting: Sighting, now_s: float) -> None:
        """Learn what the link did, and plan again."""
        self._note(request, sighting.size_bytes, sighting.seconds, now_s)
        self._again(request, now_s)

    def computed(self, request: Active, tokens: int, start: int, seconds: float, now_s: float) -> None:
        """Learn what prefill takes."""
        batch = len(self._served[request.node])
        self._models[request.node].note_prefill(
            str(request.node), tokens, start, seconds, batch=batch, now_seconds=now_s
        )

    def stopped(self, request: Active, size_bytes: float, seconds: float, now_s: float) -> None:
        """Learn from what has come of it, unless that was done when it was given up."""
        if not request.given_up:
            self._note(request, size_bytes, seconds, now_s)

    def wake(self, request: Active, now_s: float) -> None:
        """What should have come long ago has not: learn from what has come of it, and plan again, from scratch."""
        if request.transfer is None or request.loading is None:
            return
        seconds = now_s - request.transfer.started_s
        self._note(request, request.transfer.size_bytes - request.left_bytes(now_s), seconds, now_s)
        chunk = request.loading.chunk
        plan = self._again(request, now_s)
        if plan is not None and plan.actions[chunk] == Action.RECOMPUTE:
            request.give_up()
        else:
            request.wake_s = now_s + 2 * seconds

    def takes(self, request: Active, chunk: int, now_s: float) -> bool:
        """A raced chunk; another one if a plan made now computes it."""
        if chunk not in self._raced.get(request.index, ()):
            self._again(request, now_s)
        return chunk in self._raced.get(request.index, ()) or not request.coming[chunk]

    def ended(self, request: Active) -> None:
        """Forget it."""
        del self._served[request.node][request.index]
        self._requests.pop(request.index, None)
        self._raced.pop(request.index, None)

    def _note(self, request: Active, size_bytes: float, seconds: float, now_s: float) -> None:
        """Learn what the link did; whoever is asked how many loads a node has under way counts one just ended."""
        node = request.node
        loading = sum(other.transfer is not None for other in self._served[node].values())
        self._models[node].note_load(
            str(node), _LINK, max(size_bytes, 1.0), seconds, concurrent=max(loading, 1), now_seconds=now_s
        )
        self._probe_s[node] = now_s + _PROBE_SHARE * seconds

    def _plan(self, request: Active, now_s: float, progress: Progress | None) -> Plan:
        return make_plan(
            self._requests[request.index],
            self._estimates(request, now_s),
            Fastest(),
            self._executor,
            progress=progress,
            thorough=progress is None,
        )

    def _estimates(self, request: Active, now_s: float) -> LearntEstimates:
        queued, ahead_bytes = 0, 0.0
        for other in self._served[request.node].values():
            if other.index < request.index:
                queued += other.ready_tokens
            if other is not request:
                ahead_bytes += other.left_bytes(now_s)
        situation = Situation(now_s, float(len(self._served[request.node])), float(queued), ahead_bytes)
        return self._models[request.node].estimates(str(request.node), {}, (_LINK,), "", situation)

    def _again(self, request: Active, now_s: float) -> Plan | None:
        if request.index not in self._requests or not (request.loads or request.loading):
            return None
        done = np.frombuffer(request.present, dtype=np.uint8).astype(np.bool_)
        left_bytes, under_way = np.zeros(len(done)), np.full(len(done), -1, dtype=np.int16)
        if request.step_chunks:
            done[request.front : request.front + request.step_chunks] = True
        waiting = {load.chunk for load in request.loads}
        for chunk in request.hits:
            if request.coming[chunk] and chunk not in waiting:
                done[chunk] = True  # it has come, and is being decoded
        loading = request.loading
        if loading is not None and request.transfer is not None:
            done[loading.chunk] = False
            left_bytes[loading.chunk], under_way[loading.chunk] = request.left_bytes(now_s), loading.level
        if done.all():
            return None
        progress = Progress(done, left_bytes, under_way, elapsed_seconds=now_s - request.arrival_s, lost=request.loss)
        plan = self._plan(request, now_s, progress)
        self._follow(request, plan, now_s)
        return plan

    def _follow(self, request: Active, plan: Plan, now_s: float) -> None:
        self._raced[request.index] = set(np.flatnonzero(plan.actions == Action.RACE).tolist())
        moving = request.loading.chunk if request.loading is not None else -1
        request.ask(Load(chunk, int(plan.ways[chunk])) for chunk in plan.load_order.tolist() if chunk != moving)
        coming = moving if moving >= 0 else request.loads[0].chunk if request.loads else -1
        if coming < 0:
            request.wake_s = inf
            return
        patience = 0.0 if self._executor.ability is Ability.ANY_CHUNK else _PATIENCE * plan.recompute_seconds
        request.wake_s = now_s + max(_OVERDUE * float(plan.seconds[coming]), patience)


STRATEGIES: Final[Mapping[str, Make]] = MappingProxyType({**BASELINES, "kvloom": Planned})
"""All there are, by name."""
