import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

import pytest

from kvloom import limits
from kvloom.codec.container import ByteRange
from kvloom.errors import ConfigError, Overloaded, StorageFull
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.outcome import Corrupt, Hit, Miss
from kvloom.kvstore.record import HEADER_BYTES
from kvloom.kvstore.ssd.disk import Disk
from kvloom.kvstore.ssd.frame import HEAD_BYTES
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.ssd.walk import LogPosition
from kvloom.kvstore.ssd.writer import Work
from kvloom.kvstore.tier import OwnerId, Record

MIB = 1024 * 1024
LIMIT = 4 * MIB


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[SsdTier]:
    tier = SsdTier.open(tmp_path, LIMIT)
    yield tier
    await tier.close()


def files_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def forget_lists(directory: Path) -> None:
    """What opening finds after a crash: segments, and nothing that says what is in them."""
    for path in (*directory.glob("*.list"), directory / "index"):
        path.unlink(missing_ok=True)


async def is_right(tier: SsdTier, record: Record) -> bool:
    outcome = await tier.get(record.storage_key)
    return (
        isinstance(outcome, Hit)
        and bytes(outcome.value.parts[0]) == record.payload
        and outcome.value.info == record.info
    )


async def test_everything_belongs_to_its_user_only(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    tier = SsdTier.open(directory, LIMIT)
    await tier.put(make_record(1, 1000))
    await tier.close()
    assert directory.stat().st_mode & 0o777 == 0o700
    modes = {path.suffix or path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == dict.fromkeys(("lock", "format", "index", ".log", ".list"), 0o600)


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
    record = make_record(1, 1000)
    tier = SsdTier.open(tmp_path, LIMIT)
    await tier.put(record)
    await tier.close()
    good = (tmp_path / "format").read_bytes()
    (tmp_path / "format").write_bytes(b"kvloom log 9\n")
    with pytest.raises(ConfigError, match="format b'kvloom log 9"):
        SsdTier.open(tmp_path, LIMIT)
    (tmp_path / "format").write_bytes(good)
    tier = SsdTier.open(tmp_path, LIMIT)
    assert await is_right(tier, record)
    await tier.close()


def test_a_directory_of_the_older_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "lmdb").mkdir()
    with pytest.raises(ConfigError, match=f"in LMDB: remove {tmp_path / 'lmdb'}"):
        SsdTier.open(tmp_path, LIMIT)


async def test_many_waiting_puts_share_groups(tier: SsdTier) -> None:
    await asyncio.gather(*(tier.put(make_record(number, 1000)) for number in range(200)))
    assert 1 <= tier._writer.groups < 100


async def test_what_is_used_elsewhere_is_used_here(tier: SsdTier) -> None:
    records = [make_record(number, 1000) for number in range(3)]
    for record in records:
        await tier.put(record)
    tier.touch([records[0].storage_key, make_record(99, 1).storage_key])
    order = [item.storage_key for item in (records[1], records[2], records[0])]
    assert tier._catalogue.keys() == order


async def test_owner_and_expiry_are_kept(tmp_path: Path) -> None:
    plain = make_record(1, 1000)
    record = Record(plain.storage_key, plain.content_key, plain.payload, 7, OwnerId(b"o" * 16), 99)
    tier = SsdTier.open(tmp_path, LIMIT)
    await tier.put(record)
    await tier.close()
    for forget in (False, True):
        if forget:
            forget_lists(tmp_path)
        tier = SsdTier.open(tmp_path, LIMIT)
        assert await is_right(tier, record)
        assert [info async for info in tier.scan()] == [record.info]
        await tier.close()


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
    assert files_bytes(tmp_path) <= LIMIT


async def test_many_small_records_and_deletions_stay_within_the_limit(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, limits.TIER_BYTES_MIN)
    for turn in range(6):
        records = [make_record(number, 40, version=turn) for number in range(600)]
        await asyncio.gather(*(tier.put(record) for record in records))
        assert await is_right(tier, records[-1])
        await asyncio.gather(*(tier.delete(record.storage_key) for record in records))
        assert files_bytes(tmp_path) <= limits.TIER_BYTES_MIN
    assert tier.capacity().records == 0
    await tier.close()


async def test_records_in_use_outlive_many_times_the_quota(tmp_path: Path, seed: int) -> None:
    """Used records are moved on when their segment is reclaimed: alone, and with all of their segment."""
    tier = SsdTier.open(tmp_path, LIMIT)
    random = Random(seed)
    used = [make_record(number, (3_000, 50_000, 200_000)[number % 3]) for number in range(12)]
    for record in used:
        await tier.put(record)
        await tier.put(make_record(500 + len(used), 1000))
    for number in range(1000, 1400):
        await tier.put(make_record(number, random.choice((3_000, 60_000))))
        assert await is_right(tier, used[number % len(used)])
        if number % 100 == 0:
            await tier.close()
            tier = SsdTier.open(tmp_path, LIMIT)
    assert tier.written_bytes < 4 * 400 * 31_500
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
    for number in range(100, 112):
        await tier.put(make_record(number, 100_000))
    held = await tier.contains_many([record.storage_key for record in (*records[10:], *records[:10])])
    assert tier.capacity().evictions > 0
    assert held == sorted(held)
    assert any(held)
    await tier.close()


async def test_smaller_quota_is_put_into_effect_at_open(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 2 * LIMIT)
    records = [make_record(number, 100_000) for number in range(60)]
    for record in records:
        await tier.put(record)
    await tier.close()
    assert files_bytes(tmp_path) > LIMIT
    tier = SsdTier.open(tmp_path, LIMIT)
    assert files_bytes(tmp_path) <= LIMIT
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
        StorageFull, match=rf"record of {2 * MIB + HEAD_BYTES} bytes does not fit the ssd tier, whose largest"
    ):
        await tier.put(make_record(1, 2 * MIB))


