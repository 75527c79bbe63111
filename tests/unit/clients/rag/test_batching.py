"""Plans for batches: every question once, what it needs held then, memory kept, and no chunk decoded twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients.rag.batching import plan_batch
from kvloom.errors import InvalidRequest, TooManyItems

KEYS = st.integers(0, 12)
SIZES = {key: 1 + key * 7 % 5 for key in range(13)}
BATCHES = st.lists(st.sets(KEYS, max_size=5).map(lambda keys: {key: SIZES[key] for key in keys}), max_size=14)


def replayed(plan, needs, bytes_max):
    """Carry a plan out: how often each chunk is decoded, and the most that is held."""
    held, decoded, peak = set(), [], 0
    for step in plan.steps:
        held -= set(step.release_before)
        assert not held & set(step.decode)
        held |= set(step.decode)
        decoded += step.decode
        peak = max(peak, sum(SIZES[key] for key in held))
        assert set(needs[step.index]) <= held
        assert peak <= bytes_max
        held -= set(step.release_after)
    assert not held
    return decoded, peak


@given(BATCHES)
def test_with_memory_enough_each_chunk_is_decoded_once(needs):
    plan = plan_batch(needs)
    decoded, peak = replayed(plan, needs, 10**9)
    assert sorted(step.index for step in plan.steps) == list(range(len(needs)))
    assert len(decoded) == len(set(decoded)) == plan.decodes == plan.distinct
    assert plan.uses == sum(map(len, needs))
    assert peak == plan.peak_bytes


@given(BATCHES, st.integers(0, 20))
def test_little_memory_is_kept_to(needs, spare):
    bytes_max = max((sum(item.values()) for item in needs), default=0) + spare
    plan = plan_batch(needs, bytes_max=bytes_max)
    decoded, _ = replayed(plan, needs, bytes_max)
    assert plan.decodes == len(decoded) >= plan.distinct


def test_questions_that_share_stand_beside_each_other():
    left, right = {1: 4, 2: 4}, {3: 4, 4: 4}
    plan = plan_batch([left, right, left, right, {2: 4, 3: 4}], bytes_max=12)
    order = [step.index for step in plan.steps]
    assert abs(order.index(0) - order.index(2)) == 1
    assert abs(order.index(1) - order.index(3)) == 1
    assert (plan.uses, plan.decodes) == (10, 4)


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(InvalidRequest, match="question 1 needs 9 bytes of decoded chunks, the limit is 8"):
        plan_batch([{1: 8}, {1: 8, 2: 1}], bytes_max=8)
    with pytest.raises(TooManyItems, match=f"the limit is {limits.BATCH_QUESTIONS_MAX}"):
        plan_batch([{}] * (limits.BATCH_QUESTIONS_MAX + 1))
    assert plan_batch([]).steps == ()
