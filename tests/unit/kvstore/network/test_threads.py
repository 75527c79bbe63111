"""Blocking calls on threads: results, failures, and calls that never come back."""

import asyncio
import threading

import pytest

from kvloom.kvstore.network.threads import BlockingCalls


async def test_a_call_gives_its_result_or_its_failure():
    calls = BlockingCalls(2, name="test")
    assert await asyncio.gather(*(calls.run(lambda number=number: number) for number in range(50))) == list(range(50))
    with pytest.raises(ZeroDivisionError):
        await calls.run(lambda: 1 // 0)
    assert await calls.run(lambda: 7) == 7
    calls.stop()


async def test_a_call_that_hangs_keeps_one_thread_and_the_others_go_on():
    calls = BlockingCalls(2, name="test")
    stuck = threading.Event()
    hanging = asyncio.ensure_future(calls.run(lambda: stuck.wait(60)))
    assert [await calls.run(lambda: 1) for _ in range(5)] == [1] * 5
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert await calls.run(lambda: 2) == 2
    stuck.set()
    calls.stop()


async def test_a_call_cancelled_before_its_turn_is_not_made():
    calls = BlockingCalls(1, name="test")
    stuck, made = threading.Event(), []
    first = asyncio.ensure_future(calls.run(lambda: stuck.wait(60)))
    second = asyncio.ensure_future(calls.run(lambda: made.append(1)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    stuck.set()
    assert await first
    await calls.run(lambda: None)
    assert made == []
    calls.stop()


async def test_no_more_threads_are_made_than_are_needed():
    calls = BlockingCalls(8, name="few")
    for _ in range(20):
        await calls.run(lambda: None)
    assert sum(thread.name.startswith("few-") for thread in threading.enumerate()) <= 2
    calls.stop()
