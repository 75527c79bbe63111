# ruff: noqa: D102, S101
"""The conformance suite of tiers that several daemons share, on top of the one that every tier passes.

A subclass makes its tiers on ``directory`` as if it were the address of a store: two tiers made on one directory share
their records, tiers on different directories do not.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

from ...errors import InvalidData
from ..key import OWNER_BYTES, OwnerId
from ..outcome import Hit, Miss
from ..tier import UNOWNED, Usage
from .tier import TierConformance, make_record

__all__ = ["SharedTierConformance"]

OURS, THEIRS = (OwnerId(name * OWNER_BYTES) for name in (b"o", b"t"))
PAST_MS, FUTURE_MS = 1_600_000_000_000, 4_000_000_000_000


class SharedTierConformance(TierConformance):
    """One behaviour per test; every test has a store of its own."""

    bounded = False
    limit_bytes = 400_000
    """Bounds nothing here; the tests that write a multiple of it write less."""

    async def test_says_that_it_is_shared_and_answers_a_ping(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            assert tier.shared
            await tier.ping()

    async def test_a_record_put_by_one_is_read_by_the_other(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as one, self.opened(tmp_path) as other:
            for version, size_bytes in enumerate((300_000, 300_000, 10, 0, 200_000)):
                record = make_record(1, size_bytes, version=version)
                await one.put(record)
                found = await other.get(record.storage_key)
                assert isinstance(found, Hit)
                assert (bytes(found.value.parts[0]), found.value.info) == (record.payload, record.info)
                assert [info async for info in other.scan()] == [record.info]
            assert await other.delete(record.storage_key)
            assert not await one.delete(record.storage_key)
            assert isinstance(await one.get(record.storage_key), Miss)

    async def test_puts_of_one_key_by_two_leave_one_of_them_whole(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as one, self.opened(tmp_path) as other:
            records = [make_record(1, 150_000 + 1000 * (version % 3), version=version) for version in range(12)]
            await asyncio.gather(
                *(tier.put(record) for tier, half in ((one, records[::2]), (other, records[1::2])) for record in half)
            )
            for tier in (one, other):
                found = await tier.get(records[0].storage_key)
                assert isinstance(found, Hit)
                assert (bytes(found.value.parts[0]), found.value.info) in [(r.payload, r.info) for r in records]
            assert await self.count(one) == 1

    async def test_an_owner_is_listed_counted_and_deleted_from_either(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as one, self.opened(tmp_path) as other:
            mine = [make_record(number, 30_000 * number, owner=OURS) for number in range(7)]
            others = [make_record(number, 50, owner=THEIRS) for number in range(5)]
            await asyncio.gather(*(one.put(record) for record in (*mine, *others)))
            assert await other.usage(OURS) == Usage(7, 630_000)
            assert await other.usage(UNOWNED) == Usage(0, 0)
            listed = {info.storage_key: info async for info in other.scan_owner(THEIRS)}
            assert listed == {record.storage_key: record.info for record in others}
            assert await other.delete_owner(OURS) == 7
            assert await one.usage(OURS) == Usage(0, 0)
            assert await one.delete_owner(OURS) == 0
            for tier in (one, other):
                assert isinstance(await tier.get(mine[3].storage_key), Miss)
                found = await tier.get(others[1].storage_key)
                assert isinstance(found, Hit)
                assert found.value.parts[0] == others[1].payload

    async def test_a_record_past_its_time_is_a_miss(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as one, self.opened(tmp_path) as other:
            for size_bytes in (100, 150_000):
                kept = make_record(1, size_bytes, expires_at_ms=FUTURE_MS)
                gone = make_record(2, size_bytes, expires_at_ms=PAST_MS)
                for record in (kept, gone):
                    await one.put(record)
                found = await other.get(kept.storage_key)
                assert isinstance(found, Hit)
                assert found.value.info == kept.info
                for tier in (one, other):
                    assert isinstance(await tier.get(gone.storage_key), Miss)
                    assert [info async for info in tier.scan()] == [kept.info]

    async def test_a_key_that_does_not_begin_with_its_owner_is_refused(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 100, owner=OURS)
            refused = False
            try:
                await tier.put(replace(record, owner=THEIRS))
            except InvalidData:
                refused = True
            assert refused
