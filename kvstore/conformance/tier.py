# ruff: noqa: D102, S101
"""The conformance suite: what every tier must do. Subclass :class:`TierConformance` in a test module of your own.

::

    class TestMyTier(TierConformance):
        def make_tier(self, directory, limit_bytes):
            return MyTier(directory, limit_bytes)

Collected by pytest with pytest-asyncio in its auto mode; nothing else is needed, and nothing of pytest is imported
here. For readable assertion failures call ``pytest.register_assert_rewrite("kvloom.kvstore.conformance.tier")`` in a
``conftest.py``. Content is pseudo-random from fixed seeds, so a failure repeats.
"""

import asyncio
from pathlib import Path

from ...codec.container import ByteRange
from ...errors import StorageUnavailable
from ..key import OWNER_BYTES, OwnerId
from ..outcome import Hit, Miss
from ..tier import NEVER, UNOWNED, Record, RecordInfo, Usage
from .base import bytes_of, make_record, read_whole
from .room import RoomConformance

__all__ = ["TierConformance", "make_record"]


class TierConformance(RoomConformance):
    """One behaviour per test; the limits and sizes of :class:`TierCase` suit tiers of a few MiB."""

    async def test_has_a_name_and_says_whether_it_is_durable(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            assert tier.name
            assert tier.durable in (True, False)

    async def test_get_returns_what_was_put(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            for number, size_bytes in enumerate((0, 1, 63, 64, 4095, 4096, 4097, 100_000, 600_000)):
                record = make_record(number, size_bytes)
                await tier.put(record)
                found = await read_whole(tier, record.storage_key)
                assert bytes_of(found) == record.payload
                assert found.info == record.info

    async def test_hit_names_the_tier(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 100)
            await tier.put(record)
            outcome = await tier.get(record.storage_key)
            assert isinstance(outcome, Hit)
            assert outcome.tier == tier.name

    async def test_payload_may_be_any_buffer(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            plain = make_record(1, 5000)
            for payload in (bytearray(plain.payload), memoryview(plain.payload)):
                await tier.put(Record(plain.storage_key, plain.content_key, payload, 1))
                assert bytes_of(await read_whole(tier, plain.storage_key)) == plain.payload

    async def test_absent_record_is_a_miss(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            await tier.put(make_record(1, 100))
            assert isinstance(await tier.get(make_record(2, 100).storage_key), Miss)
            assert isinstance(await tier.get(make_record(2, 100).storage_key, [ByteRange(0, 10)]), Miss)

    async def test_ranges_come_in_the_order_asked(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 50_000)
            await tier.put(record)
            ranges = [ByteRange(40_000, 50_000), ByteRange(0, 1), ByteRange(7, 7), ByteRange(1000, 30_001)]
            found = await read_whole(tier, record.storage_key, ranges)
            assert [bytes(part) for part in found.parts] == [bytes(record.payload[r.start : r.stop]) for r in ranges]
            assert found.info == record.info

    async def test_range_past_the_end_is_clipped(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 1000)
            await tier.put(record)
            ranges = [ByteRange(900, 5000), ByteRange(1000, 2000), ByteRange(3000, 4000), ByteRange(0, 2**40)]
            found = await read_whole(tier, record.storage_key, ranges)
            assert [bytes(part) for part in found.parts] == [record.payload[900:], b"", b"", record.payload]

    async def test_no_ranges_is_not_the_same_as_an_empty_list_of_ranges(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 1000)
            await tier.put(record)
            assert (await read_whole(tier, record.storage_key, [])).parts == ()
            assert len((await read_whole(tier, record.storage_key)).parts) == 1

    async def test_parts_are_read_only_and_outlive_the_record(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 100_000)
            await tier.put(record)
            found = await read_whole(tier, record.storage_key)
            assert all(memoryview(part).readonly for part in found.parts)
            await tier.delete(record.storage_key)
            await self.fill(tier, times=2)
            assert bytes_of(found) == record.payload

    async def test_put_replaces(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            for version, size_bytes in enumerate((3000, 70_000, 10, 70_000, 300_000)):
                record = make_record(1, size_bytes, version=version)
                await tier.put(record)
                found = await read_whole(tier, record.storage_key)
                assert (bytes_of(found), found.info) == (record.payload, record.info)
            assert await self.count(tier) == 1

    async def test_delete_forgets_and_says_whether_there_was_something(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 1000)
            assert await tier.delete(record.storage_key) is False
            await tier.put(record)
            assert await tier.delete(record.storage_key) is True
            assert await tier.delete(record.storage_key) is False
            assert isinstance(await tier.get(record.storage_key), Miss)
            await tier.put(record)
            assert bytes_of(await read_whole(tier, record.storage_key)) == record.payload

    async def test_contains_many_answers_in_order(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            records = [make_record(number, 500) for number in range(6)]
            for record in records[::2]:
                await tier.put(record)
            keys = [record.storage_key for record in records]
            assert await tier.contains_many(keys) == [True, False] * 3
            assert await tier.contains_many(keys[::-1]) == [False, True] * 3
            assert await tier.contains_many([]) == []
            await tier.delete(keys[2])
            assert await tier.contains_many(keys[2:3] * 2) == [False, False]

    async def test_scan_lists_every_record_once(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            records = [make_record(number, 10 + number % 7) for number in range(self.listed_records)]
            await asyncio.gather(*(tier.put(record) for record in records))
            await tier.delete(records[0].storage_key)
            listed = [info async for info in tier.scan()]
            assert sorted(listed, key=_place) == sorted((record.info for record in records[1:]), key=_place)

    async def test_scan_survives_changes_meanwhile(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            for number in range(self.churned_records):
                await tier.put(make_record(number, 100))
            listed = 0
            async for info in tier.scan():
                listed += 1
                await tier.delete(info.storage_key)
                await tier.put(make_record(1000 + listed, 100))
                if listed == 5 * self.churned_records:
                    break
            assert listed >= self.churned_records

    async def test_an_owner_is_listed_counted_and_deleted_alone(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            ours, theirs = (OwnerId(name * OWNER_BYTES) for name in (b"o", b"t"))
            mine = [make_record(number, 100 * number, owner=ours) for number in range(7)]
            others = [make_record(number, 50, owner=theirs) for number in range(5)]
            await asyncio.gather(*(tier.put(record) for record in (*mine, *others)))
            assert await tier.usage(ours) == Usage(7, 2100)
            assert await tier.usage(UNOWNED) == Usage(0, 0)
            listed = [info async for info in tier.scan_owner(theirs)]
            assert sorted(listed, key=_place) == sorted((record.info for record in others), key=_place)
            assert await tier.delete_owner(ours) == 7
            assert await tier.usage(ours) == Usage(0, 0)
            assert isinstance(await tier.get(mine[1].storage_key), Miss)
            assert bytes_of(await read_whole(tier, others[1].storage_key)) == others[1].payload
            assert await tier.delete_owner(ours) == 0

    async def test_a_tier_that_works_answers_a_ping(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            await tier.ping()

    async def test_an_expired_record_is_told_from_a_live_one(self, tmp_path: Path) -> None:
        far_ms = 4_000_000_000_000  # an engine with a clock of its own must not expire it meanwhile
        async with self.opened(tmp_path) as tier:
            expiries = (NEVER, far_ms, 2 * far_ms)
            records = [make_record(number, 300, expires_at_ms=expiry) for number, expiry in enumerate(expiries)]
            keys = [record.storage_key for record in records]
            for record in records:
                await tier.put(record)
                assert (await read_whole(tier, record.storage_key)).info == record.info
            assert await tier.contains_live([*keys, make_record(9, 0).storage_key], far_ms - 1) == [True] * 3 + [False]
            assert await tier.contains_live(keys, far_ms) == [True, False, True]
            assert await tier.contains_live(keys[::-1], 2 * far_ms) == [False, False, True]
            assert await tier.expired(far_ms - 1, 10) == []
            assert await tier.expired(far_ms, 10) == keys[1:2]
            assert sorted(await tier.expired(2 * far_ms, 10)) == sorted(keys[1:])
            assert len(await tier.expired(2 * far_ms, 1)) == 1
            await tier.put(make_record(1, 300, version=1))
            assert await tier.contains_live(keys, far_ms) == [True, True, True]
            await tier.delete(keys[2])
            assert await tier.expired(2 * far_ms, 10) == []

    async def test_concurrent_operations_do_not_mix_records(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:

            async def visit(number: int) -> None:
                for version in range(4):
                    record = make_record(number, 100 + 7000 * (number % 3), version=version)
                    await tier.put(record)
                    whole, some = await asyncio.gather(
                        read_whole(tier, record.storage_key), read_whole(tier, record.storage_key, [ByteRange(10, 90)])
                    )
                    assert bytes_of(whole) == record.payload
                    assert bytes_of(some) == record.payload[10:90]
                if number % 2:
                    assert await tier.delete(make_record(number, 0).storage_key)

            async with asyncio.TaskGroup() as group:
                for number in range(self.visitors):
                    group.create_task(visit(number))
            assert await self.count(tier) == self.visitors // 2

    async def test_concurrent_puts_of_one_key_leave_one_of_them(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            records = [make_record(1, 2000 + version, version=version) for version in range(20)]
            await asyncio.gather(*(tier.put(record) for record in records))
            found = await read_whole(tier, records[0].storage_key)
            assert (bytes_of(found), found.info) in [(record.payload, record.info) for record in records]
            assert await self.count(tier) == 1

    async def test_cancelled_operations_leave_the_tier_whole(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            kept = make_record(0, 50_000)
            await tier.put(kept)
            for number in range(1, 60):
                record = make_record(number, 300_000 if number % 3 == 0 else 5000)
                tasks = [
                    asyncio.ensure_future(tier.put(record)),
                    asyncio.ensure_future(tier.get(kept.storage_key)),
                    asyncio.ensure_future(tier.delete(make_record(number - 1 or 59, 0).storage_key)),
                ]
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                outcome = await tier.get(record.storage_key)
                assert not isinstance(outcome, Hit) or bytes_of(outcome.value) == record.payload
            await tier.put(kept)
            assert bytes_of(await read_whole(tier, kept.storage_key)) == kept.payload
            capacity = tier.capacity()
            assert capacity.used_bytes <= capacity.limit_bytes

    async def test_closed_tier_refuses_and_closing_again_is_harmless(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as tier:
            record = make_record(1, 1000)
            await tier.put(record)
            held = await read_whole(tier, record.storage_key)
            await tier.close()
            await tier.close()
            for refused in (
                tier.put(record),
                tier.get(record.storage_key),
                tier.contains_many([record.storage_key]),
                tier.delete(record.storage_key),
                anext(tier.scan()),
            ):
                answered = True
                try:
                    await refused
                except StorageUnavailable:
                    answered = False
                assert not answered
            assert bytes_of(held) == record.payload

    async def test_durable_tier_has_everything_after_reopening(self, tmp_path: Path) -> None:
        records = [make_record(number, 10 + 3000 * (number % 4)) for number in range(30)]
        async with self.opened(tmp_path) as tier:
            if not tier.durable:
                return
            await asyncio.gather(*(tier.put(record) for record in records))
            await tier.delete(records[0].storage_key)
        async with self.opened(tmp_path) as tier:
            assert await self.count(tier) == 29
            assert isinstance(await tier.get(records[0].storage_key), Miss)
            for record in records[1:]:
                found = await read_whole(tier, record.storage_key)
                assert (bytes_of(found), found.info) == (record.payload, record.info)


def _place(info: RecordInfo) -> bytes:
    return info.storage_key
