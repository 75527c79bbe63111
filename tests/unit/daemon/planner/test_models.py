"""What is learnt of links, prefill and decoding, from samples whose truth is known."""

import numpy as np
import pytest

from kvloom import errors, limits
from kvloom.daemon.planner.blended import plan_blend
from kvloom.daemon.planner.costs import PrefillModel, PrefillPrior
from kvloom.daemon.planner.links import LinkModel, LinkPrior, RateModel
from kvloom.daemon.planner.measured import MeasuredLinks
from kvloom.daemon.planner.model import LINK_PRIORS, CostModel, Situation
from kvloom.daemon.planner.robust import WINDOW, lognormal_factor, weighted_median

LATENCY, BYTE = 0.004, 2e-9


def fed(link, count=20, noise=0.0, seed=0, concurrent=1, now=0.0):
    rng = np.random.default_rng(seed)
    for index in range(count):
        size = float(rng.integers(100_000, 10_000_000))
        seconds = (LATENCY + size * concurrent * BYTE) * rng.lognormal(0, noise)
        assert link.add(size, seconds, concurrent=concurrent, now_seconds=now + index)
    return link


class TestLinks:
    def test_latency_and_throughput_are_told_apart(self):
        found = fed(LinkModel(LinkPrior())).estimate(now_seconds=20.0)
        assert found.latency_seconds == pytest.approx(LATENCY, rel=0.01)
        assert found.byte_seconds == pytest.approx(BYTE, rel=0.01)

    def test_transfers_of_one_size_say_how_long_such_a_transfer_takes(self):
        link = LinkModel(LinkPrior())
        for index in range(10):
            link.add(1e6, 0.02, concurrent=1, now_seconds=index)
        found = link.estimate(now_seconds=10.0)
        assert found.latency_seconds + 1e6 * found.byte_seconds == pytest.approx(0.02)

    def test_transfers_side_by_side_share_the_link(self):
        alone, shared = fed(LinkModel(LinkPrior())), fed(LinkModel(LinkPrior()), concurrent=4)
        one, four = (link.estimate(now_seconds=20.0).byte_seconds for link in (alone, shared))
        assert four == pytest.approx(one, rel=0.01)

    def test_what_is_ahead_is_waited_for(self):
        found = fed(LinkModel(LinkPrior())).estimate(now_seconds=20.0)
        assert found.cost(None, ahead_bytes=1e9).wait_seconds == pytest.approx(1e9 * found.cost(None).byte_seconds)

    def test_quantiles_are_apart_by_what_the_link_does(self):
        calm, rough = (fed(LinkModel(LinkPrior()), 31, noise=noise).estimate(now_seconds=31.0) for noise in (0.02, 0.5))
        for found in (calm, rough):
            assert found.cost(0.2).byte_seconds < found.byte_seconds < found.cost(0.8).byte_seconds
        assert rough.spread == pytest.approx(0.5, rel=0.6)
        assert calm.spread < 0.1 < rough.spread

    def test_few_samples_and_old_ones_are_believed_less(self):
        link = fed(LinkModel(LinkPrior()), 2)
        few = link.estimate(now_seconds=2.0)
        many = fed(link, 29, now=2.0).estimate(now_seconds=31.0)
        assert few.spread > many.spread
        assert link.estimate(now_seconds=1e9).spread == pytest.approx(2 * many.spread, rel=0.01)
        assert link.estimate(now_seconds=-1e9).spread == pytest.approx(many.spread, rel=0.01)

    def test_a_link_that_changes_is_followed(self):
        link = fed(LinkModel(LinkPrior()), WINDOW)
        for index in range(20):
            link.add(float(1_000_000 + 50_000 * index), 1.0 + index / 20, concurrent=1, now_seconds=WINDOW + index)
        found = link.estimate(now_seconds=WINDOW + 20)
        assert found.latency_seconds + 1_500_000 * found.byte_seconds == pytest.approx(1.5, rel=0.1)

    def test_nothing_known_is_the_prior(self):
        found = LinkModel(LinkPrior(0.5, 1e-3)).estimate(now_seconds=0.0)
        assert (found.latency_seconds, found.byte_seconds) == (0.5, 1e-3)


