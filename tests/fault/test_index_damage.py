"""An index that is damaged in whatever way: the tier opens, nothing is wrong or lost, and the index is written anew."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd import index as index_module
from kvloom.kvstore.ssd.tier import SsdTier

LIMIT = 4 * 1024 * 1024
PAGE = 4096
RECORDS = range(40)
DELETED = range(0, 40, 4)
USED = (3, 11, 5)


async def fill(directory: Path) -> bytes:
    """A closed tier; its index."""
    tier = SsdTier.open(directory, LIMIT)
    for number in RECORDS:
        await tier.put(make_record(number, 30_000))
    for number in DELETED:
        await tier.delete(make_record(number, 0).storage_key)
    for number in USED:
        await tier.get(make_record(number, 0).storage_key, [])
    await tier.close()
    return (directory / "index").read_bytes()


async def check(tier: SsdTier) -> None:
    for number in RECORDS:
        outcome = await tier.get(make_record(number, 0).storage_key)
        if number in DELETED:
            assert outcome == Miss()
        else:
            assert isinstance(outcome, Hit), number
            assert bytes(outcome.value.parts[0]) == make_record(number, 30_000).payload


async def check_survived(directory: Path) -> int:
    """Open twice: all is there, and the second time the index is sound. How often it was found damaged."""
    tier = SsdTier.open(directory, LIMIT)
    await check(tier)
    await tier.put(make_record(100, 1000))
    await tier.delete(make_record(100, 0).storage_key)
    await tier.write_index()
    order = tier._catalogue.keys()
    found = tier.index_failures
    await tier.close()
    assert sum(path.stat().st_size for path in directory.iterdir()) <= LIMIT
    tier = SsdTier.open(directory, LIMIT)
    assert tier.index_failures == 0
    assert tier._catalogue.keys() == order
    await tier.close()
    return found


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "a byte": lambda good: good[:1],
    "both roots cut off": lambda good: good[: 2 * PAGE],
    "half": lambda good: good[: len(good) // 2],
    "last page": lambda good: good[:-PAGE],
    "zeros": lambda good: bytes(len(good)),
    "zeros behind the roots": lambda good: good[: 2 * PAGE] + bytes(len(good) - 2 * PAGE),
    "noise behind the roots": lambda good: good[: 2 * PAGE] + b"\xa5" * (len(good) - 2 * PAGE),
    "noise": lambda good: b"\xa5" * len(good),
    "no index": lambda good: b"text\n" * 10_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_truncated_zeroed_overwritten(tmp_path: Path, damage: str) -> None:
    good = await fill(tmp_path)
    (tmp_path / "index").write_bytes(DAMAGE[damage](good))
    assert await check_survived(tmp_path) == (damage != "empty")


async def test_deleted(tmp_path: Path) -> None:
    await fill(tmp_path)
    (tmp_path / "index").unlink()
    assert await check_survived(tmp_path) == 0


@pytest.mark.slow
async def test_zeroed_random_and_stale_pages(tmp_path: Path, rng: np.random.Generator) -> None:
    """Pages as a power cut may leave them: of another moment, or of nothing."""
    old = await fill(tmp_path)
    tier = SsdTier.open(tmp_path, LIMIT)
    for number in (9, 6, 7):
        await tier.get(make_record(number, 0).storage_key, [])
    for number in range(200, 230):
        await tier.put(make_record(number, 500))
    for number in range(200, 230):
        await tier.delete(make_record(number, 0).storage_key)
    await tier.close()
    good = (tmp_path / "index").read_bytes()
    for turn in range(12):
        damaged = bytearray(good)
        for page in np.flatnonzero(rng.random(len(good) // PAGE) < 0.4).tolist():
            place = slice(page * PAGE, (page + 1) * PAGE)
            damaged[place] = (bytes(PAGE), rng.bytes(PAGE), old[place].ljust(PAGE, b"\0"))[turn % 3]
        (tmp_path / "index").write_bytes(damaged)
        await check_survived(tmp_path)


@pytest.mark.slow
async def test_flipped_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    good = await fill(tmp_path)
    used = [place for place in range(len(good)) if good[place]]
    found = 0
    for place in rng.choice(used, 30).tolist():
        flipped = bytes([good[place] ^ 1 << int(rng.integers(8))])
        (tmp_path / "index").write_bytes(good[:place] + flipped + good[place + 1 :])
        found += await check_survived(tmp_path)
    assert found > 10


async def test_truncated_under_an_open_tier(tmp_path: Path) -> None:
    """The process of the index may end by SIGBUS; the daemon does not."""
    await fill(tmp_path)
    tier = SsdTier.open(tmp_path, LIMIT)
    for size_bytes in (PAGE, 0):
        with (tmp_path / "index").open("ab") as file:
            os.ftruncate(file.fileno(), size_bytes)
        for number in range(200, 230):
            await tier.put(make_record(number, 500))
        await tier.write_index()
        tier._index._retry_at = 0
        await check(tier)
        await tier.write_index()
    for number in range(200, 230):
        await tier.delete(make_record(number, 0).storage_key)
    await tier.close()
    await check_survived(tmp_path)


async def test_a_process_that_does_not_answer_in_time_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)
    monkeypatch.setattr(index_module, "_LOAD_SECONDS_MAX", 0.0)
    tier = SsdTier.open(tmp_path, LIMIT)
    assert tier.index_failures == 1
    await check(tier)
    monkeypatch.undo()
    await tier.close()
    await check_survived(tmp_path)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.ssd.tier import SsdTier

async def main():
    tier = SsdTier.open(Path(sys.argv[1]), 4 * 1024 * 1024)
    for number in range(70):
        await tier.put(make_record(number, 50_000))
    for number in range(40, 30, -1):
        await tier.get(make_record(number, 0).storage_key, [])
    await tier.write_index()
    resident = await tier.contains_many([make_record(number, 0).storage_key for number in range(70)])
    print(sum(resident), flush=True)
    for number in range(100, 103):
        await tier.put(make_record(number, 5_000))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_order_and_evictions_survive_kill_9(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resident = int(killed.stdout)
    assert resident < 70
    tier = SsdTier.open(tmp_path, LIMIT)
    assert tier.index_failures == 0
    held = await tier.contains_many([make_record(number, 0).storage_key for number in range(70)])
    assert sum(held) == resident
    used = [*range(40, 30, -1), 100, 101, 102]
    assert tier._catalogue.keys()[-13:] == [make_record(number, 0).storage_key for number in used]
    for number in (100, 101, 102):
        assert isinstance(await tier.get(make_record(number, 0).storage_key), Hit)
    await tier.close()
