import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from kvloom import limits
from kvloom.codec.container import ByteRange
from kvloom.errors import ConfigError, Overloaded, StorageFull
from kvloom.kvstore import ssd_catalogue
from kvloom.kvstore.conformance import make_record
from kvloom.kvstore.eviction import LruPolicy
from kvloom.kvstore.outcome import Corrupt, Hit, Miss
from kvloom.kvstore.record import HEADER_BYTES
from kvloom.kvstore.ssd import SsdTier
from kvloom.kvstore.ssd_catalogue import SsdCatalogue, Use, Victim, charged_bytes
from kvloom.kvstore.ssd_format import DATABASES_MAX, FORMAT_KEY, INDEX, META, RECORDS, IndexEntry
from kvloom.kvstore.ssd_writer import Work
from kvloom.kvstore.tier import Record

MIB = 1024 * 1024
LIMIT = 4 * MIB


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[SsdTier]:
    tier = SsdTier.open(tmp_path, LIMIT)
    yield tier
    await tier.close()


def files_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def edit(directory: Path, database: bytes, key: bytes, value: bytes | None) -> None:
    """Change one value behind the tier's back, while it is closed."""
    with lmdb.open(str(directory / "lmdb"), map_size=64 * MIB, max_dbs=DATABASES_MAX) as environment:
        opened = environment.open_db(database)
        with environment.begin(write=True) as transaction:
            if value is None:
                transaction.delete(key, db=opened)
            else:
                transaction.put(key, value, db=opened)


def stored_value(directory: Path, database: bytes, key: bytes) -> bytes:
    with lmdb.open(str(directory / "lmdb"), map_size=64 * MIB, max_dbs=DATABASES_MAX) as environment:
        opened = environment.open_db(database)
        with environment.begin() as transaction:
            value = transaction.get(key, db=opened)
    assert value is not None
    return value


async def is_right(tier: SsdTier, record: Record) -> bool:
    outcome = await tier.get(record.storage_key)
    return isinstance(outcome, Hit) and bytes(outcome.value.parts[0]) == record.payload


async def test_everything_belongs_to_its_user_only(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    await SsdTier.open(directory, LIMIT).close()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "lmdb").stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()}
    assert modes == {"lock": 0o600, "data.mdb": 0o600, "lock.mdb": 0o600}


async def test_a_directory_has_one_user_at_a_time(tier: SsdTier, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path} is in use by another daemon \(process {os.getpid()}\)"):
        SsdTier.open(tmp_path, LIMIT)
    await tier.close()
    await SsdTier.open(tmp_path, LIMIT).close()


def test_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="file/data cannot be used"):
        SsdTier.open(tmp_path / "file" / "data", LIMIT)


def test_too_small_a_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"of 1000 bytes, at least {limits.TIER_BYTES_MIN}"):
        SsdTier.open(tmp_path, 1000)


async def test_another_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    await SsdTier.open(tmp_path, LIMIT).close()
    edit(tmp_path, META, FORMAT_KEY, b"1")
    with pytest.raises(ConfigError, match="format b'1', this kvloom reads b'2'"):
        SsdTier.open(tmp_path, LIMIT)
    edit(tmp_path, META, FORMAT_KEY, b"2")
    await SsdTier.open(tmp_path, LIMIT).close()


async def test_many_waiting_puts_share_commits(tier: SsdTier) -> None:
    before = tier._databases.environment.info()["last_txnid"]
    await asyncio.gather(*(tier.put(make_record(number, 1000)) for number in range(200)))
    assert tier._databases.environment.info()["last_txnid"] - before < 100


