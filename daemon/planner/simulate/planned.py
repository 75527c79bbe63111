"""kvloom's planner as a strategy: it learns from what comes when, plans every request, and plans again on the way."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Final

from ....clients.cut import Cut, Stretch, best_cut, hold_seconds
from ....clients.overdue import look_again_seconds, overdue_seconds, seen_byte_seconds
from ..links import LinkEstimate
from ..model import CostModel, LearntEstimates, Situation
from ..outlook import PREFIX_PRICE_MAX, LinkCost, PrefillCost
from ..planner import DECISION_QUANTILE, STOPPING_QUANTILE
from ..request import Ability
from .active import Active, Load, Scene, Sighting, Strategy
from .experiment import BASELINES, Make

__all__ = ["STRATEGIES", "Planned"]

_LINK: Final = "store"
_ASSUMED_SPREAD: Final = 1.0
"""In logarithms: how far the rate that links are said to have may be off."""
_PROBE_SHARE: Final = 10.0
"""A node whose plans load nothing loads something after so many times what its last load took."""
_AS_FORESEEN: Final = 0.1
"""A load that took what was foreseen, but for this share, changes no plan."""


@dataclass(slots=True)
class _Following:
    """The plan that a request follows."""

    byte_seconds: float
    """What was expected of the link."""
    there_s: float
    """When all loads were expected to be there."""
    token_s: float
    """What computing one token was expected to take."""
    raced: frozenset[int]
    loads_all: bool
    """Nothing that is stored is computed."""


@dataclass(frozen=True, slots=True)
class _Left:
    """What a request still needs that nobody is working on, but for the transfer that is under way."""

    chunks: list[int]
    offered: list[int]
    """Tokens of each that can be loaded, or 0."""
    moving: int
    """Which of them is under way, by its place here, or -1."""
    moving_bytes: float


class Planned(Strategy):
    """One cost model per engine, as each has a daemon of its own; the objective is the lowest time to first token.

    It decides as :func:`..planner.make_plan` does where quality has no floor, on plain numbers, and writes down no
    reasons. What can be known before the first load is what the other strategies are told, too: the link's mean rate.
    """

    name = "kvloom"

    def __init__(self, scene: Scene, assumed_bytes_per_s: float) -> None:
        self._scene = scene
        self._models = [CostModel() for _ in range(scene.nodes)]
        self._names = [str(node) for node in range(scene.nodes)]
        self._assumed = {_LINK: LinkEstimate(scene.latency_s, 1.0 / assumed_bytes_per_s, _ASSUMED_SPREAD)}
        self._served: list[dict[int, Active]] = [{} for _ in range(scene.nodes)]
        self._following: dict[int, _Following] = {}
        self._probe_s = [0.0] * scene.nodes
        """By node: when it may see how fast its link is by a load that nobody waits for."""
        self._prefix = scene.ability is Ability.PREFIX_CUT
        self._quantile = STOPPING_QUANTILE if self._prefix else DECISION_QUANTILE
        self._competes = scene.engine.decoding_competes
        levels = range(len(scene.levels))
        self._token_bytes = [scene.size_bytes(1, level) for level in levels]
        self._token_decode_s = [scene.decode_s(1, level) for level in levels]

    def begin(self, request: Active, now_s: float, ahead: Collection[Active]) -> None:
        """Plan it."""
        self._served[request.node][request.index] = request
        if not request.hits:
            return
        self._plan(request, now_s)
        if not request.loads and now_s >= self._probe_s[request.node]:
            self._probe_s[request.node] = inf
            request.probe(Load(request.hits[0], 0))

    def came(self, request: Active, sighting: Sighting, now_s: float) -> None:
        """Learn what the link did, and plan again if that was not foreseen, or nothing is left to load."""
        self._note(request, sighting.size_bytes, sighting.seconds, now_s)
        following = self._following.get(request.index)
        if following is None:
            return
        foreseen = following.byte_seconds * sighting.size_bytes
        late = sighting.transfer_s - foreseen
        request.hold_s = 0.0
        if following.loads_all:
            late = max(late, 0.0)  # a link that is faster than that changes nothing
        unforeseen = abs(late) > _AS_FORESEEN * foreseen
        # The engine has been busy with others, perhaps, and the link could go on where it was to have ended.
        again = unforeseen if request.loads else not self._prefix
        if again:
            self._plan(request, now_s, sighting.transfer_s / sighting.size_bytes)

    def computed(self, request: Active, tokens: int, start: int, seconds: float, now_s: float) -> None:
        """Learn what prefill takes."""
        node = request.node
        batch = len(self._served[node])
        self._models[node].note_prefill(self._names[node], tokens, start, seconds, batch=batch, now_seconds=now_s)

    def stopped(self, request: Active, size_bytes: float, seconds: float, now_s: float) -> None:
        """Learn from what has come of it, unless that was done when it was given up."""
        if not request.given_up:
            self._note(request, size_bytes, seconds, now_s)

    def wake(self, request: Active, now_s: float) -> None:
        """What should have come long ago has not: plan again, by what has come of it."""
        if request.transfer is None or request.loading is None:
            return
        seconds = now_s - request.transfer.started_s
        came = request.transfer.size_bytes - request.left_bytes(now_s)
        self._note(request, came, seconds, now_s)
        if self._plan(request, now_s, seen_byte_seconds(request.transfer.size_bytes, came, seconds)):
            request.give_up()
        else:
            request.wake_s = now_s + look_again_seconds(seconds)

    def takes(self, request: Active, chunk: int, now_s: float) -> bool:
        """A raced chunk; another one if a plan made now computes it."""
        following = self._following.get(request.index)
        if following is None:
            return False
        if chunk not in following.raced and following.there_s - now_s > request.tokens[chunk] * following.token_s:
            self._plan(request, now_s)
        return chunk in self._following[request.index].raced or not request.coming[chunk]

    def ended(self, request: Active) -> None:
        """Forget it."""
        del self._served[request.node][request.index]
        self._following.pop(request.index, None)

    def _note(self, request: Active, size_bytes: float, seconds: float, now_s: float) -> None:
        """Learn what the link did; whoever is asked how many loads a node has under way counts one just ended."""
        node = request.node
        loading = sum(other.transfer is not None for other in self._served[node].values())
        self._models[node].note_load(
            self._names[node], _LINK, max(size_bytes, 1.0), seconds, concurrent=max(loading, 1), now_seconds=now_s
        )
        self._probe_s[node] = now_s + _PROBE_SHARE * seconds

    def _estimates(self, request: Active, now_s: float) -> LearntEstimates:
        queued, ahead_bytes = 0, 0.0
        served = self._served[request.node]
        for other in served.values():
            if other is not request:
                ahead_bytes += other.left_bytes(now_s)
                if other.index < request.index:
                    queued += other.ready_tokens
        situation = Situation(now_s, float(len(served)), float(queued), ahead_bytes)
        return self._models[request.node].estimates(self._names[request.node], self._assumed, (_LINK,), "", situation)

    def _left(self, request: Active, now_s: float) -> _Left:
        present, coming, under_way = request.present, request.coming, -1
        if request.transfer is not None and request.loading is not None and not request.probing:
            under_way = request.loading.chunk
        waiting = {load.chunk for load in request.loads}
        hits, computed = set(request.hits), request.front + request.step_chunks
        chunks = [
            chunk
            for chunk in range(computed, len(present))
            if not present[chunk] and (not coming[chunk] or chunk in waiting or chunk == under_way)
        ]  # what is coming and neither waits nor moves is being decoded
        offered = [request.tokens[chunk] if chunk in hits else 0 for chunk in chunks]
        moving = chunks.index(under_way) if under_way in chunks else -1
        return _Left(chunks, offered, moving, request.left_bytes(now_s) if moving >= 0 else 0.0)

    def _plan(self, request: Active, now_s: float, seen_byte_s: float = 0.0) -> bool:
        """Decide, and ask for what is to be loaded; whether what is under way is not.

        ``seen_byte_s``: what it takes for a byte, where it was looked at.
        """
        left = self._left(request, now_s)
        if not any(left.offered):
            return False
        estimates = self._estimates(request, now_s)
        link, prefill = estimates.links[_LINK], estimates.prefill
        if seen_byte_s > 0.0:
            link = link.seen(seen_byte_s)
        size_bytes = sum(left.offered) * self._token_bytes[0]
        cautious = link.cost(self._quantile).over(size_bytes)
        level = self._level(cautious)
        compute = self._compute(request, left, prefill)
        stretch = self._stretch(left, prefill, compute, cautious, level)
        cut = best_cut(stretch)
        chunks, length = left.chunks, cut.length
        raced: list[int] = []
        if self._prefix:
            loads = chunks[:length]
            expected = cautious
        else:
            loads = _from_the_back(left, length)
            if length:
                hopeful = link.cost(1.0 - self._quantile).over(size_bytes)
                fast = self._stretch(left, prefill, compute, hopeful, level)
                meeting = best_cut(fast)
                raced = [chunks[at] for at in range(length - 1, meeting.length - 1, -1) if left.offered[at]]
                loads += raced
                if not request.front and not request.step_chunks and left.moving < 0 and loads:
                    self._hold(request, now_s, fast, meeting, length, chunks.index(loads[0]))
            expected = link.cost(0.5).over(size_bytes)
        moved = left.moving_bytes + self._token_bytes[level] * sum(request.tokens[chunk] for chunk in loads)
        there_s = now_s + expected.latency_seconds + expected.wait_seconds + moved * expected.byte_seconds
        token_s = compute[0] / request.tokens[chunks[0]]
        loads_all = not any(left.offered[length:] if self._prefix else left.offered[:length])
        self._following[request.index] = _Following(
            expected.byte_seconds, there_s, token_s, frozenset(raced), loads_all
        )
        under_way = chunks[left.moving] if left.moving >= 0 else -1
        request.ask(Load(chunk, level) for chunk in loads if chunk != under_way)
        request.wake_s = inf
        if loads or under_way >= 0:
            first = under_way if under_way >= 0 else loads[0]
            tokens = request.tokens[first] if self._prefix else sum(request.tokens[chunk] for chunk in loads)
            seconds = cautious.byte_seconds * self._token_bytes[level] * tokens
            seconds += cautious.latency_seconds + cautious.wait_seconds
            request.wake_s = now_s + overdue_seconds(seconds)
            if request.hold_s > now_s:
                request.wake_s = min(request.wake_s, request.hold_s)
        return under_way >= 0 and under_way not in loads

    def _hold(
        self, request: Active, now_s: float, hopeful: Stretch, meeting: Cut, length: int, first_load: int
    ) -> None:
        """Let the engine wait for the first load, where that is worth it."""
        budget, first = self._scene.engine.step_tokens, 0
        while first < length and (not first or request.tokens[first] <= budget):
            budget -= request.tokens[first]
            first += 1
        if all(transfer == inf for transfer in hopeful.transfer[:first]):
            return
        there_s = overdue_seconds(hopeful.path_seconds + hopeful.transfer[first_load])
        request.hold_s = now_s + hold_seconds(hopeful, meeting.seconds, first, there_s)

    def _compute(self, request: Active, left: _Left, prefill: PrefillCost) -> list[float]:
        """What is left, computed."""
        a = prefill.token_seconds + prefill.call_seconds / self._scene.engine.step_tokens
        b, tokens, starts = prefill.token_context_seconds, request.tokens, request.starts
        return [tokens[chunk] * (a + b * (starts[chunk] + tokens[chunk] / 2)) for chunk in left.chunks]

    def _stretch(self, left: _Left, prefill: PrefillCost, compute: list[float], link: LinkCost, level: int) -> Stretch:
        """What is left, at the cost of a link."""
        token_s, decode_s = link.byte_seconds * self._token_bytes[level], self._token_decode_s[level]
        transfer = [length * token_s if length else inf for length in left.offered]
        path_s = link.wait_seconds + link.latency_seconds
        if left.moving >= 0:
            transfer[left.moving], path_s = link.byte_seconds * left.moving_bytes, 0.0
        return Stretch(
            compute,
            transfer,
            [length * decode_s for length in left.offered],
            path_s,
            prefill.wait_seconds,
            prefill.call_seconds,
            self._prefix,
            self._competes,
            min(prefill.price, PREFIX_PRICE_MAX) if self._prefix else prefill.price,
        )

    def _level(self, link: LinkCost) -> int:
        """The one that takes the least of what is scarcest."""
        takes = [
            moving + decoding if self._competes and not self._prefix else max(moving, decoding)
            for moving, decoding in zip(
                (link.byte_seconds * size for size in self._token_bytes), self._token_decode_s, strict=True
            )
        ]
        return takes.index(min(takes))


def _from_the_back(left: _Left, cut: int) -> list[int]:
    """What is loaded behind ``cut``: run by run between what nobody has, each from its end."""
    order: list[int] = []
    run: list[int] = []
    for at in range(cut, len(left.chunks)):
        if left.offered[at]:
            run.append(left.chunks[at])
        else:
            order += reversed(run)
            run = []
    return order + run[::-1]


STRATEGIES: Final[Mapping[str, Make]] = MappingProxyType({**BASELINES, "kvloom": Planned})
"""All there are, by name."""
