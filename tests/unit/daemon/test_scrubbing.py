"""A scrub that was asked for: one at a time, all of the tier, and what it says of itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvloom.daemon.scrubbing import AskedScrub
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import RecordInfo

MIB = 1024**2
COUNT = 30


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[SsdTier]:
    tier = SsdTier.open(tmp_path, 8 * MIB)
    for number in range(COUNT):
        await tier.put(make_record(number, 20_000))
    yield tier
    await tier.close()


async def finished(scrub: AskedScrub):
    async with asyncio.timeout(60):
        while scrub.running:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return scrub.report()


async def test_it_reads_everything_and_says_so(tier, tmp_path):
    times = iter([10.0, 10.5, 13.0])
    scrub = AskedScrub(tier, tmp_path, lambda info: None, clock=lambda: next(times))
    before = scrub._counts
    assert (before.records, scrub.running) == (0, False)
    begun = scrub.start()
    assert (begun.number, begun.running, begun.total_bytes) == (1, True, tier.capacity().used_bytes)
    done = await finished(scrub)
    assert (done.number, done.running, done.records, done.damaged, done.failure) == (1, False, COUNT, 0, None)
    assert done.size_bytes >= COUNT * 20_000
    assert (begun.seconds, done.seconds) == (0.5, 3.0)


async def test_nobody_has_asked_yet(tier, tmp_path):
    report = AskedScrub(tier, tmp_path, lambda info: None).report()
    assert (report.number, report.running, report.records, report.seconds) == (0, False, 0, 0.0)


async def test_asking_twice_is_asking_once_while_it_lasts(tier, tmp_path):
    scrub = AskedScrub(tier, tmp_path, lambda info: None)
    assert [scrub.start().number for _ in range(3)] == [1, 1, 1]
    await finished(scrub)
    again = scrub.start()
    assert (again.number, again.records, again.running) == (2, 0, True)
    assert (await finished(scrub)).records == COUNT


async def test_what_is_damaged_is_told_counted_and_gone(tier, tmp_path):
    payload = bytes(make_record(3, 20_000).payload)
    for path in tmp_path.glob("*.log"):
        if (place := path.read_bytes().find(payload)) >= 0:
            with path.open("r+b") as file:
                file.seek(place + 5)
                file.write(b"\0\0\0\0" if payload[5:9] != b"\0\0\0\0" else b"\1\1\1\1")
    told: list[RecordInfo] = []
    scrub = AskedScrub(tier, tmp_path, told.append)
    scrub.start()
    report = await finished(scrub)
    assert (report.records, report.damaged) == (COUNT, 1)
    assert [info.storage_key for info in told] == [make_record(3, 20_000).storage_key]


async def test_a_disk_that_fails_ends_it_and_is_named(tmp_path):
    tier = SsdTier.open(tmp_path, 4 * MIB)
    scrub = AskedScrub(tier, tmp_path, lambda info: None)
    await tier.close()
    scrub.start()
    report = await finished(scrub)
    assert not report.running
    assert "ssd" in report.failure


async def test_closing_gives_up_the_pass_under_way(tier, tmp_path):
    scrub = AskedScrub(tier, tmp_path, lambda info: None)
    await scrub.close()
    scrub.start()
    await scrub.close()
    assert not scrub.running
