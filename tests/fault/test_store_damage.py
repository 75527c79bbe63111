"""Damage on the disk is a miss and a counter, never wrong bytes and never the end of the process."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from kvloom.codec.level import EXACT
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.outcome import Corrupt, Hit, Miss
from kvloom.kvstore.record import HEADER_BYTES
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore

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


async def filled(directory: Path) -> None:
    tier = SsdTier.open(directory, LIMIT)
    for number in range(30):
        await tier.put(make_record(number, (500, 9000, 30_000)[number % 3]))
    for number in range(0, 30, 4):
        await tier.delete(make_record(number, 0).storage_key)
    await tier.close()


async def check_usable(tier: SsdTier, *, deletions_known: bool = True) -> None:
    """Whatever is there reads right or not at all, what was deleted stays so, and new records are kept."""
    for number in range(30):
        outcome = await tier.get(make_record(number, 0).storage_key)
        if isinstance(outcome, Hit):
            assert number % 4 or not deletions_known
            size_bytes = outcome.value.info.payload_bytes
            assert bytes(outcome.value.parts[0]) == make_record(number, size_bytes).payload
    for number in range(100, 130):
        record = make_record(number, 20_000)
        await tier.put(record)
        outcome = await tier.get(record.storage_key)
        assert isinstance(outcome, Hit)
        assert bytes(outcome.value.parts[0]) == record.payload


@pytest.mark.slow
async def test_every_bit_of_a_record_is_covered_by_a_check(
    tmp_path: Path, container_bytes: Callable[..., bytes]
) -> None:
    """Header and payload, every single bit of it; the record is damaged while the store is open."""
    key = ContentKey(bytes(range(32)))
    payload = container_bytes([EXACT], content_key=key, layers=1, kv_heads=1, tokens=1, segment_bytes=4)
    flipped = 0
    async with opened(tmp_path) as store:
        tier = store._roles.all[0]
        assert isinstance(tier, SsdTier)
        for bit in range(8 * (HEADER_BYTES + len(payload))):
            await store.put(NAMESPACE, key, payload, ack=Ack.DISK)
            flipped += 1
            segment = tier._segment_log.segments()[-1]
            start = segment.entries[-1].offset + 64
            damaged = bytearray(1)
            os.preadv(segment.descriptor, [damaged], start + bit // 8)
            os.pwrite(segment.descriptor, bytes([damaged[0] ^ 1 << bit % 8]), start + bit // 8)
            assert isinstance(await store.get(NAMESPACE, key), Corrupt), f"bit {bit} is not covered"
            assert await store.get(NAMESPACE, key) == Miss()
            assert store.stats().tiers[0].corrupt == flipped
        assert tier.capacity().records == 0
        await store.put(NAMESPACE, key, payload, ack=Ack.DISK)
        assert isinstance(await store.get(NAMESPACE, key), Hit)


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 10_000, bytes(100_000)])
async def test_files_that_are_no_segments(tmp_path: Path, content: bytes) -> None:
    names = (f"{1:016x}-{2:016x}.log", f"{1:016x}-{2:016x}.list", f"{3:016x}-{2:016x}.list", "xyz.log", "index")
    for name in names:
        (tmp_path / name).write_bytes(content)
    tier = SsdTier.open(tmp_path, LIMIT)
    assert tier.capacity().records == 0
    await check_usable(tier)
    await tier.close()


@pytest.mark.parametrize("suffix", [".log", ".list"])
@pytest.mark.parametrize("lists", [True, False])
async def test_damaged_pages_are_survived(tmp_path: Path, rng: np.random.Generator, suffix: str, lists: bool) -> None:
    await filled(tmp_path)
    good = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".log", ".list")}
    damageable = [path for path in good if path.suffix == suffix]
    for turn in range(20):
        for path in tmp_path.iterdir():
            if path.suffix in (".log", ".list"):
                path.unlink()
        for path, content in good.items():
            damaged = bytearray(content)
            if path in damageable:
                page = int(rng.integers(len(content) // PAGE + 1))
                part = damaged[page * PAGE : (page + 1) * PAGE]
                damaged[page * PAGE : (page + 1) * PAGE] = bytes(len(part)) if turn % 2 else rng.bytes(len(part))
            if lists or path.suffix == ".log":
                path.write_bytes(damaged)
        tier = SsdTier.open(tmp_path, LIMIT)
        # A deletion stands twice, in the log and in its list: only with one of them damaged it is sure to be known.
        await check_usable(tier, deletions_known=lists or suffix == ".list")
        await tier.close()


async def test_truncated_segments_are_survived(tmp_path: Path, rng: np.random.Generator) -> None:
    await filled(tmp_path)
    good = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".log", ".list")}
    last = max(path for path in good if path.suffix == ".log")
    size_bytes = len(good[last])
    for size in (0, 1, PAGE, 2 * PAGE, size_bytes // 2, size_bytes - PAGE, int(rng.integers(size_bytes))):
        for path in tmp_path.iterdir():
            if path.suffix in (".log", ".list"):
                path.unlink()
        for path, content in good.items():
            path.write_bytes(content[:size] if path == last else content)
        tier = SsdTier.open(tmp_path, LIMIT)
        for number in range(30):
            outcome = await tier.get(make_record(number, 0).storage_key)
            if isinstance(outcome, Hit):
                payload_bytes = outcome.value.info.payload_bytes
                assert bytes(outcome.value.parts[0]) == make_record(number, payload_bytes).payload
        await tier.close()


async def test_a_segment_truncated_under_an_open_tier_reads_short_and_ends_nothing(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, LIMIT)
    for number in range(20):
        await tier.put(make_record(number, 30_000))
    for path in tmp_path.glob("*.log"):
        os.truncate(path, 10_000)
    kinds = [type(await tier.get(make_record(number, 0).storage_key)) for number in range(20)]
    assert set(kinds) == {Corrupt}
    await check_usable(tier)
    await tier.close()


def opened_by_a_child(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    program = "import sys; from pathlib import Path; from kvloom.kvstore.ssd.tier import SsdTier; "
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
