"""Times that can be reckoned by hand, and what the simulation keeps track of."""

import numpy as np
import pytest

from kvloom.daemon.planner.request import Ability
from kvloom.daemon.planner.simulate import Load, Shelf, Simulation, Strategy, Synthetic, WorkloadBuilder, synthetic
from kvloom.daemon.planner.simulate.bandwidth import constant, step
from kvloom.daemon.planner.simulate.strategies import AlwaysLoad, AlwaysRecompute, Bidirectional, CacheGen

# One request of three chunks of 100 tokens and a tail of 50. Computing chunk i takes 0.1 s and 1e-4 s per token of
# context: 0.105, 0.115, 0.125; the tail 0.05 + 5e-5 * 325 = 0.06625. Steps have at most 256 tokens: two, 0.02 s.
COMPUTE = (0.105, 0.115, 0.125, 0.06625)
RATE = 50_000.0


@pytest.fixture
def one():
    builder = WorkloadBuilder("one")
    builder.add(0.0, ["a", "b", "c", "d"], [100, 100, 100, 50])
    return builder.build()


class Chosen(Strategy):
    """Loads what it was told to."""

    name = "chosen"

    def __init__(self, *loads, takes=False):
        self._loads, self._takes = loads, takes

    def begin(self, request, now_s, ahead):
        request.ask(self._loads)

    def takes(self, request, chunk, now_s):
        return self._takes


def ttft(simulation):
    return simulation.run().ttft_s.tolist()


@pytest.mark.parametrize("ability", list(Ability))
def test_computing_everything_takes_its_prefill_and_its_calls(ability, one, scene, simulation):
    assert ttft(simulation(one, scene(ability), AlwaysRecompute(), constant(RATE))) == pytest.approx(
        [sum(COMPUTE) + 0.02]
    )


@pytest.mark.parametrize("ability", list(Ability))
def test_loading_everything_takes_latency_bytes_decoding_and_the_tail(ability, one, scene, simulation):
    run = simulation(one, scene(ability), AlwaysLoad("level", 0), constant(RATE), stored=[0, 1, 2])
    result = run.run()
    # 10,000 bytes and 0.01 s of decoding per chunk: the last is decoded 0.01 s after it came
    assert result.ttft_s.tolist() == pytest.approx([0.05 + 3 * 0.2 + 0.01 + COMPUTE[3] + 0.01])
    assert result.bytes.tolist() == pytest.approx([30_000.0])
    assert result.gpu_s.tolist() == pytest.approx([COMPUTE[3] + 0.01])
    assert result.loss.tolist() == pytest.approx([0.01 * 300 / 350])
    assert result.loaded_tokens.tolist() == result.hit_tokens.tolist() == [300]


def test_decoding_that_competes_is_the_engines_work(one, scene, simulation):
    run = simulation(one, scene(competes=True), AlwaysLoad("level", 0), constant(RATE), stored=[0, 1, 2])
    assert run.run().gpu_s.tolist() == pytest.approx([COMPUTE[3] + 0.01 + 3 * 0.01])


def test_raw_chunks_need_no_decoding(one, scene, simulation):
    run = simulation(one, scene(), AlwaysLoad("raw", 1), constant(RATE), stored=[0, 1, 2])
    assert ttft(run) == pytest.approx([0.05 + 3 * 0.8 + COMPUTE[3] + 0.01])


def test_the_front_is_computed_while_the_back_is_loaded(one, scene, simulation):
    run = simulation(one, scene(), Chosen(Load(2, 1)), constant(RATE), stored=[0, 1, 2])
    front = COMPUTE[0] + COMPUTE[1] + 0.01  # done long before the chunk is there
    assert front < 0.85
    assert ttft(run) == pytest.approx([0.05 + 0.8 + COMPUTE[3] + 0.01])


def test_a_prefix_engine_computes_nothing_before_its_loads_are_there(one, scene, simulation):
    run = simulation(one, scene(Ability.PREFIX_CUT), Chosen(Load(0, 1)), constant(RATE), stored=[0, 1, 2])
    assert ttft(run) == pytest.approx([0.05 + 0.8 + sum(COMPUTE[1:]) + 0.01])


def test_a_prefix_engine_is_offered_only_what_follows_from_the_front(one, scene, simulation):
    run = simulation(one, scene(Ability.PREFIX_CUT), AlwaysLoad("raw", 1), constant(RATE), stored=[1, 2])
    result = run.run()
    assert result.hit_tokens.tolist() == [0]
    assert result.ttft_s.tolist() == pytest.approx([sum(COMPUTE) + 0.02])


