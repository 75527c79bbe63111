"""Whole reads out of memory go by the word sum: they give what a disk gives, and no flipped bit gets through."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvloom.codec.container import Container, parse_header
from kvloom.codec.level import ECONOMY
from kvloom.kvstore.key import StorageKey, storage_key
from kvloom.kvstore.memory.resident import HEADER_BYTES
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace
from kvloom.kvstore.outcome import Corrupt, Hit, Miss
from kvloom.kvstore.sharing import word_sum
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered import chunk_reader
from kvloom.kvstore.tiered.admission import AdmissionRule
from kvloom.kvstore.tiered.rules import StoreRules

MIB = 1024 * 1024
Make = Callable[..., Any]
WORD_SUM_FROM, CONTENT_KEY_FROM = -8, -HEADER_BYTES
"""Where they begin, counted from the payload."""


def flip(memory: MemoryTier, place: StorageKey, position: int, bit: int = 0) -> None:
    """Damage one bit of what lies in memory, ``position`` bytes behind the start of the payload."""
    lease = memory.lease(place)
    assert lease is not None
    segment, offset = lease.segment, lease.offset
    lease.release()
    with segment.writable(offset + position, 1) as byte:
        byte[0] ^= 1 << bit


@pytest.fixture(params=[0, 8 * MIB], ids=["summed in a thread", "summed at once"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MemoryTier:
    monkeypatch.setattr(chunk_reader, "_SUM_HERE_BYTES_MAX", request.param)
    return MemoryTier(4 * MIB)


@pytest.mark.parametrize("place", ["payload", "container header", "word sum", "content key"])
@pytest.mark.parametrize("bit", [0, 7])
async def test_a_bit_flipped_in_memory_is_noticed_and_the_disk_answers(
    running: Make, memory: MemoryTier, namespace: Namespace, chunk: Make, tmp_path: Path, place: str, bit: int
) -> None:
    one = chunk(1, segment_bytes=1000)
    header_bytes = parse_header(one.payload).header_bytes
    positions = {
        "payload": [header_bytes, (header_bytes + len(one.payload)) // 2, len(one.payload) - 1],
        "container header": [0, 40, 100, header_bytes - 1],
        "word sum": [WORD_SUM_FROM, -1],
        "content key": [CONTENT_KEY_FROM, CONTENT_KEY_FROM + 31],
    }[place]
    where = storage_key(namespace.secret, one.key)
    async with running(memory, SsdTier.open(tmp_path, 8 * MIB)) as store:
        for count, position in enumerate(positions, start=1):
            await store.put(namespace, one.key, one.payload, ack=Ack.DISK)
            flip(memory, where, position, bit)
            outcome = await store.get(namespace, one.key)
            assert isinstance(outcome, Hit)
            assert outcome.tier == "ssd"
            assert b"".join(outcome.value.parts) == one.payload
            assert [tier.corrupt for tier in store.stats().tiers] == [count, 0]
            await store.settled()
            again = await store.get(namespace, one.key)
            assert isinstance(again, Hit)
            assert b"".join(again.value.parts) == one.payload


async def test_what_a_caller_verifies_is_not_verified_here_and_copied_nowhere_unread(
    running: Make, memory: MemoryTier, namespace: Namespace, chunk: Make, tmp_path: Path
) -> None:
    one = chunk(1, segment_bytes=1000)
    where = storage_key(namespace.secret, one.key)
    async with running(
        memory, SsdTier.open(tmp_path, 8 * MIB), rules=StoreRules(admission=AdmissionRule.SECOND_USE)
    ) as store:
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
        flip(memory, where, len(one.payload) - 1)
        for _ in range(3):
            outcome = await store.get(namespace, one.key, caller_verifies=True)
            if not isinstance(outcome, Hit):
                break
            assert not outcome.value.is_verified
            assert outcome.value.word_sum is not None
            assert word_sum(b"".join(outcome.value.parts)) != outcome.value.word_sum
            await store.settled()
        assert not isinstance(await store.get(namespace, one.key), Hit)
        await store.settled()
        assert await store.get(namespace, one.key) == Miss()


async def test_damage_to_the_only_copy_is_corrupt_then_a_miss(
    running: Make, memory: MemoryTier, namespace: Namespace, chunk: Make
) -> None:
    one = chunk(1, segment_bytes=1000)
    async with running(memory) as store:
        await store.put(namespace, one.key, one.payload, ack=Ack.MEMORY)
        assert isinstance(await store.get(namespace, one.key), Hit)  # its header is known from here on
        flip(memory, storage_key(namespace.secret, one.key), len(one.payload) // 2)
        outcomes = await asyncio.gather(*(store.get(namespace, one.key) for _ in range(3)))
        assert all(isinstance(outcome, Corrupt | Miss) for outcome in outcomes)
        assert any(isinstance(outcome, Corrupt) for outcome in outcomes)
        assert await store.get(namespace, one.key) == Miss()


@pytest.mark.parametrize("cut", [False, True])
async def test_memory_gives_the_parts_that_a_disk_gives(
    running: Make, memory: MemoryTier, namespace: Namespace, chunk: Make, tmp_path: Path, cut: bool
) -> None:
    """Cut: a prefix of a container that ends with a level, whose header is written anew for whoever reads it."""
    one = chunk(1, segment_bytes=1000)
    whole = parse_header(one.payload)
    payload = one.payload[: whole.level_end(ECONOMY)] if cut else one.payload
    found = []
    for tier in (memory, SsdTier.open(tmp_path, 8 * MIB)):
        async with running(tier) as store:
            await store.put(namespace, one.key, payload, ack=Ack.DISK if tier.durable else Ack.MEMORY)
            outcome = await store.get(namespace, one.key)
            assert isinstance(outcome, Hit)
            found.append([bytes(part) for part in outcome.value.parts])
            assert outcome.value.header == parse_header(found[-1][0])
            assert Container.parse(b"".join(found[-1]), content_key=one.key).header == outcome.value.header
    assert found[0] == found[1]
