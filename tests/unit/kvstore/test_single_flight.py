import asyncio

import pytest

from kvloom.kvstore.single_flight import SingleFlight


class Work:
    """Counts how often it was started and whether it ended; ends when told to."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> str:
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"


async def spin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_thousand_callers_share_one_piece_of_work() -> None:
    flights, work = SingleFlight[str, str](), Work()
    callers = [asyncio.create_task(flights.run("key", work)) for _ in range(1000)]
    await spin()
    work.go.set()
    assert await asyncio.gather(*callers) == ["done"] * 1000
    assert work.started == 1
    assert len(flights) == 0


async def test_different_keys_do_not_share() -> None:
    flights, work = SingleFlight[str, str](), Work()
    work.go.set()
    await asyncio.gather(flights.run("a", work), flights.run("b", work))
    assert work.started == 2


async def test_a_cancelled_caller_leaves_the_others_undisturbed() -> None:
    flights, work = SingleFlight[str, str](), Work()
    first, second = (asyncio.create_task(flights.run("key", work)) for _ in range(2))
    await spin()
    first.cancel()
    await spin()
    work.go.set()
    assert await second == "done"
    assert (work.started, work.cancelled) == (1, 0)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_work_ends_with_its_last_caller() -> None:
    flights, work = SingleFlight[str, str](), Work()
    callers = [asyncio.create_task(flights.run("key", work)) for _ in range(3)]
    await spin()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert work.cancelled == 1
    assert len(flights) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_error_reaches_every_caller_and_is_not_kept() -> None:
    flights = SingleFlight[str, str]()
    started = 0

    async def fail() -> str:
        nonlocal started
        started += 1
        await asyncio.sleep(0)
        raise LookupError("nothing here")

    results = await asyncio.gather(*(flights.run("key", fail) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["nothing here"] * 3
    with pytest.raises(LookupError):
        await flights.run("key", fail)
    assert started == 2
