"""Pins, quotas and expiry on the SSD tier: compaction moves what must stay, and refuses where nothing may go."""

import asyncio
from pathlib import Path

import pytest

from kvloom.errors import StorageFull
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import OWNER_BYTES, OwnerId
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.quota import Quota, QuotaPolicy, Quotas
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Record

MIB = 1024 * 1024
ALICE, BOB = (OwnerId(name * OWNER_BYTES) for name in (b"a", b"b"))
LATER_MS = 4_000_000_000_000


async def fill(tier: SsdTier, records: list[Record]) -> list[Record]:
    """Put until the tier refuses; what it took."""
    taken = []
    for record in records:
        try:
            await tier.put(record)
        except StorageFull:
            break
        taken.append(record)
    return taken


@pytest.mark.parametrize("size_bytes", [300, 20_000, 150_000])
async def test_a_tier_of_pinned_records_refuses_and_loses_none(tmp_path: Path, size_bytes: int) -> None:
    tier = SsdTier.open(tmp_path, 2 * MIB)
    tier.protect(lambda key: True)
    records = [make_record(number, size_bytes) for number in range(3 * MIB // max(size_bytes, 4096))]
    taken = await fill(tier, records)
    assert 2 * sum(max(len(record.payload), 4096) for record in taken) > MIB  # each sync ends a block
    assert len(taken) < len(records)
    for number in range(5):
        with pytest.raises(StorageFull, match=r"pinned|room"):
            await tier.put(make_record(10_000 + number, size_bytes))
    for record in taken:
        outcome = await tier.get(record.storage_key)
        assert isinstance(outcome, Hit)
        assert bytes(outcome.value.parts[0]) == record.payload
    assert tier.capacity().evictions == 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * MIB
    tier.protect(lambda key: False)
    await tier.put(make_record(10_000, size_bytes))
    assert tier.capacity().evictions > 0
    await tier.close()


async def test_pinned_records_are_moved_through_many_lives_of_the_log(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 2 * MIB)
    kept = [make_record(number, 10_000) for number in range(0, 400, 20)]
    keys = {record.storage_key for record in kept}
    tier.protect(keys.__contains__)
    for number in range(2000):
        await tier.put(make_record(number, 10_000))
    assert tier.written_bytes > 8 * 2 * MIB
    for record in kept:
        outcome = await tier.get(record.storage_key)
        assert isinstance(outcome, Hit)
        assert bytes(outcome.value.parts[0]) == record.payload
    await tier.close()


async def test_one_owners_refusal_does_not_touch_another_in_the_same_group(tmp_path: Path) -> None:
    quotas = Quotas(by_owner={ALICE: Quota(limit_bytes=100_000)})
    tier = SsdTier.open(tmp_path, 2 * MIB, policy=QuotaPolicy(quotas=quotas))
    tier.protect(lambda key: key.startswith(ALICE))
    await fill(tier, [make_record(number, 20_000, owner=ALICE) for number in range(10)])
    puts = [tier.put(make_record(100 + number, 20_000, owner=(ALICE, BOB)[number % 2])) for number in range(20)]
    answers = await asyncio.gather(*puts, return_exceptions=True)
    assert [isinstance(answer, StorageFull) for answer in answers] == [True, False] * 10
    for owner, records in ((ALICE, 4), (BOB, 10)):
        holdings = tier.holdings(owner)
        assert holdings is not None
        assert holdings.records == records
    await tier.close()


@pytest.mark.parametrize("lists", [True, False])
async def test_expiries_are_known_after_reopening(tmp_path: Path, lists: bool) -> None:
    tier = SsdTier.open(tmp_path, 2 * MIB)
    short, long, again = (make_record(number, 500, expires_at_ms=LATER_MS) for number in range(3))
    for record in (short, long, again, make_record(1, 500, version=1), make_record(2, 500, expires_at_ms=2 * LATER_MS)):
        await tier.put(record)
    await tier.close()
    if not lists:
        for path in tmp_path.glob("*.list"):
            path.unlink()
    tier = SsdTier.open(tmp_path, 2 * MIB)
    keys = [record.storage_key for record in (short, long, again)]
    assert await tier.contains_live(keys, LATER_MS) == [False, True, True]
    assert await tier.expired(LATER_MS, 10) == keys[:1]
    assert sorted(await tier.expired(2 * LATER_MS, 10)) == sorted([keys[0], keys[2]])
    await tier.delete(keys[0])
    assert await tier.expired(LATER_MS, 10) == []
    await tier.close()


async def test_a_smaller_quota_of_an_owner_is_put_into_effect_at_open(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 2 * MIB, policy=QuotaPolicy())
    for number in range(20):
        await tier.put(make_record(number, 20_000, owner=(ALICE, BOB)[number % 2]))
    await tier.close()
    policy = QuotaPolicy(quotas=Quotas(by_owner={ALICE: Quota(limit_bytes=70_000)}))
    tier = SsdTier.open(tmp_path, 2 * MIB, policy=policy)
    alice, bob = tier.holdings(ALICE), tier.holdings(BOB)
    assert alice is not None
    assert bob is not None
    assert (alice.records, bob.records) == (3, 10)
    assert alice.used_bytes <= 70_000
    await tier.close()
