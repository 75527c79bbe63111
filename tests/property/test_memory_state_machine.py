"""The memory tier against a dictionary, with readers and leases that come and go while it evicts, compacts and refills.

What is resident is what was put last; what is held, as a view or as a lease, never changes whatever happens to the
record; no two owners share a segment; and the limit holds.
"""

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvloom.errors import StorageFull
from kvloom.kvstore.key import ContentKey, StorageKey
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.sharing import word_sum
from kvloom.kvstore.tier import OwnerId, Record

T = TypeVar("T")
LIMIT_BYTES = 256 * 1024
OWNERS = tuple(OwnerId(bytes([number]) * 16) for number in range(3))
numbers = st.integers(0, 40)
sizes = st.sampled_from([0, 1, 100, 900, 1900, 2500, 12_000, 40_000, 90_000])


class MemoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.tier = MemoryTier(LIMIT_BYTES)
        self.put_last: dict[StorageKey, Record] = {}
        self.views: list[tuple[bytes, memoryview]] = []
        self.leases: list[tuple[bytes, Any]] = []
        self.version = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def record(self, number: int, size_bytes: int) -> Record:
        self.version += 1
        payload = Random(f"{number}/{self.version}").randbytes(size_bytes)
        place = StorageKey(blake3(number.to_bytes(2, "little")).digest())
        return Record(place, ContentKey(bytes([number]) * 32), payload, self.version, OWNERS[number % len(OWNERS)])

    def put_one(self, record: Record, *, alone: bool = True) -> Coroutine[Any, Any, None]:
        async def put() -> None:
            try:
                await self.tier.put(record)
                self.put_last[record.storage_key] = record
            except StorageFull:
                assert self.views or self.leases or not alone

        return put()

    @rule(number=numbers, size_bytes=sizes)
    def put(self, number: int, size_bytes: int) -> None:
        self.run(self.put_one(self.record(number, size_bytes)))

    @rule(first=numbers, size_bytes=sizes)
    def put_many_at_once(self, first: int, size_bytes: int) -> None:
        async def puts() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(first, first + 12):
                    group.create_task(self.put_one(self.record(number, size_bytes), alone=False))

        self.run(puts())

    @rule(number=numbers, size_bytes=sizes, steps=st.integers(0, 3))
    def put_and_cancel(self, number: int, size_bytes: int, steps: int) -> None:
        """Cancelled at any point, it happened or it did not; others put at once where it was."""
        record = self.record(number, size_bytes)
        other = self.record(number + 1, size_bytes)

        async def put() -> bool:
            task = asyncio.ensure_future(self.tier.put(record))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            await self.put_one(other, alone=False)
            return outcome is None

        if self.run(put()):
            self.put_last[record.storage_key] = record

    @rule(number=numbers)
    def get(self, number: int) -> None:
        place = StorageKey(blake3(number.to_bytes(2, "little")).digest())
        found = self.run(self.tier.get(place))
        if isinstance(found, Hit):
            record = self.put_last[place]
            assert found.value.info == record.info
            assert bytes(found.value.parts[0]) == record.payload
            if len(self.views) < 6:
                self.views.append((bytes(record.payload), memoryview(found.value.parts[0])))

    @rule(number=numbers)
    def lease(self, number: int) -> None:
        place = StorageKey(blake3(number.to_bytes(2, "little")).digest())
        lease = self.tier.lease(place)
        if lease is not None:
            record = self.put_last[place]
            assert (lease.content_key, lease.payload_bytes) == (record.content_key, len(record.payload))
            assert lease.segment.owner == record.owner
            if len(self.leases) < 6:
                self.leases.append((bytes(record.payload), lease))

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        place = StorageKey(blake3(number.to_bytes(2, "little")).digest())
        self.run(self.tier.delete(place))
        self.put_last.pop(place, None)
        assert self.run(self.tier.get(place)) == Miss()

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def drop_a_view(self, data: st.DataObject) -> None:
        self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), abandon=st.booleans())
    def end_a_lease(self, data: st.DataObject, abandon: bool) -> None:
        _, lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        (lease.abandon if abandon else lease.release)()

    @invariant()
    def what_is_held_does_not_change(self) -> None:
        assert all(bytes(view) == payload for payload, view in self.views)
        for payload, lease in self.leases:
            assert bytes(lease.payload) == payload
            assert word_sum(lease.payload) == lease.word_sum

    @invariant()
    def the_limit_holds(self) -> None:
        capacity = self.tier.capacity()
        assert capacity.used_bytes <= LIMIT_BYTES

    @invariant()
    def the_list_is_what_is_resident(self) -> None:
        async def listed() -> dict[StorageKey, int]:
            return {info.storage_key: info.stored_at_ms async for info in self.tier.scan()}

        found = self.run(listed())
        assert len(found) == self.tier.capacity().records
        assert all(self.put_last[key].stored_at_ms == stored for key, stored in found.items())

    def teardown(self) -> None:
        self.run(self.tier.close())
        assert all(bytes(view) == payload for payload, view in self.views)
        assert all(bytes(lease.payload) == payload for payload, lease in self.leases)
        self.runner.close()


MemoryMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
TestMemory = MemoryMachine.TestCase
