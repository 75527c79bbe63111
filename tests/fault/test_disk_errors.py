"""A disk that fails: typed refusals that name it, reads go on, and writing heals when the disk does."""

import asyncio
import contextlib
import errno
import os
import resource
from pathlib import Path

import pytest

from kvloom.errors import KvloomError, StorageFull, StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.outcome import Hit, Miss, Unavailable
from kvloom.kvstore.ssd.disk import Disk
from kvloom.kvstore.ssd.tier import SsdTier

LIMIT = 4 * 1024 * 1024
WRITING = ("write", "sync", "create", "resize", "rename", "unlink", "write_small", "truncate", "sync_directory")


async def holds(tier: SsdTier, number: int, size_bytes: int = 50_000) -> bool:
    outcome = await tier.get(make_record(number, 0).storage_key)
    return isinstance(outcome, Hit) and bytes(outcome.value.parts[0]) == make_record(number, size_bytes).payload


async def reopened(directory: Path, *, lists: bool) -> SsdTier:
    if not lists:
        for path in directory.glob("*.list"):
            path.unlink()
    return await asyncio.to_thread(SsdTier.open, directory, LIMIT)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EDQUOT])
@pytest.mark.parametrize("method", WRITING)
async def test_what_was_acknowledged_stays_and_writing_heals(
    tmp_path: Path, failing_disk, method: str, number: int
) -> None:
    tier = SsdTier.open(tmp_path, LIMIT, disk=failing_disk)
    for item in range(100, 200):  # more than the quota: files are reclaimed and used again
        await tier.put(make_record(item, 50_000))
    kept = [item for item in range(100, 200) if await holds(tier, item)]
    failing_disk.failures[method] = (0, number)
    stored: list[int] = []
    refused: list[str] = []
    for item in range(12):
        try:
            await tier.put(make_record(item, 50_000))
        except (StorageFull, StorageUnavailable) as error:
            refused.append(str(error))
        else:
            stored.append(item)
    assert all(said.startswith("ssd tier: ") and os.strerror(number) in said for said in refused)
    assert failing_disk.failed or method in ("create", "resize")
    assert refused or method in ("create", "resize", "truncate", "write_small", "unlink", "rename")
    for item in (*stored, kept[-1]):
        assert await holds(tier, item)
    failing_disk.failures.clear()
    for item in range(300, 310):
        await tier.put(make_record(item, 50_000))
    acknowledged = [*stored, kept[-1], *range(300, 310)]
    for item in acknowledged:
        assert await holds(tier, item)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= LIMIT
    await tier.close()
    for lists in (True, False):
        tier = await reopened(tmp_path, lists=lists)
        for item in acknowledged:
            assert await holds(tier, item)
        await tier.close()


async def test_what_a_failed_sync_left_in_the_page_cache_is_not_believed(tmp_path: Path, failing_disk) -> None:
    """The put was refused, so the older record of its key is the one that counts, now and after reopening."""
    tier = SsdTier.open(tmp_path, LIMIT, disk=failing_disk)
    old, new = make_record(1, 20_000), make_record(1, 20_000, version=1)
    await tier.put(old)
    await tier.put(make_record(2, 20_000))
    failing_disk.failures["sync"] = (0, errno.EIO)
    with pytest.raises(StorageUnavailable, match="ssd tier: the disk cannot write records: Input/output error"):
        await tier.put(new)
    with pytest.raises(StorageUnavailable):
        await tier.delete(make_record(2, 0).storage_key)
    failing_disk.failures.clear()
    await tier.put(make_record(3, 20_000))
    for lists in (True, True, False):
        outcome = await tier.get(old.storage_key)
        assert isinstance(outcome, Hit)
        assert bytes(outcome.value.parts[0]) == old.payload
        assert await holds(tier, 2, 20_000)
        assert await holds(tier, 3, 20_000)
        await tier.close()
        tier = await reopened(tmp_path, lists=lists)
    await tier.close()


