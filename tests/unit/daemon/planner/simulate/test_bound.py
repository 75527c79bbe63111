"""The optimum is a bound: no strategy, whatever it does, has a first token before it."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.daemon.planner.request import Ability
from kvloom.daemon.planner.simulate import Load, Strategy, Synthetic, WorkloadBuilder, optimum, synthetic
from kvloom.daemon.planner.simulate.bandwidth import Bandwidth, constant
from kvloom.daemon.planner.simulate.strategies import AlwaysLoad, AlwaysRecompute, Bidirectional, CacheGen


class Whim(Strategy):
    """Loads anything at any level in any order, thinks again whenever it may, computes what is on its way or not."""

    name = "whim"

    def __init__(self, seed, ability, levels):
        self._source, self._ability, self._levels = random.Random(seed), ability, levels

    def begin(self, request, now_s, ahead):
        self._ask(request)

    def came(self, request, sighting, now_s):
        if self._source.random() < 0.3:
            self._ask(request)

    def computed(self, request, tokens, start, seconds, now_s):
        if self._source.random() < 0.3:
            self._ask(request)

    def takes(self, request, chunk, now_s):
        return self._source.random() < 0.5

    def _ask(self, request):
        chunks = [chunk for chunk in request.hits if not request.present[chunk]]
        if self._ability is Ability.PREFIX_CUT:
            chunks = chunks[: self._source.randint(0, len(chunks))]
        else:
            chunks = self._source.sample(chunks, self._source.randint(0, len(chunks)))
        request.ask(Load(chunk, self._source.randrange(self._levels)) for chunk in chunks)


shapes = st.lists(st.tuples(st.floats(0.05, 2.0), st.sampled_from([0.0, 2e4, 2e5, 5e6])), min_size=1, max_size=5)


@given(
    shapes.filter(lambda pieces: any(rate for _, rate in pieces)),
    st.sampled_from(list(Ability)),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2**16),
    st.floats(0.3, 10.0),
)
def test_nobody_undercuts_the_optimum(scene, simulation, pieces, ability, competes, nodes, nodes_per_link, seed, pace):
    edges = np.concatenate(([0.0], np.cumsum([length for length, _ in pieces])))
    stage = scene(ability, competes=competes, nodes=nodes, nodes_per_link=nodes_per_link)
    kind = Synthetic(25, per_second=pace, prefixes=2, prefix_chunks=3, again=0.6, chunk_tokens=60)
    run = simulation(
        synthetic(kind, seed), stage, Whim(seed, ability, 2), Bandwidth(edges, [rate for _, rate in pieces])
    )
    result = run.run()
    bound = optimum(run, result.ttft_s)
    assert np.all(np.isfinite(bound.ttft_s))
    assert np.all(bound.ttft_s <= result.ttft_s * (1 + 1e-6) + 1e-6)
    assert np.all(bound.ttft_s > 0)


@pytest.mark.parametrize("ability", list(Ability))
@pytest.mark.parametrize(
    "make", [lambda _: AlwaysRecompute(), lambda _: AlwaysLoad("level", 0), lambda s: CacheGen(s, 1e5)]
)
def test_no_baseline_undercuts_it_under_load(make, ability, scene, simulation):
    stage = scene(ability, nodes=2, nodes_per_link=2)
    workload = synthetic(Synthetic(400, per_second=3.0, chunk_tokens=60), 3)
    run = simulation(workload, stage, make(stage), Bandwidth([0.0, 1.0, 3.0], [3e5, 3e4]))
    result = run.run()
    assert np.all(optimum(run, result.ttft_s).ttft_s <= result.ttft_s * (1 + 1e-6))


def one(last=50):
    builder = WorkloadBuilder("one")
    builder.add(0.0, ["a", "b", "c", "d"], [100, 100, 100, last])
    return builder.build()


# Chunks of 100 tokens take 0.105, 0.115, 0.125 s to compute, the tail of 50 tokens 0.06625 s and a call 0.01 s.


@pytest.mark.parametrize(
    ("rate", "loaded", "ttft"),
    [
        (1e7, 300, 0.05 + 3 * 0.001 + 0.06625 + 0.01),  # loading is much faster
        (1e3, 0, 0.105 + 0.115 + 0.125 + 0.06625 + 0.02),  # and much slower than computing, in two calls
        (2e5, 200, 0.05 + 2 * 0.05 + 0.06625 + 0.01),  # the first is computed until 0.115, two come until 0.15
    ],
)
def test_a_single_request_by_hand(rate, loaded, ttft, scene, simulation):
    coarse = scene().levels[0]
    stage = scene(levels=(type(coarse)("coarse", 8, float("inf"), 0.01),))
    run = simulation(one(), stage, AlwaysRecompute(), constant(rate), stored=[0, 1, 2])
    bound = optimum(run, run.run().ttft_s)
    assert bound.ttft_s.tolist() == pytest.approx([ttft])
    assert bound.bytes.tolist() == pytest.approx([loaded * 100.0])
    assert bound.loss.tolist() == pytest.approx([0.01 * loaded / 350])


def test_a_prefix_engine_cannot_overlap(scene, simulation):
    coarse = scene().levels[0]
    stage = scene(Ability.PREFIX_CUT, levels=(type(coarse)("coarse", 8, float("inf"), 0.01),))
    run = simulation(one(), stage, AlwaysRecompute(), constant(2e5), stored=[0, 1, 2])
    bound = optimum(run, run.run().ttft_s)
    assert bound.ttft_s.tolist() == pytest.approx([0.05 + 3 * 0.05 + 0.06625 + 0.01])


def test_bidirectional_is_near_the_optimum_when_nothing_changes(scene, simulation):
    raw = scene().levels[1]
    stage = scene(levels=(raw,))
    builder = WorkloadBuilder("long")
    builder.add(0.0, [*range(60), "tail"], [50] * 60 + [20])
    workload = builder.build()
    run = simulation(workload, stage, Bidirectional(stage, 4e5), constant(4e5), stored=range(60))
    result = run.run()
    bound = optimum(run, result.ttft_s)
    assert bound.ttft_s[0] <= result.ttft_s[0] <= 1.15 * bound.ttft_s[0]


def test_the_optimum_needs_a_log(scene, simulation):
    run = simulation(one(), scene(), AlwaysRecompute(), constant(1e5), logged=False)
    with pytest.raises(ValueError, match="log"):
        optimum(run, run.run().ttft_s)
