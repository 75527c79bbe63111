"""What was acknowledged as durable survives ``kill -9`` at any moment.

``KVLOOM_KILLS`` says how many times (RELIABILITY.md: 1,000 once).
"""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore

WRITER = Path(__file__).with_name("store_writer.py")
KILLS = int(os.environ.get("KVLOOM_KILLS", "200"))
LIVES = 10
"""Writers killed one after the other on one directory, whose log they fill and reclaim."""


@pytest.fixture(scope="module")
def writer() -> dict[str, Any]:
    return runpy.run_path(str(WRITER))


@pytest.fixture(scope="module")
def forge() -> Iterator[subprocess.Popen[str]]:
    """The process that forks writers."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    with subprocess.Popen(
        [sys.executable, str(WRITER)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def acknowledged_before_kill(
    forge: subprocess.Popen[str], directory: Path, first: int, ack: Ack, lines: int
) -> list[int]:
    """Start a writer, kill it upon its number ``lines``; every number it printed."""
    assert forge.stdin is not None
    assert forge.stdout is not None
    forge.stdin.write(f"{first} {ack} {directory}\n")
    forge.stdin.flush()
    numbers: list[int] = []
    pid = 0
    for line in forge.stdout:
        if line.startswith("pid "):
            pid = int(line[4:])
        elif line == "end\n":
            return numbers
        else:
            numbers.append(int(line))
        if pid and len(numbers) >= lines:
            os.kill(pid, signal.SIGKILL)
            lines = sys.maxsize
    raise AssertionError("the process that forks writers has ended")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ack", "rounds"), [(Ack.DISK, KILLS - KILLS // 10), (Ack.MEMORY, KILLS // 10)])
async def test_nothing_acknowledged_is_lost(
    tmp_path: Path,
    writer: dict[str, Any],
    forge: subprocess.Popen[str],
    rng: np.random.Generator,
    ack: Ack,
    rounds: int,
) -> None:
    for turn in range(rounds):
        directory, life = tmp_path / str(turn // LIVES), turn % LIVES
        if life == 0:
            acknowledged: list[int] = []
        first = life * 10_000
        acknowledged += acknowledged_before_kill(forge, directory, first, ack, int(rng.integers(1, 60)))
        tier = SsdTier.open(directory, writer["LIMIT_BYTES"])
        assert tier.damaged_segments == 0
        store = TieredStore([tier], clock_ms=lambda: 1)
        await store.start()
        for number in {*acknowledged, *range(first, first + 100)}:
            outcome = await store.get(writer["NAMESPACE"], writer["key_of"](number))
            if isinstance(outcome, Hit):
                assert b"".join(bytes(part) for part in outcome.value.parts) == writer["container_of"](number)
            else:
                assert outcome == Miss()
                assert number not in acknowledged, f"chunk {number} was acknowledged in turn {turn} and is lost"
        assert tier.capacity().evictions == 0
        await store.close()
