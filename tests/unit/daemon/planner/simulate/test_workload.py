import json

import numpy as np
import pytest

from kvloom.daemon.planner.simulate import Synthetic, WorkloadBuilder, classify, synthetic
from kvloom.daemon.planner.simulate.traces import azure, mooncake, retrieval
from kvloom.daemon.planner.simulate.workload import NO_BLOCK
from kvloom.errors import InvalidData, TooManyItems

ROWS = [
    {"timestamp": 2000, "input_length": 1100, "hash_ids": [0, 1, 2]},
    {"timestamp": 1000, "input_length": 1000, "hash_ids": [0, 1]},
    {"timestamp": 4000, "input_length": 1200, "hash_ids": [0, 1, 7]},
]


def test_mooncake_rows_come_in_the_order_of_their_arrival_and_share_blocks():
    found = mooncake("m", [json.dumps(row) for row in ROWS])
    assert found.arrivals_s.tolist() == [0.0, 1.0, 3.0]
    assert found.prompt_tokens().tolist() == [1000, 1100, 1200]
    short, long, other = (found.path(request).tolist() for request in range(3))
    assert short[0] == long[0] == other[0]
    assert short[1] != long[1]  # 488 tokens are not the block of 512 that begins like them
    assert long[1] == other[1]
    assert long[2] != other[2]
    assert found.starts[long].tolist() == [0, 512, 1024]
    assert found.parents[long].tolist() == [NO_BLOCK, *long[:2]]


def test_azure_rows_share_nothing():
    rows = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,600,1",
        "2023-11-16 18:17:04.9799600,600,1",
    ]
    found = azure("a", rows)
    assert found.arrivals_s.tolist() == pytest.approx([0.0, 1.0])
    assert found.prompt_tokens().tolist() == [600, 600]
    assert len(np.unique(found.blocks)) == len(found.blocks) == 6


@pytest.mark.parametrize(("read", "row"), [(mooncake, "{}"), (mooncake, "["), (azure, "x,1,2"), (azure, "2023-11-16")])
def test_rows_of_another_kind_are_named_in_the_error(read, row):
    with pytest.raises(InvalidData, match="row"):
        read("t", ["TIMESTAMP", row] if read is azure else [row])


def test_an_empty_trace_is_an_error():
    with pytest.raises(InvalidData):
        mooncake("m", [])


def test_retrieved_passages_are_found_again_behind_the_same_prefix_only():
    questions = [[f"{question}-{place} " + "x" * 900 for place in range(8)] for question in range(3)]
    found = retrieval("r", questions, requests=200, per_second=2.0, seed=5)
    again = retrieval("r", questions, requests=200, per_second=2.0, seed=5)
    assert found.blocks.tolist() == again.blocks.tolist()
    assert len(found) == 200
    assert len(np.unique(found.blocks)) < len(found.blocks)
    for request in range(len(found)):
        path = found.path(request)
        assert found.parents[path].tolist() == [NO_BLOCK, *path[:-1].tolist()]
        lengths = found.tokens[path]
        assert found.starts[path].tolist() == [0, *np.cumsum(lengths)[:-1].tolist()]


def test_synthetic_requests_share_prefixes_and_go_on_from_earlier_ones():
    kind = Synthetic(3000, per_second=10.0, prefixes=5, prefix_chunks=3)
    found = synthetic(kind, 1)
    assert synthetic(kind, 1).blocks.tolist() == found.blocks.tolist()
    assert synthetic(kind, 2).blocks.tolist() != found.blocks.tolist()
    assert found.arrivals_s[-1] == pytest.approx(300.0, rel=0.1)
    for request in range(0, len(found), 50):
        path = found.path(request)
        assert found.parents[path].tolist() == [NO_BLOCK, *path[:-1].tolist()]
        assert found.starts[path].tolist() == [0, *np.cumsum(found.tokens[path])[:-1].tolist()]
    classes = {kind.name: len(kind.members) for kind in classify(found)}
    assert sum(classes.values()) == len(found)
    assert sum(count for name, count in classes.items() if "mostly" in name) > 300


@pytest.mark.parametrize("kind", [Synthetic(0, 1.0), Synthetic(5, 0.0), Synthetic(5, 1.0, new_chunks=0.5)])
def test_a_synthetic_workload_of_nothing_is_refused(kind):
    with pytest.raises((InvalidData, TooManyItems)):
        synthetic(kind, 0)


def test_classes_go_by_length_and_by_what_was_seen_before():
    builder = WorkloadBuilder("t")
    builder.add(0.0, ["a", "b", "c", "d"], [100] * 4)
    builder.add(1.0, ["a", "b", "c", "e"], [100] * 4)
    builder.add(2.0, ["a", "x"], [100, 300])
    builder.add(3.0, ["y"], [50])
    named = {kind.name: kind.members.tolist() for kind in classify(builder.build())}
    assert named == {"short, new": [3], "long, new": [0], "long, partly seen": [2], "long, mostly seen": [1]}


def test_a_head_and_another_pace_leave_the_rest_as_it_is():
    whole = synthetic(Synthetic(100, per_second=1.0), 0)
    part = whole.head(10).paced(4.0)
    assert len(part) == 10
    assert part.arrivals_s == pytest.approx(whole.arrivals_s[:10] / 4)
    assert part.path(9).tolist() == whole.path(9).tolist()
