import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvloom.codec.container import NO_PROFILE, Container, Kind, parse_header, verify
from kvloom.codec.layout import Layout, Rope
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.errors import (
    ConfigError,
    InvalidData,
    InvalidRequest,
    KeyMismatch,
    LayoutMismatch,
    LevelNotStored,
    Overloaded,
    StorageFull,
    StorageUnavailable,
)
from kvloom.kvstore.key import ContentKey, storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Outcome, Unavailable
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack, Record
from kvloom.kvstore.tiered.cascade import CascadeLimits
from kvloom.kvstore.tiered.stats import StoreObserver
from kvloom.kvstore.tiered.store import WRITE_BEHIND, ChunkRead, StoreRules, TieredStore
from kvloom.kvstore.wrappers.fault import CorruptBytes, Fail, FaultPlan, FaultTier, Full, Operation
from kvloom.kvstore.wrappers.fault import Fault as FaultKind

MIB = 1024 * 1024
Make = Callable[..., Any]


class Plan(FaultPlan):
    """What a test says for an operation happens to it until the test says otherwise; counts the calls."""

    def __init__(self) -> None:
        self.faults: dict[Operation, FaultKind] = {}
        self.calls: dict[Operation, int] = dict.fromkeys(Operation, 0)
        self.gates: dict[Operation, asyncio.Event] = {}

    def next_fault(self, operation: Operation) -> FaultKind | None:
        self.calls[operation] += 1
        return self.faults.get(operation)


class GatedTier(FaultTier):
    """Operations with a gate wait until it is opened."""

    plan: Plan

    async def put(self, record: Record) -> None:
        await self._pass(Operation.PUT)
        await super().put(record)

    async def get(self, *args: Any) -> Any:
        await self._pass(Operation.GET)
        return await super().get(*args)

    async def _pass(self, operation: Operation) -> None:
        if operation in self.plan.gates:
            await self.plan.gates[operation].wait()


@pytest.fixture
def memory() -> GatedTier:
    return GatedTier(MemoryTier(4 * MIB), Plan())


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[GatedTier]:
    tier = GatedTier(SsdTier.open(tmp_path, 8 * MIB), Plan())
    yield tier
    await tier.close()


def read(outcome: Outcome[ChunkRead]) -> bytes:
    assert isinstance(outcome, Hit), outcome
    data = b"".join(bytes(part) for part in outcome.value.parts)
    assert len(data) == outcome.value.total_bytes
    assert parse_header(data) == outcome.value.header
    assert all(memoryview(part).readonly for part in outcome.value.parts)
    return data


