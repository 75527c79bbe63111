from dataclasses import replace

import numpy as np
import pytest

from kvloom.daemon.planner.request import Ability
from kvloom.daemon.planner.simulate import (
    BASELINES,
    ClassRow,
    Experiment,
    Row,
    Synthetic,
    goals,
    synthetic,
    utilisation,
)
from kvloom.daemon.planner.simulate.bandwidth import constant, step
from kvloom.errors import ConfigError


def test_a_row_is_what_the_result_says(scene):
    workload = synthetic(Synthetic(80, per_second=1.0, chunk_tokens=60), 1)
    outcome = Experiment(workload, scene(), "a link", step(1e5, 1e4, 3.0)).run("cachegen", BASELINES["cachegen"])
    row, result = outcome.row, outcome.result
    assert (row.trace, row.link, row.strategy, row.engine, row.ability) == (
        "synthetic",
        "a link",
        "cachegen",
        "small",
        "any_chunk",
    )
    assert row.ttft_mean_s == pytest.approx(result.ttft_s.mean())
    assert row.ttft_p95_s == pytest.approx(np.percentile(result.ttft_s, 95))
    assert row.slo_attainment == pytest.approx((result.ttft_s <= 0.5).mean())
    assert row.bytes == pytest.approx(result.bytes.mean())
    assert outcome.bound is not None
    assert outcome.optimum_row is not None
    assert row.optimum_ratio == pytest.approx(row.ttft_mean_s / outcome.bound.ttft_s.mean())
    assert sum(kind.requests for kind in outcome.classes) == 80
    mean = sum(kind.requests * kind.ttft_mean_s for kind in outcome.classes) / 80
    assert mean == pytest.approx(row.ttft_mean_s)


def test_an_engine_that_takes_prefixes_has_no_two_directions(scene):
    workload = synthetic(Synthetic(5, per_second=1.0), 1)
    with pytest.raises(ConfigError, match="bidirectional"):
        Experiment(workload, scene(Ability.PREFIX_CUT), "l", constant(1e5)).run(
            "bidirectional", BASELINES["bidirectional"]
        )


def test_utilisation_is_the_part_of_the_time_that_engines_compute(scene, simulation):
    workload = synthetic(Synthetic(200, per_second=1.0, chunk_tokens=60), 1)
    busy = utilisation(workload, scene())
    strategy = BASELINES["always-recompute"](scene(), 1.0)
    computed = simulation(workload, scene(), strategy, constant(1e5)).run().gpu_s.sum()
    assert busy * workload.arrivals_s[-1] == pytest.approx(computed, rel=0.1)


def row(strategy, ttft, *, link="lte", ratio=1.0):
    return Row("t", link, strategy, "e", "any_chunk", 10, ttft, ttft, ttft, ttft, 1.0, 0.0, 0.0, 0.0, 0.0, ratio)


def test_goals_are_the_worst_optimum_the_mean_gain_and_the_worst_class():
    rows = [
        row("kvloom", 1.0, ratio=1.05),
        row("cachegen", 2.0),
        row("kvloom", 1.0, link="saw", ratio=1.08),
        row("cachegen", 8.0, link="saw"),
        row("kvloom", 1.0, link="constant:1Gb"),
        row("cachegen", 100.0, link="constant:1Gb"),
    ]
    ours = ClassRow("t", "lte", "kvloom", "e", "any_chunk", "short, new", 4, 1.2)
    classes = [
        ours,
        replace(ours, requests_of="long, new", ttft_mean_s=1.0),
        replace(ours, strategy="always-recompute", ttft_mean_s=1.0),
        replace(ours, strategy="always-load-level", ttft_mean_s=3.0),
        replace(ours, strategy="always-recompute", requests_of="long, new", ttft_mean_s=2.0),
        replace(ours, strategy="cachegen", ttft_mean_s=0.1),
    ]
    (found,) = goals(rows, classes)
    assert found.optimum_ratio_worst == 1.08
    assert "saw" in found.optimum_worst_at
    assert found.cachegen_ratio == pytest.approx(4.0)
    assert found.class_ratio_worst == pytest.approx(1.2)
    assert "short, new" in found.class_worst_at
