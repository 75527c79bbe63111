"""What comes while a group is copied joins it, and shares its sync and nothing else."""

import asyncio
import errno
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvloom.errors import StorageUnavailable
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.ssd.disk import Disk
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Buffer

MIB = 1024 * 1024
LARGE = 200_000


class WaitingDisk(Disk):
    """Its first write waits until it may go on; others and syncs fail as told."""

    def __init__(self) -> None:
        self.writing, self.may_write = threading.Event(), threading.Event()
        self.writes = self.syncs = 0
        self.later_writes_fail = self.sync_fails = False

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> None:
        self.writes += 1
        self.writing.set()
        self.may_write.wait()
        if self.later_writes_fail and self.writes > 1:
            raise OSError(errno.EIO, "told to fail")
        super().write(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        if self.sync_fails:
            raise OSError(errno.EIO, "told to fail")
        super().sync(descriptor)


async def put_behind(tier: SsdTier, disk: WaitingDisk, count: int) -> list[BaseException | None]:
    """Put a large record and, while it is copied, ``count`` more; what became of each."""
    tasks = [asyncio.create_task(tier.put(make_record(0, LARGE)))]
    await asyncio.to_thread(disk.writing.wait)
    tasks += [asyncio.create_task(tier.put(make_record(number, LARGE))) for number in range(1, count + 1)]
    while len(tier._writer._queue) < count:  # noqa: ASYNC110 - what fills it tells nobody
        await asyncio.sleep(0)
    disk.may_write.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def held(tier: SsdTier) -> list[bool]:
    """Of the first six records, which are there and right."""
    found = [await tier.get(make_record(number, 0).storage_key) for number in range(6)]
    return [
        isinstance(outcome, Hit) and b"".join(outcome.value.parts) == make_record(number, LARGE).payload
        for number, outcome in enumerate(found)
    ]


async def test_what_comes_while_a_group_is_copied_shares_its_sync(tmp_path: Path) -> None:
    disk = WaitingDisk()
    tier = SsdTier.open(tmp_path, 64 * MIB, disk=disk)
    assert await put_behind(tier, disk, 5) == [None] * 6
    assert (disk.writes, disk.syncs, tier._writer.groups) == (2, 1, 1)
    assert await held(tier) == [True] * 6
    await tier.close()
    tier = SsdTier.open(tmp_path, 64 * MIB)
    assert await held(tier) == [True] * 6
    await tier.close()


async def test_a_record_that_joins_and_cannot_be_written_takes_no_other_with_it(tmp_path: Path) -> None:
    disk = WaitingDisk()
    tier = SsdTier.open(tmp_path, 64 * MIB, disk=disk)
    disk.later_writes_fail = True
    results = await put_behind(tier, disk, 5)
    assert results[0] is None
    assert all(isinstance(result, StorageUnavailable) for result in results[1:])
    disk.later_writes_fail = False
    await tier.put(make_record(3, LARGE))
    expected = [True, False, False, True, False, False]
    assert await held(tier) == expected
    await tier.close()
    tier = SsdTier.open(tmp_path, 64 * MIB)
    assert await held(tier) == expected
    await tier.close()


async def test_a_failed_sync_fails_all_that_share_it(tmp_path: Path) -> None:
    disk = WaitingDisk()
    tier = SsdTier.open(tmp_path, 64 * MIB, disk=disk)
    disk.sync_fails = True
    results = await put_behind(tier, disk, 5)
    assert [type(result) for result in results] == [StorageUnavailable] * 6
    disk.sync_fails = False
    assert await held(tier) == [False] * 6
    await tier.put(make_record(2, LARGE))
    await tier.close()
    tier = SsdTier.open(tmp_path, 64 * MIB)
    assert await held(tier) == [False, False, True, False, False, False]
    await tier.close()


@pytest.mark.parametrize("first", [True, False])
async def test_a_deletion_that_joins_is_of_what_was_put_before_it(tmp_path: Path, first: bool) -> None:
    disk = WaitingDisk()
    tier = SsdTier.open(tmp_path, 64 * MIB, disk=disk)
    put = asyncio.create_task(tier.put(make_record(0, LARGE)))
    await asyncio.to_thread(disk.writing.wait)
    deletion = asyncio.create_task(tier.delete(make_record(0 if first else 1, 0).storage_key))
    while not tier._writer._queue:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    disk.may_write.set()
    await put
    assert await deletion is first
    assert (await held(tier))[0] is not first
    await tier.close()
    tier = SsdTier.open(tmp_path, 64 * MIB)
    assert (await held(tier))[0] is not first
    await tier.close()
