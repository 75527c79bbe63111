"""What an observer is told of the tiers, against what the tiers hold."""

import asyncio

import pytest

from kvloom.codec.level import EXACT
from kvloom.kvstore.key import storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.stats import StoreObserver
from kvloom.kvstore.tiered.store import TieredStore

MIB = 1024 * 1024


class Mirror(StoreObserver):
    """Holds what it was told that the tiers hold."""

    def __init__(self):
        self.held = {"memory": set(), "ssd": set()}
        self.names = {}
        self.parents = {}
        self.reads = []

    def on_read(self, tier, size_bytes, seconds, concurrent):
        assert seconds > 0
        self.reads.append((tier, size_bytes, concurrent))

    def on_named(self, key, content_key):
        self.parents[key] = content_key

    def on_stored(self, tier, info):
        self.held[tier].add(info.storage_key)
        self.names[info.storage_key] = info.content_key

    def on_removed(self, tier, key):
        assert asyncio.get_running_loop()
        self.held[tier].discard(key)


@pytest.fixture
def mirror():
    return Mirror()


@pytest.fixture
async def tiers(tmp_path):
    return MemoryTier(2 * MIB), SsdTier.open(tmp_path / "chunks", 8 * MIB)


@pytest.fixture
async def store(tiers, mirror, clock):
    store = TieredStore(tiers, clock_ms=clock, observer=mirror)
    await store.start()
    yield store
    await store.close()


async def held(tier):
    return {info.storage_key async for info in tier.scan()}


async def agree(mirror, tiers):
    await asyncio.sleep(0)  # what the writer's thread said is on its way
    for tier in tiers:
        assert mirror.held[tier.name] == await held(tier), tier.name


async def test_the_observer_knows_what_the_tiers_hold(store, mirror, tiers, namespace, chunk, clock):
    for number in range(200):
        item = chunk(number, (EXACT,), segment_bytes=60_000)
        await store.put(namespace, item.key, item.payload, ack=Ack.DISK if number % 3 else Ack.MEMORY)
    await store.flush()
    await agree(mirror, tiers)
    evicted = [tier.capacity().evictions for tier in tiers]
    assert all(evicted), evicted
    assert mirror.names[storage_key(namespace.secret, item.key)] == item.key
    assert await store.delete(namespace, item.key)
    await agree(mirror, tiers)
    await store.get(namespace, chunk(150, (EXACT,), segment_bytes=60_000).key)
    await store.settled()
    await agree(mirror, tiers)
    await store.delete_namespace(namespace)
    await agree(mirror, tiers)
    assert mirror.held == {"memory": set(), "ssd": set()}


async def test_what_expires_is_removed(store, mirror, tiers, namespace, chunk, clock):
    item = chunk(1)
    await store.put(namespace, item.key, item.payload, ack=Ack.DISK, ttl_seconds=5)
    assert mirror.held["memory"] == mirror.held["ssd"] == await held(tiers[1])
    clock.advance(6)
    await store.keep_up()
    await agree(mirror, tiers)
    assert not mirror.held["ssd"]


async def test_a_put_names_its_parent(store, mirror, namespace, chunk):
    first, second = chunk(1), chunk(2)
    await store.put(namespace, second.key, second.payload, ack=Ack.MEMORY, parent=first.key)
    assert mirror.parents == {storage_key(namespace.secret, first.key): first.key}


async def test_what_is_written_behind_is_counted_in_bytes(store, namespace, chunk):
    item = chunk(1)
    await store.put(namespace, item.key, item.payload, ack=Ack.MEMORY)
    await store.flush()
    (stage,) = store.stats().stages
    assert (stage.written, stage.written_bytes) == (1, len(item.payload))


async def test_reads_that_were_answered_are_told_with_their_tier_and_size(store, tiers, mirror, namespace, chunk):
    item = chunk(1, (EXACT,))
    key, data = item.key, item.payload
    await store.get(namespace, key)
    assert mirror.reads == []
    await store.put(namespace, key, data, ack=Ack.DISK)
    await store.get(namespace, key, layers=range(1))
    ((tier, size_bytes, concurrent),) = mirror.reads
    assert (tier, concurrent) == ("memory", 1)
    assert 0 < size_bytes < len(data)
    await tiers[0].delete(storage_key(namespace.secret, key))
    await store.get(namespace, key, layers=range(2))
    assert mirror.reads[1][0] == "ssd"
    assert mirror.reads[1][1] > size_bytes


async def test_the_nearest_tier_is_the_one_a_read_finds_it_in(store, tiers, namespace, chunk):
    item = chunk(1, (EXACT,))
    key = item.key
    assert await store.nearest(namespace, [key]) == [None]
    await store.put(namespace, key, item.payload, ack=Ack.DISK)
    assert await store.nearest(namespace, [bytes(32), key]) == [None, "memory"]
    await tiers[0].delete(storage_key(namespace.secret, key))
    assert await store.nearest(namespace, [key]) == ["ssd"]
