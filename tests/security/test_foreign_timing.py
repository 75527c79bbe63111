"""What the clock tells of another tenant's chunk: as much as of one that is not there.

Requests for foreign and absent keys are interleaved in random order over one connection, and their times compared by
rank (Mann-Whitney): the share of pairs in which the foreign one took longer is 0.5 where nobody can tell. The bound is
4.5 standard deviations of that share, so chance fails the test once in 150,000 runs. That the test can see anything is
shown with a daemon that is made to leak: one more look-up for what is stored under any tenant is found out.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
import pytest

from kvloom.codec.level import EXACT
from kvloom.daemon.caller import Caller
from kvloom.errors import NotFound
from kvloom.kvstore.tier import Ack

REQUESTS = 1200
"""Of each kind."""
DEVIATIONS_MAX = 4.5


@dataclass(frozen=True)
class Comparison:
    """``share`` of the pairs in which the foreign key took longer, and by how many ``deviations`` that is off 0.5."""

    share: float
    deviations: float
    foreign_us: float
    absent_us: float

    @classmethod
    def of(cls, foreign: np.ndarray, absent: np.ndarray) -> "Comparison":
        count, other = len(foreign), len(absent)
        _, place, ties = np.unique(np.concatenate([foreign, absent]), return_inverse=True, return_counts=True)
        ranks = (np.cumsum(ties) - (ties - 1) / 2)[place]  # equal times share their ranks
        share = (ranks[:count].sum() - count * (count + 1) / 2) / (count * other)
        deviation = np.sqrt((count + other + 1) / (12 * count * other))
        medians = (float(np.median(times) * 1e6) for times in (foreign, absent))
        return cls(float(share), float((share - 0.5) / deviation), *medians)


async def compare(ask: Callable[[bytes], Awaitable[None]], foreign: list[bytes], rng) -> Comparison:
    """Time ``ask`` for foreign and for absent keys in random order."""
    absent = [rng.bytes(32) for _ in foreign]
    keys = [*foreign, *absent]
    times = np.zeros(len(keys))
    for key in absent[:50]:
        await ask(key[::-1])  # what is made at the first request
    for index in rng.permutation(len(keys)):
        key = keys[index]
        started = time.perf_counter()
        await ask(key)
        times[index] = time.perf_counter() - started
    return Comparison.of(times[: len(foreign)], times[len(foreign) :])


@pytest.fixture
async def stored(edge, container_bytes, rng):
    """Keys of chunks of another tenant."""
    theirs = Caller(edge.running.authenticator.tenants.namespace("theirs"), edge.me.scopes)
    keys = [rng.bytes(32) for _ in range(REQUESTS)]
    for key in keys:
        await edge.running.service.put(theirs, key, container_bytes([EXACT], content_key=key), ack=Ack.MEMORY)
    return keys


@pytest.fixture(params=["get", "exists", "http"])
async def ask(request, edge):
    """One way to ask for a key that is not there."""
    service = edge.running.service
    mine = Caller(edge.running.authenticator.tenants.namespace("mine"), edge.me.scopes)
    if request.param == "get":

        async def get(key):
            with pytest.raises(NotFound):
                async with service.reading(mine, key):
                    pass

        yield get
        return
    if request.param == "exists":

        async def exists(key):
            assert await service.exists(mine, [key]) == [False]

        yield exists
        return
    made = await edge.grant("mine")
    reader, writer = await edge.connect()

    async def http(key):
        head = f"GET /chunks/{key.hex()} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {made.text}\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        await reader.readuntil(b"}")

    yield http
    writer.close()


async def test_a_foreign_key_takes_as_long_as_an_absent_one(ask, stored, rng, record_property):
    found = await compare(ask, stored, rng)
    record_property("comparison", str(found))
    assert abs(found.deviations) < DEVIATIONS_MAX, found


async def test_one_look_up_more_would_be_found_out(ask, stored, rng, edge, monkeypatch, record_property):
    """The leak: a daemon that looks whether some tenant has the key, and then looks once more."""
    store = edge.running.service._store
    theirs = edge.running.authenticator.tenants.namespace("theirs")
    known = set(stored)
    for name in ("get", "contains_many"):
        original = getattr(store, name)

        async def leaking(namespace, keys, original=original, **options):
            if (keys if isinstance(keys, bytes) else keys[0]) in known:
                await store.stored(theirs, keys if isinstance(keys, bytes) else keys[0])
            return await original(namespace, keys, **options)

        monkeypatch.setattr(store, name, leaking)
    found = await compare(ask, stored, rng)
    record_property("comparison", str(found))
    assert found.deviations > DEVIATIONS_MAX, found