class TestPrefill:
    def test_the_three_coefficients_are_found(self):
        model, rng = PrefillModel(PrefillPrior()), np.random.default_rng(0)
        a, b, c = 4e-5, 3e-9, 0.02
        for index in range(31):
            n, s = rng.integers(1, 4096), rng.integers(0, 30_000)
            model.add(n, s, a * n + b * n * (s + n / 2) + c, batch=1, now_seconds=index)
        found = model.cost()
        assert found.token_seconds == pytest.approx(a, rel=0.02)
        assert found.token_context_seconds == pytest.approx(b, rel=0.02)
        assert found.call_seconds == pytest.approx(c, rel=0.02)

    def test_two_runs_cost_what_one_does_and_a_call_more(self):
        cost = PrefillModel(PrefillPrior()).cost()
        parts = cost.seconds(np.array([100, 300]), np.array([50, 150])).sum()
        assert parts == pytest.approx(cost.seconds(np.array([400]), np.array([50]))[0])

    def test_one_prefill_is_enough_to_know_the_scale(self):
        model = PrefillModel(PrefillPrior())
        model.add(1000, 0, 7.0, batch=1, now_seconds=0.0)
        cost = model.cost()
        assert cost.seconds(np.array([1000]), np.array([0]))[0] + cost.call_seconds == pytest.approx(7.0, rel=0.01)

    def test_a_busy_engine_is_another_model_once_it_is_known(self):
        model = PrefillModel(PrefillPrior())
        for index in range(20):
            model.add(100 + index, 0, 1.0, batch=1, now_seconds=index)
        idle = model.cost(batch=32)
        assert idle == model.cost(batch=1)
        for index in range(20):
            model.add(100 + index, 0, 5.0, batch=32, now_seconds=20 + index)
        ratio = model.cost(batch=32).seconds(np.array([110]), np.array([0])) / model.cost(batch=1).seconds(
            np.array([110]), np.array([0])
        )
        assert ratio[0] > 2

    def test_a_second_of_an_engine_that_is_busy_has_a_price(self):
        def price(busy):
            model = PrefillModel(PrefillPrior())
            for index in range(40):
                model.add(100, 0, busy, batch=1, now_seconds=float(index))
            return model.cost().price

        assert price(0.01) == pytest.approx(1.01, rel=0.01)
        assert price(0.25) == pytest.approx(4 / 3, rel=0.01)
        assert price(0.9) == price(50.0) == 2.0

    def test_little_known_of_an_engine_or_another_clock_is_no_price(self):
        model = PrefillModel(PrefillPrior())
        for index in range(10):
            model.add(100, 0, 0.9, batch=1, now_seconds=float(index))
        assert model.cost().price == 1.0
        for now in (1e9, -1e9):
            for _ in range(20):
                model.add(100, 0, 0.5, batch=1, now_seconds=now)
                now += 2.0
            assert model.cost().price == pytest.approx(4 / 3, rel=0.01)
            model.add(100, 0, 0.9, batch=1, now_seconds=now - 5.0)
            assert model.cost().price == 1.0

    def test_what_is_queued_is_computed_first(self):
        cost = PrefillModel(PrefillPrior()).cost(queued_tokens=1000)
        assert cost.wait_seconds == pytest.approx(cost.seconds(np.array([1000]), np.array([0]))[0])
        assert PrefillModel(PrefillPrior()).cost(queued_tokens=float("nan")).wait_seconds == 0.0


