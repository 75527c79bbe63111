"""A workload, a link and strategies: one simulation for each, and what came out as rows. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ....errors import ConfigError
from ..request import Ability
from .active import Scene, Strategy
from .bandwidth import Bandwidth
from .bound import Bound, optimum
from .journal import Result
from .run import Simulation
from .shelf import Shelf
from .strategies import AlwaysLoad, AlwaysRecompute, Bidirectional, CacheGen
from .workload import Workload, classify

__all__ = ["BASELINES", "OPTIMUM", "ClassRow", "Experiment", "Outcome", "Row", "strategies_for", "utilisation"]

Floats = NDArray[np.float64]
OPTIMUM: Final = "optimum"

Make = Callable[[Scene, float], Strategy]
BASELINES: Final = MappingProxyType[str, Make](
    {
        "always-recompute": lambda _scene, _rate: AlwaysRecompute(),
        "always-load-raw": lambda scene, _rate: AlwaysLoad("always-load-raw", len(scene.levels) - 1),
        "always-load-level": lambda _scene, _rate: AlwaysLoad("always-load-level", 0),
        "cachegen": CacheGen,
        "bidirectional": Bidirectional,
    }
)
"""By name: makes the strategy for a scene and the rate in bytes per second that its links are said to have."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a strategy did on a trace over a link. Bytes, seconds of the engine and loss are means per request.

    ``optimum_ratio``: its mean TTFT over that of the optimum at the same state (:mod:`.bound`); 0 where not asked for.
    """

    trace: str
    link: str
    strategy: str
    engine: str
    ability: str
    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    slo_attainment: float
    bytes: float
    gpu_s: float
    quality_loss: float
    """KL in nats per token of the prompt."""
    loaded_share: float
    """Tokens loaded over tokens stored."""
    optimum_ratio: float


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The same of one class of requests (:func:`.workload.classify`)."""

    trace: str
    link: str
    strategy: str
    engine: str
    ability: str
    requests_of: str
    requests: int
    ttft_mean_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One simulation."""

    row: Row
    classes: tuple[ClassRow, ...]
    result: Result
    bound: Bound | None
    optimum_row: Row | None
    """The optimum of this simulation's requests, as a row."""


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """What all strategies are compared on."""

    workload: Workload
    scene: Scene
    link: str
    bandwidth: Bandwidth
    capacity_bytes: int | None = None
    policy: str = "gittins"
    seed: int = 0

    def run(
        self, name: str, make: Make, *, with_optimum: bool = True, progress: Callable[[int], None] | None = None
    ) -> Outcome:
        """Simulate one strategy; the same every time. ``progress`` is told now and then how many have arrived."""
        scene = self.scene
        if name == Bidirectional.name and scene.ability is Ability.PREFIX_CUT:
            raise ConfigError("bidirectional needs an engine that takes any chunk")
        smallest = scene.size_bytes(1, 0)
        shelf = Shelf(self.workload, token_bytes=smallest, capacity_bytes=self.capacity_bytes, policy=self.policy)
        offsets = np.random.default_rng(self.seed).uniform(0.0, self.bandwidth.cycle_s, scene.links)
        strategy = make(scene, self.bandwidth.mean_bytes_per_s)
        simulation = Simulation(self.workload, scene, strategy, shelf, self.bandwidth, offsets, logged=with_optimum)
        result = simulation.run(progress)
        bound = optimum(simulation, result.ttft_s) if with_optimum else None
        row = self._row(name, result.ttft_s, result.bytes, result.gpu_s, result.loss, result, bound)
        best = None
        if bound is not None:
            best = self._row(OPTIMUM, bound.ttft_s, bound.bytes, bound.gpu_s, bound.loss, None, bound)
        return Outcome(row, tuple(self._classes(name, result.ttft_s)), result, bound, best)

    def _row(
        self,
        name: str,
        ttft_s: Floats,
        moved: Floats,
        gpu_s: Floats,
        loss: Floats,
        result: Result | None,
        bound: Bound | None,
    ) -> Row:
        mean = float(ttft_s.mean())
        p50, p95, p99 = (float(value) for value in np.percentile(ttft_s, (50, 95, 99)))
        stored = 0 if result is None else int(result.hit_tokens.sum())
        return Row(
            self.workload.name,
            self.link,
            name,
            self.scene.engine.name,
            self.scene.ability.value,
            len(ttft_s),
            mean,
            p50,
            p95,
            p99,
            float(np.mean(ttft_s <= self.scene.engine.slo_s)),
            float(moved.mean()),
            float(gpu_s.mean()),
            float(loss.mean()),
            float(result.loaded_tokens.sum() / stored) if result is not None and stored else 0.0,
            mean / float(bound.ttft_s.mean()) if bound is not None else 0.0,
        )

    def _classes(self, name: str, ttft_s: Floats) -> Iterator[ClassRow]:
        scene = self.scene
        for kind in classify(self.workload):
            mean = float(ttft_s[kind.members].mean())
            labels = self.workload.name, self.link, name, scene.engine.name, scene.ability.value
            yield ClassRow(*labels, kind.name, len(kind.members), mean)


def utilisation(workload: Workload, scene: Scene) -> float:
    """How many engines are busy in the mean if everything is computed."""
    prefill = scene.engine.prefill
    costs = prefill.seconds(workload.tokens.astype(np.int64), workload.starts.astype(np.int64))
    steps = workload.prompt_tokens() / scene.engine.step_tokens
    seconds = float(costs[workload.blocks].sum() + prefill.call_seconds * np.ceil(steps).sum())
    return seconds / max(float(workload.arrivals_s[-1]), 1e-9)


def strategies_for(ability: Ability, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that make sense for an engine."""
    return [name for name in names if name != Bidirectional.name or ability is Ability.ANY_CHUNK]
