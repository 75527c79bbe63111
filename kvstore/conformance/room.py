# ruff: noqa: D102, S101
"""The part of the conformance suite about room: what a full tier gives up, keeps and refuses."""

from pathlib import Path
from random import Random

from ...errors import StorageFull
from ..key import StorageKey
from ..outcome import Hit, Miss
from .base import TierCase, bytes_of, make_record, read_whole

__all__ = ["RoomConformance"]


class RoomConformance(TierCase):
    """One behaviour per test; left out for a tier that is not bounded."""

    async def test_protected_records_are_not_evicted(self, tmp_path: Path) -> None:
        if not self.bounded:
            return
        async with self.opened(tmp_path) as tier:
            records = [make_record(number, self.record_bytes) for number in range(12)]
            keys = [record.storage_key for record in records]
            for record in records:
                await tier.put(record)
            tier.protect(lambda key: key in keys[:6])
            await self.fill(tier, times=3)
            assert await tier.contains_many(keys) == [True] * 6 + [False] * 6
            tier.protect(lambda key: False)
            await self.fill(tier, times=2)
            assert not any(await tier.contains_many(keys))

    async def test_capacity_counts_records_and_bytes(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            if not self.bounded:
                return
            assert tier.capacity().records == 0
            assert tier.capacity().limit_bytes == self.limit_bytes
            for number in range(10):
                await tier.put(make_record(number, self.record_bytes))
            full = tier.capacity()
            assert full.records == 10
            assert 10 * self.record_bytes <= full.used_bytes <= full.limit_bytes
            assert full.evictions == 0

    async def test_capacity_is_never_exceeded_under_churn(self, tmp_path: Path) -> None:
        if not self.bounded:
            return
        random = Random(7)  # noqa: S311 - test content
        async with self.opened(tmp_path) as tier:
            expected: dict[StorageKey, bytes] = {}
            for step in range(400):
                record = make_record(random.randrange(300), random.choice((300, 5000, 30_000, 90_000)), version=step)
                await tier.put(record)
                expected[record.storage_key] = bytes(record.payload)
                if step % 5 == 0:
                    gone = make_record(random.randrange(300), 0).storage_key
                    await tier.delete(gone)
                    expected.pop(gone, None)
                capacity = tier.capacity()
                assert capacity.used_bytes <= capacity.limit_bytes
                assert bytes_of(await read_whole(tier, record.storage_key)) == record.payload
            assert tier.capacity().evictions > 0
            survivors = 0
            for key, payload in expected.items():
                outcome = await tier.get(key)
                if isinstance(outcome, Hit):
                    survivors += 1
                    assert bytes_of(outcome.value) == payload
                else:
                    assert isinstance(outcome, Miss)
            assert survivors == tier.capacity().records

    async def test_churn_keeps_a_good_part_of_the_limit_in_use(self, tmp_path: Path) -> None:
        if not self.bounded:
            return
        async with self.opened(tmp_path) as tier:
            await self.fill(tier, times=4)
            assert tier.capacity().records * self.record_bytes >= self.limit_bytes // 2

    async def test_least_recently_used_goes_first(self, tmp_path: Path) -> None:
        if not (self.bounded and self.evicts_least_recently_used):
            return
        async with self.opened(tmp_path) as tier:
            used = [make_record(number, self.record_bytes) for number in range(5)]
            unused = [make_record(number, self.record_bytes) for number in range(5, 10)]
            for record in (*used, *unused):
                await tier.put(record)
            number = 10
            while tier.capacity().evictions == 0 or any(await tier.contains_many([r.storage_key for r in unused])):
                for record in used:
                    assert isinstance(await tier.get(record.storage_key), Hit)
                await tier.put(make_record(number, self.record_bytes))
                number += 1
                assert number < 10 + 4 * self.limit_bytes // self.record_bytes
            assert all(await tier.contains_many([record.storage_key for record in used]))

    async def test_record_larger_than_the_tier_is_refused_and_nothing_is_lost(self, tmp_path: Path) -> None:
        if not self.bounded:
            return
        async with self.opened(tmp_path) as tier:
            kept = make_record(1, 1000)
            await tier.put(kept)
            for record in (make_record(2, 2 * self.limit_bytes), make_record(1, 2 * self.limit_bytes)):
                refused = False
                try:
                    await tier.put(record)
                except StorageFull:
                    refused = True
                assert refused
            assert bytes_of(await read_whole(tier, kept.storage_key)) == kept.payload
