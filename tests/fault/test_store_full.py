"""A disk that is full: typed refusals, reads go on, and writing heals when there is room again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, resource, signal, sys
from pathlib import Path
from kvloom.errors import KvloomError, StorageFull
from kvloom.kvstore.conformance import make_record
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.ssd import SsdTier

MIB = 1024 * 1024

async def holds(tier, number):
    outcome = await tier.get(make_record(number, 0).storage_key)
    return isinstance(outcome, Hit) and bytes(outcome.value.parts[0]) == make_record(number, 100_000).payload

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tier = SsdTier.open(Path(sys.argv[1]), 64 * MIB)
    for number in range(10):
        await tier.put(make_record(number, 100_000))
    # The file cannot grow: a put far larger than everything that can be evicted must be refused ...
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
    if sys.argv[3] == "full":
        tier._writer._free_disk_bytes = lambda: 0  # a limit on the file's size does not show in the disk's free space
    kinds = set()
    for number in range(20):
        try:
            await tier.put(make_record(100, 8 * MIB))
        except KvloomError as error:
            kinds.add(type(error).__name__)
        else:
            kinds.add("stored")
    print("large", *sorted(kinds))
    # ... while records that fit in the pages of evicted ones are stored, and reads go on.
    stored = 0
    for number in range(200, 240):
        try:
            await tier.put(make_record(number, 100_000))
        except KvloomError as error:
            kinds.add(type(error).__name__)
        else:
            stored += await holds(tier, number)
    print("small", stored)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await tier.put(make_record(100, 8 * MIB))
    for number in range(300, 320):
        await tier.put(make_record(number, 100_000))
    print("healed", sum([await holds(tier, number) for number in range(300, 320)]))
    await tier.close()
    tier = SsdTier.open(Path(sys.argv[1]), 64 * MIB)
    print("reopened", tier.quarantined, sum([await holds(tier, number) for number in range(300, 320)]))
    await tier.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(("state", "error"), [("full", "StorageFull"), ("failing", "StorageUnavailable")])
def test_file_that_cannot_grow(tmp_path: Path, state: str, error: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(2 * 1024 * 1024), state]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    said = dict(line.split(maxsplit=1) for line in child.stdout.splitlines())
    assert said["large"] == error
    assert int(said["small"]) >= (30 if state == "full" else 1)
    assert said["healed"] == "20"
    assert said["reopened"] == "0 20"
