"""Places that tenants share: nobody has all of them, nobody waits for a place that is free and may be taken."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.daemon.fair_slots import FairSlots

COUNT = 16
ALONE = 12


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(3):
        await asyncio.sleep(0)


def waiting(slots: FairSlots, tenant: str, count: int) -> list[asyncio.Task]:
    return [asyncio.create_task(slots.acquire(tenant)) for _ in range(count)]


def done(tasks: list[asyncio.Task]) -> int:
    return sum(task.done() for task in tasks)


async def stop(*groups: list[asyncio.Task]) -> None:
    for task in (task for group in groups for task in group):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_one_tenant_alone_has_most_and_never_all():
    slots = FairSlots(COUNT)
    greedy = waiting(slots, "greedy", 40)
    await settle()
    assert (done(greedy), slots.free) == (ALONE, COUNT - ALONE)
    async with asyncio.timeout(20):
        async with slots.of("other"):
            assert slots.free == COUNT - ALONE - 1
    await stop(greedy)


async def test_a_third_tenant_finds_a_place_beside_two_that_want_all():
    slots = FairSlots(COUNT)
    first, second = waiting(slots, "first", 40), waiting(slots, "second", 40)
    await settle()
    assert (done(first), done(second)) == (ALONE, 3)
    async with asyncio.timeout(20):
        await slots.acquire("third")
    assert slots.free == 0
    await stop(first, second)


async def test_a_place_that_comes_free_goes_to_who_has_fewest():
    slots = FairSlots(4)
    first = waiting(slots, "first", 10)
    second, third = waiting(slots, "second", 2), waiting(slots, "third", 2)
    await settle()
    assert [done(first), done(second), done(third)] == [3, 1, 0]
    slots.release("first")
    await settle()
    assert [done(first), done(second), done(third)] == [3, 1, 1]
    slots.release("third")
    await settle()
    assert [done(first), done(second), done(third)] == [3, 1, 2]
    await stop(first, second, third)


async def test_who_gives_up_leaves_no_place_taken():
    slots = FairSlots(4)
    held = waiting(slots, "a", 3)
    given_up = waiting(slots, "a", 3)
    await settle()
    slots.release("a")
    given_up[0].cancel()  # its place was given to it, and it has not gone on yet
    given_up[2].cancel()
    await settle()
    assert [task.cancelled() for task in given_up] == [True, False, True]
    assert slots.free == 1
    for _ in range(3):
        slots.release("a")
    assert slots.free == 4
    await stop(held, given_up)


async def test_a_context_gives_back_whatever_happens():
    slots = FairSlots(2)

    async def fail() -> None:
        async with slots.of("a"):
            assert slots.free == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert slots.free == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["want", "give", "cancel"])), max_size=80))
def test_places_are_never_lost_made_or_kept_from_who_has_none(steps):
    async def play() -> None:
        slots = FairSlots(5)
        wanting = {name: [] for name in "abc"}
        held = dict.fromkeys("abc", 0)
        for tenant, step in steps:
            if step == "want":
                wanting[tenant] += waiting(slots, tenant, 1)
            elif step == "give" and held[tenant]:
                slots.release(tenant)
                held[tenant] -= 1
            elif step == "cancel" and wanting[tenant]:
                await stop([wanting[tenant].pop(0)])
            await settle()
            for name, tasks in wanting.items():
                held[name] += done(tasks)
                wanting[name] = [task for task in tasks if not task.done()]
            assert sum(held.values()) == 5 - slots.free
            for name, tasks in wanting.items():
                assert not tasks or held[name] >= 3 * slots.free
        await stop(*wanting.values())
        for name, count in held.items():
            for _ in range(count):
                slots.release(name)
        assert slots.free == 5

    asyncio.run(play())
