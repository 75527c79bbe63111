"""The eviction bench on traces small enough to be checked by hand or by trying everything."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def data(tmp_path):
    """Twelve requests of three conversations over one system block."""
    rows = []
    for turn in range(4):
        for conversation in range(3):
            own = [100 * conversation + place for place in range(1, 2 + turn)]
            rows.append(
                {"timestamp": 0, "input_length": 512 * (1 + len(own)), "output_length": 1, "hash_ids": [0, *own]}
            )
    (tmp_path / "traces").mkdir()
    path = tmp_path / "traces" / "mooncake_synthetic_trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def bench(monkeypatch):
    """The parts of the bench, imported as its script does."""
    monkeypatch.syspath_prepend(str(BENCH))
    from eviction_bench import optimum, replay, trace

    return {"optimum": optimum, "replay": replay, "trace": trace}


def test_prints_every_policy_beside_the_optimum_and_writes_json(data, tmp_path):
    report = tmp_path / "report.json"
    command = [BENCH / "eviction.py", "--data", data, "--traces", "synthetic", "--capacities", "30", "80"]
    done = subprocess.run([sys.executable, *command, "--json", report], capture_output=True, text=True, check=True)
    rows = json.loads(report.read_text())["rows"]
    best = {row["capacity_blocks"]: row["hit_rate"] for row in rows if row["policy"] == "belady"}
    assert {"lru", "s3-fifo", "w-tinylfu", "gdsf", "gittins", "hinted"} <= {row["policy"] for row in rows}
    assert all(row["hit_rate"] <= best[row["capacity_blocks"]] for row in rows if row["hit_rate"] is not None)
    assert "hit rate % / seconds saved %" in done.stdout


def test_a_hit_needs_all_blocks_before_it(bench, data):
    """A policy that gives the system block up at once saves nothing, whatever else it holds."""
    from kvloom.kvstore.eviction import LruPolicy

    class DropsTheFirst(LruPolicy):
        def victim(self):
            return first if first in self else super().victim()

    cost = bench["trace"].PrefillCost(1.0, 0.0)
    trace = bench["trace"].load_mooncake(data / "traces" / "mooncake_synthetic_trace.jsonl", cost)
    first = trace.keys[0]
    assert bench["replay"].replay(trace, DropsTheFirst(), 5).hits < bench["replay"].replay(trace, LruPolicy(), 5).hits
    everything = bench["replay"].replay(trace, LruPolicy(), trace.blocks)
    assert everything.hits == trace.references - trace.blocks
    assert everything.seconds == pytest.approx(512.0 * everything.hits)


def test_belady_is_the_best_of_all_ways_to_keep_blocks(bench):
    """Tried: every subset of blocks to keep after every request of a tiny trace."""
    table = bench["trace"]._Table(bench["trace"].PrefillCost(1.0, 0.0))
    block = bench["trace"]._Block
    paths = ["ab", "ac", "d", "ab", "d", "ac", "ab"]
    requests = [table.chain([block(name, 1) for name in path], 1) for path in paths]
    trace = table.trace("tiny", requests)

    def best(turn: int, kept: frozenset[int], capacity: int) -> int:
        if turn == len(requests):
            return 0
        found = {-1}
        for number in requests[turn]:
            if number in kept and trace.parents[number] in found:
                found.add(number)
        pool = kept | set(requests[turn])
        choices = itertools.combinations(sorted(pool), min(capacity, len(pool)))
        return len(found) - 1 + max(best(turn + 1, frozenset(choice), capacity) for choice in choices)

    for capacity in (1, 2, 3):
        assert bench["optimum"].belady(trace, capacity).hits == best(0, frozenset(), capacity)


def test_no_policy_saves_more_seconds_than_the_bound(bench, data):
    pytest.importorskip("ortools")
    from kvloom.kvstore.eviction import POLICIES, make_policy

    cost = bench["trace"].PrefillCost(1e-3, 1e-6)
    trace = bench["trace"].load_mooncake(data / "traces" / "mooncake_synthetic_trace.jsonl", cost)
    for capacity in (2, 4, 8):
        bound = bench["optimum"].seconds_bound(trace, capacity)
        assert bench["optimum"].belady(trace, capacity).seconds <= bound + 1e-6
        assert all(bench["replay"].replay(trace, make_policy(name), capacity).seconds <= bound for name in POLICIES)
    everything = bench["optimum"].seconds_bound(trace, trace.blocks)
    assert everything == pytest.approx(bench["optimum"].belady(trace, trace.blocks).seconds, rel=1e-4)
