"""What has expired is absent everywhere, and freed a little later."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvloom import limits
from kvloom.codec.level import DRAFT
from kvloom.errors import InvalidRequest
from kvloom.kvstore.key import storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import NEVER, Ack
from kvloom.kvstore.tiered.store import TieredStore
from kvloom.kvstore.wrappers.fault import Operation

MIB = 1024 * 1024
Make = Callable[..., Any]


async def is_absent(store: TieredStore, namespace: Namespace, one: Any) -> bool:
    """Absent in every way of asking; anything in between fails here."""
    answers = [
        await store.get(namespace, one.key) == Miss(),
        await store.get(namespace, one.key, level=DRAFT) == Miss(),
        await store.contains_many(namespace, [one.key]) == [False],
        await store.longest_prefix(namespace, [one.key]) == 0,
        await store.stored(namespace, one.key) is None,
        one.key not in [item.key async for item in store.scan(namespace)],
        not (await store.pin(namespace, [one.key], lease_seconds=1)).pinned[0],
    ]
    assert len(set(answers)) == 1, answers
    return answers[0]


@pytest.mark.parametrize("ack", list(Ack))
async def test_what_has_expired_is_absent_everywhere(
    running: Make, fast: Any, slow: Any, network: Any, namespace: Namespace, chunk: Make, clock: Any, ack: Ack
) -> None:
    short, long, forever = chunk(1), chunk(2), chunk(3)
    async with running(fast, slow, network, clock_ms=clock) as store:
        await store.put(namespace, short.key, short.payload, ack=ack, ttl_seconds=10)
        await store.put(namespace, long.key, long.payload, ack=ack, ttl_seconds=20.5)
        await store.put(namespace, forever.key, forever.payload, ack=ack)
        await store.flush(shared=True)
        clock.advance(9.999)
        assert [await is_absent(store, namespace, one) for one in (short, long, forever)] == [False] * 3
        clock.advance(0.001)
        assert [await is_absent(store, namespace, one) for one in (short, long, forever)] == [True, False, False]
        assert await store.longest_prefix(namespace, [long.key, short.key]) == 1
        assert await store.delete(namespace, short.key) is False
        clock.advance(10.5)
        assert [await is_absent(store, namespace, one) for one in (short, long, forever)] == [True, True, False]
        clock.advance(10**9)
        assert not await is_absent(store, namespace, forever)


async def test_what_waits_to_be_written_expires_too_and_is_not_written(
    running: Make, slow: Any, namespace: Namespace, chunk: Make, clock: Any
) -> None:
    one, other = chunk(1), chunk(2)
    gate = slow.plan.gates[Operation.PUT] = asyncio.Event()
    async with running(slow, clock_ms=clock) as store:
        await store.put(namespace, other.key, other.payload, ack=Ack.MEMORY)
        for _ in range(20):  # until it is being written
            await asyncio.sleep(0)
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY, ttl_seconds=1)
        assert isinstance(await store.get(namespace, one.key), Hit)
        clock.advance(1)
        assert await is_absent(store, namespace, one)
        slow.plan.gates.clear()
        gate.set()
        await store.flush()
        places = [storage_key(namespace.secret, item.key) for item in (one, other)]
        assert await slow.contains_many(places) == [False, True]


async def test_the_sweep_frees_what_has_expired_and_nothing_else(
    running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make, clock: Any
) -> None:
    chunks = [chunk(number) for number in range(30)]
    async with running(fast, slow, clock_ms=clock) as store:
        for number, one in enumerate(chunks):
            ttl = 10 if number % 3 == 0 else None
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK, ttl_seconds=ttl)
        assert await store.keep_up() == 0
        clock.advance(10)
        assert fast.capacity().records == slow.capacity().records == 30
        assert await store.keep_up() == 20
        assert fast.capacity().records == slow.capacity().records == 20
        assert store.stats().expired == 20
        assert await store.keep_up() == 0
        found = await store.contains_many(namespace, [one.key for one in chunks])
        assert found == [number % 3 != 0 for number in range(30)]


async def test_one_pass_of_the_sweep_is_bounded(
    running: Make, fast: Any, namespace: Namespace, chunk: Make, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_RECORDS_MAX", 4)
    async with running(fast, clock_ms=clock) as store:
        for number in range(10):
            one = chunk(number)
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY, ttl_seconds=1)
        clock.advance(1)
        assert [await store.keep_up() for _ in range(4)] == [4, 4, 2, 0]


async def test_the_sweep_runs_by_itself(fast: Any, namespace: Namespace, chunk: Make, clock: Any) -> None:
    rounds: asyncio.Queue[None] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        assert seconds == limits.SWEEP_SECONDS
        await rounds.get()

    store = TieredStore([fast], clock_ms=clock, sleep=sleep)
    await store.start()
    one = chunk(1)
    await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY, ttl_seconds=1)
    clock.advance(1)
    rounds.put_nowait(None)
    for _ in range(200):
        await asyncio.sleep(0)
    assert fast.capacity().records == 0
    await store.close()


async def test_a_put_under_way_is_not_swept_away(
    running: Make, fast: Any, namespace: Namespace, chunk: Make, clock: Any
) -> None:
    one = chunk(1)
    async with running(fast, clock_ms=clock) as store:
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY, ttl_seconds=1)
        clock.advance(1)
        gate = fast.plan.gates[Operation.PUT] = asyncio.Event()
        putting = asyncio.create_task(store.put(namespace, one.key, one.payload, ack=Ack.MEMORY))
        for _ in range(10):
            await asyncio.sleep(0)
        sweeping = asyncio.create_task(store.keep_up())
        for _ in range(10):
            await asyncio.sleep(0)
        gate.set()
        await putting
        assert await sweeping == 0
        assert isinstance(await store.get(namespace, one.key), Hit)


@pytest.mark.parametrize(
    ("first", "second", "expires"), [(10, 20, 20), (20, 10, 20), (None, 10, None), (10, None, None)]
)
@pytest.mark.parametrize("levels", [(DRAFT,), None])
async def test_a_second_put_never_shortens_a_life(
    running: Make,
    fast: Any,
    slow: Any,
    network: Any,
    namespace: Namespace,
    chunk: Make,
    clock: Any,
    first: int | None,
    second: int | None,
    expires: int | None,
    levels: Any,
) -> None:
    one = chunk(1)
    again = one if levels is None else chunk(1, levels)
    async with running(fast, slow, network, clock_ms=clock) as store:
        start_ms = clock.now_ms
        await store.put(namespace, one.key, one.payload, ack=Ack.DISK, ttl_seconds=first)
        await store.flush(shared=True)
        await store.put(namespace, one.key, again.payload, ack=Ack.DISK, ttl_seconds=second)
        await store.flush(shared=True)
        stored = await store.stored(namespace, one.key)
        assert stored is not None
        assert stored.expires_at_ms == (NEVER if expires is None else start_ms + 1000 * expires)
        for tier in (fast, slow, network):
            assert [info.expires_at_ms async for info in tier.scan()] == [stored.expires_at_ms]


async def test_what_has_expired_is_not_joined_with(
    running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make, clock: Any
) -> None:
    full, coarse = chunk(1), chunk(1, (DRAFT,))
    async with running(fast, slow, clock_ms=clock) as store:
        await store.put(namespace, full.key, full.payload, ack=Ack.DISK, ttl_seconds=1)
        clock.advance(1)
        await store.put(namespace, full.key, coarse.payload, ack=Ack.DISK, ttl_seconds=5)
        stored = await store.stored(namespace, full.key)
        assert stored is not None
        assert stored.header is not None
        assert stored.header.levels == (DRAFT,)
        assert stored.expires_at_ms == clock.now_ms + 5000


async def test_a_namespace_has_a_default(running: Make, fast: Any, chunk: Make, clock: Any) -> None:
    brief = derive_namespace(bytes(32), "brief", ttl_seconds=5)
    one, other = chunk(1), chunk(2)
    async with running(fast, clock_ms=clock) as store:
        await store.put(brief, one.key, one.payload, ack=Ack.MEMORY)
        await store.put(brief, other.key, other.payload, ack=Ack.MEMORY, ttl_seconds=50)
        clock.advance(5)
        assert await store.contains_many(brief, [one.key, other.key]) == [False, True]


@pytest.mark.parametrize("ttl", [0, -1, 0.0001, limits.TTL_SECONDS_MAX + 1, float("nan"), float("inf")])
async def test_a_time_to_live_has_limits(
    running: Make, fast: Any, namespace: Namespace, chunk: Make, ttl: float
) -> None:
    one = chunk(1)
    async with running(fast) as store:
        with pytest.raises(InvalidRequest, match="time to live is"):
            await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY, ttl_seconds=ttl)
        assert fast.capacity().records == 0
    with pytest.raises(InvalidRequest, match="time to live is"):
        replace(namespace, ttl_seconds=ttl)


async def test_expiries_survive_a_restart(
    running: Make, tmp_path: Path, namespace: Namespace, chunk: Make, clock: Any
) -> None:
    one, other = chunk(1), chunk(2)
    async with running(SsdTier.open(tmp_path, 8 * MIB), clock_ms=clock) as store:
        await store.put(namespace, one.key, one.payload, ack=Ack.DISK, ttl_seconds=10)
        await store.put(namespace, other.key, other.payload, ack=Ack.DISK)
    tier = SsdTier.open(tmp_path, 8 * MIB)
    async with running(tier, clock_ms=clock) as store:
        assert await store.contains_many(namespace, [one.key, other.key]) == [True, True]
        clock.advance(10)
        assert await store.contains_many(namespace, [one.key, other.key]) == [False, True]
        assert await store.keep_up() == 1
        assert tier.capacity().records == 1


async def test_a_promoted_chunk_keeps_its_expiry(
    running: Make, fast: Any, slow: Any, namespace: Namespace, chunk: Make, clock: Any
) -> None:
    one = chunk(1)
    async with running(fast, slow, clock_ms=clock) as store:
        await store.put(namespace, one.key, one.payload, ack=Ack.DISK, ttl_seconds=10)
        await fast.delete(storage_key(namespace.secret, one.key))
        await store.get(namespace, one.key)
        await store.settled()
        assert fast.capacity().records == 1
        clock.advance(10)
        assert await is_absent(store, namespace, one)
        assert await store.keep_up() == 2


async def test_a_tier_without_an_index_of_expiries_is_asked_record_by_record(
    running: Make, namespace: Namespace, chunk: Make, clock: Any
) -> None:
    class Plain(MemoryTier):
        """As third parties write them: with the abstract methods only."""

        contains_live = MemoryTier.__mro__[1].contains_live  # type: ignore[assignment]
        expired = MemoryTier.__mro__[1].expired  # type: ignore[assignment]

    one, other = chunk(1), chunk(2)
    tier = Plain(4 * MIB)
    async with running(tier, clock_ms=clock) as store:
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY, ttl_seconds=1)
        await store.put(namespace, other.key, other.payload, ack=Ack.MEMORY)
        assert not await is_absent(store, namespace, one)
        clock.advance(1)
        assert await is_absent(store, namespace, one)
        assert await store.keep_up() == 1
        assert tier.capacity().records == 1
