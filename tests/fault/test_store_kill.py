"""What was acknowledged as durable survives ``kill -9`` at any moment."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.ssd import SsdTier
from kvloom.kvstore.store import TieredStore
from kvloom.kvstore.tier import Ack

WRITER = Path(__file__).with_name("store_writer.py")


@pytest.fixture(scope="module")
def writer() -> dict[str, Any]:
    return runpy.run_path(str(WRITER))


def acknowledged_before_kill(directory: Path, first: int, ack: Ack, lines: int) -> list[int]:
    """Start the writer, kill it upon its line number ``lines``; every number it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    child = subprocess.Popen(
        [sys.executable, str(WRITER), str(directory), str(first), ack.value],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child:
        try:
            numbers = [int(child.stdout.readline()) for _ in range(lines)]
        finally:
            child.kill()
        rest = child.stdout.read().split("\n")[:-1]
    return numbers + [int(line) for line in rest]


@pytest.mark.parametrize(("ack", "rounds"), [(Ack.DISK, 20), (Ack.MEMORY, 5)])
async def test_nothing_acknowledged_is_lost(
    tmp_path: Path, writer: dict[str, Any], rng: np.random.Generator, ack: Ack, rounds: int
) -> None:
    acknowledged: list[int] = []
    for turn in range(rounds):
        first = turn * 10_000
        acknowledged += acknowledged_before_kill(tmp_path, first, ack, int(rng.integers(1, 40)))
        tier = SsdTier.open(tmp_path, writer["LIMIT_BYTES"])
        assert tier.quarantined == 0
        store = TieredStore([tier], clock_ms=lambda: 1)
        await store.start()
        for number in {*acknowledged, *range(first, first + 60)}:
            outcome = await store.get(writer["NAMESPACE"], writer["key_of"](number))
            if isinstance(outcome, Hit):
                assert b"".join(bytes(part) for part in outcome.value.parts) == writer["container_of"](number)
            else:
                assert outcome == Miss()
                assert number not in acknowledged, f"chunk {number} was acknowledged in turn {turn} and is lost"
        await store.close()