def test_the_last_chunk_is_always_computed(one, scene, simulation):
    run = simulation(one, scene(), AlwaysLoad("raw", 1), constant(1e9), stored=[0, 1, 2, 3])
    assert run.run().hit_tokens.tolist() == [300]


def test_a_raced_chunk_is_computed_and_its_transfer_given_up(one, scene, simulation):
    run = simulation(one, scene(), Chosen(Load(2, 1), takes=True), constant(RATE), stored=[0, 1, 2])
    result = run.run()
    assert result.ttft_s.tolist() == pytest.approx([sum(COMPUTE) + 0.02])
    assert result.bytes.tolist() == pytest.approx([RATE * (sum(COMPUTE) + 0.02 - 0.05)])
    assert result.loss.tolist() == [0.0]


def test_requests_wait_for_the_engine_in_the_order_of_their_arrival(scene, simulation):
    builder = WorkloadBuilder("two")
    builder.add(0.0, ["a"], [200])
    builder.add(0.1, ["b"], [100])
    alone, second = 0.2 + 0.02 + 0.01, 0.1 + 0.005 + 0.01
    assert ttft(simulation(builder.build(), scene(), AlwaysRecompute(), constant(RATE))) == pytest.approx(
        [alone, alone - 0.1 + second]
    )


def test_the_engine_works_for_the_next_while_the_first_waits_for_its_load(scene, simulation):
    builder = WorkloadBuilder("two")
    builder.add(0.0, ["a", "x"], [100, 100])
    builder.add(0.1, ["b"], [100])
    workload = builder.build()
    run = simulation(workload, scene(), AlwaysLoad("raw", 1), constant(RATE), stored=[0])
    first, second = ttft(run)
    assert first == pytest.approx(0.05 + 0.8 + 0.115 + 0.01)
    assert second == pytest.approx(0.105 + 0.01)


def test_two_engines_on_one_link_share_it(scene, simulation):
    builder = WorkloadBuilder("two")
    builder.add(0.0, ["a", "x"], [100, 100])
    builder.add(0.0, ["a", "y"], [100, 100])
    workload = builder.build()
    shared = simulation(workload, scene(nodes=2, nodes_per_link=2), AlwaysLoad("raw", 1), constant(RATE), stored=[0])
    apart = simulation(workload, scene(nodes=2), AlwaysLoad("raw", 1), constant(RATE), stored=[0])
    assert ttft(shared) == pytest.approx([0.05 + 1.6 + 0.125] * 2)
    assert ttft(apart) == pytest.approx([0.05 + 0.8 + 0.125] * 2)


def test_what_was_computed_is_found_by_the_next_request(scene, simulation):
    builder = WorkloadBuilder("two")
    builder.add(0.0, ["a", "b"], [100, 100])
    builder.add(9.0, ["a", "c"], [100, 100])
    run = simulation(builder.build(), scene(), AlwaysRecompute(), constant(RATE))
    assert run.run().hit_tokens.tolist() == [0, 100]


def test_a_full_store_gives_up_what_its_policy_says(scene):
    builder = WorkloadBuilder("many")
    for turn, name in enumerate(["a", "b", "a", "c", "a", "b"]):
        builder.add(10.0 * turn, [name, f"tail {turn}"], [100, 1])
    workload = builder.build()
    shelf = Shelf(workload, token_bytes=100.0, capacity_bytes=20_300, policy="lru")
    run = Simulation(workload, scene(), AlwaysRecompute(), shelf, constant(RATE), np.zeros(1))
    assert run.run().hit_tokens.tolist() == [0, 0, 100, 0, 100, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda scene: AlwaysLoad("level", 0),
        lambda scene: CacheGen(scene, RATE),
        lambda scene: Bidirectional(scene, RATE),
    ],
)
def test_the_same_seed_gives_the_same_times_to_the_last_bit(make, scene, simulation):
    stage = scene(nodes=3, nodes_per_link=2)
    workload = synthetic(Synthetic(300, per_second=1.0, chunk_tokens=50), 4)
    results = [simulation(workload, stage, make(stage), step(RATE, RATE / 9, 2.0)).run() for _ in range(2)]
    assert results[0].ttft_s.tolist() == results[1].ttft_s.tolist()
    assert results[0].bytes.tolist() == results[1].bytes.tolist()
    assert np.all(results[0].ttft_s > 0)
