"""kvloom's planner in the simulation: it learns the link, and is never far from the safe choices."""

import numpy as np
import pytest

from kvloom.daemon.planner.planner import make_plan
from kvloom.daemon.planner.request import Ability, Executor, Fastest, PlanRequest, Way
from kvloom.daemon.planner.simulate import Synthetic, optimum, synthetic
from kvloom.daemon.planner.simulate.bandwidth import constant, lte, step
from kvloom.daemon.planner.simulate.planned import Planned
from kvloom.daemon.planner.simulate.strategies import AlwaysLoad, AlwaysRecompute


@pytest.fixture(scope="module")
def workload():
    return synthetic(Synthetic(250, per_second=0.7, prefixes=8, again=0.7, chunk_tokens=100), 7)


@pytest.mark.parametrize("ability", list(Ability))
def test_on_a_fast_link_everything_is_loaded_and_on_a_dead_one_computed(ability, workload, scene, simulation):
    stage = scene(ability)
    fast = simulation(workload, stage, Planned(stage, 1e6), constant(1e8)).run()
    assert fast.loaded_tokens.sum() > 0.95 * fast.hit_tokens.sum()
    slow = simulation(workload, stage, Planned(stage, 1e6), constant(500.0)).run()
    recomputed = simulation(workload, stage, AlwaysRecompute(), constant(500.0)).run()
    assert slow.loaded_tokens[50:].sum() < 0.05 * slow.hit_tokens[50:].sum()
    assert slow.ttft_s[50:].mean() < 1.05 * recomputed.ttft_s[50:].mean()


@pytest.mark.parametrize("ability", list(Ability))
@pytest.mark.parametrize("link", [step(4e5, 3e4, 20.0), lte(3, scale=0.05)])
def test_on_a_link_that_changes_it_is_near_the_best_of_the_safe_choices(ability, link, workload, scene, simulation):
    stage = scene(ability)
    run = simulation(workload, stage, Planned(stage, 1e6), link)
    result = run.run()
    safe = min(
        float(simulation(workload, stage, strategy, link).run().ttft_s.mean())
        for strategy in (AlwaysRecompute(), AlwaysLoad("level", 0), AlwaysLoad("raw", 1))
    )
    assert result.ttft_s.mean() < 1.1 * safe
    bound = optimum(run, result.ttft_s)
    assert np.all(bound.ttft_s <= result.ttft_s * (1 + 1e-6))
    assert result.ttft_s.mean() < 1.35 * bound.ttft_s.mean()


def test_the_same_run_gives_the_same_plans(workload, scene, simulation):
    stage = scene(nodes=2, nodes_per_link=2)
    results = [simulation(workload, stage, Planned(stage, 1e6), step(4e5, 3e4, 5.0)).run() for _ in range(2)]
    assert results[0].ttft_s.tolist() == results[1].ttft_s.tolist()
    assert results[0].bytes.tolist() == results[1].bytes.tolist()


class Doubled(Planned):
    """Has every first plan made by the planner, too."""

    compared = 0

    def begin(self, request, now_s, ahead):
        super().begin(request, now_s, ahead)
        if not request.hits or request.probing:
            return
        size_bytes = np.full((len(request.tokens), len(self._scene.levels)), np.inf)
        decode_s, loss = np.zeros_like(size_bytes), np.zeros_like(size_bytes)
        for level in range(size_bytes.shape[1]):
            for chunk in request.hits:
                size_bytes[chunk, level] = self._scene.size_bytes(request.tokens[chunk], level)
                decode_s[chunk, level] = self._scene.decode_s(request.tokens[chunk], level)
        asked = PlanRequest(
            np.array(request.tokens),
            np.array(request.starts),
            tuple(Way("store", level.name) for level in self._scene.levels),
            size_bytes,
            decode_s,
            loss,
        )
        executor = Executor(self._scene.ability, decoding_competes=True, step_tokens=self._scene.engine.step_tokens)
        estimates = self._estimates(request, now_s)
        plan = make_plan(asked, estimates, Fastest(), executor, quantile=self._quantile)
        levels = {load.chunk: load.level for load in request.loads}
        assert [load.chunk for load in request.loads] == plan.load_order.tolist()
        assert levels == {chunk: int(plan.ways[chunk]) for chunk in plan.load_order.tolist()}
        self.compared += 1


def test_what_is_simulated_is_what_the_planner_decides(workload, scene, simulation):
    stage = scene(Ability.PREFIX_CUT, levels=scene().levels[:1], competes=True)
    strategy = Doubled(stage, 1e6)
    simulation(workload, stage, strategy, step(4e5, 3e4, 20.0)).run()
    assert strategy.compared > 50
