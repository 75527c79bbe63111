"""Pins, quotas and counters: what one tenant does is bounded and does not touch another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvloom import limits
from kvloom.errors import ConfigError, InvalidRequest, StorageFull
from kvloom.kvstore.key import storage_key
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import Namespace, derive_namespace
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.quota import Quota, QuotaPolicy, Quotas
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack, Tier
from kvloom.kvstore.tiered.pins import LeaseId
from kvloom.kvstore.tiered.store import TieredStore
from kvloom.kvstore.wrappers.checksum import ChecksumTier
from kvloom.kvstore.wrappers.fault import FaultTier, NoFaults

MIB = 1024 * 1024
Make = Callable[..., Any]
ALICE, BOB = (derive_namespace(bytes(32), name) for name in ("alice", "bob"))


def memory(directory: Path, quotas: Quotas | None = None) -> Tier:
    return MemoryTier(MIB, policy=QuotaPolicy(quotas=quotas))


def ssd(directory: Path, quotas: Quotas | None = None) -> Tier:
    return SsdTier.open(directory, 2 * MIB, policy=QuotaPolicy(quotas=quotas))


def wrapped(directory: Path, quotas: Quotas | None = None) -> Tier:
    return ChecksumTier(FaultTier(MemoryTier(MIB, policy=QuotaPolicy(quotas=quotas)), NoFaults()))


KINDS = pytest.mark.parametrize("make_tier", [memory, ssd, wrapped])


def ack_of(tier: Tier) -> Ack:
    return Ack.DISK if tier.durable else Ack.MEMORY


async def fill(store: TieredStore, namespace: Namespace, chunk: Make, ack: Ack, numbers: range) -> None:
    for number in numbers:
        one = chunk(number, segment_bytes=4000)
        await store.put(namespace, one.key, one.payload, ack=ack)


@KINDS
async def test_pinned_chunks_outlive_churn_until_their_lease_ends(
    running: Make, tmp_path: Path, chunk: Make, clock: Any, make_tier: Make
) -> None:
    tier = make_tier(tmp_path)
    chunks = [chunk(number, segment_bytes=4000) for number in range(6)]
    keys = [one.key for one in chunks]
    async with running(tier, clock_ms=clock) as store:
        for one in chunks:
            await store.put(ALICE, one.key, one.payload, ack=ack_of(tier))
        pinned = await store.pin(ALICE, [*keys[:3], chunk(99).key], lease_seconds=60)
        assert pinned.pinned == (True, True, True, False)
        assert pinned.until_ms == clock.now_ms + 60_000
        stats = store.stats()
        assert (stats.pinned, stats.leases) == (3, 1)
        assert stats.pinned_bytes == sum(len(one.payload) for one in chunks[:3])
        for turn in range(1, 4):
            await fill(store, ALICE if turn % 2 else BOB, chunk, ack_of(tier), range(100 * turn, 100 * turn + 90))
            assert await store.contains_many(ALICE, keys) == [True] * 3 + [False] * 3
        clock.advance(60)
        await fill(store, ALICE, chunk, ack_of(tier), range(1000, 1090))
        assert await store.contains_many(ALICE, keys) == [False] * 6
        await store.keep_up()
        assert (store.stats().pinned, store.stats().leases, store.stats().pinned_bytes) == (0, 0, 0)


@KINDS
async def test_a_released_lease_protects_no_longer(running: Make, tmp_path: Path, chunk: Make, make_tier: Make) -> None:
    tier = make_tier(tmp_path)
    one = chunk(1, segment_bytes=4000)
    async with running(tier) as store:
        await store.put(ALICE, one.key, one.payload, ack=ack_of(tier))
        pinned = await store.pin(ALICE, [one.key], lease_seconds=60)
        assert not store.release(BOB, pinned.lease)
        assert not store.release(ALICE, LeaseId(bytes(16)))
        assert store.release(ALICE, pinned.lease)
        assert not store.release(ALICE, pinned.lease)
        await fill(store, ALICE, chunk, ack_of(tier), range(100, 190))
        assert await store.contains_many(ALICE, [one.key]) == [False]


async def test_pins_are_bounded_by_a_share_of_the_quota_and_a_refusal_pins_nothing(
    running: Make, tmp_path: Path, chunk: Make
) -> None:
    quotas = Quotas(by_owner={ALICE.owner: Quota(limit_bytes=80_000)})
    chunks = [chunk(number, segment_bytes=2000) for number in range(6)]
    keys = [one.key for one in chunks]
    async with running(memory(tmp_path, quotas)) as store:
        for one in chunks:
            await store.put(ALICE, one.key, one.payload, ack=Ack.MEMORY)
            await store.put(BOB, one.key, one.payload, ack=Ack.MEMORY)
        assert sum(len(one.payload) for one in chunks) > 20_000
        with pytest.raises(StorageFull, match="the limit is 20000"):
            await store.pin(ALICE, keys, lease_seconds=60)
        assert store.stats().pinned == 0
        await store.pin(ALICE, keys[:1], lease_seconds=60)
        await store.pin(BOB, keys, lease_seconds=60)  # Bob has no quota: a quarter of the tier


async def test_a_pin_of_another_tenants_chunk_is_one_of_an_absent_chunk(running: Make, fast: Any, chunk: Make) -> None:
    one = chunk(1)
    async with running(fast) as store:
        await store.put(ALICE, one.key, one.payload, ack=Ack.MEMORY)
        assert (await store.pin(BOB, [one.key, chunk(2).key], lease_seconds=1)).pinned == (False, False)
        assert store.stats().pinned == 0


async def test_a_deleted_chunk_is_not_pinned(running: Make, fast: Any, slow: Any, chunk: Make) -> None:
    one = chunk(1)
    async with running(fast, slow) as store:
        await store.put(ALICE, one.key, one.payload, ack=Ack.DISK)
        await store.pin(ALICE, [one.key], lease_seconds=60)
        assert await store.delete(ALICE, one.key)
        assert await store.get(ALICE, one.key) == Miss()
        assert (store.stats().pinned, store.stats().pinned_bytes) == (0, 0)


@pytest.mark.parametrize("seconds", [0, -1, limits.LEASE_SECONDS_MAX + 1, float("nan")])
async def test_a_lease_has_limits(running: Make, fast: Any, seconds: float) -> None:
    async with running(fast) as store:
        with pytest.raises(InvalidRequest, match="lease is"):
            await store.pin(ALICE, [], lease_seconds=seconds)


@KINDS
async def test_an_owner_past_its_quota_evicts_its_own_and_nobody_elses(
    running: Make, tmp_path: Path, chunk: Make, make_tier: Make
) -> None:
    tier = make_tier(tmp_path, Quotas(by_owner={ALICE.owner: Quota(limit_bytes=300_000)}))
    async with running(tier) as store:
        await fill(store, BOB, chunk, ack_of(tier), range(20))
        await fill(store, ALICE, chunk, ack_of(tier), range(100))
        assert await store.contains_many(BOB, [chunk(number).key for number in range(20)]) == [True] * 20
        held = await store.contains_many(ALICE, [chunk(number).key for number in range(100)])
        assert held[-1]
        assert 3 < sum(held) < 40
        assert held == sorted(held)  # the oldest went
        tenant = store.tenant_stats(ALICE)
        (here,) = tenant.tiers
        assert here.tier == tier.name
        assert 0 < here.holdings.used_bytes <= 300_000
        assert here.holdings.limit_bytes == 300_000
        assert here.holdings.evictions == 100 - sum(held)
        assert here.holdings.records == sum(held)
        assert store.tenant_stats(BOB).tiers[0].holdings.evictions == 0


@KINDS
async def test_an_owner_within_its_guarantee_loses_nothing_to_a_flood(
    running: Make, tmp_path: Path, chunk: Make, make_tier: Make
) -> None:
    tier = make_tier(tmp_path, Quotas(by_owner={ALICE.owner: Quota(guaranteed_bytes=500_000)}))
    async with running(tier) as store:
        await fill(store, ALICE, chunk, ack_of(tier), range(16))
        assert store.tenant_stats(ALICE).tiers[0].holdings.used_bytes <= 500_000
        await fill(store, BOB, chunk, ack_of(tier), range(200))
        assert await store.contains_many(ALICE, [chunk(number).key for number in range(16)]) == [True] * 16
        assert store.tenant_stats(ALICE).tiers[0].holdings.evictions == 0
        assert store.tenant_stats(BOB).tiers[0].holdings.evictions > 0


@KINDS
async def test_quotas_hold_after_a_restart_and_for_replacements(
    running: Make, tmp_path: Path, chunk: Make, make_tier: Make
) -> None:
    quotas = Quotas(Quota(limit_bytes=200_000))
    tier = make_tier(tmp_path, quotas)
    async with running(tier) as store:
        await fill(store, ALICE, chunk, ack_of(tier), range(20))
    if not tier.durable:
        tier = make_tier(tmp_path, quotas)
    else:
        tier = make_tier(tmp_path, quotas)
        assert tier.holdings(ALICE.owner) is not None
        assert tier.holdings(ALICE.owner).records > 0  # type: ignore[union-attr]
    async with running(tier) as store:
        for turn in range(3):
            for number in range(10):
                one = chunk(number, segment_bytes=4000, seed=turn)
                await store.put(ALICE, one.key, one.payload, ack=ack_of(tier))
                holdings = store.tenant_stats(ALICE).tiers[0].holdings
                assert holdings.used_bytes <= 200_000
        assert isinstance(await store.get(ALICE, chunk(9).key), Hit)


@KINDS
async def test_a_record_larger_than_its_owners_quota_is_refused(
    running: Make, tmp_path: Path, chunk: Make, make_tier: Make
) -> None:
    one = chunk(1, segment_bytes=4000)
    tier = make_tier(tmp_path, Quotas(by_owner={ALICE.owner: Quota(limit_bytes=10_000)}))
    async with running(tier) as store:
        with pytest.raises(StorageFull):
            await store.put(ALICE, one.key, one.payload, ack=ack_of(tier))
        await store.put(BOB, one.key, one.payload, ack=ack_of(tier))
        assert await store.contains_many(ALICE, [one.key]) == [False]


async def test_what_is_pinned_counts_against_the_quota(running: Make, tmp_path: Path, chunk: Make) -> None:
    """With all of an owner's bytes pinned (the limit on pins is set aside here) its puts are refused, not others'."""
    tier = memory(tmp_path, Quotas(by_owner={ALICE.owner: Quota(limit_bytes=60_000)}))
    async with running(tier) as store:
        await fill(store, ALICE, chunk, Ack.MEMORY, range(10))
        tier.protect(lambda key: key.startswith(ALICE.owner))
        one = chunk(50, segment_bytes=4000)
        with pytest.raises(StorageFull):
            await store.put(ALICE, one.key, one.payload, ack=Ack.MEMORY)
        await store.put(BOB, one.key, one.payload, ack=Ack.MEMORY)


@pytest.mark.parametrize("make_tier", [memory, ssd])
def test_more_guaranteed_than_there_is(tmp_path: Path, make_tier: Make) -> None:
    quotas = Quotas(by_owner={item.owner: Quota(guaranteed_bytes=MIB) for item in (ALICE, BOB)})
    with pytest.raises(ConfigError, match="guarantees 2097152 bytes in all"):
        make_tier(tmp_path, quotas)


async def test_counters_are_per_tenant(running: Make, fast: Any, slow: Any, chunk: Make) -> None:
    one = chunk(1)
    async with running(fast, slow) as store:
        await store.put(ALICE, one.key, one.payload, ack=Ack.DISK)
        for _ in range(3):
            await store.get(ALICE, one.key)
        await store.get(BOB, one.key)
        await store.pin(ALICE, [one.key], lease_seconds=60)
        alice, bob = store.tenant_stats(ALICE), store.tenant_stats(BOB)
        size = len(one.payload)
        assert (alice.namespace, alice.puts, alice.put_bytes) == ("alice", 1, size)
        assert (alice.hits, alice.hit_bytes, alice.misses, alice.pinned_bytes) == (3, 3 * size, 0, size)
        assert (bob.puts, bob.hits, bob.misses, bob.pinned_bytes) == (0, 0, 1, 0)
        assert [(item.tier, item.holdings.records) for item in alice.tiers] == [("memory", 1), ("ssd", 1)]
        assert all(item.holdings.used_bytes >= size for item in alice.tiers)
        assert [item.holdings.records for item in bob.tiers] == [0, 0]


async def test_tenants_beyond_the_limit_are_counted_together(
    running: Make, fast: Any, chunk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(fast) as store:
        store._tenants._owners_max = 2
        for number in range(5):
            await store.get(derive_namespace(bytes(32), f"tenant-{number}"), chunk(1).key)
        assert len(store._tenants.namespaces()) == 2
        assert store._tenants.others.misses == 3
        assert store.stats().misses == 5
        assert storage_key(ALICE.secret, chunk(1).key) != storage_key(BOB.secret, chunk(1).key)
