"""Plans of requests whose best plan can be told by hand."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from kvloom import errors, limits
from kvloom.clients.plan_wire import Ability, Reason
from kvloom.daemon.planner.outlook import LinkCost, Outlook, PrefillCost
from kvloom.daemon.planner.plan import Action, Progress
from kvloom.daemon.planner.planner import make_plan
from kvloom.daemon.planner.request import BestWithin, Chunk, Executor, Fastest, Offer, PlanRequest

SECOND_A_CHUNK = PrefillCost(1 / 256, 0.0, 0.0)


@dataclass(frozen=True)
class Views:
    """A link that takes ``byte_seconds``, and may be ``spread`` times slower or faster than that."""

    byte_seconds: float
    spread: float = 1.0
    prefill: PrefillCost = SECOND_A_CHUNK

    def mean(self):
        return Outlook(self.prefill, {"link": LinkCost(0.0, self.byte_seconds)})

    def at(self, quantile):
        factor = self.spread if quantile > 0.5 else 1 / self.spread
        return Outlook(self.prefill, {"link": LinkCost(0.0, self.byte_seconds * factor)})


def request_of(*sizes, levels=(("exact", 1.0, 0.0),), tail=0):
    """Chunks of 256 tokens; each size is that of a chunk, and ``None`` one that nobody has."""
    chunks = [
        Chunk(256, 256 * index, () if size is None else tuple(
            Offer("link", name, int(size * share), 0.0, loss) for name, share, loss in levels
        ))
        for index, size in enumerate(sizes)
    ]  # fmt: skip
    if tail:
        chunks.append(Chunk(tail, 256 * len(sizes)))
    return PlanRequest.of(chunks)


def actions(plan):
    return "".join("clr"[action] for action in plan.actions.tolist())


def test_the_two_ends_meet_where_both_take_as_long():
    plan = make_plan(request_of(*[100] * 8), Views(0.01), Fastest(), Executor())
    assert actions(plan) == "ccccllll"
    assert (plan.meeting, plan.ttft_seconds, plan.recompute_seconds) == (4, 4.0, 8.0)
    assert plan.load_order.tolist() == [7, 6, 5, 4]
    assert [decision.seconds for decision in plan][:4] == [1.0, 2.0, 3.0, 4.0]


def test_an_engine_that_does_one_thing_at_a_time_does_what_is_faster():
    one = Executor(side_by_side=False)
    assert actions(make_plan(request_of(*[100] * 4), Views(0.009), Fastest(), one)) == "llll"
    assert actions(make_plan(request_of(*[100] * 4), Views(0.011), Fastest(), one)) == "cccc"


def test_a_prefix_is_loaded_up_to_where_it_ends():
    cut = Executor(Ability.PREFIX_CUT)
    plan = make_plan(request_of(100, 100, None, 100), Views(0.001), Fastest(), cut)
    assert actions(plan) == "llcc"
    assert plan.reasons == (Reason.LOAD_FASTER, Reason.LOAD_FASTER, Reason.NOT_OFFERED, Reason.AFTER_CUT)
    assert plan.load_order.tolist() == [0, 1]


@pytest.mark.parametrize("count", [4, 100])
def test_an_engine_that_others_wait_for_loads_a_prefix_that_takes_a_little_longer(count):
    """Short requests and long ones are searched apart; an engine that takes any chunk computes while it loads."""
    dear = replace(SECOND_A_CHUNK, price=1.2)
    for executor, price, expected in (
        (Executor(Ability.PREFIX_CUT), SECOND_A_CHUNK, "c"),
        (Executor(Ability.PREFIX_CUT), dear, "l"),
    ):
        plan = make_plan(request_of(*[100] * count), Views(0.011, prefill=price), Fastest(), executor)
        assert actions(plan) == expected * count
        assert plan.ttft_seconds <= price.price * plan.recompute_seconds
    plans = [
        make_plan(request_of(*[100] * count), Views(0.011, prefill=p), Fastest(), Executor())
        for p in (dear, SECOND_A_CHUNK)
    ]
    assert actions(plans[0]) == actions(plans[1])


def test_a_link_that_is_slow_now_and_mostly_fast_is_worth_a_long_load_and_no_short_one():
    @dataclass(frozen=True)
    class Reverting:
        def mean(self):
            return Outlook(SECOND_A_CHUNK, {"link": LinkCost(0.0, 0.04, 0.0, "", 0.0025, 5.0)})

        def at(self, quantile):
            return self.mean()

    prefix = Executor(Ability.PREFIX_CUT)
    assert actions(make_plan(request_of(100), Reverting(), Fastest(), prefix)) == "c"
    assert actions(make_plan(request_of(*[100] * 20), Reverting(), Fastest(), prefix)) == "l" * 20


def test_what_is_before_a_hole_comes_first():
    plan = make_plan(request_of(100, 100, None, 100, 100), Views(0.002), Fastest(), Executor())
    assert actions(plan) == "llcll"
    assert plan.load_order.tolist() == [1, 0, 4, 3]


def test_prefill_grows_with_the_context_so_what_is_computed_is_the_front():
    growing = PrefillCost(1e-4, 1e-6, 0.0)
    plan = make_plan(request_of(*[100] * 32), Views(0.002, prefill=growing), Fastest(), Executor())
    loaded = plan.actions == Action.LOAD
    assert 0 < plan.meeting < 32
    assert loaded[plan.meeting :].all()
    assert not loaded[: plan.meeting].any()


LEVELS = (("exact", 1.0, 0.0), ("fine", 0.5, 0.1), ("draft", 0.25, 0.4))


def test_levels_are_as_coarse_as_the_floor_allows():
    slow = PrefillCost(1.0, 0.0, 0.0)
    for loss_max, names in ((0.0, {"exact"}), (0.1, {"fine"}), (1.0, {"draft"})):
        plan = make_plan(
            request_of(*[100] * 4, levels=LEVELS),
            Views(1.0, prefill=slow),
            Fastest(loss_max),
            Executor(side_by_side=False),
        )
        assert {decision.way.level for decision in plan} == names
        assert plan.loss <= loss_max
    mixed = make_plan(
        request_of(*[100] * 4, levels=LEVELS), Views(1.0, prefill=slow), Fastest(0.25), Executor(side_by_side=False)
    )
    assert sorted(decision.way.level for decision in mixed) == ["draft", "draft", "fine", "fine"]


def test_within_a_time_the_least_is_lost():
    slow = PrefillCost(1.0, 0.0, 0.0)
    asked = request_of(*[100] * 4, levels=LEVELS)
    for seconds, loss in ((400.0, 0.0), (350.0, 0.025), (200.0, 0.1), (100.0, 0.4)):
        plan = make_plan(asked, Views(1.0, prefill=slow), BestWithin(seconds), Executor(side_by_side=False))
        assert plan.ttft_seconds <= seconds
        assert plan.loss == pytest.approx(loss)
    hopeless = make_plan(asked, Views(1.0, prefill=slow), BestWithin(1.0), Executor(side_by_side=False))
    assert hopeless.ttft_seconds == 100.0


def test_a_chunk_whose_levels_all_lose_too_much_is_computed_and_that_is_said():
    slow = PrefillCost(1.0, 0.0, 0.0)
    plan = make_plan(request_of(100, levels=LEVELS[2:]), Views(0.001, prefill=slow), Fastest(0.1), Executor())
    assert plan.reasons == (Reason.QUALITY_FLOOR,)


def test_near_the_meeting_point_chunks_are_raced_as_far_as_the_link_is_uncertain():
    sure = make_plan(request_of(*[100] * 12), Views(0.01), Fastest(), Executor())
    unsure = make_plan(request_of(*[100] * 12), Views(0.01, spread=2.0), Fastest(), Executor())
    assert Action.RACE not in sure.actions
    assert actions(unsure) == "ccccrrrrllll"
    assert unsure.load_order.tolist() == [11, 10, 9, 8, 7, 6, 5, 4]
    assert {unsure.reasons[index] for index in range(4, 8)} == {Reason.UNCERTAIN}
    assert unsure.ttft_seconds <= unsure.cautious_seconds <= unsure.recompute_seconds


def test_nobody_races_who_does_one_thing_at_a_time():
    plan = make_plan(request_of(*[100] * 12), Views(0.01, spread=2.0), Fastest(), Executor(side_by_side=False))
    assert Action.RACE not in plan.actions


def test_decoding_that_competes_with_prefill_is_time_of_the_engine():
    chunks = [Chunk(256, 256 * index, (Offer("link", "fine", 1, 0.9),)) for index in range(10)]
    beside = make_plan(PlanRequest.of(chunks), Views(1e-6), Fastest(), Executor())
    competing = make_plan(PlanRequest.of(chunks), Views(1e-6), Fastest(), Executor(decoding_competes=True))
    assert beside.ttft_seconds == pytest.approx(5.0, rel=0.1)
    assert competing.ttft_seconds == pytest.approx(9.0, rel=1e-3)


def test_links_of_one_path_take_turns():
    chunks = [Chunk(256, 256 * i, (Offer("ab"[i % 2], "exact", 100),)) for i in range(8)]
    free = Outlook(PrefillCost(1.0, 0, 0), {"a": LinkCost(0, 0.01), "b": LinkCost(0, 0.01)})
    bound = Outlook(PrefillCost(1.0, 0, 0), {name: replace(cost, path="socket") for name, cost in free.links.items()})

    @dataclass(frozen=True)
    class Known:
        outlook: Outlook

        def mean(self):
            return self.outlook

        def at(self, quantile):
            return self.outlook

    assert make_plan(PlanRequest.of(chunks), Known(free), Fastest(), Executor()).ttft_seconds == pytest.approx(4.0)
    assert make_plan(PlanRequest.of(chunks), Known(bound), Fastest(), Executor()).ttft_seconds == pytest.approx(8.0)


def test_a_plan_is_revised_from_what_the_link_really_did():
    asked = request_of(*[100] * 8)
    first = make_plan(asked, Views(0.01), Fastest(), Executor())
    done = np.zeros(8, dtype=bool)
    done[[0, 7]] = True
    left, under_way = np.zeros(8), np.full(8, -1, dtype=np.int16)
    left[6], under_way[6] = 50.0, 0
    progress = Progress(done, left, under_way, computing_seconds=0.5, elapsed_seconds=1.0)
    same = make_plan(asked, Views(0.01), Fastest(), Executor(), progress=progress)
    assert same.reasons[0] is same.reasons[7] is Reason.DONE
    assert same.ttft_seconds <= first.ttft_seconds - 0.5 + 1e-9
    stalled = make_plan(asked, Views(10.0), Fastest(), Executor(), progress=progress)
    assert actions(stalled)[1:7] == "cccccc"
    assert stalled.load_order.tolist() == []
    fast = make_plan(asked, Views(1e-5), Fastest(), Executor(), progress=progress)
    assert actions(fast)[1:7] == "llllll"


def test_what_was_lost_on_the_way_counts():
    slow = PrefillCost(1.0, 0.0, 0.0)
    asked = request_of(*[100] * 2, levels=LEVELS)
    done = np.array([True, False])
    progress = Progress(done, np.zeros(2), np.full(2, -1, dtype=np.int16), lost=0.4 * 256)
    plan = make_plan(asked, Views(1.0, prefill=slow), Fastest(0.2), Executor(), progress=progress)
    assert plan[1].way.level == "exact"


def test_when_all_is_done_there_is_nothing_to_do():
    progress = Progress(np.ones(2, dtype=bool), np.zeros(2), np.full(2, -1, dtype=np.int16))
    plan = make_plan(request_of(100, 100), Views(0.01), Fastest(), Executor(), progress=progress)
    assert (plan.ttft_seconds, plan.load_order.tolist()) == (0.0, [])


@pytest.mark.parametrize("count", [200, 1000])
def test_long_requests_are_planned_near_the_bound(count):
    """Of equal chunks over one link: what one path and the engine take together cannot be less than half and half."""
    plan = make_plan(request_of(*[100] * count, tail=64), Views(0.005), Fastest(), Executor())
    bound = count / 3 + 0.25  # x seconds on the engine, 2x chunks over the link
    assert bound <= plan.ttft_seconds <= bound + 1.0


@pytest.mark.parametrize(
    "chunks",
    [
        [], [Chunk(0, 0)], [Chunk(1, -1)], [Chunk(2, 0), Chunk(2, 1)], [Chunk(1, limits.POSITION_MAX)],
        [Chunk(1, 0, (Offer("a", "b", -1),))], [Chunk(1, 0, (Offer("a", "b", 1, float("nan")),))],
        [Chunk(1, 0, (Offer("a", "b", 1, 0.0, -1.0),))],
        [Chunk(1, 0, tuple(Offer("a", f"{level}", 1) for level in range(limits.PLAN_WAYS_MAX + 1)))],
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(chunks):
    with pytest.raises((errors.InvalidRequest, errors.TooManyItems)):
        PlanRequest.of(chunks)


def test_a_busy_engine_that_takes_any_chunk_loads_more_and_never_takes_longer_than_computing_everything():
    """Loading the first chunk makes this request a little later, and the engine free for others."""
    chunks = request_of(*[100] * 4)
    idle = make_plan(chunks, Views(0.007), Fastest(), Executor())
    busy = make_plan(chunks, Views(0.007, prefill=replace(SECOND_A_CHUNK, price=2.0)), Fastest(), Executor())
    assert actions(busy).count("c") < actions(idle).count("c")
    assert busy.ttft_seconds <= busy.recompute_seconds
    slow = make_plan(chunks, Views(0.02, prefill=replace(SECOND_A_CHUNK, price=2.0)), Fastest(), Executor())
    assert slow.ttft_seconds <= slow.recompute_seconds * (1 + 1e-9)
    urgent = BestWithin(0.1)
    plans = [
        make_plan(chunks, Views(0.007, prefill=p), urgent, Executor())
        for p in (SECOND_A_CHUNK, replace(SECOND_A_CHUNK, price=2.0))
    ]
    assert actions(plans[0]) == actions(plans[1]), "an objective for one request is that request's alone"


def test_an_engine_waits_for_the_first_load_where_that_tells_it_what_to_do():
    """A link that takes a tenth of a second a chunk, or ten: a step of a second is begun in vain on the fast one."""

    @dataclass(frozen=True)
    class Uncertain:
        fast: float
        slow: float

        def mean(self):
            return self.at(0.8)

        def at(self, quantile):
            each = self.slow if quantile > 0.5 else self.fast
            return Outlook(SECOND_A_CHUNK, {"link": LinkCost(0.0, each / 100)})

    chunks = request_of(*[100] * 4)
    plan = make_plan(chunks, Uncertain(0.1, 10.0), Fastest(), Executor())
    assert 0.1 < plan.hold_seconds < 1.0
    assert make_plan(chunks, Uncertain(1.5, 10.0), Fastest(), Executor()).hold_seconds == 0.0, "not worth it"
    assert make_plan(chunks, Uncertain(0.1, 0.1), Fastest(), Executor()).hold_seconds == 0.0, "nothing to learn"
    prefix = Executor(Ability.PREFIX_CUT)
    assert make_plan(chunks, Uncertain(0.1, 10.0), Fastest(), prefix).hold_seconds == 0.0