async def test_files_never_exceed_the_limit_and_fragmentation_is_survived(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, LIMIT)
    sizes = (500, 700_000, 30_000, 5_000, 250_000, 90_000, 1_000, 400_000)
    last: dict[int, Record] = {}
    for step in range(120):
        batch = [make_record((step * 7 + n) % 50, sizes[(step + 3 * n) % 8], version=step) for n in range(4)]
        await asyncio.gather(*(tier.put(record) for record in batch))
        last.update({(step * 7 + n) % 50: record for n, record in enumerate(batch)})
        assert files_bytes(tmp_path) <= LIMIT
        assert await is_right(tier, batch[-1])
    for record in last.values():
        assert await is_right(tier, record) or isinstance(await tier.get(record.storage_key), Miss)
    await tier.close()


async def test_order_of_use_survives_reopening(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, LIMIT)
    records = [make_record(number, 100_000) for number in range(20)]
    for record in records:
        await tier.put(record)
    for record in records[:10]:
        await tier.get(record.storage_key, [])
    await tier.close()
    tier = SsdTier.open(tmp_path, LIMIT)
    for number in range(100, 117):
        await tier.put(make_record(number, 100_000))
    held = await tier.contains_many([record.storage_key for record in records])
    assert tier.capacity().evictions > 0
    assert all(held[:10])
    assert not any(held[10 : 10 + tier.capacity().evictions])
    await tier.close()


async def test_noted_uses_are_written_when_many_have_gathered(tier: SsdTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_catalogue, "USES_PENDING_MAX", 5)
    records = [make_record(number, 100) for number in range(5)]
    for record in records:
        await tier.put(record)
    before = tier._databases.environment.info()["last_txnid"]
    for record in records:
        await tier.get(record.storage_key)
    await tier.delete(make_record(99, 0).storage_key)
    assert tier._catalogue.take_uses() == []
    assert tier._databases.environment.info()["last_txnid"] > before


async def test_smaller_quota_is_put_into_effect_at_open(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 2 * LIMIT)
    records = [make_record(number, 100_000) for number in range(60)]
    for record in records:
        await tier.put(record)
    await tier.close()
    assert files_bytes(tmp_path) > LIMIT
    tier = SsdTier.open(tmp_path, LIMIT)
    assert files_bytes(tmp_path) <= LIMIT
    assert not (tmp_path / "compacting").exists()
    assert 20 <= tier.capacity().records < 60
    assert await is_right(tier, records[-1])
    assert isinstance(await tier.get(records[0].storage_key), Miss)
    for number in range(100, 140):
        await tier.put(make_record(number, 100_000))
    assert files_bytes(tmp_path) <= LIMIT
    await tier.close()


async def test_larger_quota_is_used_after_reopening(tmp_path: Path) -> None:
    await SsdTier.open(tmp_path, LIMIT).close()
    tier = SsdTier.open(tmp_path, 2 * LIMIT)
    for number in range(50):
        await tier.put(make_record(number, 100_000))
    assert tier.capacity().records == 50
    await tier.close()


async def test_record_too_large_for_the_tier_is_named(tier: SsdTier) -> None:
    with pytest.raises(
        StorageFull, match=rf"record of {2 * MIB + HEADER_BYTES} bytes does not fit the ssd tier, whose largest"
    ):
        await tier.put(make_record(1, 2 * MIB))


async def test_pages_held_by_a_long_read_refuse_puts_and_its_end_heals_them(tier: SsdTier) -> None:
    kept = make_record(0, 200_000)
    await tier.put(kept)
    with tier._databases.environment.begin():
        with pytest.raises(StorageFull, match=r"ssd tier has no room: .*MAP_FULL"):
            await asyncio.gather(*(tier.put(make_record(number, 200_000)) for number in range(1, 60)))
        assert tier.capacity().used_bytes <= LIMIT
        found = [await tier.get(make_record(number, 0).storage_key) for number in range(60)]
        assert not any(isinstance(outcome, Corrupt) for outcome in found)
    for number in range(100, 140):
        await tier.put(make_record(number, 200_000))
        assert await is_right(tier, make_record(number, 200_000))


