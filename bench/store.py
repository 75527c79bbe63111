"""Measure what kvloom keeps chunks in, beside the plain means of the machine and beside its peers.

    make bench-peers                                  # once: the peers, each in an environment of its own
    python bench/store.py --json store.json           # all of it
    python bench/store.py --only ssd --records 0 --directory /a/disk

All of it took 27 minutes on two cores that much else ran on (load 30); it starts 200 processes, a quarter of them of
LMCache, and takes 4 GB of memory and 2 GB of disk. What does not start within two minutes is left out and named.

Every module of ``store_bench`` that has a function ``rows`` is a part; within a part the subjects take turns in every
round, so that a machine that is busy meanwhile disturbs all of them alike. Peers that are not installed (``make
bench-peers``; ``KVLOOM_PEERS`` names another folder) are listed as absent, with the reason. Columns: ``what`` (put,
get, …), ``subject``, ``value_bytes``, ``clients``, ``mb_per_s`` (of the median turn), ``p50_ms``, ``p99_ms`` (of all
operations), ``cpu_s_per_gb``. At the end what a resident record costs (``resident.py``), and the goals with what was
measured: those of mapped reads count for ``kvloom local``, chunks that the client has read before; its other rows
stand beside them. What is being done is said on standard error.
"""

import argparse
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import store_bench
from store_bench.rows import heading, line, say

MIB = 1024 * 1024
LOCAL = "kvloom local"
BESIDE = ("kvloom local x32", "kvloom local first", "kvloom local x32 first", "kvloom local untouched")
"""Rows held against the same goals, for information."""
GOALS = (
    ("put", "kvloom ssd", "raw write", 4 * MIB, 1, 0.7),
    ("put", "kvloom ssd", "raw write", 4 * MIB, 8, 1.0),
    ("get", "kvloom ssd", "raw pread", 4 * MIB, 1, 0.7),
    *(
        ("get", subject, against, value_bytes, clients, goal)
        for subject in (LOCAL, *BESIDE)
        for value_bytes in (256 * 1024, 4 * MIB)
        for clients in (1, 8)
        for against, goal in (("memcpy", 0.7), ("redis", 3.0), ("mooncake", 3.0))
    ),
)
"""What, of whom, against whom, at which size, with how many clients, at least how many times as fast (issue 4)."""
LOOKUP_MS_MAX = 2.0
"""``contains_many`` of 1,000 keys over the local socket, p50."""


def parts() -> dict[str, object]:
    """The parts by name, and what is missing for those that cannot run."""
    found: dict[str, object] = {}
    for module in iter_modules(store_bench.__path__):
        if module.name == "peer_client":  # run by the peers' own Pythons
            continue
        try:
            part = import_module(f"store_bench.{module.name}")
        except ImportError as error:
            found[module.name] = str(error)
        else:
            if hasattr(part, "rows"):
                found[module.name] = part.rows
    return found


def verdict(rows: list[dict[str, object]], resident: dict[str, object] | None) -> list[dict[str, object]]:
    """The goals of the issue beside what was measured: printed, and as records."""
    speed = {
        (row["what"], row["subject"], row["value_bytes"], row["clients"]): float(str(row["mb_per_s"])) for row in rows
    }
    judged: list[dict[str, object]] = []
    for what, subject, against, value_bytes, clients, goal in GOALS:
        mine, theirs = (speed.get((what, name, value_bytes, clients)) for name in (subject, against))
        if mine is None or theirs is None:
            continue
        about = f"{what} {subject} / {against}, {value_bytes} bytes, {clients} client{'s' * (clients > 1)}"
        met = mine / theirs > goal if goal == 1.0 else mine / theirs >= goal
        judged.append({"about": about, "measured": round(mine / theirs, 2), "goal": f">= {goal}", "met": met})
        judged[-1]["counts"] = subject not in BESIDE
    for row in rows:
        if (row["what"], row["subject"]) == ("contains_many", LOCAL):
            about, p50_ms = "contains_many of 1,000 keys, local socket, p50 in ms", float(str(row["p50_ms"]))
            judged.append({"about": about, "measured": p50_ms, "goal": f"< {LOOKUP_MS_MAX}"})
            judged[-1] |= {"met": p50_ms < LOOKUP_MS_MAX, "counts": True}
    if resident is not None:
        size, most = (float(str(resident[name])) for name in ("bytes_per_record", "target_bytes"))
        about = f"bytes of daemon memory for each of {resident['records']:,} resident chunks"
        judged.append({"about": about, "measured": size, "goal": f"< {most:g}", "met": size < most, "counts": True})
    for item in judged:
        word = "met" if item["met"] else "MISSED" if item["counts"] else "below"
        print(f"{item['about']:<72}{item['measured']:>9}  goal {item['goal']:<9}{word}")
    counted = [item for item in judged if item["counts"]]
    print(f"\n{sum(bool(item['met']) for item in counted)} of {len(counted)} goals that could be measured are met")
    return judged


def measure_resident(records: int) -> dict[str, object] | None:
    """What a resident record costs beside its bytes, measured in a process of its own (``bench/resident.py``)."""
    if not records:
        return None
    say(f"resident: {records} records, about a minute and a half for each million")
    with tempfile.NamedTemporaryFile() as file:
        script = Path(__file__).with_name("resident.py")
        subprocess.run([sys.executable, script, "--records", str(records), "--json", file.name], check=True)
        measured: dict[str, object] = json.loads(Path(file.name).read_text())
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="parts to measure, default all")
    parser.add_argument("--seconds", type=float, default=0.7, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--values", type=int, nargs="+", default=[256 * 1024, 4 * MIB], help="bytes of a value")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--records", type=int, default=1_000_000, help="resident records to weigh; 0: none")
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    options = {
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "values": tuple(arguments.values),
        "clients": tuple(arguments.clients),
        "directory": arguments.directory,
    }
    rows: list[dict[str, object]] = []
    absent: dict[str, str] = {}
    options["absent"] = absent
    print(heading())
    for name, part in parts().items():
        if arguments.only and name not in arguments.only:
            continue
        if not callable(part):
            absent[name] = str(part)
            continue
        wanted = {key: value for key, value in options.items() if key in inspect.signature(part).parameters}
        try:
            for row in part(**wanted):
                rows.append(asdict(row))
                print(line(row), flush=True)
        except SystemExit as error:
            absent[name] = str(error)
    for name, why in absent.items():
        print(f"absent: {name}: {why}")
    resident = measure_resident(arguments.records)
    minutes = round((time.perf_counter() - begun) / 60, 1)
    print()
    judged = verdict(rows, resident)
    say(f"took {minutes} minutes")
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        record = {"machine": machine, "at": time.strftime("%Y-%m-%d"), "rows": rows, "goals": judged, "absent": absent}
        record |= {"resident": resident, "minutes": minutes}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