async def spin() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class TestPutAndGet:
    @pytest.mark.parametrize("ack", list(Ack))
    async def test_get_returns_the_container_put(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make, ack: Ack
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            assert await store.put(namespace, one.key, one.payload, ack=ack) is ack
            outcome = await store.get(namespace, one.key)
            assert read(outcome) == one.payload
            assert isinstance(outcome, Hit)
            assert outcome.tier == outcome.value.tier == "memory"

    async def test_absent_chunk_is_a_miss(self, running: Make, memory: GatedTier, namespace: Namespace) -> None:
        async with running(memory) as store:
            assert await store.get(namespace, ContentKey(bytes(32))) == Miss()
            assert store.stats().misses == 1

    async def test_level_and_layers_are_cut_out(
        self, running: Make, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1, layers=6, segment_bytes=9000)
        whole = Container.parse(one.payload)
        async with running(disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            for level in (None, DRAFT, ECONOMY, EXACT):
                for layers in (None, range(1), range(2, 5), range(6)):
                    part = Container.parse(read(await store.get(namespace, one.key, level=level, layers=layers)))
                    wanted = {None: (DRAFT, ECONOMY, EXACT), ECONOMY: (DRAFT, ECONOMY)}.get(level, (level,))
                    assert part.header.levels == wanted
                    assert part.header.layers == (layers or range(6))
                    for item in part.header.segments:
                        assert part.segment(item.level, item.layer, item.kind) == whole.segment(
                            item.level, item.layer, item.kind
                        )

    async def test_layers_of_lossy_levels_are_widened_to_whole_blocks(
        self, running: Make, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1, layers=5, block_layers=2, segment_bytes=9000)
        whole = Container.parse(one.payload)
        async with running(disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            for level, asked, held in (
                (DRAFT, range(1, 2), range(2)),
                (ECONOMY, range(1, 3), range(4)),
                (None, range(4, 5), range(4, 5)),
                (None, range(3, 5), range(2, 5)),
                (EXACT, range(1, 2), range(1, 2)),
            ):
                part = Container.parse(read(await store.get(namespace, one.key, level=level, layers=asked)))
                assert part.header.layers == held
                for item in part.header.segments:
                    place = (item.level, item.layer, item.kind)
                    assert part.segment(*place) == whole.segment(*place)

    async def test_only_what_is_asked_for_is_read(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = chunk(1, layers=4, segment_bytes=200_000)
        async with running(memory) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            asked: list[Any] = []
            get = memory.get

            async def recorded(key: Any, ranges: Any = None) -> Any:
                asked.append(ranges)
                return await get(key, ranges)

            monkeypatch.setattr(memory, "get", recorded)
            part = parse_header(read(await store.get(namespace, one.key, level=DRAFT, layers=range(2, 3))))
        assert all(ranges is not None for ranges in asked)
        body = sum(item.length for ranges in asked[1:] for item in ranges)
        assert body == sum(item.length for item in part.segments)

    async def test_header_longer_than_the_first_read(
        self, running: Make, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        rope = Rope(tuple(np.random.default_rng(1).random(2048).tolist()))
        layout = Layout.uniform(layers=2, kv_heads=1, head_dim=4096, rope=rope)
        one = chunk(1, layout=layout)
        assert parse_header(one.payload).header_bytes > 16 * 1024
        async with running(disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            assert read(await store.get(namespace, one.key)) == one.payload

    async def test_level_that_is_not_stored(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1, (DRAFT,))
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            with pytest.raises(LevelNotStored, match="exact is not stored for this chunk; stored: draft"):
                await store.get(namespace, one.key, level=EXACT)

    @pytest.mark.parametrize("layers", [range(3, 5), range(-1, 1), range(0), range(0, 3, 2), range(2, 1)])
    async def test_layers_that_the_chunk_has_not(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make, layers: range
    ) -> None:
        one = chunk(1)
        async with running(memory) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            with pytest.raises(InvalidRequest, match="the chunk has 0-2"):
                await store.get(namespace, one.key, layers=layers)

    async def test_byte_prefix_that_ends_at_a_level_is_a_chunk(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        prefix = one.payload[: parse_header(one.payload).level_end(DRAFT)]
        async with running(memory) as store:
            await store.put(namespace, one.key, prefix, ack=Ack.MEMORY)
            assert read(await store.get(namespace, one.key)) == Container.parse(prefix).truncate(DRAFT)


class TestRefusedPuts:
    async def test_damaged_or_foreign_container_is_refused_before_it_is_stored(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        damaged = bytearray(one.payload)
        damaged[-1] ^= 1
        async with running(memory, disk) as store:
            for payload in (damaged, one.payload[:-1], one.payload + b"x", b"", b"KVLC"):
                with pytest.raises(InvalidData):
                    await store.put(namespace, one.key, payload, ack=Ack.DISK)
            with pytest.raises(KeyMismatch):
                await store.put(namespace, chunk(2).key, one.payload, ack=Ack.DISK)
            assert await store.contains_many(namespace, [one.key, chunk(2).key]) == [False, False]
            assert store.stats().dirty_bytes == 0

    async def test_disk_without_a_durable_tier(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory) as store:
            with pytest.raises(StorageUnavailable, match="no durable tier"):
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            assert await store.contains_many(namespace, [one.key]) == [False]

    @pytest.mark.parametrize(("fault", "error"), [(Fail(), StorageUnavailable), (Full(), StorageFull)])
    async def test_disk_that_refuses_refuses_the_put(
        self,
        running: Make,
        memory: GatedTier,
        disk: GatedTier,
        namespace: Namespace,
        chunk: Make,
        fault: Any,
        error: Any,
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            disk.plan.faults[Operation.PUT] = fault
            with pytest.raises(error):
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            assert await store.get(namespace, one.key) == Miss()
            disk.plan.faults.clear()
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)

    async def test_memory_that_refuses_does_not_refuse_the_put(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        old, new = chunk(1, (DRAFT,)), chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, old.key, old.payload, ack=Ack.DISK)
            memory.plan.faults[Operation.PUT] = Full()
            await store.put(namespace, new.key, new.payload, ack=Ack.DISK)
            assert read(await store.get(namespace, new.key, level=EXACT))
            assert not (await memory.contains_many([storage_key(namespace.secret, new.key)]))[0]
            assert store.stats().tiers[0].errors == 1

    async def test_chunk_that_fits_no_tier(self, running: Make, namespace: Namespace, chunk: Make) -> None:
        one = chunk(1, segment_bytes=100_000)
        async with running(MemoryTier(256 * 1024)) as store:
            with pytest.raises(StorageFull, match=f"container of {len(one.payload)} bytes fits none"):
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)


class TestWriteBehind:
    async def test_flush_makes_everything_accepted_durable(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(50)]
        async with running(memory, disk) as store:
            for one in chunks:
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await store.flush()
            stats = store.stats()
            assert (stats.dirty_bytes, stats.dirty_records, stats.puts) == (0, 0, 50)
            places = [storage_key(namespace.secret, one.key) for one in chunks]
            assert all(await disk.contains_many(places))

    async def test_close_drains(
        self, running: Make, memory: GatedTier, tmp_path: Path, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(50)]
        async with running(memory, SsdTier.open(tmp_path, 8 * MIB)) as store:
            for one in chunks:
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
        async with running(SsdTier.open(tmp_path, 8 * MIB)) as store:
            assert await store.longest_prefix(namespace, [one.key for one in chunks]) == 50

    async def test_dirty_chunk_is_readable_without_the_memory_tier(
        self, running: Make, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        disk.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(disk) as store:
            assert await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY) is Ack.MEMORY
            await spin()
            outcome = await store.get(namespace, one.key)
            assert read(outcome) == one.payload
            assert isinstance(outcome, Hit)
            assert outcome.tier == WRITE_BEHIND
            assert await store.contains_many(namespace, [one.key]) == [True]
            assert [item.tiers async for item in store.scan(namespace)] == [(WRITE_BEHIND,)]
            assert store.stats().write_behind_hits == 1
            disk.plan.gates[Operation.PUT].set()
            await store.flush()
            assert (await store.get(namespace, one.key)).tier == "ssd"

    async def test_too_much_dirty_waits_then_is_refused_then_heals(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        first, second = chunk(1, segment_bytes=1000), chunk(2, segment_bytes=1000)
        disk.plan.gates[Operation.PUT] = asyncio.Event()
        limit = len(first.payload) + 10
        async with running(memory, disk, rules=StoreRules(CascadeLimits(limit, 0.01))) as store:
            await store.put(namespace, first.key, first.payload, ack=Ack.MEMORY)
            with pytest.raises(Overloaded, match=rf"{len(first.payload)} bytes wait .* the limit is {limit}"):
                await store.put(namespace, second.key, second.payload, ack=Ack.MEMORY)
            assert store.stats().dirty_bytes == len(first.payload)
            disk.plan.gates[Operation.PUT].set()
            await store.flush()
            await store.put(namespace, second.key, second.payload, ack=Ack.MEMORY)
            await store.flush()
            assert store.stats().dirty_bytes == 0

    async def test_waiting_put_goes_on_when_there_is_room(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number, segment_bytes=1000) for number in range(10)]
        disk.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(memory, disk, rules=StoreRules(CascadeLimits(1))) as store:
            puts = [asyncio.create_task(store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)) for one in chunks]
            await spin()
            assert sum(put.done() for put in puts) == 1
            disk.plan.gates[Operation.PUT].set()
            assert await asyncio.gather(*puts) == [Ack.MEMORY] * 10

    async def test_cancelled_waiting_put_leaves_no_reservation(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        disk.plan.gates[Operation.PUT] = asyncio.Event()
        chunks = [chunk(number, segment_bytes=1000) for number in range(10)]
        async with running(memory, disk, rules=StoreRules(CascadeLimits(1))) as store:
            puts = [asyncio.create_task(store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)) for one in chunks]
            await spin()
            for put in puts[1:]:
                put.cancel()
            await asyncio.gather(*puts, return_exceptions=True)
            assert store.stats().dirty_bytes == len(chunks[0].payload)
            disk.plan.gates[Operation.PUT].set()
            await store.flush()
            assert store.stats().dirty_bytes == 0

    async def test_refused_write_behind_is_counted_told_and_raised_by_flush(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        told: list[tuple[ContentKey, str]] = []

        class Observer(StoreObserver):
            def on_write_behind_failed(self, key: ContentKey, detail: str) -> None:
                told.append((key, detail))

        one = chunk(1)
        disk.plan.faults[Operation.PUT] = Fail("no disk")
        disk.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(memory, disk, observer=Observer()) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            flushing = asyncio.create_task(store.flush())
            await spin()
            disk.plan.gates[Operation.PUT].set()
            with pytest.raises(StorageUnavailable, match="1 chunks could not be written"):
                await flushing
            assert (store.stats().write_behind_failures, store.stats().dirty_bytes) == (1, 0)
            assert told == [(one.key, "ssd tier cannot put: no disk")]
            assert read(await store.get(namespace, one.key)) == one.payload


class TestDelete:
    @pytest.mark.parametrize("ack", list(Ack))
    async def test_deleted_chunk_is_gone_from_every_tier(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make, ack: Ack
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=ack)
            assert await store.delete(namespace, one.key) is True
            assert await store.delete(namespace, one.key) is False
            await store.flush()
            assert await store.get(namespace, one.key) == Miss()
            assert store.stats().dirty_bytes == 0

    async def test_chunk_being_written_behind_does_not_come_back(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one, next_one = chunk(1), chunk(2)
        gate = disk.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            await spin()
            deleting = asyncio.create_task(store.delete(namespace, one.key))
            await spin()
            gate.set()
            assert await deleting is True
            # The flusher writes the next chunk only when it is done with the first.
            await store.put(namespace, next_one.key, next_one.payload, ack=Ack.MEMORY)
            await store.flush()
            assert await store.get(namespace, one.key) == Miss()

    async def test_chunk_being_promoted_does_not_come_back(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await memory.delete(storage_key(namespace.secret, one.key))
            gate = memory.plan.gates[Operation.PUT] = asyncio.Event()
            await store.get(namespace, one.key)
            deleting = asyncio.create_task(store.delete(namespace, one.key))
            await spin()
            gate.set()
            await deleting
            await store.settled()
            assert await store.get(namespace, one.key) == Miss()

    async def test_failure_of_one_tier_is_raised_after_the_others_were_tried(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            memory.plan.faults[Operation.DELETE] = Fail()
            with pytest.raises(StorageUnavailable, match="cannot delete"):
                await store.delete(namespace, one.key)
            assert not (await disk.contains_many([storage_key(namespace.secret, one.key)]))[0]


class TestPromotion:
    async def test_hit_in_the_slow_tier_moves_up_once(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await memory.delete(storage_key(namespace.secret, one.key))
            puts = memory.plan.calls[Operation.PUT]
            outcomes = await asyncio.gather(*(store.get(namespace, one.key, level=DRAFT) for _ in range(5)))
            assert {outcome.tier for outcome in outcomes} == {"ssd"}
            await store.settled()
            assert memory.plan.calls[Operation.PUT] == puts + 1
            outcome = await store.get(namespace, one.key)
            assert read(outcome) == one.payload
            assert outcome.tier == "memory"
            assert [tier.promotions for tier in store.stats().tiers] == [1, 0]

    async def test_chunk_that_would_not_fit_stays_where_it_is(
        self, running: Make, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1, segment_bytes=40_000)
        memory = MemoryTier(256 * 1024)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await memory.delete(storage_key(namespace.secret, one.key))
            await store.get(namespace, one.key)
            await store.settled()
            assert memory.capacity().records == 0

    async def test_damaged_chunk_does_not_move_up(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await memory.delete(storage_key(namespace.secret, one.key))
            gate = memory.plan.gates[Operation.GET] = asyncio.Event()
            reading = asyncio.create_task(store.get(namespace, one.key))
            gate.set()
            await reading
            disk.plan.faults[Operation.GET] = CorruptBytes(8 * 400)
            await store.settled()
            disk.plan.faults.clear()
            assert read(await store.get(namespace, one.key)) == one.payload


class TestDamage:
    async def test_damaged_copy_is_deleted_counted_and_the_next_tier_answers(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        told: list[tuple[str, ContentKey]] = []

        class Observer(StoreObserver):
            def on_corrupt(self, tier: str, key: ContentKey, detail: str) -> None:
                told.append((tier, key))

        one = chunk(1)
        async with running(memory, disk, observer=Observer()) as store:
            memory.plan.faults[Operation.PUT] = CorruptBytes(8 * len(one.payload) - 1)
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            memory.plan.faults.clear()
            memory.plan.gates[Operation.PUT] = asyncio.Event()
            outcome = await store.get(namespace, one.key)
            assert read(outcome) == one.payload
            assert outcome.tier == "ssd"
            assert [tier.corrupt for tier in store.stats().tiers] == [1, 0]
            assert told == [("memory", one.key)]
            assert await memory.contains_many([storage_key(namespace.secret, one.key)]) == [False]
            memory.plan.gates[Operation.PUT].set()

    async def test_the_only_copy_damaged_is_corrupt_then_a_miss(
        self, running: Make, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(disk) as store:
            for bit in (0, 8 * 30, 8 * 100, 8 * 250, 8 * len(one.payload) - 1):
                disk.plan.faults[Operation.PUT] = CorruptBytes(bit)
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
                assert isinstance(await store.get(namespace, one.key), Corrupt)
                assert await store.get(namespace, one.key) == Miss()
            assert store.stats().tiers[0].corrupt == 5
            assert store.stats().misses == 10

    async def test_read_that_was_damaged_on_the_way_deletes_nothing(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)

            class Once(Plan):
                def next_fault(self, operation: Operation) -> FaultKind | None:
                    self.calls[operation] += 1
                    return CorruptBytes(900) if self.calls[Operation.GET] == 1 else None

            memory.plan = Once()
            assert read(await store.get(namespace, one.key)) == one.payload
            assert store.stats().tiers[0].corrupt == 1
            assert await store.contains_many(namespace, [one.key]) == [True]

    async def test_segment_that_is_not_asked_for_may_be_damaged(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory) as store:
            memory.plan.faults[Operation.PUT] = CorruptBytes(8 * len(one.payload) - 1)
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            memory.plan.faults.clear()
            assert read(await store.get(namespace, one.key, level=ECONOMY))
            assert isinstance(await store.get(namespace, one.key, level=EXACT), Corrupt)

    async def test_record_of_another_chunk_is_corrupt(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one, other = chunk(1), chunk(2)
        async with running(memory) as store:
            place = storage_key(namespace.secret, one.key)
            for wrong_key in (one.key, other.key):
                await memory.put(Record(place, wrong_key, other.payload, 1))
                assert isinstance(await store.get(namespace, one.key), Corrupt)

    async def test_tier_that_is_down_is_unavailable_unless_another_answers(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            memory.plan.faults[Operation.GET] = Fail()
            assert read(await store.get(namespace, one.key)) == one.payload
            disk.plan.faults[Operation.GET] = Fail("no disk")
            assert isinstance(await store.get(namespace, one.key), Unavailable)
            assert [tier.errors for tier in store.stats().tiers] == [2, 1]
            memory.plan.faults[Operation.CONTAINS] = Fail()
            assert await store.contains_many(namespace, [one.key]) == [True]

    async def test_damage_that_somebody_else_found_is_counted(
        self, running: Make, disk: GatedTier, chunk: Make
    ) -> None:
        async with running(disk) as store:
            store.note_corrupt("ssd", chunk(1).key, "a scrub found it")
            assert store.stats().tiers[0].corrupt == 1


class TestSharing:
    async def test_a_thousand_cold_gets_are_one_read(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await memory.delete(storage_key(namespace.secret, one.key))
            before = disk.plan.calls[Operation.GET]
            memory.plan.gates[Operation.PUT] = asyncio.Event()
            outcomes = await asyncio.gather(*(store.get(namespace, one.key) for _ in range(1000)))
            assert all(read(outcome) == one.payload for outcome in outcomes)
            assert store.stats().tiers[1].hits == 1000
            memory.plan.gates[Operation.PUT].set()
            await store.settled()
            # One for the thousand, and none for the promotion: what was read is what is copied.
            assert disk.plan.calls[Operation.GET] - before == 1
            assert await memory.contains_many([storage_key(namespace.secret, one.key)]) == [True]

    async def test_namespaces_do_not_share(
        self, running: Make, memory: GatedTier, disk: GatedTier, chunk: Make
    ) -> None:
        alice, bob = (derive_namespace(bytes(32), name) for name in ("alice", "bob"))
        one = chunk(1)
        async with running(memory, disk) as store:
            await store.put(alice, one.key, one.payload, ack=Ack.DISK)
            assert await store.get(bob, one.key) == Miss()
            assert await store.contains_many(bob, [one.key]) == [False]
            assert await store.delete(bob, one.key) is False
            assert await store.stored(bob, one.key) is None
            assert [item async for item in store.scan(bob)] == []
            assert [item.key async for item in store.scan(alice)] == [one.key]

    async def test_cancelled_gets_leave_nothing_running(
        self, running: Make, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(disk) as store:
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            idle = len(asyncio.all_tasks())
            disk.plan.gates[Operation.GET] = asyncio.Event()
            gets = [asyncio.create_task(store.get(namespace, one.key, layers=range(n % 2 + 1))) for n in range(20)]
            await spin()
            for get in gets:
                get.cancel()
            await asyncio.gather(*gets, return_exceptions=True)
            assert len(asyncio.all_tasks()) == idle
            disk.plan.gates.clear()
            assert read(await store.get(namespace, one.key)) == one.payload


class TestLists:
    async def test_contains_many_looks_everywhere(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(4)]
        async with running(memory, disk) as store:
            for one in chunks[:3]:
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await memory.delete(storage_key(namespace.secret, chunks[0].key))
            await disk.delete(storage_key(namespace.secret, chunks[1].key))
            assert await store.contains_many(namespace, [one.key for one in chunks]) == [True, True, True, False]

    async def test_longest_prefix_ends_at_the_first_gap(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(6)]
        keys = [one.key for one in chunks]
        async with running(memory) as store:
            assert await store.longest_prefix(namespace, keys) == 0
            assert await store.longest_prefix(namespace, []) == 0
            for one in (*chunks[:3], *chunks[4:]):
                await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
            assert await store.longest_prefix(namespace, keys) == 3
            assert await store.longest_prefix(namespace, keys[:2]) == 2
            assert await store.longest_prefix(namespace, keys[:3] * 800) == 2400
            assert await store.longest_prefix(namespace, [*keys[:3] * 500, keys[3], *keys[:3]]) == 1500

    async def test_scan_lists_each_chunk_once_with_its_tiers(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        chunks = [chunk(number) for number in range(3)]
        async with running(memory, disk) as store:
            for one in chunks:
                await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            await memory.delete(storage_key(namespace.secret, chunks[0].key))
            await disk.delete(storage_key(namespace.secret, chunks[1].key))
            found = {item.key: item async for item in store.scan(namespace)}
        assert {key: item.tiers for key, item in found.items()} == {
            chunks[0].key: ("ssd",),
            chunks[1].key: ("memory",),
            chunks[2].key: ("memory", "ssd"),
        }
        assert [found[one.key].stored_at_ms for one in chunks] == [1, 2, 3]
        assert [found[one.key].payload_bytes for one in chunks] == [len(one.payload) for one in chunks]

    async def test_stored_shows_the_header(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        async with running(memory, disk) as store:
            assert await store.stored(namespace, one.key) is None
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            found = await store.stored(namespace, one.key)
            assert found is not None
            assert (found.tiers, found.payload_bytes) == (("memory", "ssd"), len(one.payload))
            assert found.header == parse_header(one.payload)
            assert store.stats().tiers[0].hits == 0


class TestMerging:
    async def test_levels_gather_under_one_key(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        lossy, exact = chunk(1, (DRAFT, ECONOMY)), chunk(1, (EXACT,), seed=5, profile_digest=NO_PROFILE)
        async with running(memory, disk) as store:
            await store.put(namespace, lossy.key, lossy.payload, ack=Ack.MEMORY)
            await store.put(namespace, exact.key, exact.payload, ack=Ack.DISK)
            for tier in (memory, disk):
                outcome = await tier.get(storage_key(namespace.secret, lossy.key))
                assert isinstance(outcome, Hit)
                assert verify(outcome.value.parts[0]).levels == (DRAFT, ECONOMY, EXACT)
            got = Container.parse(read(await store.get(namespace, exact.key, level=EXACT)))
            assert got.segment(EXACT, 1, Kind.KEYS) == Container.parse(exact.payload).segment(EXACT, 1, Kind.KEYS)

    async def test_coarser_put_takes_nothing_away_and_can_make_it_durable(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        full, coarse = chunk(1), chunk(1, (DRAFT,))
        disk.plan.gates[Operation.PUT] = asyncio.Event()
        async with running(memory, disk) as store:
            await store.put(namespace, full.key, full.payload, ack=Ack.MEMORY)
            disk.plan.gates[Operation.PUT].set()
            await store.put(namespace, full.key, coarse.payload, ack=Ack.DISK)
            outcome = await disk.get(storage_key(namespace.secret, full.key))
            assert isinstance(outcome, Hit)
            assert outcome.value.parts[0] == full.payload
            assert store.stats().dirty_bytes == 0

    async def test_container_that_cannot_be_joined_is_refused(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        old, new = chunk(1, (DRAFT,)), chunk(1, (EXACT,), tokens=7)
        async with running(memory) as store:
            await store.put(namespace, old.key, old.payload, ack=Ack.MEMORY)
            with pytest.raises(LayoutMismatch, match="5 tokens, the container has 7"):
                await store.put(namespace, new.key, new.payload, ack=Ack.MEMORY)
            assert read(await store.get(namespace, old.key)) == old.payload

    async def test_damaged_old_container_is_simply_replaced(
        self, running: Make, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        old, new = chunk(1, (DRAFT, ECONOMY)), chunk(1, (EXACT,))
        async with running(memory) as store:
            memory.plan.faults[Operation.PUT] = CorruptBytes(8 * len(old.payload) - 1)
            await store.put(namespace, old.key, old.payload, ack=Ack.MEMORY)
            memory.plan.faults.clear()
            await store.put(namespace, new.key, new.payload, ack=Ack.MEMORY)
            assert read(await store.get(namespace, new.key)) == new.payload


class TestLife:
    async def test_tiers_must_be_some_named_and_in_order(self, memory: GatedTier, disk: GatedTier) -> None:
        def clock_ms() -> int:
            return 0

        for tiers in ([], [disk, memory]):
            with pytest.raises(ConfigError, match="volatile tiers before durable"):
                TieredStore(tiers, clock_ms=clock_ms)
        with pytest.raises(ConfigError, match="names of their own"):
            TieredStore([memory, memory], clock_ms=clock_ms)

    async def test_store_that_is_not_running_refuses(
        self, memory: GatedTier, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        store = TieredStore([memory], clock_ms=lambda: 0)
        with pytest.raises(StorageUnavailable, match="not running"):
            await store.get(namespace, one.key)
        await store.start()
        await store.close()
        await store.close()
        for call in (
            store.put(namespace, one.key, one.payload, ack=Ack.MEMORY),
            store.get(namespace, one.key),
            store.contains_many(namespace, [one.key]),
            store.delete(namespace, one.key),
            store.flush(),
        ):
            with pytest.raises(StorageUnavailable, match="closed"):
                await call
        with pytest.raises(StorageUnavailable):
            await memory.get(storage_key(namespace.secret, one.key))

    async def test_cancelled_close_can_be_called_again(
        self, memory: GatedTier, tmp_path: Path, namespace: Namespace, chunk: Make
    ) -> None:
        one = chunk(1)
        disk = GatedTier(SsdTier.open(tmp_path, 8 * MIB), Plan())
        gate = disk.plan.gates[Operation.PUT] = asyncio.Event()
        store = TieredStore([memory, disk], clock_ms=lambda: 0)
        await store.start()
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
        closing = asyncio.create_task(store.close())
        await spin()
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        gate.set()
        await store.close()
        reopened = SsdTier.open(tmp_path, 8 * MIB)
        assert await reopened.contains_many([storage_key(namespace.secret, one.key)]) == [True]
        await reopened.close()

    async def test_cancelled_operations_leak_no_task_lock_or_byte(
        self, running: Make, memory: GatedTier, disk: GatedTier, namespace: Namespace, chunk: Make, rng: Any
    ) -> None:
        chunks = [chunk(number, segment_bytes=3000) for number in range(8)]
        async with running(memory, disk) as store:
            await spin()
            idle = len(asyncio.all_tasks())
            for _ in range(300):
                one = chunks[int(rng.integers(8))]
                call = [
                    store.put(namespace, one.key, one.payload, ack=Ack.MEMORY),
                    store.put(namespace, one.key, one.payload, ack=Ack.DISK),
                    store.get(namespace, one.key),
                    store.delete(namespace, one.key),
                ]
                chosen = call.pop(int(rng.integers(4)))
                for other in call:
                    other.close()
                task = asyncio.create_task(chosen)
                for _ in range(int(rng.integers(12))):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await store.flush()
            await store.settled()
            assert len(asyncio.all_tasks()) == idle
            assert (len(store._locks), len(store._flights), store.stats().dirty_bytes) == (0, 0, 0)
            for one in chunks:
                await store.delete(namespace, one.key)
            gc.collect()
            assert memory.capacity().records == 0
            await store.put(namespace, chunks[0].key, chunks[0].payload, ack=Ack.DISK)
            assert read(await store.get(namespace, chunks[0].key)) == chunks[0].payload
