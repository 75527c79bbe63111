"""The breaker against a backend that a test takes away and brings back, with a clock that only the test moves."""

import asyncio
import heapq
from random import Random

import pytest

from kvloom.errors import InvalidData, StorageFull, StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.outcome import Hit, Miss, Unavailable
from kvloom.kvstore.tier import Tier
from kvloom.kvstore.wrappers.breaker import BreakerPolicy, BreakerTier
from kvloom.kvstore.wrappers.fault import Fail, FaultTier, Full, NoFaults, Operation, ScriptedFaults

POLICY = BreakerPolicy(stall_seconds=0.3, ping_seconds=0.4, pause_seconds=0.25, pause_seconds_max=4.0)
RECORD = make_record(1, 1000)


class Clock:
    """Time that stands still until :meth:`advance`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, self._count, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Go on, waking whoever slept until then, in order."""
        await settle()
        until = self.now + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            self.now, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
            await settle()
        self.now = until
        await settle()


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


class Backend(FaultTier):
    """A tier whose backend answers, refuses, or says nothing at all."""

    def __init__(self) -> None:
        super().__init__(MemoryTier(4 * 1024 * 1024), NoFaults())
        self.mode = "up"
        self.pings = 0
        self.calls = 0

    async def get(self, key, ranges=None):
        await self._reach()
        return await super().get(key, ranges)

    async def put(self, record):
        await self._reach()
        await super().put(record)

    async def contains_many(self, keys):
        await self._reach()
        return await super().contains_many(keys)

    async def ping(self):
        self.pings += 1
        await self._reach(counted=False)

    async def _reach(self, *, counted: bool = True) -> None:
        self.calls += counted
        if self.mode == "silent":
            await asyncio.get_running_loop().create_future()
        if self.mode == "down":
            raise StorageUnavailable("connection refused")


@pytest.fixture
async def world():
    clock, backend = Clock(), Backend()
    tier = BreakerTier(backend, POLICY, clock=clock, sleep=clock.sleep, random=Random(1))
    yield clock, backend, tier
    await tier.close()
    assert [task for task in asyncio.all_tasks() if task.get_name().endswith("breaker")] == []


async def test_a_backend_that_answers_is_never_pinged(world):
    clock, backend, tier = world
    for _ in range(20):
        await tier.put(RECORD)
        assert isinstance(await tier.get(RECORD.storage_key), Hit)
        await clock.advance(1)
    assert (backend.pings, tier.openings) == (0, 0)


async def test_a_dead_backend_opens_it_at_the_first_failure(world):
    clock, backend, tier = world
    backend.mode = "down"
    assert isinstance(await tier.get(RECORD.storage_key), Unavailable)
    await settle()
    assert tier.is_open
    assert clock.now == 0
    calls = backend.calls
    assert isinstance(await tier.get(RECORD.storage_key), Unavailable)
    with pytest.raises(StorageUnavailable, match=r"breaker open.*connection refused"):
        await tier.put(RECORD)
    with pytest.raises(StorageUnavailable):
        await tier.contains_many([RECORD.storage_key])
    with pytest.raises(StorageUnavailable):
        await anext(tier.scan())
    assert backend.calls == calls


async def test_a_black_hole_opens_it_within_a_second_and_frees_what_hangs_in_it(world):
    clock, backend, tier = world
    await tier.put(RECORD)
    backend.mode = "silent"
    hanging = [asyncio.ensure_future(tier.get(RECORD.storage_key)) for _ in range(5)]
    hanging.append(asyncio.ensure_future(tier.put(RECORD)))
    await clock.advance(POLICY.stall_seconds + POLICY.ping_seconds + 0.01)
    assert tier.is_open
    assert clock.now < 1
    outcomes = await asyncio.gather(*hanging, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes[:-1])
    assert isinstance(outcomes[-1], StorageUnavailable)


async def test_it_closes_by_itself_within_ten_seconds_of_the_return(world):
    clock, backend, tier = world
    backend.mode = "silent"
    asking = asyncio.ensure_future(tier.get(RECORD.storage_key))
    await clock.advance(60)
    assert isinstance(await asking, Unavailable)
    assert tier.is_open
    pings = backend.pings
    assert pings <= 60 / (0.75 * POLICY.pause_seconds_max) + 6
    backend.mode = "up"
    await clock.advance(1.25 * POLICY.pause_seconds_max + POLICY.ping_seconds)
    assert not tier.is_open
    assert backend.pings <= pings + 2
    await tier.put(RECORD)
    assert tier.openings == 1


async def test_one_slow_operation_among_answered_ones_opens_nothing(world):
    clock, backend, tier = world
    await tier.put(RECORD)
    backend.mode = "silent"
    slow = asyncio.ensure_future(tier.get(RECORD.storage_key))
    await settle()
    backend.mode = "up"
    for _ in range(20):
        assert isinstance(await tier.get(RECORD.storage_key), Hit)
        await clock.advance(0.2)
    assert (tier.openings, backend.pings) == (0, 0)
    await clock.advance(0.3)
    assert (tier.openings, backend.pings) == (0, 1)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_a_failure_that_a_ping_refutes_opens_nothing(world):
    clock, backend, tier = world
    backend.plan = ScriptedFaults({Operation.GET: [Fail("one dead node of many")] * 30})
    for _ in range(30):
        assert isinstance(await tier.get(RECORD.storage_key), Unavailable)
        await clock.advance(0.01)
    assert tier.openings == 0
    assert backend.pings > 0
    assert isinstance(await tier.get(RECORD.storage_key), Miss)


async def test_a_full_backend_and_a_wrong_record_are_no_suspicion(world):
    clock, backend, tier = world
    backend.plan = ScriptedFaults({Operation.PUT: [Full()]})
    with pytest.raises(StorageFull):
        await tier.put(RECORD)

    async def wrong(record):
        raise InvalidData("wrong")

    backend.put = wrong
    with pytest.raises(InvalidData):
        await tier.put(RECORD)
    await clock.advance(1)
    assert backend.pings == 0


async def test_a_cancelled_operation_ends_and_is_no_suspicion(world):
    clock, backend, tier = world
    backend.mode = "silent"
    asking = asyncio.ensure_future(tier.get(RECORD.storage_key))
    await settle()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await clock.advance(10)
    assert (tier.is_open, backend.pings) == (False, 0)


async def test_closing_while_it_is_open_leaves_nothing_running():
    clock, backend = Clock(), Backend()
    tier = BreakerTier(backend, POLICY, clock=clock, sleep=clock.sleep)
    backend.mode = "silent"
    asking = asyncio.ensure_future(tier.get(RECORD.storage_key))
    await clock.advance(5)
    await asking
    before = asyncio.all_tasks()
    await tier.close()
    await settle()
    assert asyncio.all_tasks() < before
    with pytest.raises(StorageUnavailable, match="closed"):
        await tier.get(RECORD.storage_key)


def test_it_has_the_name_and_nature_of_what_it_wraps():
    inner: Tier = MemoryTier(1024 * 1024)
    tier = BreakerTier(inner, POLICY)
    assert (tier.name, tier.durable, tier.shared) == (inner.name, inner.durable, inner.shared)
    assert tier.capacity() == inner.capacity()
