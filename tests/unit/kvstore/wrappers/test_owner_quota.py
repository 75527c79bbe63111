"""Quotas on a store that others put into as well."""

import pytest

from kvloom.errors import StorageFull
from kvloom.kvstore.conformance import make_record
from kvloom.kvstore.key import OWNER_BYTES, OwnerId
from kvloom.kvstore.memory import MemoryTier
from kvloom.kvstore.tier import Usage
from kvloom.kvstore.wrappers.owner_quota import OwnerQuotaTier

OURS, THEIRS = (OwnerId(name * OWNER_BYTES) for name in (b"o", b"t"))
QUOTA = 100_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(number: int, size_bytes: int = 10_000, owner: OwnerId = OURS):
    return make_record(number, size_bytes, owner=owner, version=number)


async def test_the_oldest_of_the_owner_make_room_and_nobody_elses():
    store = MemoryTier(8 * 1024 * 1024)
    tier = OwnerQuotaTier(store, QUOTA, clock=Clock())
    theirs = [record(number, 30_000, THEIRS) for number in range(3)]
    for item in theirs:
        await tier.put(item)
    for number in range(100, 150):
        await tier.put(record(number))
        usage = await store.usage(OURS)
        assert usage.payload_bytes <= QUOTA
    assert usage.payload_bytes >= QUOTA // 2
    present = await tier.contains_many([record(number).storage_key for number in range(100, 150)])
    assert present == sorted(present)
    assert present[-1]
    assert await tier.contains_many([item.storage_key for item in theirs]) == [True] * 3
    assert tier.evictions == 50 - usage.records


async def test_what_other_daemons_put_counts_from_the_next_count_on():
    store, clock = MemoryTier(8 * 1024 * 1024), Clock()
    one, other = (OwnerQuotaTier(store, QUOTA, recount_seconds=60, clock=clock) for _ in range(2))
    await one.put(record(1))
    for number in range(10, 20):
        await other.put(record(number))
    assert (await store.usage(OURS)).payload_bytes <= QUOTA
    for number in range(2, 6):
        await one.put(record(number))
    assert QUOTA < (await store.usage(OURS)).payload_bytes <= QUOTA + 40_000
    clock.now = 61
    await one.put(record(6))
    assert (await store.usage(OURS)).payload_bytes <= QUOTA


async def test_a_record_larger_than_the_quota_is_refused_and_nothing_is_lost():
    store = MemoryTier(8 * 1024 * 1024)
    tier = OwnerQuotaTier(store, QUOTA, clock=Clock())
    await tier.put(record(1))
    with pytest.raises(StorageFull, match="the quota at memory is 100000"):
        await tier.put(record(2, QUOTA + 1))
    assert await store.usage(OURS) == Usage(1, 10_000)


async def test_deleting_what_is_an_owners_gives_the_quota_back():
    store = MemoryTier(8 * 1024 * 1024)
    tier = OwnerQuotaTier(store, QUOTA, clock=Clock())
    for number in range(9):
        await tier.put(record(number))
    assert await tier.delete_owner(OURS) == 9
    for number in range(20, 29):
        await tier.put(record(number))
    assert (await tier.usage(OURS), tier.evictions) == (Usage(9, 90_000), 0)


async def test_replacing_a_record_over_and_over_gives_up_no_other():
    store, clock = MemoryTier(8 * 1024 * 1024), Clock()
    tier = OwnerQuotaTier(store, QUOTA, clock=clock)
    for number in range(5):
        await tier.put(record(number))
    for _ in range(40):
        clock.now += 2
        await tier.put(record(0))
    assert await store.usage(OURS) == Usage(5, 50_000)
