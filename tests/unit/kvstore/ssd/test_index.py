"""The index: what it brings back after a crash, and that nothing depends on it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvloom import limits
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import OWNER_BYTES, OwnerId
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd import index as index_module
from kvloom.kvstore.ssd.index_pipe import IndexPipe, Loaded
from kvloom.kvstore.ssd.indexer import CHECK
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Record

MIB = 1024 * 1024
LIMIT = 4 * MIB
ALICE, BOB = (OwnerId(name * OWNER_BYTES) for name in (b"a", b"b"))


def files_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def crashed(tier: SsdTier, directory: Path, turn: int = 0) -> Path:
    """What ``kill -9`` would leave: the files as the kernel has them."""
    target = directory.with_name(f"{directory.name}-crashed-{turn}")
    shutil.copytree(directory, target)
    return target


def indexed(directory: Path) -> Loaded:
    pipe = IndexPipe(directory / "index", 0, how=CHECK)
    try:
        return pipe.load(30)
    finally:
        pipe.kill()


async def filled(directory: Path, count: int, size_bytes: int = 50_000) -> tuple[SsdTier, list[Record]]:
    tier = SsdTier.open(directory, LIMIT)
    records = [make_record(number, size_bytes) for number in range(count)]
    for record in records:
        await tier.put(record)
    return tier, records


async def is_right(tier: SsdTier, record: Record) -> bool:
    outcome = await tier.get(record.storage_key)
    return isinstance(outcome, Hit) and bytes(outcome.value.parts[0]) == record.payload


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


class TestAfterACrash:
    @pytest.mark.parametrize("lists", [True, False])
    async def test_the_order_of_use_is_that_of_the_last_write_of_the_index(self, directory: Path, lists: bool) -> None:
        tier, records = await filled(directory, 40)
        for record in records[10:20]:
            await tier.get(record.storage_key, [])
        await tier.write_index()
        order = tier._catalogue.keys()
        assert order[-10:] == [record.storage_key for record in records[10:20]]
        later = make_record(100, 1000)
        await tier.put(later)
        left = crashed(tier, directory)
        if not lists:
            for path in left.glob("*.list"):
                path.unlink()
        again = SsdTier.open(left, LIMIT)
        assert again._catalogue.keys() == [*order, later.storage_key]
        assert again.index_failures == 0
        await again.close()
        await tier.close()

    @pytest.mark.parametrize("clean", [True, False])
    @pytest.mark.parametrize("lists", [True, False])
    async def test_what_was_evicted_stays_away(self, directory: Path, clean: bool, lists: bool) -> None:
        tier, records = await filled(directory, 45)
        tier._catalogue.give_up(10 * 50_000, records[0].storage_key[:OWNER_BYTES])
        evicted = [record for record in records if record.storage_key not in tier._catalogue]
        assert 9 <= len(evicted) < 15
        await tier.write_index()
        left = directory if clean else crashed(tier, directory)
        await tier.close()
        for turn in range(2):
            if not lists:
                for path in left.glob("*.list"):
                    path.unlink()
            assert any(record.payload in path.read_bytes() for path in left.glob("*.log") for record in evicted)
            tier = SsdTier.open(left, LIMIT)
            assert not any(await tier.contains_many([record.storage_key for record in evicted])), turn
            for record in records:
                assert (record in evicted) == (not await is_right(tier, record))
            await tier.close()

    async def test_a_record_put_again_after_its_eviction_is_there(self, directory: Path) -> None:
        tier, records = await filled(directory, 45)
        tier._catalogue.give_up(10 * 50_000, records[0].storage_key[:OWNER_BYTES])
        await tier.write_index()
        await tier.put(records[0])
        again = SsdTier.open(crashed(tier, directory), LIMIT)
        assert await is_right(again, records[0])
        await again.close()
        await tier.close()

    async def test_what_was_deleted_never_comes_back_however_old_the_index(self, directory: Path) -> None:
        tier, records = await filled(directory, 20)
        await tier.write_index()
        older = (directory / "index").read_bytes()
        for record in records[:10]:
            assert await tier.delete(record.storage_key)
        await tier.close()
        for _ in range(2):
            (directory / "index").write_bytes(older)
            tier = SsdTier.open(directory, LIMIT)
            held = await tier.contains_many([record.storage_key for record in records])
            assert held == [False] * 10 + [True] * 10
            await tier.close()

    async def test_an_index_of_any_earlier_moment_loses_nothing_that_is_resident(self, directory: Path) -> None:
        """Records are evicted, moved, requeued, replaced meanwhile: what it said of a place is still true."""
        tier, _ = await filled(directory, 10)
        versions = []
        kept = [make_record(number, 40_000) for number in range(0, 1000, 50)]
        keys = {record.storage_key for record in kept}
        tier.protect(keys.__contains__)
        for number in range(1000):
            await tier.put(make_record(number, 40_000))
            if number % 100 == 99:
                await tier.write_index()
                versions.append((directory / "index").read_bytes())
        residents = set(tier._catalogue.keys())
        await tier.close()
        assert len(keys & residents) == len(kept)
        assert tier._segment_log.moved_bytes > 0
        good = {path: path.read_bytes() for path in directory.iterdir()}
        for version in (b"", *versions):
            for path in directory.iterdir():
                path.unlink()
            for path, content in good.items():
                path.write_bytes(content)
            (directory / "index").write_bytes(version)
            tier = SsdTier.open(directory, 2 * LIMIT)  # evicted records may come back, and there is room for them
            assert tier.capacity().evictions == 0
            assert set(tier._catalogue.keys()) >= residents
            assert all([await is_right(tier, record) for record in kept])
            await tier.close()


class TestNotNeeded:
    async def test_without_its_process_the_tier_is_what_the_log_says(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier, records = await filled(directory, 20)
        await tier.close()
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        tier = SsdTier.open(directory, LIMIT)
        await tier.write_index()
        assert tier.index_failures >= 1
        assert all([await is_right(tier, record) for record in records])
        await tier.put(make_record(100, 1000))
        await tier.close()
        assert not (directory / "index").exists()

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
    async def test_a_process_that_is_killed_or_hangs_is_given_up_and_the_index_begun_anew(
        self, directory: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(index_module, "_WRITE_SECONDS_MAX", 0.2)
        tier, records = await filled(directory, 20)
        assert tier._index._pipe is not None
        os.kill(tier._index._pipe.pid, number)
        await tier.put(make_record(100, 1000))
        await tier.write_index()
        assert tier.index_failures == 1
        await tier.get(records[3].storage_key, [])
        await tier.write_index()
        assert tier._index._pipe is None
        assert not (directory / "index").exists()
        monkeypatch.setattr(index_module, "_WRITE_SECONDS_MAX", 30)
        tier._index._retry_at = 0
        await tier.write_index()
        order = tier._catalogue.keys()
        assert order[-1] == records[3].storage_key
        await tier.close()
        tier = SsdTier.open(directory, LIMIT)
        assert tier._catalogue.keys() == order
        await tier.close()

    async def test_a_full_index_is_given_up_and_heals(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "SSD_INDEX_FRAME_BYTES", 0)
        monkeypatch.setattr(limits, "SSD_INDEX_BYTES_MIN", 48 * 1024)
        tier = SsdTier.open(directory, LIMIT)
        records = [make_record(number, 40) for number in range(2000)]
        await asyncio.gather(*(tier.put(record) for record in records))
        await tier.write_index()
        assert tier.index_failures == 1
        assert await is_right(tier, records[-1])
        assert files_bytes(directory) <= LIMIT
        monkeypatch.setattr(limits, "SSD_INDEX_FRAME_BYTES", 128)
        tier._index._retry_at = 0
        await tier.write_index()
        assert len(indexed(directory).entries) == tier.capacity().records == 2000
        await tier.close()

    async def test_more_changes_than_are_remembered_are_written_as_a_whole(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "SSD_INDEX_CHANGES_MAX", 10)
        tier, records = await filled(directory, 40)
        for record in records[::2]:
            await tier.get(record.storage_key, [])
        await tier.write_index()
        order = tier._catalogue.keys()
        again = SsdTier.open(crashed(tier, directory), LIMIT)
        assert again._catalogue.keys() == order
        await again.close()
        await tier.close()

    async def test_an_index_of_another_log_is_passed_over(self, directory: Path, tmp_path: Path) -> None:
        other, _ = await filled(tmp_path / "other", 30)
        await other.close()
        tier, records = await filled(directory, 20)
        await tier.close()
        shutil.copy(tmp_path / "other" / "index", directory / "index")
        tier = SsdTier.open(directory, LIMIT)
        assert all([await is_right(tier, record) for record in records])
        await tier.write_index()
        assert len(indexed(directory).entries) == 20
        assert tier.index_failures == 0
        await tier.close()


async def test_it_has_the_residents_and_nothing_of_those_that_are_gone(directory: Path) -> None:
    tier = SsdTier.open(directory, LIMIT)
    records = [make_record(number, 5000, owner=(ALICE, BOB)[number % 2]) for number in range(40)]
    for record in records:
        await tier.put(record)
    await tier.write_index()
    assert len(indexed(directory).entries) == 40
    for record in records[::2]:
        await tier.delete(record.storage_key)
    await tier.write_index()
    assert len(indexed(directory).entries) == 20
    content = (directory / "index").read_bytes()
    assert not any(part in content for record in records for part in (record.storage_key, ALICE, BOB))
    await tier.close()


async def test_files_with_an_index_that_grows_stay_within_the_limit(directory: Path) -> None:
    """As many records as a tier can have, used and evicted in all orders."""
    tier = SsdTier.open(directory, limits.TIER_BYTES_MIN)
    for turn in range(6):
        records = [make_record(600 * turn + number, 40) for number in range(600)]
        await asyncio.gather(*(tier.put(record) for record in records))
        for record in records[turn % 3 :: 3]:
            await tier.get(record.storage_key, [])
        await tier.write_index()
        assert files_bytes(directory) <= limits.TIER_BYTES_MIN
    assert tier.index_failures == 0
    assert len(indexed(directory).entries) == tier.capacity().records
    await tier.close()
    assert files_bytes(directory) <= limits.TIER_BYTES_MIN


async def test_an_index_too_large_for_a_smaller_quota_is_begun_anew(directory: Path) -> None:
    tier = SsdTier.open(directory, LIMIT)
    await asyncio.gather(*(tier.put(make_record(number, 40)) for number in range(3000)))
    await tier.close()
    with (directory / "index").open("ab") as file:
        file.write(bytes(MIB))
    tier = SsdTier.open(directory, limits.TIER_BYTES_MIN)
    assert files_bytes(directory) <= limits.TIER_BYTES_MIN
    assert tier.capacity().records > 100
    await tier.write_index()
    assert len(indexed(directory).entries) == tier.capacity().records
    await tier.close()


async def test_it_is_written_without_being_asked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_PAUSE_SECONDS", 0.0)
    written = asyncio.Event()
    loop = asyncio.get_running_loop()
    tier = SsdTier.open(directory, LIMIT)
    take = tier._catalogue.take_changes

    def noticed():
        changes = take()
        if any(now != -1 for _, now in changes.rows):
            loop.call_soon_threadsafe(written.set)
        return changes

    monkeypatch.setattr(tier._catalogue, "take_changes", noticed)
    await tier.put(make_record(1, 1000))
    await asyncio.wait_for(written.wait(), 60)
    assert isinstance(await tier.get(make_record(2, 0).storage_key), Miss)
    await tier.close()


def test_the_daemon_itself_never_loads_lmdb(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from kvloom.kvstore.ssd.tier import SsdTier\n"
        f"tier = SsdTier.open(Path(sys.argv[1]), {LIMIT}); asyncio.run(tier.close())\n"
        "print(tier.index_failures, 'lmdb' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert said == "0 False\n"
