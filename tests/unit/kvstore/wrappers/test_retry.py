"""What is tried again, how often, and after which pauses."""

import asyncio
from random import Random

import pytest

from kvloom.codec.container import ByteRange
from kvloom.errors import StorageFull, StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.outcome import Hit, Unavailable
from kvloom.kvstore.wrappers.around import Operation as Work
from kvloom.kvstore.wrappers.fault import CorruptBytes, Fail, FaultTier, Full, Operation, ScriptedFaults
from kvloom.kvstore.wrappers.retry import RetryPolicy, RetryTier

POLICY = RetryPolicy(seconds_max=30.0, tries_max=4, pause_seconds=0.1, pause_seconds_max=0.25)
RECORD = make_record(1, 1000)


class Pauses:
    """Sleeps that take no time and are written down."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def make(script) -> tuple[RetryTier, FaultTier, Pauses]:
    pauses = Pauses()
    inner = FaultTier(MemoryTier(1024 * 1024), ScriptedFaults(script))
    return RetryTier(inner, POLICY, random=Random(3), sleep=pauses), inner, pauses


@pytest.mark.parametrize("failures", range(4))
async def test_failures_fewer_than_the_tries_are_not_seen(failures):
    tier, _, pauses = make({operation: [Fail()] * failures for operation in Operation})
    await tier.put(RECORD)
    assert isinstance(await tier.get(RECORD.storage_key), Hit)
    assert await tier.contains_many([RECORD.storage_key]) == [True]
    assert await tier.delete(RECORD.storage_key)
    assert len(pauses.seconds) == 4 * failures


async def test_the_last_failure_is_what_is_seen():
    tier, inner, pauses = make({Operation.PUT: [Fail("one"), Fail("two"), Fail("three"), Fail("four"), Fail("five")]})
    with pytest.raises(StorageUnavailable, match="four"):
        await tier.put(RECORD)
    inner.plan = ScriptedFaults({Operation.GET: [Fail()] * 4})
    assert isinstance(await tier.get(RECORD.storage_key), Unavailable)
    assert len(pauses.seconds) == 6


async def test_pauses_are_random_and_their_bound_doubles_up_to_a_limit():
    tier, _, pauses = make({})
    for _ in range(50):
        tier._inner.plan = ScriptedFaults({Operation.PUT: [Fail()] * 3})
        await tier.put(RECORD)
    for turn, bound in enumerate((0.1, 0.2, 0.25)):
        taken = pauses.seconds[turn::3]
        assert all(0 <= seconds <= bound for seconds in taken)
        assert max(taken) > 0.7 * bound
        assert min(taken) < 0.3 * bound


@pytest.mark.parametrize("fault", [Full(), CorruptBytes(3)])
async def test_what_will_not_be_better_next_time_is_tried_once(fault):
    tier, _, pauses = make({Operation.PUT: [fault]})
    if isinstance(fault, Full):
        with pytest.raises(StorageFull):
            await tier.put(RECORD)
    else:
        await tier.put(RECORD)
    assert pauses.seconds == []


async def test_deleting_what_is_an_owners_is_not_repeated():
    tier, inner, pauses = make({})
    tries = []

    async def refuse(owner):
        tries.append(owner)
        raise StorageUnavailable("away")

    inner.delete_owner = refuse
    with pytest.raises(StorageUnavailable):
        await tier.delete_owner(RECORD.owner)
    assert (len(tries), pauses.seconds) == (1, [])


async def test_a_try_out_of_time_is_cancelled_and_counts_as_failed():
    class Silent(FaultTier):
        hung, ended = 0, 0

        async def contains_many(self, keys):
            self.hung += 1
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.ended += 1

    inner = Silent(MemoryTier(1024 * 1024), ScriptedFaults({}))
    tier = RetryTier(inner, RetryPolicy(seconds_max=0.01, tries_max=3), sleep=Pauses())
    with pytest.raises(StorageUnavailable, match=r"memory tier did not contains within 0\.01 s"):
        await tier.contains_many([RECORD.storage_key])
    assert (inner.hung, inner.ended) == (3, 3)


def test_the_time_of_a_try_grows_with_what_it_moves():
    policy = RetryPolicy(seconds_max=0.5, bytes_per_second_min=1000, listing_seconds_max=60)
    assert policy.time_for(Work("contains")) == 0.5
    assert policy.time_for(Work("put", 2000)) == 2.5
    assert policy.time_for(Work("get", 500)) == 1.0
    assert policy.time_for(Work("get")) > 60
    assert policy.time_for(Work("scan", brief=False)) == 60
    policy = RetryPolicy(seconds_max=3.0, item_seconds=0.02)
    assert policy.time_for(Work("contains", items=1)) == 3.0
    assert policy.time_for(Work("contains", items=101)) == 5.0


async def test_ranges_bound_what_a_read_may_take():
    seen: list[Work] = []

    class Spy(RetryTier):
        async def around(self, operation, call):
            seen.append(operation)
            return await super().around(operation, call)

    tier = Spy(MemoryTier(1024 * 1024), POLICY)
    await tier.put(RECORD)
    await tier.get(RECORD.storage_key, [ByteRange(0, 10), ByteRange(5, 5), ByteRange(20, 90)])
    await tier.get(RECORD.storage_key)
    assert [operation.size_bytes for operation in seen] == [1000, 80, 0]