class TestMemory:
    def test_what_was_not_heard_of_for_longest_is_forgotten(self, monkeypatch):
        monkeypatch.setattr(limits, "PLAN_ENGINES_MAX", 2)
        model = CostModel()
        for engine in ("a", "b", "a", "c"):
            model.note_prefill(engine, 100, 0, 1.0, batch=1, now_seconds=0.0)
        costs = {e: model.estimates(e, {}, [], "", Situation(0.0)).prefill.token_seconds for e in "abc"}
        assert costs["b"] == PrefillPrior().token_seconds
        assert costs["a"] == costs["c"] > 10 * costs["b"]

    def test_an_engine_is_believed_over_the_daemon_once_it_has_reported(self):
        model, measured = CostModel(), MeasuredLinks()
        measured.note("ssd", 10**6, 0.004, concurrent=1, now_seconds=0.0)
        for count in range(4):
            got = model.estimates("e", measured.estimates(0.0), ["ssd"], "", Situation(0.0)).mean().links["ssd"]
            assert (got.byte_seconds > 1e-7) == (count == 3)
            model.note_load("e", "ssd", 1e6, 1.0, concurrent=1, now_seconds=0.0)

    def test_reading_from_memory_is_not_getting_it_to_an_engine(self):
        measured = MeasuredLinks()
        measured.note("memory", 10**8, 1e-6, concurrent=1, now_seconds=0.0)
        assert measured.estimates(0.0)["memory"].byte_seconds >= LINK_PRIORS["memory"].byte_seconds
        assert measured.reports(0.0)[0].samples == 1

    def test_links_are_as_many_as_they_may_be(self, monkeypatch):
        monkeypatch.setattr(limits, "PLAN_LINKS_MAX", 1)
        measured = MeasuredLinks()
        for tier in ("a", "b"):
            measured.note(tier, 10**6, 0.1, concurrent=1, now_seconds=0.0)
        assert [link.tier for link in measured.reports(0.0)] == ["a"]


def test_decoding_is_learnt_by_level():
    model = CostModel()
    model.note_decode("e", "fine", 1e9, 2.0, now_seconds=0.0)
    assert model.decode_byte_seconds("e", "fine") == pytest.approx(2e-9)
    assert model.decode_byte_seconds("e", "draft") == RateModel(1e-9).unit_seconds()


def test_statistics():
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 10.0])) == 2.0
    assert lognormal_factor(0.5, 0.5) == 1.0
    assert lognormal_factor(0.5, 0.8) == pytest.approx(1 / lognormal_factor(0.5, 0.2))


class TestBlending:
    def test_as_much_is_recomputed_as_loading_hides(self):
        plan = plan_blend(
            load_seconds=0.3, prefill_seconds=1.0, suffix_seconds=0.0, layers=32, whole_layers=2, ratio_min=0.15
        )
        assert plan.recompute_ratio == pytest.approx(0.3)
        assert plan.ttft_seconds < plan.recompute_seconds

    def test_no_less_than_quality_needs(self):
        plan = plan_blend(
            load_seconds=0.01, prefill_seconds=1.0, suffix_seconds=0.1, layers=32, whole_layers=1, ratio_min=0.15
        )
        assert plan.recompute_ratio == 0.15

    @pytest.mark.parametrize(("load", "ratio"), [(0.3, 0.15), (0.7, 0.15), (0.9, 1.0)])
    def test_what_is_loaded_before_anything_is_computed_hides_nothing(self, load, ratio):
        asked = {"prefill_seconds": 1.0, "suffix_seconds": 0.0, "layers": 32, "whole_layers": 0, "ratio_min": 0.15}
        plan = plan_blend(load_seconds=load, **asked, side_by_side=False)
        assert plan.recompute_ratio == ratio
        assert plan.ttft_seconds == pytest.approx(min(1.0, load + 0.15))

    def test_where_loading_is_slower_than_computing_everything_is_computed(self):
        plan = plan_blend(
            load_seconds=2.0, prefill_seconds=1.0, suffix_seconds=0.1, layers=32, whole_layers=1, ratio_min=0.15
        )
        assert (plan.recompute_ratio, plan.ttft_seconds) == (1.0, plan.recompute_seconds)

    @pytest.mark.parametrize(
        "wrong", [{"layers": 0}, {"whole_layers": 33}, {"ratio_min": 2.0}, {"load_seconds": float("nan")}]
    )
    def test_what_makes_no_sense_is_refused(self, wrong):
        asked = {
            "load_seconds": 1.0,
            "prefill_seconds": 1.0,
            "suffix_seconds": 0.0,
            "layers": 32,
            "whole_layers": 1,
            "ratio_min": 0.1,
        }
        with pytest.raises(errors.InvalidRequest):
            plan_blend(**(asked | wrong))
