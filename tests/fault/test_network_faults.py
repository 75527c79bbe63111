"""A network store that is down, black-holed, at one byte a second, resetting or answering garbage, behind a real proxy.

The store goes on serving what it has itself, the breaker opens and closes again by itself, and nothing is ever returned
but what was put. How long the breaker took is kept as a property of the test (``--junitxml``), not asserted.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import asynccontextmanager

import pytest
from blake3 import blake3
from network_proxy import Fault, NetworkProxy
from network_servers import S3_BUCKET, MooncakeServers, S3Server, ValkeyServer

from kvloom.codec.level import EXACT
from kvloom.errors import StorageUnavailable
from kvloom.kvstore.key import ContentKey, storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.network import open_network_tier
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Throttled, Unavailable
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore
from kvloom.kvstore.wrappers.breaker import BreakerTier

NAMESPACE = derive_namespace(bytes(32), "faults")
PATIENCE_SECONDS = 60
FAULTS = [fault for fault in Fault if fault is not Fault.NONE]


@pytest.fixture
def proxy_to() -> Iterator[Callable[[int], NetworkProxy]]:
    made: list[NetworkProxy] = []

    def make(port: int) -> NetworkProxy:
        made.append(NetworkProxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@asynccontextmanager
async def store_over(network: BreakerTier, memory: MemoryTier | None = None):
    tiers = [memory or MemoryTier(8 * 1024 * 1024), network]
    store = TieredStore(tiers, clock_ms=lambda: time.time_ns() // 1_000_000)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def until(holds: Callable[[], bool]) -> float:
    """Seconds until ``holds``; the test fails where it never does."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < PATIENCE_SECONDS
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def arrived(network: BreakerTier, keys: Iterable[ContentKey], again: Callable | None = None) -> None:
    """Wait until what was put has been written behind; put it ``again`` where the store may have had no room yet."""
    places = [storage_key(NAMESPACE.secret, key) for key in keys]
    started = time.monotonic()
    while not all(await network.contains_many(places)):
        assert time.monotonic() - started < PATIENCE_SECONDS
        if again is not None:
            await again()
        await asyncio.sleep(0.02)


async def go_through(
    begin: Callable[[], None],
    end: Callable[[], None],
    network: BreakerTier,
    container_bytes,
    record_property,
    *,
    kept: bool = True,
) -> None:
    """One fault from its beginning to its end: see the top of the file."""
    here, far = (ContentKey(blake3(name).digest()) for name in (b"here", b"far"))
    payloads = {key: container_bytes((EXACT,), content_key=key, tokens=64) for key in (here, far)}
    memory = MemoryTier(8 * 1024 * 1024)
    async with store_over(network, memory) as store:
        for key, payload in payloads.items():
            await store.put(NAMESPACE, key, payload, ack=Ack.MEMORY)
        await arrived(network, payloads)
        assert isinstance(await network.get(storage_key(NAMESPACE.secret, far)), Hit)
        await memory.delete(storage_key(NAMESPACE.secret, far))
        await asyncio.to_thread(begin)

        async def read_far() -> None:
            outcome = await store.get(NAMESPACE, far)
            assert isinstance(outcome, Miss | Corrupt | Unavailable | Throttled), outcome

        async with asyncio.TaskGroup() as group:
            group.create_task(read_far())
            record_property("opens_seconds", await until(lambda: network.is_open))
        for _ in range(20):
            outcome = await store.get(NAMESPACE, here)
            assert isinstance(outcome, Hit)
            assert outcome.tier == "memory"
            await read_far()
            assert await store.contains_many(NAMESPACE, [here, far]) == [True, False]
        with pytest.raises(StorageUnavailable, match="breaker open"):
            await network.delete(storage_key(NAMESPACE.secret, far))
        await asyncio.to_thread(end)
        record_property("closes_seconds", await until(lambda: not network.is_open))
        if not kept:
            await arrived(network, [far], lambda: store.put(NAMESPACE, far, payloads[far], ack=Ack.MEMORY))
            await memory.delete(storage_key(NAMESPACE.secret, far))
        outcome = await store.get(NAMESPACE, far)
        assert isinstance(outcome, Hit), outcome
        assert b"".join(bytes(part) for part in outcome.value.parts) == payloads[far]
        if kept:
            assert network.openings == 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_valkey(fault, valkey_server: ValkeyServer, proxy_to, container_bytes, record_property) -> None:
    proxy = proxy_to(valkey_server.port)
    network = open_network_tier(f"valkey://127.0.0.1:{proxy.port}/fault-{fault.name.lower().replace('_', '-')}")
    await go_through(lambda: proxy.set(fault), lambda: proxy.set(Fault.NONE), network, container_bytes, record_property)


