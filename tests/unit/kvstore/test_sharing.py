"""What a lease keeps, what its end lets go, and what the word sum finds."""

import asyncio
import gc
import mmap
import os
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec.container import Container, parse_header
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.errors import InvalidRequest
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.sharing import SharesMemory, word_sum
from kvloom.kvstore.tier import OwnerId, Record
from kvloom.kvstore.tiered.lending import lend_chunk
from kvloom.kvstore.wrappers.checksum import ChecksumTier

MIB = 1024 * 1024
ALICE, BOB = OwnerId(b"a" * 16), OwnerId(b"b" * 16)
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs sealed memfds")


def owned(number: int, size_bytes: int, owner: OwnerId) -> Record:
    made = make_record(number, size_bytes)
    return Record(made.storage_key, made.content_key, made.payload, made.stored_at_ms, owner)


async def lent(tier, record):
    lease = tier.lease(record.storage_key)
    assert lease is not None
    return lease


@given(st.binary(max_size=200), st.data())
def test_the_word_sum_finds_every_flipped_bit(data, draw):
    assert word_sum(data) == sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)) % 2**64
    if data:
        bit = draw.draw(st.integers(0, 8 * len(data) - 1))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert word_sum(flipped) != word_sum(data)


def test_the_word_sum_does_not_care_where_the_bytes_lie():
    data = Random(1).randbytes(1000)
    for offset in range(9):
        assert word_sum(memoryview(bytes(offset) + data)[offset:]) == word_sum(data)


