"""Power goes at any moment: what was acknowledged is there, what was deleted stays deleted, nothing is wrong.

A workload runs on a disk that writes everything down; then the power is cut, over and over, at random points of that
journal, and what a disk may hold then is opened. ``KVLOOM_POWER_CUTS`` says how often (RELIABILITY.md: 1,000 seeds).
The index, which nobody syncs, is then pages of several moments, and some of none.
"""

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Record

LIMIT = 1024 * 1024
CUTS = int(os.environ.get("KVLOOM_POWER_CUTS", "60"))
CUTS_PER_LIFE = 20
PAGE = 4096


@dataclass(frozen=True)
class Acknowledged:
    """What the tier said of a key, after how many entries of the journal it began to do it and had done it."""

    begun: int
    done: int
    record: Record | None


@dataclass(frozen=True)
class Indexed:
    """What the file of the index held once, after how many entries of the journal."""

    done: int
    content: bytes


async def work(
    tier: SsdTier, disk, random: Random, index: Path, indexed: list[Indexed]
) -> dict[StorageKey, list[Acknowledged]]:
    """Puts and deletions, some at once, a key by one task at a time; each segment is reclaimed more than once.

    All records together take less than half of the quota, so none is ever evicted.
    """
    said: dict[StorageKey, list[Acknowledged]] = {}

    async def one(number: int, version: int) -> None:
        record = make_record(number, random.choice((50, 3_000, 10_000, 30_000)), version=version)
        begun = len(disk.journal)
        if random.random() < 0.2:
            await tier.delete(record.storage_key)
            said.setdefault(record.storage_key, []).append(Acknowledged(begun, len(disk.journal), None))
        else:
            await tier.put(record)
            said.setdefault(record.storage_key, []).append(Acknowledged(begun, len(disk.journal), record))
        if random.random() < 0.5:
            await tier.get(make_record(random.randrange(8), 0).storage_key)

    for version in range(60):
        await asyncio.gather(*(one(number, version) for number in random.sample(range(25), random.choice((1, 2, 6)))))
        if version % 6 == 0:
            await tier.write_index()
            indexed.append(Indexed(len(disk.journal), index.read_bytes()))
    return said


@pytest.mark.parametrize("life", range(-(-CUTS // CUTS_PER_LIFE)))
async def test_acknowledged_is_durable_and_deleted_is_gone(
    tmp_path: Path, seed: int, life: int, recording_disk
) -> None:
    random = Random(f"{seed}/{life}")
    directory = tmp_path / "data"
    tier = SsdTier.open(directory, LIMIT)
    for number in range(30, 40):
        await tier.put(make_record(number, 5_000))
    await tier.close()
    recording_disk.adopt(directory)
    tier = SsdTier.open(directory, LIMIT, disk=recording_disk)
    indexed = [Indexed(0, (directory / "index").read_bytes())]
    said = await work(tier, recording_disk, random, directory / "index", indexed)
    await tier.close()
    assert tier.capacity().evictions == 0, tier.capacity()
    assert sum(done.what == "rename" for done in recording_disk.journal) > 3
    for cut in range(CUTS_PER_LIFE):
        at = random.randint(0, len(recording_disk.journal))
        target = tmp_path / f"cut-{cut}"
        target.mkdir()
        recording_disk.after_power_cut(at, random, target)
        torn = torn_index([item.content for item in indexed if item.done <= at], random)
        (target / "index").write_bytes(torn)
        await check(target, said, at)
        shutil.rmtree(target)


def torn_index(contents: list[bytes], random: Random) -> bytes:
    """The newest of ``contents``, or that with some pages as they were earlier, or never written."""
    pages = [contents[-1][start : start + PAGE] for start in range(0, len(contents[-1]), PAGE)]
    for number in range(len(pages)):
        if random.random() < random.choice((0.0, 0.0, 0.3)):
            earlier = random.choice(contents)[number * PAGE : (number + 1) * PAGE]
            pages[number] = earlier.ljust(PAGE, b"\0") if random.random() < 0.7 else bytes(PAGE)
    return b"".join(pages)


async def check(directory: Path, said: dict[StorageKey, list[Acknowledged]], at: int) -> None:
    tier = SsdTier.open(directory, LIMIT)
    assert tier.capacity().evictions == 0, tier.capacity()
    for key, history in said.items():
        outcome = await tier.get(key)
        before = [item for item in history if item.done <= at]
        under_way = [item for item in history if item.begun <= at < item.done]
        last = before[-1].record if before else None
        allowed = [last, *(item.record for item in under_way)]
        if isinstance(outcome, Hit):
            found = (bytes(outcome.value.parts[0]), outcome.value.info)
            assert found in [(item.payload, item.info) for item in allowed if item is not None], (at, history)
        else:
            assert outcome == Miss(), (at, outcome)
            assert None in allowed, f"lost after {at} entries: {history}"
    for number in range(100, 103):
        await tier.put(make_record(number, 5_000))
        assert isinstance(await tier.get(make_record(number, 0).storage_key), Hit)
    await tier.close()