@pytest.mark.parametrize("fault", FAULTS)
async def test_s3(fault, s3_server: S3Server, proxy_to, container_bytes, record_property, monkeypatch) -> None:
    proxy = proxy_to(s3_server.process.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    network = open_network_tier(f"s3://{S3_BUCKET}/fault-{fault.name.lower()}")
    await go_through(lambda: proxy.set(fault), lambda: proxy.set(Fault.NONE), network, container_bytes, record_property)


async def test_mooncake_with_a_master_that_is_stopped(own_mooncake: MooncakeServers, container_bytes, record_property):
    master = own_mooncake.master
    await go_through(
        lambda: master.signal(signal.SIGSTOP),
        lambda: master.signal(signal.SIGCONT),
        open_network_tier(own_mooncake.url("stopped")),
        container_bytes,
        record_property,
    )


async def test_mooncake_with_a_master_that_is_killed(own_mooncake: MooncakeServers, container_bytes, record_property):
    """It forgets everything, and the machine that lends its memory has to come back to it."""
    await go_through(
        own_mooncake.master.kill,
        own_mooncake.master.start,
        open_network_tier(own_mooncake.url("killed")),
        container_bytes,
        record_property,
        kept=False,
    )


async def test_a_store_that_was_never_there_costs_nothing_but_itself(container_bytes) -> None:
    network = open_network_tier("valkey://127.0.0.1:9/nobody")
    async with store_over(network) as store:
        key = ContentKey(bytes(32))
        await store.put(NAMESPACE, key, container_bytes((EXACT,), content_key=key), ack=Ack.MEMORY)
        assert isinstance(await store.get(NAMESPACE, key), Hit)
        await until(lambda: network.is_open)
        assert [stored.key async for stored in _listed(store)] == [key]


async def _listed(store: TieredStore):
    try:
        async for stored in store.scan(NAMESPACE):
            yield stored
    except StorageUnavailable:
        return


async def test_cancelled_operations_leave_no_bytes_tasks_or_connections(valkey_server: ValkeyServer) -> None:
    from kvloom.kvstore import network_limits as limits
    from kvloom.kvstore.conformance.tier import make_record
    from kvloom.kvstore.network import guarded, parse_network
    from kvloom.kvstore.network.valkey import ValkeyTier
    from kvloom.kvstore.wrappers.breaker import BreakerPolicy
    from kvloom.kvstore.wrappers.retry import RetryPolicy
    from kvloom.kvstore.wrappers.throttle import InflightBytes

    inflight = InflightBytes(4 * 1024 * 1024)
    bare = ValkeyTier(parse_network(f"valkey://127.0.0.1:{valkey_server.port}/cancelled"), inflight=inflight)
    tier = guarded(bare, inflight, RetryPolicy(30.0), BreakerPolicy(stall_seconds=20.0, ping_seconds=20.0))
    record = make_record(1, 300_000)
    await tier.put(record)
    calls = (
        lambda: tier.get(record.storage_key),
        lambda: tier.put(record),
        lambda: tier.contains_many([record.storage_key]),
    )
    before = len(asyncio.all_tasks())
    for turn in range(1000):
        task = asyncio.ensure_future(calls[turn % 3]())
        for _ in range(turn % 17):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert inflight.held_bytes == 0
    assert len(asyncio.all_tasks()) == before
    (node,) = bare._nodes._nodes.values()
    assert len(node._idle) <= limits.VALKEY_CONNECTIONS_MAX
    found = await tier.get(record.storage_key)
    assert isinstance(found, Hit)
    assert found.value.parts[0] == record.payload
    await tier.close()
