"""Tiers that daemons share: written behind, never waited for, joined with what others put there."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kvloom.codec.container import verify
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.errors import ConfigError, StorageUnavailable
from kvloom.kvstore.key import storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.outcome import Hit, Miss, Unavailable
from kvloom.kvstore.quota import Quota, Quotas
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack, Record
from kvloom.kvstore.tiered.cascade import CascadeLimits
from kvloom.kvstore.tiered.roles import Roles
from kvloom.kvstore.tiered.stats import StageStats, StoreObserver
from kvloom.kvstore.tiered.store import StoreRules, TieredStore
from kvloom.kvstore.tiered.write_behind import Overflow
from kvloom.kvstore.wrappers.fault import Fail, Operation

MIB = 1024 * 1024
Make = Callable[..., Any]


def place(namespace: Namespace, one: Any) -> Any:
    return storage_key(namespace.secret, one.key)


def stage(store: TieredStore, tier: str) -> StageStats:
    return next(item for item in store.stats().stages if item.tier == tier)


async def spin(times: int = 20) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def has(tier: Any, namespace: Namespace, *chunks: Any) -> list[bool]:
    return await tier.contains_many([place(namespace, one) for one in chunks])


class TestRoles:
    def test_tiers_have_roles(self, fast: Any, slow: Any, network: Any) -> None:
        roles = Roles.of([fast, slow, network])
        assert (roles.volatile, roles.durable, roles.shared) == ((fast,), (slow,), (network,))
        assert roles.faster_than(network) == (fast, slow)
        assert roles.faster_than(slow) == (fast,)
        assert roles.named("network") is network
        assert roles.named("write-behind") is None

    def test_a_volatile_shared_tier_stands_after_a_durable_own_one(self, fast: Any, slow: Any, network: Any) -> None:
        assert not network.durable
        Roles.of([slow, network])
        for wrong in ([network, slow], [network, fast], [slow, fast, network]):
            with pytest.raises(ConfigError, match="shared tiers after both"):
                Roles.of(wrong)


class TestWritingBehind:
    @pytest.mark.parametrize("ack", list(Ack))
    async def test_a_put_reaches_every_tier(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make, ack: Ack
    ) -> None:
        chunks = [chunk(number) for number in range(20)]
        async with running(fast, slow, network) as store:
            for one in chunks:
                assert await store.put(namespace, one.key, one.payload, ack=ack) is ack
            await store.flush(shared=True)
            for tier in (fast, slow, network):
                assert all(await has(tier, namespace, *chunks))
            stats = store.stats()
            assert [item.tier for item in stats.stages] == ["ssd", "network"]
            assert [item.written for item in stats.stages] == [0 if ack is Ack.DISK else 20, 20]
            assert [item.dirty_bytes for item in stats.stages] == [0, 0]
            assert [item.shared for item in stats.tiers] == [False, False, True]

    async def test_a_store_without_a_disk_writes_to_the_shared_tier(
        self, running: Make, fast: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, network) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            with pytest.raises(StorageUnavailable, match="no durable tier"):
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await store.flush(shared=True)
            assert await has(network, namespace, one) == [True]

    @pytest.mark.parametrize("ack", list(Ack))
    async def test_no_put_waits_for_a_shared_tier_that_hangs(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make, ack: Ack
    ) -> None:
        dropped: list[tuple[str, int]] = []

        class Observer(StoreObserver):
            def on_write_behind_dropped(self, tier: str, size_bytes: int) -> None:
                dropped.append((tier, size_bytes))

        chunks = [chunk(number, segment_bytes=1000) for number in range(12)]
        network.plan.gates[Operation.PUT] = asyncio.Event()
        rules = StoreRules(CascadeLimits(shared_dirty_bytes_max=3 * max(len(one.payload) for one in chunks)))
        async with running(fast, slow, network, rules=rules, observer=Observer()) as store:
            for one in chunks:
                await store.put(namespace, one.key, one.payload, ack=ack)
                # The same key again, while its first version hangs on the network: its lock is free.
                await store.put(namespace, one.key, one.payload, ack=ack)
            await store.flush()
            assert all(await has(slow, namespace, *chunks))
            waiting = stage(store, "network")
            assert 0 < waiting.dirty_bytes <= waiting.dirty_bytes_max
            assert waiting.dropped == len(dropped) > 0
            assert {tier for tier, _ in dropped} == {"network"}
            network.plan.gates[Operation.PUT].set()
            await store.flush(shared=True)
            there = sum(await has(network, namespace, *chunks))
            assert 3 <= there <= 12
            assert stage(store, "network").dirty_bytes == 0
            # What did not get there is readable all the same.
            for one in chunks:
                assert isinstance(await store.get(namespace, one.key), Hit)

    async def test_a_shared_tier_that_is_down_costs_a_counter(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        network.plan.faults[Operation.PUT] = Fail()
        async with running(fast, slow, network) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await store.flush()
            with suppress(StorageUnavailable):
                await store.flush(shared=True)
            assert stage(store, "network").failures == 1
            assert store.stats().write_behind_failures == 0

    async def test_a_disk_that_fails_does_not_keep_a_chunk_from_the_shared_tier(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        slow.plan.faults[Operation.PUT] = Fail()
        async with running(fast, slow, network) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await spin(200)
            await store.flush(shared=True)
            assert (await has(slow, namespace, one), await has(network, namespace, one)) == ([False], [True])
            assert store.stats().write_behind_failures == 1

    async def test_waiting_for_the_shared_tier_can_be_configured(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number, segment_bytes=1000) for number in range(10)]
        gate = network.plan.gates[Operation.PUT] = asyncio.Event()
        rules = StoreRules(CascadeLimits(dirty_bytes_max=1, shared_dirty_bytes_max=1, shared_overflow=Overflow.WAIT))
        async with running(fast, slow, network, rules=rules) as store:
            puts = [asyncio.create_task(store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)) for one in chunks]
            await asyncio.wait_for(network.arrived.wait(), 20)
            await spin(100)
            # One chunk hangs on the network, one is on the disk and waits for room behind it, one is let in by memory.
            assert sum(put.done() for put in puts) <= 3
            assert not all(await has(slow, namespace, *chunks))
            gate.set()
            await asyncio.gather(*puts)
            await store.flush(shared=True)
            assert all(await has(network, namespace, *chunks))
            assert stage(store, "network").dropped == 0

    async def test_closing_gives_a_hanging_shared_tier_a_bounded_time(
        self, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        network.plan.gates[Operation.PUT] = asyncio.Event()
        rules = StoreRules(CascadeLimits(shared_drain_seconds_max=0.05))
        store = TieredStore([fast, slow, network], clock_ms=lambda: 1, rules=rules)
        await store.start()
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
        await store.close()
        assert stage(store, "network").dropped == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_a_newer_version_is_never_overtaken_on_the_way_to_a_shared_tier(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        old, new = chunk(1, (DRAFT,)), chunk(1)
        gate = network.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(fast, slow, network) as store:
            await store.put(namespace, old.key, old.payload, ack=Ack.DISK)
            await spin()
            await store.put(namespace, new.key, new.payload, ack=Ack.DISK)
            await spin()
            gate.set()
            await store.flush(shared=True)
            outcome = await network.get(place(namespace, new))
            assert outcome.value.parts[0] == new.payload


class TestTwoStores:
    async def test_what_one_puts_the_other_loads_and_keeps(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one, other = chunk(1), chunk(2)
        mine = MemoryTier(4 * MIB)
        async with running(fast, slow, network) as first, running(mine, network) as second:
            await first.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await first.flush(shared=True)
            assert await second.contains_many(namespace, [one.key, other.key]) == [True, False]
            outcome = await second.get(namespace, one.key)
            assert isinstance(outcome, Hit)
            assert outcome.tier == "network"
            assert b"".join(bytes(part) for part in outcome.value.parts) == one.payload
            await second.settled()
            assert (await second.get(namespace, one.key)).tier == "memory"
            assert [item.tiers async for item in second.scan(namespace)] == [("memory", "network")]

    async def test_levels_that_two_stores_put_gather_on_the_shared_tier(
        self, running: Make, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        lossy, exact = chunk(1, (DRAFT, ECONOMY)), chunk(1, (EXACT,))
        async with running(MemoryTier(4 * MIB), network) as first, running(MemoryTier(4 * MIB), network) as second:
            await first.put(namespace, lossy.key, lossy.payload, ack=Ack.MEMORY)
            await first.flush(shared=True)
            await second.put(namespace, exact.key, exact.payload, ack=Ack.MEMORY)
            await second.flush(shared=True)
            outcome = await network.get(place(namespace, exact))
            assert verify(outcome.value.parts[0]).levels == (DRAFT, ECONOMY, EXACT)

    async def test_what_cannot_be_joined_on_the_shared_tier_is_replaced(
        self, running: Make, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        old, new = chunk(1, (DRAFT,)), chunk(1, (EXACT,), tokens=7)
        async with running(MemoryTier(4 * MIB), network) as first, running(MemoryTier(4 * MIB), network) as second:
            await first.put(namespace, old.key, old.payload, ack=Ack.MEMORY)
            await first.flush(shared=True)
            await second.put(namespace, new.key, new.payload, ack=Ack.MEMORY)
            await second.flush(shared=True)
            outcome = await network.get(place(namespace, new))
            assert outcome.value.parts[0] == new.payload

    async def test_a_put_does_not_ask_the_shared_tier_what_it_has(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        for operation in Operation:
            network.plan.gates[operation] = asyncio.Event()
        rules = StoreRules(CascadeLimits(shared_drain_seconds_max=0.01))
        async with running(fast, slow, network, rules=rules) as store:
            for ack in Ack:
                await store.put(namespace, one.key, one.payload, ack=ack)
            assert isinstance(await store.get(namespace, one.key), Hit)

    async def test_a_cold_chunk_is_one_read_of_the_shared_tier_for_a_thousand_gets(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1, segment_bytes=30_000)
        async with running(MemoryTier(4 * MIB), network) as other:
            await other.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await other.flush(shared=True)
        before = network.plan.calls[Operation.GET]
        async with running(fast, slow, network) as store:
            outcomes = await asyncio.gather(*(store.get(namespace, one.key) for _ in range(1000)))
            assert {outcome.tier for outcome in outcomes} == {"network"}
            await store.settled()
            assert network.plan.calls[Operation.GET] - before == 1
            assert (await has(fast, namespace, one), await has(slow, namespace, one)) == ([True], [True])

    async def test_a_shared_tier_that_is_down_is_unavailable_and_what_is_near_is_read(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        near, far = chunk(1), chunk(2)
        async with running(fast, slow, network) as store:
            await store.put(namespace, near.key, near.payload, ack=Ack.MEMORY)
            for operation in Operation:
                network.plan.faults[operation] = Fail()
            assert isinstance(await store.get(namespace, near.key), Hit)
            assert isinstance(await store.get(namespace, far.key), Unavailable)
            assert await store.contains_many(namespace, [near.key, far.key]) == [True, False]
            with pytest.raises(StorageUnavailable):
                await store.delete(namespace, near.key)
            assert await has(fast, namespace, near) == [False]


class TestDeletion:
    async def test_what_hangs_on_its_way_to_the_shared_tier_does_not_come_back(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        gate = network.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(fast, slow, network) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await spin()
            deleting = asyncio.create_task(store.delete(namespace, one.key))
            await spin()
            gate.set()
            assert await deleting
            await store.flush(shared=True)
            assert await store.get(namespace, one.key) == Miss()
            assert await has(network, namespace, one) == [False]

    async def test_a_read_of_the_shared_tier_under_way_does_not_bring_it_back(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(MemoryTier(4 * MIB), network) as other:
            await other.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await other.flush(shared=True)
        async with running(fast, slow, network) as store:
            gate = fast.plan.gates[Operation.PUT] = asyncio.Event()
            assert isinstance(await store.get(namespace, one.key), Hit)  # offered for promotion
            await spin()
            deleting = asyncio.create_task(store.delete(namespace, one.key))
            await spin()
            gate.set()
            assert await deleting
            await store.settled()
            assert await store.get(namespace, one.key) == Miss()


class TestNamespaces:
    async def test_a_deleted_namespace_is_gone_everywhere_and_its_neighbour_is_not(
        self, running: Make, fast: Any, slow: Any, network: Any, chunk: Make, clock: Any
    ) -> None:
        alice, bob = (derive_namespace(bytes(32), name) for name in ("alice", "bob"))
        chunks = [chunk(number) for number in range(10)]
        mine = MemoryTier(4 * MIB)
        async with (
            running(fast, slow, network, clock_ms=clock) as first,
            running(mine, network, clock_ms=clock) as second,
        ):
            for one in chunks:
                await first.put(alice, one.key, one.payload, ack=Ack.DISK)
                await first.put(bob, one.key, one.payload, ack=Ack.MEMORY)
            await first.flush(shared=True)
            for one in chunks:
                assert isinstance(await second.get(alice, one.key), Hit)
            await second.settled()
            assert mine.capacity().records == 10
            assert await first.delete_namespace(alice) == 30
            assert await first.contains_many(alice, [one.key for one in chunks]) == [False] * 10
            await second.keep_up()
            assert mine.capacity().records == 0
            assert await second.contains_many(alice, [one.key for one in chunks]) == [False] * 10
            assert [item async for item in first.scan(alice)] == []
            assert await first.contains_many(bob, [one.key for one in chunks]) == [True] * 10
            # The namespace can be used again, and following the same deletion twice takes nothing away.
            clock.advance(1)
            await second.put(alice, chunks[0].key, chunks[0].payload, ack=Ack.MEMORY)
            await second.flush(shared=True)
            await first.keep_up()
            await second.keep_up()
            assert isinstance(await first.get(alice, chunks[0].key), Hit)
            assert isinstance(await second.get(alice, chunks[0].key), Hit)

    async def test_what_was_waiting_for_the_shared_tier_when_its_namespace_was_deleted_is_not_written(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make, clock: Any
    ) -> None:
        blocking, one = chunk(1), chunk(2)
        async with (
            running(fast, slow, network, clock_ms=clock) as first,
            running(MemoryTier(4 * MIB), network, clock_ms=clock) as second,
        ):
            gate = network.plan.gates[Operation.PUT] = asyncio.Event()
            for item in (blocking, one):
                await first.put(namespace, item.key, item.payload, ack=Ack.DISK)
                await spin()
            network.plan.gates.clear()
            await second.delete_namespace(namespace)
            following = asyncio.create_task(first.keep_up())  # it waits for what is being written
            await spin()
            gate.set()
            await following
            await first.flush(shared=True)
            assert await has(network, namespace, blocking, one) == [False, False]
            assert await first.contains_many(namespace, [blocking.key, one.key]) == [False, False]

    async def test_a_note_that_nobody_with_the_secret_wrote_is_ignored(
        self, running: Make, fast: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, network) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await store.delete_namespace(namespace)
            notes = [info.storage_key async for info in network.scan()]
            assert len(notes) == 1
            note = (await network.get(notes[0])).value
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            forged = (2**50).to_bytes(8, "little") + bytes(note.parts[0][8:])
            await network.put(Record(notes[0], note.info.content_key, forged, 1))
            await store.keep_up()
            assert isinstance(await store.get(namespace, one.key), Hit)

    async def test_a_shared_tier_that_is_down_is_told_of_but_the_rest_is_deleted(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, slow, network) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await store.flush(shared=True)
            network.plan.faults[Operation.PUT] = Fail()
            with pytest.raises(StorageUnavailable):
                await store.delete_namespace(namespace)
            assert (await has(fast, namespace, one), await has(slow, namespace, one)) == ([False], [False])

    async def test_a_namespace_can_be_deleted_twice_in_a_moment(
        self, running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make, clock: Any
    ) -> None:
        one = chunk(1)
        async with running(fast, slow, network, clock_ms=clock) as store:
            for _ in range(3):
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
                await store.flush(shared=True)
                assert await has(network, namespace, one) == [True]
                assert await store.delete_namespace(namespace) == 3
                assert await store.get(namespace, one.key) == Miss()

    async def test_a_clock_that_was_set_back_keeps_nothing_from_being_deleted(
        self, running: Make, tmp_path: Path, network: Any, namespace: Namespace, chunk: Make, clock: Any
    ) -> None:
        one = chunk(1)
        async with running(SsdTier.open(tmp_path, 8 * MIB), network, clock_ms=clock) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
        clock.advance(-10)
        async with running(SsdTier.open(tmp_path, 8 * MIB), network, clock_ms=clock) as store:
            assert await store.delete_namespace(namespace) == 2
            assert await store.get(namespace, one.key) == Miss()

    async def test_a_write_under_way_does_not_outlive_the_deletion_of_its_namespace(
        self, running: Make, fast: Any, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(fast, network) as store:
            gate = network.plan.gates[Operation.PUT] = asyncio.Event()
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await spin()
            network.plan.gates.clear()
            deleting = asyncio.create_task(store.delete_namespace(namespace))
            await spin()
            gate.set()
            await deleting
            await store.flush(shared=True)
            assert await has(network, namespace, one) == [False]
            assert await store.delete(namespace, one.key) is False


class TestSharedQuota:
    async def test_two_stores_together_keep_to_the_quota(
        self, running: Make, network: Any, namespace: Namespace, chunk: Make, clock: Any
    ) -> None:
        other = derive_namespace(bytes(32), "other")
        chunks = [chunk(number, segment_bytes=500) for number in range(20)]
        size = max(len(one.payload) for one in chunks)
        rules = StoreRules(shared_quotas=Quotas(by_owner={namespace.owner: Quota(limit_bytes=6 * size)}))
        options = {"rules": rules, "clock_ms": clock}
        async with (
            running(MemoryTier(4 * MIB), network, **options) as first,
            running(MemoryTier(4 * MIB), network, **options) as second,
        ):
            for number, one in enumerate(chunks[:12]):
                store = (first, second)[number % 2]
                clock.advance(1)
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
                await store.put(other, one.key, one.payload, ack=Ack.MEMORY)
                await store.flush(shared=True)
            assert (await network.usage(namespace.owner)).payload_bytes > 6 * size * 0.8
            await asyncio.gather(first.keep_up(), second.keep_up())
            used = await network.usage(namespace.owner)
            assert 0 < used.payload_bytes <= 6 * size
            left = [one for one, here in zip(chunks, await has(network, namespace, *chunks), strict=True) if here]
            assert left == chunks[12 - len(left) : 12]  # the youngest
            assert all(await has(network, other, *chunks[:12]))
            # What comes now makes room for itself: the oldest of its owner go.
            for one in chunks[12:]:
                clock.advance(1)
                await first.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
                await first.flush(shared=True)
                assert await has(network, namespace, one) == [True]
                assert (await network.usage(namespace.owner)).payload_bytes <= 6 * size
            assert all(await has(network, other, *chunks[:12]))
            assert stage(first, "network").failures == 0

    async def test_many_at_once_make_room_without_waiting_for_each_other(
        self, running: Make, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number, segment_bytes=500) for number in range(60)]
        quota = 5 * max(len(one.payload) for one in chunks)
        rules = StoreRules(shared_quotas=Quotas(Quota(limit_bytes=quota)))
        async with running(MemoryTier(4 * MIB), network, rules=rules) as store:
            for turn in range(2):
                for one in chunks:
                    await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
                await asyncio.wait_for(store.flush(shared=True), 30)
                await store.keep_up()
                assert 0 < (await network.usage(namespace.owner)).payload_bytes <= quota, turn

    async def test_a_record_past_the_quota_names_both_numbers(
        self, running: Make, network: Any, namespace: Namespace, chunk: Make
    ) -> None:
        told: list[str] = []

        class Observer(StoreObserver):
            def on_tier_error(self, tier: str, operation: str, detail: str) -> None:
                assert (tier, operation) == ("network", "write behind")
                told.append(detail)

            def on_write_behind_failed(self, key: Any, detail: str) -> None:
                raise AssertionError("that is about the disk")

        one = chunk(1)
        rules = StoreRules(shared_quotas=Quotas(Quota(limit_bytes=10)))
        async with running(MemoryTier(4 * MIB), network, rules=rules, observer=Observer()) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await spin()
            assert told == [f"record of {len(one.payload)} bytes, its owner's quota in the network tier is 10"]
