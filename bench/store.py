"""Measure what kvloom keeps chunks in, beside the plain means of the machine and beside its peers.

    python bench/store.py --json store.json
    taskset -c 1 python bench/store.py --only ssd --seconds 3 --directory /a/disk

Every module of ``store_bench`` that has a function ``rows`` is a part; within a part the subjects take turns in every
round, so that a machine that is busy meanwhile disturbs all of them alike. Peers that are not installed (``make
bench-peers``) are listed as absent. Columns: ``what`` (put, get, …), ``subject``, ``value_bytes``, ``clients``,
``mb_per_s`` (of the median turn), ``p50_ms``, ``p99_ms`` (of all operations), ``cpu_s_per_gb``.
"""

import argparse
import inspect
import json
import os
import platform
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import store_bench

MIB = 1024 * 1024
COLUMNS = ("what", "subject", "value_bytes", "clients", "mb_per_s", "p50_ms", "p99_ms", "cpu_s_per_gb")
GOALS = (
    ("put", "kvloom ssd", "raw write", 4 * MIB, 1, 0.7),
    ("put", "kvloom ssd", "raw write", 4 * MIB, 8, 1.0),
    ("get", "kvloom ssd", "raw pread", 4 * MIB, 1, 0.7),
    ("get", "kvloom local", "memcpy", 4 * MIB, 1, 0.7),
    ("get", "kvloom local", "redis", 4 * MIB, 1, 3.0),
    ("get", "kvloom local", "mooncake", 4 * MIB, 1, 3.0),
)
"""What, of whom, against whom, at which size, with how many clients, at least how many times as fast (issue 4)."""


def parts() -> dict[str, object]:
    """The parts by name, and what is missing for those that cannot run."""
    found: dict[str, object] = {}
    for module in iter_modules(store_bench.__path__):
        try:
            part = import_module(f"store_bench.{module.name}")
        except ImportError as error:
            found[module.name] = str(error)
        else:
            if hasattr(part, "rows"):
                found[module.name] = part.rows
    return found


def print_ratios(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The goals of the issue beside what was measured."""
    speed = {
        (row["what"], row["subject"], row["value_bytes"], row["clients"]): float(str(row["mb_per_s"])) for row in rows
    }
    ratios: list[dict[str, object]] = []
    for what, subject, against, value_bytes, clients, goal in GOALS:
        mine, theirs = (speed.get((what, name, value_bytes, clients)) for name in (subject, against))
        if mine is not None and theirs is not None:
            ratio = {"what": what, "subject": subject, "against": against, "value_bytes": value_bytes}
            ratios.append({**ratio, "clients": clients, "ratio": round(mine / theirs, 2), "goal": goal})
            print(f"{what} {subject} / {against}, {value_bytes} bytes, {clients}: {mine / theirs:.2f} (goal {goal})")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="parts to measure, default all")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--values", type=int, nargs="+", default=[256 * 1024, 4 * MIB], help="bytes of a value")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    arguments = parser.parse_args()
    options = {
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "values": tuple(arguments.values),
        "clients": tuple(arguments.clients),
        "directory": arguments.directory,
    }
    rows: list[dict[str, object]] = []
    absent: dict[str, str] = {}
    print("".join(f"{name:>22}" for name in COLUMNS))
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
                print("".join(f"{rows[-1][column]!s:>22}" for column in COLUMNS), flush=True)
        except SystemExit as error:
            absent[name] = str(error)
    for name, why in absent.items():
        print(f"absent: {name}: {why}")
    ratios = print_ratios(rows)
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        record = {"machine": machine, "at": time.strftime("%Y-%m-%d"), "rows": rows, "ratios": ratios, "absent": absent}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
