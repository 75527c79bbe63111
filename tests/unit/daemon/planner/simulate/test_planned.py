"""kvloom's planner in the simulation: it learns the link, and is never far from the safe choices."""

import numpy as np
import pytest

from kvloom.daemon.planner.request import Ability
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