async def test_a_lease_is_the_record_in_shared_memory():
    tier = MemoryTier(4 * MIB)
    assert isinstance(tier, SharesMemory)
    for number, size_bytes in enumerate((0, 1, 63, 5000, 600_000)):
        record = owned(number, size_bytes, ALICE)
        await tier.put(record)
        lease = await lent(tier, record)
        segment = lease.segment
        shared = mmap.mmap(segment.descriptor, segment.size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        assert shared[lease.offset : lease.offset + size_bytes] == record.payload
        assert (lease.content_key, lease.payload_bytes) == (record.content_key, size_bytes)
        assert lease.word_sum == word_sum(record.payload)
    assert tier.lease(make_record(99, 1).storage_key) is None


async def test_no_two_owners_share_a_segment():
    tier = MemoryTier(4 * MIB)
    whose = {}
    for number in range(400):
        record = owned(number, 3000, (ALICE, BOB)[number % 2])
        await tier.put(record)
        lease = await lent(tier, record)
        assert whose.setdefault(lease.segment, record.owner) == record.owner == lease.segment.owner
        assert lease.segment.owner == record.owner
    assert len(whose) > 4


async def test_what_one_owner_leaves_is_never_filled_by_another():
    tier = MemoryTier(MIB)
    for round_ in range(8):
        owner = (ALICE, BOB)[round_ % 2]
        for number in range(30):
            record = owned(1000 * round_ + number, 3000, owner)
            await tier.put(record)
            lease = await lent(tier, record)
            everything = bytes(lease.segment.view(0, lease.segment.size_bytes))
            for other in range(round_):
                if other % 2 != round_ % 2:
                    for foreign in range(30):
                        assert owned(1000 * other + foreign, 3000, ALICE).payload[:64] not in everything
        for number in range(30):
            await tier.delete(make_record(1000 * round_ + number, 0).storage_key)


async def test_a_lease_keeps_the_bytes_through_eviction_and_its_end_gives_them_back():
    tier = MemoryTier(MIB)
    record = make_record(1, 200_000)
    await tier.put(record)
    lease = await lent(tier, record)
    descriptor, offset = os.dup(lease.segment.descriptor), lease.offset
    await tier.delete(record.storage_key)
    for number in range(2, 60):
        await tier.put(make_record(number, 30_000))
    assert bytes(lease.payload) == record.payload
    assert os.pread(descriptor, 200_000, offset) == record.payload
    assert tier.capacity().used_bytes <= MIB
    segment = lease.segment
    lease.release()
    lease.release()
    tier.capacity()
    assert segment.closed or segment.end_bytes == 0
    os.close(descriptor)


async def test_memory_under_a_released_lease_is_filled_again_and_under_an_abandoned_one_never():
    tier = MemoryTier(4 * MIB)
    used = []
    for number in range(6):
        record = make_record(number, 200_000)
        await tier.put(record)
        lease = await lent(tier, record)
        used.append(lease.segment)
        await tier.delete(record.storage_key)
        (lease.abandon if number >= 3 else lease.release)()
    assert used[0] is used[1] is used[2] is used[3]
    assert len({id(segment) for segment in used[3:]}) == 3
    assert all(segment.closed for segment in used[3:5])


async def test_closing_the_tier_leaves_what_is_leased():
    tier = MemoryTier(MIB)
    record = make_record(1, 50_000)
    await tier.put(record)
    lease = await lent(tier, record)
    await tier.close()
    assert bytes(lease.payload) == record.payload
    descriptor = lease.segment.descriptor
    assert os.pread(descriptor, 50_000, lease.offset) == record.payload
    del lease
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_wrapped_tier_lends_nothing():
    assert not isinstance(ChecksumTier(MemoryTier(MIB)), SharesMemory)


class TestLending:
    """The parts that are lent make, together, the container that an ordinary read gives."""

    @pytest.fixture
    async def tier(self):
        return MemoryTier(4 * MIB)

    async def put(self, tier, container_bytes, levels, *, expires_at_ms=0):
        record = make_record(1, 0)
        data = container_bytes(levels, content_key=record.content_key, layers=4, block_layers=2, segment_bytes=500)
        await tier.put(
            Record(record.storage_key, record.content_key, data, 1, expires_at_ms=expires_at_ms),
        )
        return record, data

    async def lend(self, tier, record, *, level=None, layers=None, now_ms=10, key=None):
        place = record.storage_key
        return lend_chunk(tier, place, key or record.content_key, level=level, layers=layers, now_ms=now_ms)

    @pytest.mark.parametrize("levels", [(EXACT,), (DRAFT, ECONOMY), (DRAFT, ECONOMY, EXACT)])
    @pytest.mark.parametrize("level", [None, DRAFT, ECONOMY, EXACT])
    @pytest.mark.parametrize("layers", [None, range(4), range(1, 2), range(2, 4)])
    async def test_any_part(self, tier, container_bytes, levels, level, layers):
        record, data = await self.put(tier, container_bytes, levels)
        chunk = await self.lend(tier, record, level=level, layers=layers)
        if level is not None and level not in levels:
            assert chunk is None
            return
        parts = [bytes(chunk.lease.payload[item.start : item.stop]) for item in chunk.ranges]
        made = b"".join([chunk.header, *parts])
        assert len(made) == chunk.total_bytes
        container = Container.parse(made, content_key=record.content_key)
        assert container.header.layers == container.header.whole_blocks(layers or range(4))
        assert level is None or level in container.header.levels
        original = Container.parse(data)
        for item in container.header.segments:
            place = (item.level, item.layer, item.kind)
            assert container.segment(*place) == original.segment(*place)
        assert chunk.is_whole == (made == data and not chunk.header)

    async def test_a_lossy_prefix_needs_no_header_of_its_own(self, tier, container_bytes):
        record, data = await self.put(tier, container_bytes, (DRAFT, ECONOMY, EXACT))
        chunk = await self.lend(tier, record, level=ECONOMY)
        assert (chunk.header, len(chunk.ranges), chunk.is_whole) == (b"", 1, False)
        assert chunk.ranges[0].stop == parse_header(data).level_end(ECONOMY)

    async def test_layers_that_are_not_there_are_the_callers_mistake(self, tier, container_bytes):
        record, _ = await self.put(tier, container_bytes, (EXACT,))
        with pytest.raises(InvalidRequest, match="layers 3-4 asked for, the chunk has 0-3"):
            await self.lend(tier, record, layers=range(3, 5))

    async def test_expired_foreign_and_damaged_records_are_left_to_an_ordinary_read(self, tier, container_bytes):
        record, _ = await self.put(tier, container_bytes, (EXACT,), expires_at_ms=11)
        assert await self.lend(tier, record, now_ms=10) is not None
        assert await self.lend(tier, record, now_ms=11) is None
        assert await self.lend(tier, record, key=ContentKey(bytes(32))) is None
        damaged = make_record(2, 500)
        await tier.put(damaged)
        assert await self.lend(tier, damaged, level=EXACT) is None


async def test_leases_and_puts_at_once():
    """Whatever is evicted, compacted and filled again meanwhile, what is leased does not change."""
    tier = MemoryTier(MIB)
    random = Random(5)
    held = []
    for step in range(1500):
        record = make_record(step, random.choice((300, 3000, 20_000)))
        await tier.put(record)
        if random.random() < 0.2 and len(held) < 10:
            held.append((record, await lent(tier, record)))
        if held and random.random() < 0.2:
            old, lease = held.pop(random.randrange(len(held)))
            assert bytes(lease.payload) == old.payload
            (lease.abandon if random.random() < 0.3 else lease.release)()
        if step % 100 == 0:
            await asyncio.sleep(0)
            assert all(word_sum(lease.payload) == lease.word_sum for _, lease in held)
    assert all(bytes(lease.payload) == old.payload for old, lease in held)
