"""Records of several pieces, each of which is verified while the disk reads on."""

import errno
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from kvloom.errors import InvalidData
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.outcome import Corrupt, Hit, Unavailable
from kvloom.kvstore.record import check_payload_parts, encode_record_header, parse_record_header
from kvloom.kvstore.ssd.disk import Disk
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Record

MIB = 1024 * 1024
SIZE = 2 * MIB + 12_345


class ForgetfulDisk(Disk):
    """The page cache has nothing of what is read, and the disk fails at the read whose number is ``fails_at``."""

    def __init__(self) -> None:
        self.reads = 0
        self.fails_at = 0

    def read_cached(self, descriptor: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        raise BlockingIOError

    def read(self, descriptor: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        self.reads += 1
        if self.reads == self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(descriptor, buffers, offset)


@pytest.fixture
def disk() -> ForgetfulDisk:
    return ForgetfulDisk()


@pytest.fixture(params=["in the page cache", "not in the page cache"])
async def tier(request: pytest.FixtureRequest, tmp_path: Path, disk: ForgetfulDisk) -> AsyncIterator[SsdTier]:
    tier = SsdTier.open(tmp_path, 64 * MIB, disk=Disk() if request.param == "in the page cache" else disk)
    yield tier
    await tier.close()


@pytest.fixture
async def record(tier: SsdTier) -> Record:
    record = make_record(1, SIZE)
    await tier.put(record)
    return record


async def test_what_was_put_comes_back(tier: SsdTier, record: Record) -> None:
    outcome = await tier.get(record.storage_key)
    assert isinstance(outcome, Hit)
    (part,) = outcome.value.parts
    assert bytes(part) == record.payload
    assert memoryview(part).readonly


async def test_a_bit_flipped_in_any_piece_is_found(tier: SsdTier, record: Record, tmp_path: Path) -> None:
    (log,) = tmp_path.glob("*.log")
    start = log.read_bytes().index(record.payload)
    with log.open("r+b", buffering=0) as file:
        for place in (0, 512 * 1024 - 1, 512 * 1024, MIB + 7, SIZE - 1):
            os.pwrite(file.fileno(), bytes([record.payload[place] ^ 16]), start + place)
            assert isinstance(await tier.get(record.storage_key), Corrupt)
            os.pwrite(file.fileno(), record.payload[place : place + 1], start + place)
    assert isinstance(await tier.get(record.storage_key), Hit)


async def test_a_record_cut_off_in_any_piece_is_damaged(tier: SsdTier, record: Record, tmp_path: Path) -> None:
    (log,) = tmp_path.glob("*.log")
    start = log.read_bytes().index(record.payload)
    for size in (SIZE - 1, MIB, 100):
        os.truncate(log, start + size)
        assert isinstance(await tier.get(record.storage_key), Corrupt)


async def test_a_disk_that_fails_in_the_middle_is_unavailable(tmp_path: Path, disk: ForgetfulDisk) -> None:
    tier = SsdTier.open(tmp_path, 64 * MIB, disk=disk)
    record = make_record(1, SIZE)
    await tier.put(record)
    disk.reads, disk.fails_at = 0, 3
    assert isinstance(await tier.get(record.storage_key), Unavailable)
    assert isinstance(await tier.get(record.storage_key), Hit)
    await tier.close()


def test_parts_are_looked_at_as_they_come() -> None:
    record = make_record(1, 1000)
    data = encode_record_header(record)
    header = parse_record_header(data, record_bytes=len(data) + 1000)
    check_payload_parts(header, (record.payload[start : start + 300] for start in range(0, 1000, 300)))
    for wrong in ([], [record.payload[:999]], [record.payload, b"x"], [record.payload[500:], record.payload[:500]]):
        with pytest.raises(InvalidData, match="does not match its checksum"):
            check_payload_parts(header, wrong)
