"""What ``kvloom simulate`` says of the requests that were really asked, over the link that was really there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvloom.daemon.planner.outlook import PrefillCost
from kvloom.daemon.planner.request import Ability
from kvloom.daemon.planner.simulate import Bandwidth, Scene
from kvloom.daemon.planner.simulate.figures import EngineFigures, LevelFigures
from kvloom.daemon.planner.simulate.planned import STRATEGIES
from kvloom.daemon.planner.simulate.run import Simulation
from kvloom.daemon.planner.simulate.shelf import Shelf
from kvloom.daemon.planner.simulate.workload import WorkloadBuilder

LOSSES = {"standard": 0.00386, "exact": 0.0}
"""docs/measurements/codec_smollm2.json; they decide nothing here, where every level allowed meets the floor."""
STORED_EVERY_S = 100.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: when, since the link began; which text; how many tokens behind the stored chunks."""

    at_s: float
    number: int
    tail_tokens: int


def fitted_prefill(samples: Sequence[Sequence[float]]) -> PrefillCost:
    """Least squares on relative errors of (tokens, tokens before them, seconds), no cost below 0."""
    rows = np.array(samples, dtype=np.float64)
    tokens, starts, seconds = rows.T
    design = np.column_stack((tokens, tokens * (starts + tokens / 2), np.ones(len(rows)))) / seconds[:, None]
    chosen = [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(design[:, chosen], np.ones(len(rows)), rcond=None)
        if found.min() >= 0:
            break
        chosen.pop(int(found.argmin()))
    costs = dict(zip(chosen, found.tolist(), strict=True))
    return PrefillCost(costs.get(0, 0.0), costs.get(1, 0.0), costs.get(2, 0.0))


def scene_of(prepared: dict, prefills: Sequence[Sequence[float]]) -> Scene:
    """The engine and the codec as they were measured."""
    levels = tuple(
        LevelFigures(name, item["bits_per_value"], item["decode_values_per_s"], LOSSES[name])
        for name, item in prepared["levels"].items()
    )
    figures = EngineFigures(
        "smollm2-here", fitted_prefill(prefills), prepared["values_per_token"], levels,
        decoding_competes=False, step_tokens=1 << 20, slo_s=10.0,
    )  # fmt: skip
    return Scene(figures, levels, Ability.ANY_CHUNK, 1, 1, prepared["latency_s"])


def predict(
    scene: Scene,
    strategy: str,
    asked: Sequence[Asked],
    bandwidth: Bandwidth,
    *,
    sets: int,
    chunks: int,
    chunk_tokens: int,
) -> list[float]:
    """The TTFT of each request, in seconds: every text is computed and stored first, long before."""
    builder = WorkloadBuilder("links")
    # Whole cycles of the link, so that what is asked at 0 s finds it where it really was.
    after = STORED_EVERY_S * (sets + 1)
    after = np.ceil(after / bandwidth.cycle_s) * bandwidth.cycle_s
    for number in range(sets):
        stored = [(number, chunk) for chunk in range(chunks)]
        builder.add(STORED_EVERY_S * number, [*stored, "stored"], [*[chunk_tokens] * chunks, asked[0].tail_tokens])
    for index, item in enumerate(asked):
        stored = [(item.number, chunk) for chunk in range(chunks)]
        builder.add(after + item.at_s, [*stored, index], [*[chunk_tokens] * chunks, item.tail_tokens])
    workload = builder.build()
    shelf = Shelf(workload, token_bytes=scene.size_bytes(1, 0), capacity_bytes=None, policy="gittins")
    chosen = STRATEGIES[strategy](scene, bandwidth.mean_bytes_per_s)
    result = Simulation(workload, scene, chosen, shelf, bandwidth, np.zeros(1)).run()
    found: list[float] = result.ttft_s[sets:].tolist()
    return found
