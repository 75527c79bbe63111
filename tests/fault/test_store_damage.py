"""Damage on the disk is a miss and a counter, never wrong bytes and never the end of the process."""

import asyncio
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from kvloom.errors import StorageUnavailable
from kvloom.kvstore import ssd_files
from kvloom.kvstore.conformance import make_record
from kvloom.kvstore.key import ContentKey, storage_key
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.outcome import Corrupt, Hit, Miss
from kvloom.kvstore.record import HEADER_BYTES
from kvloom.kvstore.ssd import SsdTier
from kvloom.kvstore.store import TieredStore
from kvloom.kvstore.tier import Ack

LIMIT = 4 * 1024 * 1024
PAGE = 4096
NAMESPACE = derive_namespace(bytes(32), "damage")


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[TieredStore]:
    store = TieredStore([SsdTier.open(directory, LIMIT)], clock_ms=itertools.count(1).__next__)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def files_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


async def filled(directory: Path) -> None:
    tier = SsdTier.open(directory, LIMIT)
    for number in range(30):
        await tier.put(make_record(number, (500, 9000, 30_000)[number % 3]))
    for number in range(0, 30, 4):
        await tier.delete(make_record(number, 0).storage_key)
    await tier.close()


async def check_usable(tier: SsdTier) -> None:
    """Whatever is there reads right or not at all, and new records are kept."""
    for number in range(30):
        outcome = await tier.get(make_record(number, 0).storage_key)
        if isinstance(outcome, Hit):
            size_bytes = outcome.value.info.payload_bytes
            assert bytes(outcome.value.parts[0]) == make_record(number, size_bytes).payload
    for number in range(100, 130):
        record = make_record(number, 20_000)
        await tier.put(record)
        outcome = await tier.get(record.storage_key)
        assert isinstance(outcome, Hit)
        assert bytes(outcome.value.parts[0]) == record.payload


async def test_every_region_of_a_record_is_covered_by_a_check(
    tmp_path: Path, container_bytes: Callable[..., bytes]
) -> None:
    key = ContentKey(bytes(range(32)))
    payload = container_bytes(content_key=key, segment_bytes=60)
    data = tmp_path / "lmdb" / "data.mdb"
    flipped = 0
    async with opened(tmp_path) as store:
        tier = store._roles.all[0]
        for bit in range(0, 8 * (HEADER_BYTES + len(payload)), 41):
            await store.put(NAMESPACE, key, payload, ack=Ack.DISK)
            flipped += 1
            # Older copies lie on free pages; the time of the put tells this one from them.
            (stored_at_ms,) = [info.stored_at_ms async for info in tier.scan()]
            fixed = storage_key(NAMESPACE.secret, key) + key + NAMESPACE.owner
            fixed += struct.pack("<QQ", len(payload), stored_at_ms)
            content = data.read_bytes()
            offset = content.index(b"KVLR\2\0\0\0" + fixed) + bit // 8
            with data.open("r+b") as file:
                file.seek(offset)
                file.write(bytes([content[offset] ^ 1 << bit % 8]))
            assert isinstance(await store.get(NAMESPACE, key), Corrupt), f"bit {bit} is not covered"
            assert await store.get(NAMESPACE, key) == Miss()
            assert store.stats().tiers[0].corrupt == flipped
        assert tier.capacity().records == 0
        await store.put(NAMESPACE, key, payload, ack=Ack.DISK)
        assert isinstance(await store.get(NAMESPACE, key), Hit)


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 10_000, bytes(100_000)])
async def test_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(content)
    tier = SsdTier.open(tmp_path, LIMIT)
    assert tier.quarantined == (1 if content else 0)
    assert (tmp_path / "quarantine-1").exists() == bool(content)
    await check_usable(tier)
    await tier.close()


async def test_damaged_pages_are_survived(tmp_path: Path, rng: np.random.Generator) -> None:
    await filled(tmp_path)
    data = tmp_path / "lmdb" / "data.mdb"
    good = data.read_bytes()
    pages = [*range(6), *rng.choice(range(6, len(good) // PAGE), 8, replace=False).tolist()]
    for index, page in enumerate(pages):
        damaged = bytearray(good)
        damaged[page * PAGE : (page + 1) * PAGE] = bytes(PAGE) if index % 2 else rng.bytes(PAGE)
        data.write_bytes(damaged)
        tier = SsdTier.open(tmp_path, LIMIT)
        await check_usable(tier)
        await tier.close()


async def test_truncated_file_is_survived(tmp_path: Path, rng: np.random.Generator) -> None:
    await filled(tmp_path)
    data = tmp_path / "lmdb" / "data.mdb"
    good = data.read_bytes()
    for size in (1, PAGE, 2 * PAGE, len(good) // 2, len(good) - PAGE, int(rng.integers(len(good)))):
        data.write_bytes(good[:size])
        tier = SsdTier.open(tmp_path, LIMIT)
        await check_usable(tier)
        await tier.close()


async def test_quarantined_files_count_towards_the_quota(tmp_path: Path) -> None:
    for turn in range(4):
        tier = SsdTier.open(tmp_path, LIMIT)
        for number in range(60 + turn):
            await tier.put(make_record(number, 30_000))
        await tier.close()
        assert files_bytes(tmp_path) <= LIMIT
        with (tmp_path / "lmdb" / "data.mdb").open("r+b") as file:
            file.write(bytes(2 * PAGE))
    tier = SsdTier.open(tmp_path, LIMIT)
    assert tier.quarantined == 1
    await check_usable(tier)
    await tier.close()


def test_check_that_cannot_run_quarantines_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(b"garbage")
    monkeypatch.setattr(ssd_files, "__package__", "kvloom.no_such_room")
    with pytest.raises(StorageUnavailable, match=r"failed with status 1: .*no_such_room"):
        SsdTier.open(tmp_path, LIMIT)
    assert (tmp_path / "lmdb" / "data.mdb").read_bytes() == b"garbage"


def opened_by_a_child(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    program = "import sys; from pathlib import Path; from kvloom.kvstore.ssd import SsdTier; "
    command = [sys.executable, "-c", program + f"SsdTier.open(Path(sys.argv[1]), {LIMIT})", str(directory)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


async def test_second_process_on_a_directory_is_refused(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, LIMIT)
    child = await asyncio.to_thread(opened_by_a_child, tmp_path)
    assert child.returncode == 1
    assert f"ConfigError: data directory {tmp_path} is in use by another daemon (process {os.getpid()})" in child.stderr
    await check_usable(tier)
    await tier.close()
    assert opened_by_a_child(tmp_path).returncode == 0
