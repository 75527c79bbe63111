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


async def is_right(tier: SsdTier, record: Record) -> bool:
    outcome = await tier.get(record.storage_key)
    return isinstance(outcome, Hit) and bytes(outcome.value.parts[0]) == record.payload


def files_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.mark.parametrize("limit_bytes", [16 * MIB, 5 * MIB, 2 * MIB, MIB])
async def test_a_smaller_quota_keeps_the_newest_and_no_file_too_many(tmp_path: Path, limit_bytes: int) -> None:
    """Down to one that is smaller than a file of the log was, and up again."""
    tier = SsdTier.open(tmp_path, 32 * MIB)
    records = [make_record(number, 100_000) for number in range(200)]
    for record in records:
        await tier.put(record)
    await tier.close()
    assert files_bytes(tmp_path) > limit_bytes
    for _ in range(2):
        tier = SsdTier.open(tmp_path, limit_bytes)
        assert files_bytes(tmp_path) <= limit_bytes
        held = [await is_right(tier, record) for record in records]
        assert held == sorted(held)
        assert sum(held) == tier.capacity().records
        assert tier.capacity().used_bytes <= limit_bytes
        await tier.close()
    assert any(held) == (limit_bytes > 2 * MIB)
    tier = SsdTier.open(tmp_path, limit_bytes)
    for number in range(300, 400):
        await tier.put(make_record(number, 100_000))
        assert files_bytes(tmp_path) <= limit_bytes
    kept = tier.capacity().records
    await tier.close()
    tier = SsdTier.open(tmp_path, 32 * MIB)
    assert tier.capacity().records == kept
    for number in range(400, 500):
        await tier.put(make_record(number, 100_000))
    assert tier.capacity().records == kept + 100
    await tier.close()


async def test_pins_after_a_smaller_quota_refuse_what_does_not_fit_and_lose_nothing(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 8 * MIB)
    for number in range(100):
        await tier.put(make_record(number, 50_000))
    await tier.close()
    tier = SsdTier.open(tmp_path, 4 * MIB)
    tier.protect(lambda key: True)
    kept = [make_record(number, 50_000) for number in range(100)]
    kept = [record for record in kept if await is_right(tier, record)]
    assert len(kept) > 20
    evictions = tier.capacity().evictions
    taken = await fill(tier, [make_record(1000 + number, 50_000) for number in range(100)])
    assert len(taken) < 100
    for _ in range(3):
        with pytest.raises(StorageFull, match=r"pinned|room"):
            await tier.put(make_record(5000, 50_000))
    assert tier.capacity().evictions == evictions
    assert all([await is_right(tier, record) for record in (*kept, *taken)])
    assert files_bytes(tmp_path) <= 4 * MIB
    await tier.close()


@pytest.mark.parametrize("every", [2, 5, 20])
async def test_room_between_pinned_records_is_found_by_compaction(tmp_path: Path, every: int) -> None:
    """All are pinned; some are deleted: their room is scattered, and new records get as much as was freed."""
    tier = SsdTier.open(tmp_path, 2 * MIB)
    tier.protect(lambda key: True)
    taken = await fill(tier, [make_record(number, 20_000) for number in range(200)])
    for turn in range(4):
        freed = taken[turn::every]
        for record in freed:
            assert await tier.delete(record.storage_key)
        taken = [record for record in taken if record not in freed]
        again = await fill(tier, [make_record(1000 * (turn + 1) + number, 20_000) for number in range(200)])
        assert len(again) >= len(freed) - 1
        taken += again
        assert all([await is_right(tier, record) for record in taken])
        assert files_bytes(tmp_path) <= 2 * MIB
    assert tier.capacity().evictions == 0
    await tier.close()
