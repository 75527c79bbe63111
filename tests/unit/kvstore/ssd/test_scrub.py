import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd.scrub import Scrubber
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.ssd.walk import LogPosition
from kvloom.kvstore.tier import RecordInfo

MIB = 1024 * 1024
RECORDS = [make_record(number, 50_000) for number in range(40)]


class Clock:
    """A sleep that takes no time, says how long it would have been, and ends the test's patience."""

    def __init__(self, sleeps_max: int = 1000) -> None:
        self.seconds = 0.0
        self._left = sleeps_max

    async def __call__(self, seconds: float) -> None:
        self.seconds += seconds
        self._left -= 1
        if self._left == 0:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[SsdTier]:
    tier = SsdTier.open(tmp_path, 4 * MIB)
    for record in RECORDS:
        await tier.put(record)
    yield tier
    await tier.close()


def flip(directory: Path, payload: bytes, bit: int) -> None:
    for path in directory.glob("*.log"):
        start = path.read_bytes().find(payload)
        if start >= 0:
            with path.open("r+b", buffering=0) as file:
                place = start + bit // 8
                byte = os.pread(file.fileno(), 1, place)[0]
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), place)
            return
    raise AssertionError("the payload is in no segment")


async def test_every_damaged_record_is_counted_told_and_deleted(tmp_path: Path, tier: SsdTier, rng) -> None:
    damaged = RECORDS[::3]
    for record in damaged:
        flip(tmp_path, bytes(record.payload), int(rng.integers(8 * 50_000)))
    told: list[RecordInfo] = []
    scrubber = Scrubber(tier, tmp_path, bytes_per_second=MIB, on_damaged=told.append)
    counts = await scrubber.once()
    assert sorted(info.storage_key for info in told) == sorted(record.storage_key for record in damaged)
    assert (counts.records, counts.damaged, counts.rounds) == (40, len(damaged), 1)
    assert counts.size_bytes >= 40 * 50_000
    for record in RECORDS:
        assert isinstance(await tier.get(record.storage_key), Miss if record in damaged else Hit)
    assert (await scrubber.once()).damaged == len(damaged)


async def test_it_reads_no_more_than_it_may(tmp_path: Path, tier: SsdTier) -> None:
    sleep = Clock(sleeps_max=6)
    scrubber = Scrubber(tier, tmp_path, bytes_per_second=200_000, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await scrubber.run()
    assert scrubber.counts.rounds == 0
    assert 5 <= sleep.seconds < 60
    assert scrubber.counts.size_bytes == pytest.approx(200_000 * sleep.seconds)


async def test_it_goes_on_where_it_was(tmp_path: Path, tier: SsdTier) -> None:
    first = Scrubber(tier, tmp_path, bytes_per_second=500_000, sleep=Clock(sleeps_max=2))
    with pytest.raises(asyncio.CancelledError):
        await first.run()
    rest = Scrubber(tier, tmp_path, bytes_per_second=500_000, sleep=Clock(sleeps_max=3))
    with pytest.raises(asyncio.CancelledError):
        await rest.run()
    assert first.counts.records + rest.counts.records == 40
    assert rest.counts.rounds == 1


@pytest.mark.parametrize("content", [b"", b"x", b"1", b"-1 y", b"9" * 1000])
async def test_a_damaged_position_begins_anew(tmp_path: Path, tier: SsdTier, content: bytes) -> None:
    (tmp_path / "scrub").write_bytes(content)
    scrubber = Scrubber(tier, tmp_path, sleep=Clock(sleeps_max=1))
    with pytest.raises(asyncio.CancelledError):
        await scrubber.run()
    assert scrubber.counts.records == 40


async def test_a_closed_tier_is_waited_for(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 4 * MIB)
    await tier.close()
    scrubber = Scrubber(tier, tmp_path, sleep=Clock(sleeps_max=3))
    with pytest.raises(asyncio.CancelledError):
        await scrubber.run()
    assert scrubber.counts.failures == 3
    assert scrubber.counts.rounds == 0


async def test_records_that_move_meanwhile_are_not_damaged(tmp_path: Path, tier: SsdTier) -> None:
    scrubber = Scrubber(tier, tmp_path, bytes_per_second=100_000, sleep=Clock())
    position = LogPosition()
    for number in range(100, 200):
        position = await scrubber.step(position)
        await tier.put(make_record(number, 50_000))
    assert scrubber.counts.damaged == 0
    assert tier.damaged_records == 0


async def test_a_pass_from_the_start_leaves_the_background_where_it_was(tmp_path: Path, tier: SsdTier) -> None:
    background = Scrubber(tier, tmp_path, bytes_per_second=500_000, sleep=Clock(sleeps_max=2))
    with pytest.raises(asyncio.CancelledError):
        await background.run()
    reached = (tmp_path / "scrub").read_bytes()
    assert (await Scrubber(tier, tmp_path).once()).records == 40
    assert (tmp_path / "scrub").read_bytes() == reached


async def test_what_is_put_again_while_the_scrub_reads_stays(tmp_path: Path, tier: SsdTier) -> None:
    for record in RECORDS[:2]:
        flip(tmp_path, bytes(record.payload), 7)
    scrubbing = asyncio.ensure_future(tier.scrub(LogPosition(), bytes_max=4 * MIB))
    # The scrub asks for its deletions one after the other: the second comes after this put is durable.
    original, deleted = tier._submit, []

    async def put_before_the_first_deletion(work):
        if not deleted:
            deleted.append(work)
            await tier.put(RECORDS[1])
        return await original(work)

    tier._submit = put_before_the_first_deletion
    step = await scrubbing
    assert [found.info.storage_key for found in step.damaged] == [RECORDS[0].storage_key]
    assert isinstance(await tier.get(RECORDS[1].storage_key), Hit)
    assert isinstance(await tier.get(RECORDS[0].storage_key), Miss)
