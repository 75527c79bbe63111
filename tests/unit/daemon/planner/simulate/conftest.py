"""A small engine whose figures make times easy to reckon by hand."""

from dataclasses import replace

import numpy as np
import pytest

from kvloom.daemon.planner.outlook import PrefillCost
from kvloom.daemon.planner.request import Ability
from kvloom.daemon.planner.simulate import EngineFigures, LevelFigures, Scene, Shelf, Simulation

COARSE = LevelFigures("coarse", bits_per_value=8, decode_values_per_s=1e6, loss=0.01)
RAW = LevelFigures("raw", bits_per_value=32, decode_values_per_s=float("inf"), loss=0.0)
ENGINE = EngineFigures(
    name="small",
    prefill=PrefillCost(token_seconds=1e-3, token_context_seconds=1e-6, call_seconds=1e-2),
    values_per_token=100,
    levels=(COARSE, RAW),
    decoding_competes=False,
    step_tokens=256,
    slo_s=0.5,
)


@pytest.fixture(scope="session")
def engine():
    """1 ms a token, 1 us per token of context, 10 ms a call; 100 bytes a token coarse and 0.1 ms to decode, 400 raw."""
    return ENGINE


@pytest.fixture(scope="session")
def scene():
    """Makes a scene of one engine, or of what is asked for."""

    def make(
        ability=Ability.ANY_CHUNK, *, levels=(COARSE, RAW), competes=False, nodes=1, nodes_per_link=1, latency_s=0.05
    ):
        figures = replace(ENGINE, levels=levels, decoding_competes=competes)
        return Scene(figures, levels, ability, nodes, nodes_per_link, latency_s)

    return make


@pytest.fixture(scope="session")
def simulation():
    """Makes a simulation whose store holds everything that was computed, or what ``stored`` names to begin with."""

    def make(workload, scene, strategy, bandwidth, *, stored=(), logged=True):
        shelf = Shelf(workload, token_bytes=100.0, capacity_bytes=None, policy="lru")
        shelf.put(list(stored))
        return Simulation(workload, scene, strategy, shelf, bandwidth, np.zeros(scene.links), logged=logged)

    return make