async def test_deletion_outlives_every_copy_of_its_record(tmp_path: Path) -> None:
    """However often the log is rebuilt from its segments alone, and wherever its reclaiming stands."""
    tier = SsdTier.open(tmp_path, LIMIT)
    deleted = [make_record(number, 50_000) for number in range(10)]
    for version in range(3):
        for number in range(10):
            await tier.put(make_record(number, 50_000 + version, version=version))
    for record in deleted:
        assert await tier.delete(record.storage_key)
    for turn in range(30):
        for number in range(4):
            await tier.put(make_record(100 + 4 * turn + number, 70_000))
        await tier.close()
        forget_lists(tmp_path)
        tier = SsdTier.open(tmp_path, LIMIT)
        assert not any(await tier.contains_many([record.storage_key for record in deleted]))
    await tier.close()


class HeldDisk(Disk):
    """Syncs wait until they may go on; says when one waits."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()

    def sync(self, descriptor: int) -> None:
        self.go.wait()
        super().sync(descriptor)


async def test_more_waiting_than_the_queue_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_QUEUE_BYTES_MAX", 50_000)
    disk = HeldDisk()
    tier = SsdTier.open(tmp_path, LIMIT, disk=disk)
    disk.go.clear()
    tasks = [asyncio.create_task(tier.put(make_record(number, 20_000))) for number in range(10)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    disk.go.set()
    refused = [error for error in await asyncio.gather(*tasks, return_exceptions=True) if error is not None]
    assert refused
    assert all(isinstance(error, Overloaded) and "the limit is 50000" in str(error) for error in refused)
    assert tier.capacity().records == 10 - len(refused)
    await tier.close()


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


async def test_close_writes_what_was_submitted(tmp_path: Path) -> None:
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


async def test_a_deletion_in_the_same_group_as_its_put_counts(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, LIMIT)
    record = make_record(1, 1000)
    outcomes = await asyncio.gather(
        tier.put(record), tier.delete(record.storage_key), tier.delete(record.storage_key), tier.put(record)
    )
    assert outcomes == [None, True, False, None]
    await tier.close()
    tier = SsdTier.open(tmp_path, LIMIT)
    assert await is_right(tier, record)
    await tier.close()


class TestDamage:
    async def test_flipped_bits_are_corrupt_never_wrong_bytes(self, tmp_path: Path) -> None:
        record = make_record(1, 3000)
        tier = SsdTier.open(tmp_path, LIMIT)
        await tier.put(record)
        (log,) = tmp_path.glob("*.log")
        good = log.read_bytes()
        start = good.index(record.payload) - HEADER_BYTES
        with log.open("r+b", buffering=0) as file:
            for position in range(0, 8 * (HEADER_BYTES + 3000), 61):
                place = start + position // 8
                os.pwrite(file.fileno(), bytes([good[place] ^ 1 << position % 8]), place)
                assert isinstance(await tier.get(record.storage_key), Corrupt)
                in_range = await tier.get(record.storage_key, [ByteRange(0, 10)])
                assert isinstance(in_range, Corrupt if position < 8 * HEADER_BYTES else Hit)
                os.pwrite(file.fileno(), good[place : place + 1], place)
        assert await tier.delete(record.storage_key)
        await tier.put(record)
        assert await is_right(tier, record)
        await tier.close()

    async def test_record_in_place_of_another_is_corrupt(self, tmp_path: Path) -> None:
        one, other = make_record(1, 3000), make_record(2, 3000)
        tier = SsdTier.open(tmp_path, LIMIT)
        await tier.put(one)
        await tier.put(other)
        (log,) = tmp_path.glob("*.log")
        good = log.read_bytes()
        frames = [good.index(record.payload) - HEAD_BYTES for record in (one, other)]
        frame = good[frames[1] : frames[1] + HEAD_BYTES + 3000]
        with log.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), frame, frames[0])
        assert isinstance(await tier.get(one.storage_key), Corrupt)
        assert isinstance(await tier.get(one.storage_key, [ByteRange(0, 1)]), Corrupt)
        assert await is_right(tier, other)
        await tier.close()
        forget_lists(tmp_path)
        tier = SsdTier.open(tmp_path, LIMIT)  # a frame counts only where it was written
        assert isinstance(await tier.get(one.storage_key), Miss)
        assert await is_right(tier, other)
        assert tier.damaged_segments == 1
        await tier.close()

    @pytest.mark.parametrize("content", [b"", b"KVLI", bytes(5000)])
    async def test_a_damaged_list_is_rebuilt_from_its_segment(self, tmp_path: Path, content: bytes) -> None:
        records = [make_record(number, 30_000) for number in range(30)]
        tier = SsdTier.open(tmp_path, LIMIT)
        for record in records:
            await tier.put(record)
        await tier.close()
        lists = sorted(tmp_path.glob("*.list"))
        good = [path.read_bytes() for path in lists]
        lists[1].write_bytes(content)
        tier = SsdTier.open(tmp_path, LIMIT)
        assert tier.damaged_segments == 1
        assert [path.read_bytes() for path in lists] == good
        assert all([await is_right(tier, record) for record in records])
        await tier.close()

    async def test_frames_behind_a_damaged_one_are_found(self, tmp_path: Path) -> None:
        records = [make_record(number, 10_000) for number in range(20)]
        tier = SsdTier.open(tmp_path, LIMIT)
        for record in records:
            await tier.put(record)
        await tier.close()
        forget_lists(tmp_path)
        log = min(tmp_path.glob("*.log"))
        start = log.read_bytes().index(records[4].payload) - HEAD_BYTES
        with log.open("r+b") as file:
            file.seek(start)
            file.write(bytes(100))
        tier = SsdTier.open(tmp_path, LIMIT)
        assert tier.damaged_segments == 1
        held = await tier.contains_many([record.storage_key for record in records])
        assert held == [number != 4 for number in range(20)]
        await tier.close()


class TestScrub:
    async def test_every_damaged_record_is_found_once_and_becomes_a_miss(self, tmp_path: Path) -> None:
        records = [make_record(number, 30_000) for number in range(40)]
        tier = SsdTier.open(tmp_path, LIMIT)
        for record in records:
            await tier.put(record)
        damaged = records[3::7]
        for log in tmp_path.glob("*.log"):
            content = log.read_bytes()
            for record in damaged:
                if record.payload in content:
                    with log.open("r+b", buffering=0) as file:
                        place = content.index(record.payload) + 17_000
                        os.pwrite(file.fileno(), bytes([content[place] ^ 4]), place)
        position, found, steps, read_bytes = LogPosition(), [], 0, 0
        while True:
            step = await tier.scrub(position, bytes_max=100_000)
            found += step.damaged
            steps += 1
            read_bytes += step.size_bytes
            assert step.size_bytes <= 100_000 + 36_864
            if step.at_end:
                break
            assert step.position > position
            position = step.position
        assert sorted(one.info.storage_key for one in found) == sorted(record.storage_key for record in damaged)
        assert steps > 5
        assert read_bytes >= 40 * 30_000
        for record in records:
            wanted = Miss if record in damaged else Hit
            assert isinstance(await tier.get(record.storage_key), wanted)
        assert (await tier.scrub(LogPosition(), bytes_max=10 * MIB)).damaged == ()
        await tier.close()

    async def test_a_scrub_is_no_use(self, tier: SsdTier) -> None:
        for number in range(5):
            await tier.put(make_record(number, 1000))
        before = tier._catalogue.keys()
        step = await tier.scrub(LogPosition(), bytes_max=MIB)
        assert (step.records, step.at_end) == (5, True)
        assert tier._catalogue.keys() == before
