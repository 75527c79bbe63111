"""The bounds on what is under way: never exceeded, always given back, handed out in order."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.errors import Overloaded
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.outcome import Hit, Throttled
from kvloom.kvstore.wrappers.fault import FaultTier, NoFaults
from kvloom.kvstore.wrappers.throttle import InflightBytes, ThrottleTier

RECORD = make_record(1, 1000)


class Gate(FaultTier):
    """Lets operations through when it is opened, and counts them."""

    def __init__(self) -> None:
        super().__init__(MemoryTier(8 * 1024 * 1024), NoFaults())
        self.open = asyncio.Event()
        self.inside = 0
        self.most = 0

    async def put(self, record):
        await self._pass()
        await super().put(record)

    async def get(self, key, ranges=None):
        await self._pass()
        return await super().get(key, ranges)

    async def _pass(self):
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.open.wait()
        finally:
            self.inside -= 1


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_operations_are_inside_than_allowed():
    gate = Gate()
    tier = ThrottleTier(gate, InflightBytes(), requests_max=3)
    tasks = [asyncio.ensure_future(tier.put(make_record(number, 100))) for number in range(10)]
    await settle()
    assert gate.inside == 3
    gate.open.set()
    await asyncio.gather(*tasks)
    assert gate.most == 3


async def test_who_finds_the_queue_full_or_waits_too_long_is_refused():
    gate = Gate()
    tier = ThrottleTier(gate, InflightBytes(), requests_max=1, waiting_max=1, wait_seconds_max=0.02)
    first = asyncio.ensure_future(tier.put(RECORD))
    await settle()
    second = asyncio.ensure_future(tier.get(RECORD.storage_key))
    await settle()
    with pytest.raises(Overloaded, match="1 operations wait for memory, the limit is 1"):
        await tier.put(RECORD)
    assert isinstance(await second, Throttled)
    gate.open.set()
    await first
    assert isinstance(await tier.get(RECORD.storage_key), Hit)


async def test_bytes_of_puts_are_bounded_and_given_back():
    gate, inflight = Gate(), InflightBytes(2500)
    tier = ThrottleTier(gate, inflight)
    tasks = [asyncio.ensure_future(tier.put(make_record(number, 1000))) for number in range(6)]
    await settle()
    assert (gate.inside, inflight.held_bytes) == (2, 2000)
    tasks[0].cancel()
    tasks[4].cancel()
    await settle()
    assert (gate.inside, inflight.held_bytes) == (2, 2000)
    gate.open.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert inflight.held_bytes == 0


async def test_a_large_one_is_let_in_alone_and_is_not_overtaken():
    inflight, order = InflightBytes(100), []

    async def use(name, size_bytes, until):
        async with inflight.hold(size_bytes):
            order.append(name)
            await until.wait()

    end, later = asyncio.Event(), asyncio.Event()
    later.set()
    tasks = [asyncio.ensure_future(use("small", 60, end))]
    await settle()
    tasks += [asyncio.ensure_future(use("large", 900, later)), asyncio.ensure_future(use("tiny", 1, later))]
    await settle()
    assert order == ["small"]
    end.set()
    await asyncio.gather(*tasks)
    assert order == ["small", "large", "tiny"]
    assert inflight.held_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 6), st.booleans()), max_size=30))
def test_the_bound_holds_whatever_comes_and_is_cancelled(jobs):
    async def run() -> None:
        inflight, inside, largest = InflightBytes(250), 0, max((size for size, _, _ in jobs), default=0)

        async def use(size_bytes: int, turns: int) -> None:
            nonlocal inside
            async with inflight.hold(size_bytes):
                inside += size_bytes
                try:
                    assert inside <= max(250, largest)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                finally:
                    inside -= size_bytes

        tasks = []
        for size_bytes, turns, cancelled in jobs:
            tasks.append(asyncio.ensure_future(use(size_bytes, turns)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        assert inflight.held_bytes == 0

    asyncio.run(run())