@pytest.mark.parametrize("method", WRITING)
async def test_failures_that_come_and_go_lose_nothing_acknowledged(tmp_path: Path, failing_disk, method: str) -> None:
    tier = SsdTier.open(tmp_path, LIMIT, disk=failing_disk)
    newest: dict[int, int] = {}
    for version in range(80):
        item = version % 12
        failing_disk.failures[method] = (version % 5, errno.EIO) if version % 3 == 0 else (1, 0)
        try:
            await tier.put(make_record(item, 40_000 + version, version=version))
        except KvloomError:
            pass
        else:
            newest[item] = version
    failing_disk.failures.clear()
    for lists in (True, False):
        for item, version in newest.items():
            outcome = await tier.get(make_record(item, 0).storage_key)
            assert isinstance(outcome, Hit)
            assert bytes(outcome.value.parts[0]) == make_record(item, 40_000 + version, version=version).payload
        await tier.close()
        tier = await reopened(tmp_path, lists=lists)
    await tier.close()


async def test_a_disk_that_cannot_be_read_is_unavailable_and_nothing_is_deleted(tmp_path: Path, failing_disk) -> None:
    tier = SsdTier.open(tmp_path, LIMIT, disk=failing_disk)
    await tier.put(make_record(1, 50_000))
    failing_disk.failures["read"] = failing_disk.failures["read_cached"] = (0, errno.EIO)
    outcome = await tier.get(make_record(1, 0).storage_key)
    assert outcome == Unavailable("ssd", "the disk cannot be read: Input/output error")
    failing_disk.failures.clear()
    assert await holds(tier, 1)
    await tier.close()


async def test_no_descriptor_left(tmp_path: Path) -> None:
    """The process has as many files open as it may: new segments come from files that are open already."""
    tier = SsdTier.open(tmp_path, LIMIT)
    for item in range(100, 200):
        await tier.put(make_record(item, 50_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    refused: list[str] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for item in range(20):
            try:
                await tier.put(make_record(item, 50_000))
            except StorageUnavailable as error:
                refused.append(str(error))
            else:
                assert await holds(tier, item)
        assert all("Too many open files" in said for said in refused)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for item in range(20, 40):
        await tier.put(make_record(item, 50_000))
        assert await holds(tier, item)
    await tier.close()


class SmallDisk(Disk):
    """A disk of ``room_bytes``, most of them taken by others: what is allocated beyond is refused."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self._directory: Path | None = None

    def _take(self, size_bytes: int) -> None:
        used = 0 if self._directory is None else sum(path.stat().st_size for path in self._directory.glob("*.log"))
        if used + size_bytes > self.room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: Path, size_bytes: int) -> int:
        self._directory = path.parent
        self._take(size_bytes)
        return super().create(path, size_bytes)

    def resize(self, descriptor: int, old_bytes: int, new_bytes: int) -> None:
        if new_bytes > old_bytes:
            self._take(new_bytes - old_bytes)
        super().resize(descriptor, old_bytes, new_bytes)


async def test_a_full_disk_makes_the_tier_smaller_not_useless(tmp_path: Path) -> None:
    disk = SmallDisk(1_200_000)
    tier = SsdTier.open(tmp_path, LIMIT, disk=disk)
    for item in range(60):
        await tier.put(make_record(item, 50_000))
        assert await holds(tier, item)
    assert tier.capacity().records >= 10
    disk.room_bytes = 100_000  # others took the rest: files of ours are still used again
    for item in range(60, 80):
        await tier.put(make_record(item, 50_000))
        assert await holds(tier, item)
    disk.room_bytes = LIMIT
    for item in range(100, 140):
        await tier.put(make_record(item, 50_000))
    assert tier.capacity().records >= 30
    await tier.close()
    tier = SsdTier.open(tmp_path, LIMIT)
    assert all([await holds(tier, item) for item in range(110, 140)])
    await tier.close()


async def test_an_empty_tier_on_a_full_disk_refuses_and_heals(tmp_path: Path) -> None:
    disk = SmallDisk(10_000)
    tier = SsdTier.open(tmp_path, LIMIT, disk=disk)
    with pytest.raises(StorageFull, match="the disk has no room to make room for records: No space left on device"):
        await tier.put(make_record(1, 50_000))
    assert await tier.get(make_record(1, 0).storage_key) == Miss()
    disk.room_bytes = LIMIT
    await tier.put(make_record(1, 50_000))
    assert await holds(tier, 1)
    await tier.close()
