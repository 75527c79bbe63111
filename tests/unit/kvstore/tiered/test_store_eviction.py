"""What a put says of a chunk's place among prefixes reaches the eviction policy of every tier, and survives the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from kvloom.codec.level import DRAFT, EXACT
from kvloom.kvstore.attributes import ChunkAttributes
from kvloom.kvstore.conformance.base import make_record
from kvloom.kvstore.eviction import POLICIES, EvictionPolicy, make_policy
from kvloom.kvstore.key import ContentKey, StorageKey, storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.quota import QuotaPolicy
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack, Tier
from kvloom.kvstore.tiered.store import TieredStore
from kvloom.kvstore.wrappers.checksum import ChecksumTier

MIB = 1024 * 1024
TOKENS = 256
Make = Callable[..., Any]


def key_of(name: str) -> ContentKey:
    return ContentKey(blake3(name.encode()).digest())


async def infos(tier: Tier) -> dict[StorageKey, ChunkAttributes]:
    return {info.storage_key: info.attributes async for info in tier.scan()}


def per_owner(name: str) -> QuotaPolicy:
    return QuotaPolicy(lambda: make_policy(name))


async def converse(
    store: TieredStore, namespace: Namespace, container_bytes: Make, tiers: tuple[Tier, ...]
) -> list[int]:
    """Forty conversations of eight chunks behind two that all share, each put front to back.

    For each tier the most chunks that it has held without their parents, looked at after every conversation.
    """
    most = [0] * len(tiers)
    for conversation in range(40):
        names = ["system 0", "system 1", *(f"{conversation} turn {turn}" for turn in range(8))]
        before: ContentKey | None = None
        for place, name in enumerate(names):
            key = key_of(name)
            if not (await store.contains_many(namespace, [key]))[0]:
                data = container_bytes(
                    [EXACT], content_key=key, tokens=TOKENS, first_position=place * TOKENS, segment_bytes=20_000
                )
                await store.put(namespace, key, data, ack=Ack.DISK, parent=before)
            before = key
        most = [max(seen, orphans(await infos(tier))) for seen, tier in zip(most, tiers, strict=True)]
    return most


def orphans(held: dict[StorageKey, ChunkAttributes]) -> int:
    return sum(item.parent is not None and item.parent not in held for item in held.values())


async def test_leaves_are_given_up_before_their_parents_in_every_tier(
    tmp_path: Path, namespace: Namespace, running: Make, container_bytes: Make
) -> None:
    memory = MemoryTier(4 * MIB, policy=per_owner("gittins"))
    disk = SsdTier.open(tmp_path, 12 * MIB, policy=per_owner("gittins"))
    async with running(memory, disk) as store:
        assert await converse(store, namespace, container_bytes, (memory, disk)) == [0, 0]
        for tier in (memory, disk):
            assert tier.capacity().evictions > 20
            held = await infos(tier)
            assert len(held) > 20
            roots = [storage_key(namespace.secret, key_of(f"system {number}")) for number in range(2)]
            assert [held[root] for root in roots] == [
                ChunkAttributes(None, 0, TOKENS),
                ChunkAttributes(roots[0], TOKENS, TOKENS),
            ]


async def test_an_lru_leaves_chunks_without_their_parents(
    tmp_path: Path, namespace: Namespace, running: Make, container_bytes: Make
) -> None:
    """The test above can fail."""
    memory = MemoryTier(4 * MIB, policy=per_owner("lru"))
    disk = SsdTier.open(tmp_path, 12 * MIB, policy=per_owner("lru"))
    async with running(memory, disk) as store:
        assert min(await converse(store, namespace, container_bytes, (memory, disk))) > 0


async def test_attributes_come_back_with_the_disk_and_up_to_memory_again(
    tmp_path: Path, namespace: Namespace, running: Make, container_bytes: Make
) -> None:
    key, before = key_of("turn"), key_of("system")
    wanted = ChunkAttributes(storage_key(namespace.secret, before), 3 * TOKENS, TOKENS)
    place = storage_key(namespace.secret, key)
    data = container_bytes([EXACT], content_key=key, tokens=TOKENS, first_position=3 * TOKENS)
    async with running(ChecksumTier(SsdTier.open(tmp_path, 8 * MIB))) as store:
        await store.put(namespace, key, data, ack=Ack.MEMORY, parent=before)
    memory = MemoryTier(4 * MIB)
    disk = ChecksumTier(SsdTier.open(tmp_path, 8 * MIB, policy=per_owner("gittins")))
    async with running(memory, disk) as store:
        assert (await infos(disk)) == {place: wanted}
        assert isinstance(await store.get(namespace, key), Hit)
        await store.settled()
        assert (await infos(memory)) == {place: wanted}


async def test_a_put_that_knows_no_parent_does_not_take_away_a_known_one(
    namespace: Namespace, running: Make, container_bytes: Make
) -> None:
    key, before = key_of("turn"), key_of("system")
    memory = MemoryTier(4 * MIB)
    async with running(memory) as store:
        for level, parent in ((EXACT, before), (DRAFT, None)):
            data = container_bytes([level], content_key=key, tokens=TOKENS)
            await store.put(namespace, key, data, ack=Ack.MEMORY, parent=parent)
        (held,) = (await infos(memory)).values()
        assert held.parent == storage_key(namespace.secret, before)


@pytest.mark.parametrize("name", POLICIES)
async def test_parents_that_are_bogus_or_in_a_circle_do_no_harm(
    name: str, tmp_path: Path, namespace: Namespace, running: Make, container_bytes: Make
) -> None:
    """Three of four chunks stand behind one another in circles, are their own parent, or behind one never stored."""
    memory = MemoryTier(4 * MIB, policy=per_owner(name))
    disk = SsdTier.open(tmp_path, 8 * MIB, policy=per_owner(name))
    parent_of = (lambda n: f"{n ^ 1}", lambda n: f"{n}", lambda n: f"never {n}", lambda n: f"{n - 3}")
    async with running(memory, disk) as store:
        for number in range(400):
            key, parent = key_of(f"{number}"), key_of(parent_of[number // 2 % 4](number))
            data = container_bytes([EXACT], content_key=key, tokens=TOKENS, seed=number, segment_bytes=20_000)
            await store.put(namespace, key, data, ack=Ack.DISK, parent=parent)
            assert isinstance(await store.get(namespace, key), Hit)
        for tier in (memory, disk):
            capacity = tier.capacity()
            assert capacity.evictions > 0
            assert capacity.used_bytes <= capacity.limit_bytes
            assert capacity.eviction == name
        for number in range(400):
            await store.delete(namespace, key_of(f"{number}"))
        assert [tier.capacity().records for tier in (memory, disk)] == [0, 0]


async def test_what_a_memory_tier_evicted_is_remembered() -> None:
    """The policy is told of an eviction once, as one: a deletion on top of it would wipe its memory."""
    policy: EvictionPolicy = make_policy("gittins")
    memory = MemoryTier(4 * MIB, policy=policy)
    for number in range(200):
        await memory.put(make_record(number, 50_000))
    assert memory.capacity().evictions > 50
    assert policy.remembered > 50  # type: ignore[attr-defined]
    await memory.close()
