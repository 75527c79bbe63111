"""How long an import takes: what a program pays before it has asked a cache for anything.

    python bench/imports.py [--rounds N] [--json FILE]

Each import runs in a fresh interpreter, all of them in turn and then again, so that a busy moment hits all alike. The
time is taken inside that interpreter, around the import alone. The first round warms the page cache and compiles the
byte code (into a folder of its own, so a read-only install measures alike) and is not counted. The goal is a median
under 150 ms for the plain client; most of it is NumPy's, shown for comparison.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

GOAL_MS = 150.0
SUBJECTS = {
    "numpy": "import numpy",
    "kvloom": "import kvloom",
    "kvloom.clients": "import kvloom.clients",
    "plain client": "from kvloom.clients import KvloomClient",
    "async client": "from kvloom.clients import AsyncKvloomClient",
    "kvloom.codec": "import kvloom.codec",
    "command line": "import kvloom.daemon.cli",
}
TIMED = """
import sys, time
started = time.perf_counter()
{statement}
took = time.perf_counter() - started
print(took * 1e3, len(sys.modules))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One subject: milliseconds of the import over all rounds, and the modules loaded after it."""

    what: str
    ms_median: float
    ms_min: float
    ms_max: float
    modules: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One import in one fresh interpreter."""

    ms: float
    modules: int


def measure(statement: str, byte_code: str) -> Sample:
    """Run ``statement`` in a fresh interpreter that keeps its byte code in the folder ``byte_code``."""
    command = [sys.executable, "-c", TIMED.format(statement=statement)]
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": byte_code}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    took, modules = subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout.split()
    return Sample(float(took), int(modules))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Time of importing kvloom's rooms, each in a fresh interpreter.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    samples: dict[str, list[Sample]] = {what: [] for what in SUBJECTS}
    with tempfile.TemporaryDirectory() as byte_code:
        for counted in range(-1, arguments.rounds):
            for what, statement in SUBJECTS.items():
                sample = measure(statement, byte_code)
                if counted >= 0:
                    samples[what].append(sample)
    rows = []
    for what, taken in samples.items():
        times = [sample.ms for sample in taken]
        median = statistics.median(times)
        rows.append(Row(what, median, min(times), max(times), taken[0].modules, len(taken)))
    print(f"{'import':<16} {'median ms':>10} {'min ms':>8} {'max ms':>8} {'modules':>8}")
    for row in rows:
        print(f"{row.what:<16} {row.ms_median:>10.1f} {row.ms_min:>8.1f} {row.ms_max:>8.1f} {row.modules:>8}")
    client = next(row for row in rows if row.what == "plain client")
    verdict = "met" if client.ms_median < GOAL_MS else "missed"
    print(f"goal: plain client under {GOAL_MS:.0f} ms: {verdict} ({client.ms_median:.1f} ms)")
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "goal_ms": GOAL_MS}
        arguments.json.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
