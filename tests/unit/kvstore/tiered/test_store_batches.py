"""Many keys at once, work ahead of time, and what a disk tier is spared."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvloom import limits
from kvloom.codec.level import DRAFT, EXACT
from kvloom.errors import InvalidRequest, StorageUnavailable, TooManyItems
from kvloom.kvstore.concurrency import each_in_order
from kvloom.kvstore.eviction import LruPolicy
from kvloom.kvstore.key import ContentKey, StorageKey, storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.quota import QuotaPolicy
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.admission import AdmissionRule
from kvloom.kvstore.tiered.store import StoreRules
from kvloom.kvstore.wrappers.fault import Fail, Operation

MIB = 1024 * 1024
Make = Callable[..., Any]
SECOND_USE = StoreRules(admission=AdmissionRule.SECOND_USE)


async def has(tier: Any, namespace: Namespace, *chunks: Any) -> list[bool]:
    return await tier.contains_many([storage_key(namespace.secret, one.key) for one in chunks])


def payload(outcome: Any) -> bytes:
    assert isinstance(outcome, Hit), outcome
    return b"".join(bytes(part) for part in outcome.value.parts)


class TestGetMany:
    async def test_answers_come_in_the_order_asked(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(40)]
        async with running(fast, slow) as store:
            for number, one in enumerate(chunks):
                if number % 4:
                    await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
                if number % 4 == 1:
                    await fast.delete(storage_key(namespace.secret, one.key))
            outcomes = await store.get_many(namespace, [one.key for one in chunks])
            for number, (one, outcome) in enumerate(zip(chunks, outcomes, strict=True)):
                assert payload(outcome) == one.payload if number % 4 else outcome == Miss()
            assert await store.get_many(namespace, []) == []

    async def test_a_level_that_is_not_stored_is_a_miss_of_that_chunk_alone(
        self, running: Make, fast: Any, namespace: Namespace, chunk: Make
    ) -> None:
        coarse, full = chunk(1, (DRAFT,)), chunk(2)
        async with running(fast) as store:
            for one in (coarse, full):
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            outcomes = await store.get_many(namespace, [coarse.key, full.key], level=EXACT)
            assert outcomes[0] == Miss()
            assert isinstance(outcomes[1], Hit)
            with pytest.raises(InvalidRequest, match="the chunk has 0-2"):
                await store.get_many(namespace, [coarse.key, full.key], layers=range(7, 9))

    async def test_concurrency_is_bounded_and_a_key_named_often_is_read_once(
        self, running: Make, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        chunks = [chunk(number) for number in range(2, 20)]
        async with running(slow) as store:
            for item in (one, *chunks):
                await store.put(namespace, item.key, item.payload, ack=Ack.DISK)
            gate = slow.plan.gates[Operation.GET] = asyncio.Event()
            reading = asyncio.create_task(store.get_many(namespace, [item.key for item in chunks], at_once=5))
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(store._flights) == 5
            gate.set()
            assert all(isinstance(outcome, Hit) for outcome in await reading)
            before = slow.plan.calls[Operation.GET]
            outcomes = await store.get_many(namespace, [one.key] * 500, at_once=500)
            assert [payload(outcome) for outcome in outcomes] == [one.payload] * 500
            assert slow.plan.calls[Operation.GET] == before + 1

    async def test_a_cancelled_batch_leaves_nothing_running(
        self, running: Make, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(20)]
        async with running(slow) as store:
            for one in chunks:
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            for _ in range(5):
                await asyncio.sleep(0)
            idle = len(asyncio.all_tasks())
            slow.plan.gates[Operation.GET] = asyncio.Event()
            reading = asyncio.create_task(store.get_many(namespace, [one.key for one in chunks]))
            for _ in range(10):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert (len(asyncio.all_tasks()), len(store._flights)) == (idle, 0)

    async def test_keys_are_bounded(self, running: Make, fast: Any, namespace: Namespace) -> None:
        keys = [ContentKey(bytes(32))] * (limits.KEYS_PER_REQUEST_MAX + 1)
        async with running(fast) as store:
            for call in (
                store.get_many(namespace, keys),
                store.delete_many(namespace, keys),
                store.prefetch(namespace, keys),
                store.pin(namespace, keys, lease_seconds=1),
            ):
                with pytest.raises(TooManyItems, match="10001 keys at once, the limit is 10000"):
                    await call
            with pytest.raises(TooManyItems):
                store.hint(namespace, keys, finished=True)


class TestDeleteMany:
    async def test_each_key_gets_its_answer(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(100)]
        async with running(fast, slow) as store:
            for one in chunks[::2]:
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            deleted = await store.delete_many(namespace, [one.key for one in chunks])
            assert deleted == [True, False] * 50
            assert fast.capacity().records == slow.capacity().records == 0

    async def test_a_failure_is_raised_as_itself(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(10)]
        async with running(fast, slow) as store:
            for one in chunks:
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            slow.plan.faults[Operation.DELETE] = Fail()
            with pytest.raises(StorageUnavailable, match="cannot delete"):
                await store.delete_many(namespace, [one.key for one in chunks])

    async def test_deleting_a_namespace_leaves_the_others(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        other = derive_namespace(bytes(32), "other")
        chunks = [chunk(number) for number in range(10)]
        gate = slow.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(fast, slow) as store:
            for one in chunks:
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
                await store.put(other, one.key, one.payload, ack=Ack.MEMORY)
            deleting = asyncio.create_task(store.delete_namespace(namespace))
            for _ in range(20):
                await asyncio.sleep(0)
            gate.set()
            assert await deleting >= 10
            await store.flush()
            keys = [one.key for one in chunks]
            assert await store.contains_many(namespace, keys) == [False] * 10
            assert await store.contains_many(other, keys) == [True] * 10
            assert await has(slow, namespace, *chunks) == [False] * 10
            assert await store.delete_namespace(namespace) == 0

    async def test_what_is_being_copied_to_a_faster_tier_is_deleted_too(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, slow) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await fast.delete(storage_key(namespace.secret, one.key))
            gate = fast.plan.gates[Operation.PUT] = asyncio.Event()
            assert await store.prefetch(namespace, [one.key]) == 1
            await fast.arrived.wait()
            deleting = asyncio.create_task(store.delete_namespace(namespace))
            for _ in range(20):
                await asyncio.sleep(0)
            gate.set()
            assert await deleting == 2
            await store.settled()
            assert isinstance(await store.get(namespace, one.key), Miss)
            assert await has(fast, namespace, one) == [False]


class TestEachInOrder:
    async def test_results_are_in_order_whatever_ends_first(self) -> None:
        async def work(item: int) -> int:
            for _ in range(10 - item):
                await asyncio.sleep(0)
            return item * item

        for at_once in (1, 3, 100):
            assert await each_in_order(work, range(10), at_once=at_once) == [item * item for item in range(10)]

    async def test_a_bug_is_not_taken_for_an_answer(self) -> None:
        async def work(item: int) -> int:
            return 1 // item

        with pytest.raises(BaseExceptionGroup):
            await each_in_order(work, [1, 0], at_once=2)


class TestPrefetch:
    async def test_chunks_are_near_before_they_are_asked_for(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        near, far, farther, nowhere = (chunk(number) for number in range(4))
        async with running(MemoryTier(MIB), network) as other:
            await other.put(namespace, farther.key, farther.payload, ack=Ack.MEMORY)
            await other.flush(shared=True)
        async with running(fast, slow, network) as store:
            for one in (near, far):
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await fast.delete(storage_key(namespace.secret, far.key))
            keys = [one.key for one in (near, far, farther, nowhere)]
            assert await store.prefetch(namespace, keys) == 4
            await store.settled()
            assert await has(fast, namespace, near, far, farther, nowhere) == [True, True, True, False]
            assert await has(slow, namespace, farther) == [False]  # to memory, as was asked
            assert (await store.get(namespace, farther.key)).tier == "memory"
            assert [item.promotions for item in store.stats().tiers] == [2, 0, 0]

    async def test_a_full_queue_drops(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        async with running(fast, slow) as store:
            count = limits.PROMOTIONS_QUEUED_MAX + 50
            keys = [chunk(number).key for number in range(count)]
            assert await store.prefetch(namespace, keys) == limits.PROMOTIONS_QUEUED_MAX
            assert store.stats().promotions_dropped == 50
            await store.settled()
            assert await store.prefetch(namespace, keys[-50:]) == 50

    async def test_a_store_without_memory_has_nowhere_to_fetch_to(
        self, running: Make, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        async with running(slow) as store:
            assert await store.prefetch(namespace, [chunk(1).key]) == 0

    async def test_what_is_deleted_meanwhile_does_not_come_back(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, slow) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await fast.delete(storage_key(namespace.secret, one.key))
            gate = slow.plan.gates[Operation.GET] = asyncio.Event()
            await store.prefetch(namespace, [one.key])
            for _ in range(10):
                await asyncio.sleep(0)
            slow.plan.gates.clear()
            reading = asyncio.create_task(store.delete(namespace, one.key))
            gate.set()
            await reading
            await store.settled()
            assert await store.get(namespace, one.key) == Miss()


class TestAdmission:
    async def test_a_chunk_goes_to_the_disk_at_its_second_use(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        read, put_again, once = chunk(1), chunk(2), chunk(3)
        async with running(fast, slow, rules=SECOND_USE) as store:
            for one in (read, put_again, once):
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await store.flush()
            assert await has(slow, namespace, read, put_again, once) == [False] * 3
            assert (store.stats().admitted, store.stats().deferred) == (0, 3)
            assert payload(await store.get(namespace, read.key, level=DRAFT))
            await store.put(namespace, put_again.key, put_again.payload, ack=Ack.MEMORY)
            await store.settled()
            await store.flush()
            assert await has(slow, namespace, read, put_again, once) == [True, True, False]
            assert (store.stats().admitted, store.stats().deferred) == (2, 3)
            outcome = await slow.get(storage_key(namespace.secret, read.key))
            assert outcome.value.parts[0] == read.payload

    async def test_a_put_that_asks_for_the_disk_gets_it(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, slow, rules=SECOND_USE) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            assert await has(slow, namespace, one) == [True]
            assert (store.stats().admitted, store.stats().deferred) == (0, 0)

    async def test_what_is_on_the_disk_is_kept_up_to_date(
        self, running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        coarse, full = chunk(1, (DRAFT,)), chunk(1)
        async with running(fast, slow, rules=SECOND_USE) as store:
            await store.put(namespace, coarse.key, coarse.payload, ack=Ack.DISK)
            await store.put(namespace, full.key, full.payload, ack=Ack.MEMORY)
            await store.flush()
            outcome = await slow.get(storage_key(namespace.secret, full.key))
            assert outcome.value.parts[0] == full.payload

    async def test_what_memory_refuses_goes_to_the_disk_at_once(
        self, running: Make, slow: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1, segment_bytes=100_000)
        async with running(MemoryTier(256 * 1024), slow, rules=SECOND_USE) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            assert await has(slow, namespace, one) == [True]

    async def test_a_shared_tier_gets_a_chunk_at_its_first_use(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, slow, network, rules=SECOND_USE) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await store.flush(shared=True)
            assert (await has(slow, namespace, one), await has(network, namespace, one)) == ([False], [True])

    async def test_a_hit_on_a_shared_tier_is_a_use(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(MemoryTier(MIB), network) as other:
            await other.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await other.flush(shared=True)
        async with running(fast, slow, network, rules=SECOND_USE) as store:
            for tiers in (([True], [False]), ([True], [True])):
                await store.get(namespace, one.key)
                await store.settled()
                assert (await has(fast, namespace, one), await has(slow, namespace, one)) == tiers


async def test_hints_reach_the_policies_of_all_tiers(running: Make, namespace: Namespace, chunk: Make) -> None:
    class Hinted(LruPolicy):
        def __init__(self) -> None:
            super().__init__()
            self.hints: list[tuple[StorageKey, bool]] = []

        def record_hint(self, key: StorageKey, *, discard: bool) -> None:
            self.hints.append((key, discard))

    policies: Sequence[Hinted] = (Hinted(), Hinted())
    first = MemoryTier(MIB, policy=QuotaPolicy(lambda: policies[0]), name="first")
    second = MemoryTier(MIB, policy=policies[1], name="second")
    one = chunk(1)
    async with running(first, second) as store:
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
        store.hint(namespace, [one.key], finished=True)
        store.hint(derive_namespace(bytes(32), "other"), [one.key], finished=False)
    place = storage_key(namespace.secret, one.key)
    assert policies[0].hints == [(place, True)]
    assert policies[1].hints == [(place, True)]
