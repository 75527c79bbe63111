import pytest

from kvloom.daemon.planner.request import Ability
from kvloom.daemon.planner.simulate import WorkloadBuilder
from kvloom.daemon.planner.simulate.bandwidth import Bandwidth, constant
from kvloom.daemon.planner.simulate.strategies import Bidirectional, CacheGen

# Chunks of 100 tokens take 0.105, 0.115, 0.125 s to compute, the tail of 50 tokens 0.06625 s and a call 0.01 s.
# 10,000 bytes coarse, 40,000 raw. The objective is 0.5 s.


@pytest.fixture
def one():
    builder = WorkloadBuilder("one")
    builder.add(0.0, ["a", "b", "c", "d"], [100, 100, 100, 50])
    return builder.build()


@pytest.mark.parametrize(
    ("rate", "loss", "loaded"),
    [
        (1e6, 0.0, 300),  # 120,000 raw bytes in 0.12 s: the best level is in time
        (1e5, 0.01 * 300 / 350, 300),  # 1.2 s raw is late, 0.3 s coarse is not
        (5e4, 0.0, 0),  # coarse is late as well: text
    ],
)
@pytest.mark.parametrize("ability", list(Ability))
def test_cachegen_takes_the_best_level_that_is_in_time_else_text(rate, loss, loaded, ability, one, scene, simulation):
    stage = scene(ability)
    result = simulation(one, stage, CacheGen(stage, rate), constant(rate), stored=[0, 1, 2]).run()
    assert result.loaded_tokens.tolist() == [loaded]
    assert result.loss.tolist() == pytest.approx([loss])


def test_cachegen_changes_the_level_after_it_has_seen_the_link_slow_down(one, scene, simulation):
    stage = scene()
    strategy = CacheGen(stage, 1e6)
    # The first raw chunk is there at 0.09 s, the second, most of it at 0.1 MB/s, at 0.44 s: too late for a third.
    link = Bandwidth([0.0, 0.095, 1000.0], [1e6, 1e5])
    result = simulation(one, stage, strategy, link, stored=[0, 1, 2]).run()
    assert result.loaded_tokens.tolist() == [200]
    assert result.ttft_s.tolist() == pytest.approx([0.095 + 0.35 + 0.125 + 0.06625 + 0.01])


def test_bidirectional_meets_where_the_link_lets_it(one, scene, simulation):
    stage = scene()
    # A raw chunk takes 0.1 s: the last one is there at 0.15, and the engine has taken the first two in one step.
    result = simulation(one, stage, Bidirectional(stage, 4e5), constant(4e5), stored=[0, 1, 2]).run()
    assert result.loaded_tokens.tolist() == [100]
    assert result.ttft_s.tolist() == pytest.approx([0.105 + 0.115 + 0.01 + 0.06625 + 0.01])
    assert result.bytes.tolist() == pytest.approx([40_000])


def test_bidirectional_on_a_link_that_stands_computes_everything(one, scene, simulation):
    stage = scene()
    result = simulation(one, stage, Bidirectional(stage, 1.0), constant(1.0), stored=[0, 1, 2]).run()
    assert result.loaded_tokens.tolist() == [0]
    assert result.ttft_s.tolist() == pytest.approx([0.105 + 0.115 + 0.125 + 0.06625 + 0.02])