async def test_more_waiting_than_the_queue_holds_is_refused(tier: SsdTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_QUEUE_BYTES_MAX", 50_000)
    with tier._databases.environment.begin(write=True):
        tasks = [asyncio.create_task(tier.put(make_record(number, 20_000))) for number in range(10)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    refused = [error for error in await asyncio.gather(*tasks, return_exceptions=True) if error is not None]
    assert refused
    assert all(isinstance(error, Overloaded) and "the limit is 50000" in str(error) for error in refused)
    assert tier.capacity().records == 10 - len(refused)


async def test_cancelled_put_that_waits_is_not_written(tier: SsdTier, monkeypatch: pytest.MonkeyPatch) -> None:
    settle, loop = tier._writer._settle, asyncio.get_running_loop()
    busy, go = asyncio.Event(), threading.Event()

    def settle_later(batch: Sequence[Work]) -> None:
        loop.call_soon_threadsafe(busy.set)
        go.wait()
        settle(batch)

    monkeypatch.setattr(tier._writer, "_settle", settle_later)
    first = asyncio.create_task(tier.put(make_record(0, 1000)))
    await busy.wait()
    waiting = [asyncio.create_task(tier.put(make_record(number, 1000))) for number in range(1, 5)]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in (first, *waiting):
        task.cancel()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    go.set()
    await tier.put(make_record(9, 1000))
    held = await tier.contains_many([make_record(number, 0).storage_key for number in range(10)])
    assert held == [True] + [False] * 8 + [True]
    assert await is_right(tier, make_record(9, 1000))


async def test_close_commits_what_was_submitted(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, LIMIT)
    tasks = [asyncio.create_task(tier.put(make_record(number, 1000))) for number in range(50)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await tier.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    tier = SsdTier.open(tmp_path, LIMIT)
    for number, result in enumerate(results):
        if result is None:
            assert await is_right(tier, make_record(number, 1000))
    assert None in results
    await tier.close()


class TestDamage:
    async def test_flipped_bits_are_corrupt_never_wrong_bytes(self, tmp_path: Path) -> None:
        record = make_record(1, 3000)
        tier = SsdTier.open(tmp_path, LIMIT)
        await tier.put(record)
        await tier.close()
        good = stored_value(tmp_path, RECORDS, record.storage_key)
        data = tmp_path / "lmdb" / "data.mdb"
        offset = data.read_bytes().index(good)
        tier = SsdTier.open(tmp_path, LIMIT)
        for position in range(0, 8 * len(good), 61):
            damaged = bytearray(good)
            damaged[position // 8] ^= 1 << position % 8
            with data.open("r+b") as file:
                file.seek(offset)
                file.write(damaged)
            assert isinstance(await tier.get(record.storage_key), Corrupt)
            in_range = await tier.get(record.storage_key, [ByteRange(0, 10)])
            assert isinstance(in_range, Corrupt if position < 8 * HEADER_BYTES else Hit)
        assert await tier.delete(record.storage_key)
        await tier.put(record)
        assert await is_right(tier, record)
        await tier.close()

    async def test_record_under_another_key_is_corrupt(self, tmp_path: Path) -> None:
        one, other = make_record(1, 3000), make_record(2, 3000)
        tier = SsdTier.open(tmp_path, LIMIT)
        await tier.put(one)
        await tier.put(other)
        await tier.close()
        edit(tmp_path, RECORDS, one.storage_key, stored_value(tmp_path, RECORDS, other.storage_key))
        tier = SsdTier.open(tmp_path, LIMIT)
        assert isinstance(await tier.get(one.storage_key), Corrupt)
        assert isinstance(await tier.get(one.storage_key, [ByteRange(0, 1)]), Corrupt)
        assert await is_right(tier, other)
        await tier.close()

    async def test_index_that_names_another_content_key_is_corrupt(self, tmp_path: Path) -> None:
        record = make_record(1, 3000)
        tier = SsdTier.open(tmp_path, LIMIT)
        await tier.put(record)
        await tier.close()
        entry = IndexEntry.from_bytes(stored_value(tmp_path, INDEX, record.storage_key))
        wrong = replace(entry, content_key=bytes(32))
        edit(tmp_path, INDEX, record.storage_key, wrong.to_bytes())
        tier = SsdTier.open(tmp_path, LIMIT)
        assert isinstance(await tier.get(record.storage_key), Corrupt)
        await tier.close()

    @pytest.mark.parametrize("database", [RECORDS, INDEX])
    async def test_index_and_records_that_disagree_are_quarantined(self, tmp_path: Path, database: bytes) -> None:
        tier = SsdTier.open(tmp_path, LIMIT)
        await tier.put(make_record(1, 3000))
        await tier.close()
        edit(tmp_path, database, make_record(1, 0).storage_key, None)
        tier = SsdTier.open(tmp_path, LIMIT)
        assert tier.quarantined == 1
        assert (tmp_path / "quarantine-1" / "data.mdb").exists()
        await tier.close()


class TestCatalogue:
    def catalogue(self, budget_bytes: int = 100) -> SsdCatalogue:
        catalogue = SsdCatalogue(LruPolicy(), budget_bytes)
        for number in range(5):
            catalogue.note_put(make_record(number, 0).storage_key, 20)
        return catalogue

    def test_room_is_made_oldest_first(self) -> None:
        keys = [make_record(number, 0).storage_key for number in range(6)]
        victims = self.catalogue().evict_for({keys[5]: 30})
        assert victims == [Victim(keys[0], 20), Victim(keys[1], 20)]

    def test_replacing_needs_only_the_difference(self) -> None:
        key = make_record(4, 0).storage_key
        assert self.catalogue().evict_for({key: 20}) == []
        assert len(self.catalogue().evict_for({key: 30})) == 1
        assert len(self.catalogue().evict_for({make_record(0, 0).storage_key: 30})) == 2

    def test_restored_victims_are_resident_again(self) -> None:
        catalogue = self.catalogue()
        victims = catalogue.evict_bytes(50)
        assert (len(catalogue), catalogue.evictions) == (2, 3)
        catalogue.restore(victims)
        assert (len(catalogue), catalogue.used_bytes, catalogue.evictions) == (5, 100, 0)

    def test_evicting_more_than_there_is_ends(self) -> None:
        catalogue = self.catalogue()
        assert len(catalogue.evict_bytes(10**9)) == 5
        assert catalogue.evict_for({make_record(9, 0).storage_key: 1000}) == []

    def test_uses_are_taken_once_with_rising_numbers(self) -> None:
        catalogue = self.catalogue()
        keys = [make_record(number, 0).storage_key for number in (3, 1, 3)]
        for key in keys:
            catalogue.note_use(key)
        taken = catalogue.take_uses()
        assert {use.key for use in taken} == set(keys)
        newest = max(taken, key=lambda use: use.sequence)
        assert newest == Use(keys[0], catalogue.next_sequence() - 1)
        assert catalogue.take_uses() == []
        assert catalogue.note_use(make_record(77, 0).storage_key) is False

    @pytest.mark.parametrize("record_bytes", [104, 1000, 1998, 1999, 4080, 4081, 100_000])
    async def test_charge_covers_what_lmdb_takes(self, tmp_path: Path, record_bytes: int) -> None:
        count = 400
        with lmdb.open(str(tmp_path), map_size=128 * MIB, max_dbs=DATABASES_MAX) as environment:
            records, index = environment.open_db(RECORDS), environment.open_db(INDEX)
            with environment.begin(write=True) as transaction:
                for number in range(count):
                    key = make_record(number, 0).storage_key
                    transaction.put(key, bytes(record_bytes), db=records)
                    transaction.put(key, IndexEntry(bytes(32), bytes(16), 1, 2, 0, 3).to_bytes(), db=index)
                stats = [transaction.stat(database) for database in (records, index)]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        page_bytes = stats[0]["psize"]
        assert pages * page_bytes <= count * charged_bytes(record_bytes, page_bytes) <= 2.2 * pages * page_bytes
