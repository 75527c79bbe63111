"""What kvloom is compared with: strategies that know nothing, or what their papers say."""

from collections.abc import Collection

from ..request import Ability
from .active import Active, Load, Scene, Sighting, Strategy

__all__ = ["AlwaysLoad", "AlwaysRecompute", "Bidirectional", "CacheGen"]


class AlwaysRecompute(Strategy):
    """Loads nothing."""

    name = "always-recompute"

    def begin(self, request: Active, now_s: float, ahead: Collection[Active]) -> None:
        """Nothing to ask for."""


class AlwaysLoad(Strategy):
    """Loads whatever is stored, at one level, front to back."""

    def __init__(self, name: str, level: int) -> None:
        self.name = name
        self._level = level

    def begin(self, request: Active, now_s: float, ahead: Collection[Active]) -> None:
        """Ask for all hits."""
        request.ask(Load(chunk, self._level) for chunk in request.hits)


class _LinkMemory:
    """The last throughput that each node's loads had; before the first, the rate that is assumed."""

    def __init__(self, scene: Scene, assumed_bytes_per_s: float) -> None:
        self._rates = [assumed_bytes_per_s] * scene.nodes

    def note(self, request: Active, sighting: Sighting) -> None:
        """What the load that has just come had."""
        self._rates[request.node] = sighting.size_bytes / max(sighting.transfer_s, 1e-9)

    def rate(self, request: Active) -> float:
        """Bytes per second."""
        return self._rates[request.node]


class Bidirectional(Strategy):
    """Computes from the front and loads from the back until both meet; the KV as the engine holds it, no levels.

    Jin, Liu et al., "Compute or load KV cache? Why not both?" (Cake), arXiv 2410.03065. Where the ends meet, the chunk
    on its way is computed if that is sooner at the last throughput. For engines that take any chunk.
    """

    name = "bidirectional"

    def __init__(self, scene: Scene, assumed_bytes_per_s: float) -> None:
        self._memory = _LinkMemory(scene, assumed_bytes_per_s)
        self._level = len(scene.levels) - 1

    def begin(self, request: Active, now_s: float, ahead: Collection[Active]) -> None:
        """Ask for all hits, the last one first."""
        request.ask(Load(chunk, self._level) for chunk in reversed(request.hits))

    def came(self, request: Active, sighting: Sighting, now_s: float) -> None:
        """Measure."""
        self._memory.note(request, sighting)

    def takes(self, request: Active, chunk: int, now_s: float) -> bool:
        """Whatever has not begun to come, and what comes later than it is computed."""
        if request.loading is None or request.loading.chunk != chunk:
            return True
        return request.left_bytes(now_s) / self._memory.rate(request) > request.compute_s[chunk]


class CacheGen(Strategy):
    """Per chunk, front to back: the best level with which the rest is expected to come in time, else text.

    Liu et al., "CacheGen: KV cache compression and streaming for fast LLM serving", SIGCOMM 2024, section 5.3 and
    algorithm 1. Expected is the last chunk's throughput; in time is the objective for the first token less what has
    passed and what the prompt's end takes to compute. A chunk that comes as text is computed, and the next one decided
    then. An engine that takes only a prefix computes everything after the first chunk that comes as text.
    """

    name = "cachegen"

    def __init__(self, scene: Scene, assumed_bytes_per_s: float) -> None:
        self._scene = scene
        self._memory = _LinkMemory(scene, assumed_bytes_per_s)

    def begin(self, request: Active, now_s: float, ahead: Collection[Active]) -> None:
        """Decide for the first chunk."""
        self._decide(request, now_s)

    def came(self, request: Active, sighting: Sighting, now_s: float) -> None:
        """Measure, and decide for the next."""
        self._memory.note(request, sighting)
        self._decide(request, now_s)

    def computed(self, request: Active, tokens: int, start: int, seconds: float, now_s: float) -> None:
        """A chunk that came as text is there: decide for the next."""
        if request.transfer is None and self._scene.ability is not Ability.PREFIX_CUT:
            self._decide(request, now_s)

    def _decide(self, request: Active, now_s: float) -> None:
        rest = [chunk for chunk in request.hits if not request.present[chunk]]
        rest = [chunk for chunk in rest if chunk >= request.front and not self._moving(request, chunk)]
        level = self._level(request, rest, now_s) if rest else None
        if level is None:
            request.ask(())
        else:  # the next one is decided when this one has come
            request.ask(Load(chunk, level) for chunk in rest)

    def _moving(self, request: Active, chunk: int) -> bool:
        """Whether a chunk has come, and is being decoded."""
        return bool(request.coming[chunk]) and all(load.chunk != chunk for load in request.loads)

    def _level(self, request: Active, rest: list[int], now_s: float) -> int | None:
        scene = self._scene
        last = request.hits[-1]
        left_s = scene.engine.slo_s - (now_s - request.arrival_s)
        left_s -= scene.engine.prefill.call_seconds + sum(request.compute_s[last + 1 :])
        tokens = sum(request.tokens[chunk] for chunk in rest)
        for level in range(len(scene.levels) - 1, -1, -1):
            if scene.size_bytes(tokens, level) / self._memory.rate(request) <= left_s:
                return level
        return None
