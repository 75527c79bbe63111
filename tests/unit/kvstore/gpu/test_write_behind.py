"""What waits to be stored: bounded, in order, and given up when there is no time left."""

import asyncio

import pytest

from kvloom.errors import DaemonUnavailable, Overloaded
from kvloom.kvstore.gpu.source import Encoding
from kvloom.kvstore.gpu.write_behind import WriteBehind


class Lease:
    released = 0

    def release(self):
        self.released += 1


class Store:
    def __init__(self):
        self.stored = []
        self.open = asyncio.Event()
        self.error = None

    async def __call__(self, lease, encoding):
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.stored.append(lease)


async def test_more_than_may_wait_is_refused_but_one_is_always_let_in():
    store = Store()
    queue = WriteBehind(store, bytes_max=10)
    await queue.reserve(50, seconds_max=0.0)
    with pytest.raises(Overloaded, match="50 bytes of the pool wait to be stored, 10 may"):
        await queue.reserve(1, seconds_max=0.0)
    waiting = asyncio.create_task(queue.reserve(1))
    cancelled = asyncio.create_task(queue.reserve(1))
    await asyncio.sleep(0)
    cancelled.cancel()
    lease = Lease()
    queue.add(lease, Encoding(), 50)
    store.open.set()
    await waiting
    assert (queue.dirty_bytes, queue.stored, lease.released) == (1, 1, 1)


async def test_what_cannot_be_stored_is_let_go_of():
    store, leases = Store(), [Lease(), Lease()]
    store.error = DaemonUnavailable("away")
    store.open.set()
    queue = WriteBehind(store, bytes_max=10)
    for lease in leases:
        await queue.reserve(5)
        queue.add(lease, Encoding(), 5)
    await queue.drained()
    assert (queue.failures, queue.dirty_bytes) == (2, 0)
    assert [lease.released for lease in leases] == [1, 1]


async def test_closing_gives_up_what_would_take_too_long():
    store, leases = Store(), [Lease() for _ in range(3)]
    queue = WriteBehind(store, bytes_max=100)
    for lease in leases:
        await queue.reserve(5)
        queue.add(lease, Encoding(), 5)
    await asyncio.sleep(0)
    assert await queue.close(seconds_max=0.0) == 3
    assert [lease.released for lease in leases] == [1, 1, 1]
    assert queue.failures == 3
