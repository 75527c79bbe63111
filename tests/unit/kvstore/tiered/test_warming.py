"""What was in memory is in memory again: as far as it is stored, and pushes nothing else out."""

import os

import pytest

from kvloom import limits
from kvloom.codec.level import EXACT
from kvloom.errors import InvalidData
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore
from kvloom.kvstore.tiered.warming import Resident, decode_residents, encode_residents

MIB = 1024**2
ME = derive_namespace(bytes(32), "default")
NOW_MS = [1000]


@pytest.fixture
async def opened(tmp_path):
    """A function that opens a store over the same disk, with a memory of its own."""
    NOW_MS[0] = 1000
    stores = []

    async def opened(memory_bytes=8 * MIB):
        memory, ssd = MemoryTier(memory_bytes), SsdTier.open(tmp_path, 32 * MIB)
        store = TieredStore([memory, ssd], clock_ms=lambda: NOW_MS[0])
        stores.append(store)
        await store.start()
        return store, memory

    yield opened
    for store in stores:
        await store.close()


async def put(store, container_bytes, count=10, **options):
    keys = [os.urandom(32) for _ in range(count)]
    for key in keys:
        data = container_bytes([EXACT], content_key=key, segment_bytes=20_000, seed=key[0])
        await store.put(ME, key, data, ack=Ack.DISK, **options)
    return keys


async def test_a_new_store_has_in_memory_what_the_old_one_had(opened, container_bytes):
    first, _ = await opened()
    keys = await put(first, container_bytes)
    residents = await first.warming.residents()
    assert {item.content_key for item in residents} == set(keys)
    await first.close()
    second, memory = await opened()
    assert await second.warming.fill(residents) == len(keys)
    await second.settled()
    assert await memory.contains_many([item.storage_key for item in residents]) == [True] * len(keys)
    for key in keys:
        found = await second.get(ME, key)
        assert isinstance(found, Hit)
        assert found.tier == "memory"
    assert await second.warming.fill(residents) == 0  # all there


async def test_what_was_deleted_or_has_expired_does_not_come_back(opened, container_bytes):
    first, _ = await opened()
    kept, gone = await put(first, container_bytes, 2), await put(first, container_bytes, 2)
    late = await put(first, container_bytes, 2, ttl_seconds=10)
    residents = await first.warming.residents()
    for key in gone:
        await first.delete(ME, key)
    await first.close()
    NOW_MS[0] += 20_000
    second, _ = await opened()
    await second.warming.fill(residents)
    await second.settled()
    there = [item.content_key for item in await second.warming.residents()]
    assert set(there) == set(kept)
    assert not set(late) & set(there)


async def test_a_smaller_memory_is_filled_and_nothing_is_pushed_out(opened, container_bytes):
    first, _ = await opened(16 * MIB)
    keys = await put(first, container_bytes, 150)
    residents = await first.warming.residents()
    await first.close()
    second, memory = await opened(8 * MIB)
    used = await put(second, container_bytes, 3)
    await second.warming.fill(residents)
    await second.settled()
    there = {item.content_key for item in await second.warming.residents()}
    assert set(used) <= there
    assert len(keys) > len(there) - len(used) > 50
    assert memory.capacity().evictions == 0


async def test_memory_alone_has_nothing_to_be_warmed_from(container_bytes):
    store = TieredStore([MemoryTier(MIB)], clock_ms=lambda: 1)
    await store.start()
    assert await store.warming.fill([Resident(os.urandom(32), os.urandom(32))]) == 0
    await store.close()


def test_the_note_says_what_was_written_and_nothing_else_is_believed(monkeypatch, rng):
    residents = [Resident(os.urandom(32), os.urandom(32)) for _ in range(3)]
    data = encode_residents(residents)
    assert decode_residents(data) == residents
    assert decode_residents(encode_residents([])) == []
    for bit in rng.integers(8 * len(data), size=50):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidData):
            decode_residents(bytes(damaged))
    for cut in (0, 5, 32, 64, len(data) - 1):
        with pytest.raises(InvalidData, match=f"{cut} bytes"):
            decode_residents(data[:cut])
    monkeypatch.setattr(limits, "WARM_RECORDS_MAX", 2)
    assert decode_residents(encode_residents(residents)) == residents[:2]
