"""Measure the daemon's edges beside Redis: reads and writes over loopback, many clients for a while, idle connections.

    python bench/daemon.py --json daemon.json
    python bench/daemon.py --seconds 5 --clients 1 8 --no-load --no-idle

Each subject is asked for the same chunks in random order by as many blocking clients, spread over processes; subjects
take turns in every round, so that a machine that is busy meanwhile disturbs all of them alike. kvloom's clients verify
every byte they are given. Columns are those of ``bench/store.py``. ``load``: 64 clients for a minute, half of them
reading, half of them writing, each with a line of their own. ``idle``: memory that
connections which ask nothing cost the daemon.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil
from daemon_bench.clients import MIB, Clients
from daemon_bench.many import Idle, Load, idle, load
from daemon_bench.servers import fill, running_daemon, running_redis
from store_bench.rows import Row, Timed

from kvloom.clients.access import TOKEN_NAME

SUBJECTS = ("kvloom http", "kvloom grpc", "redis")
GOALS = (("get", "kvloom http", 1.0), ("get", "kvloom grpc", 0.6))
"""What, of whom, at least how many times as fast as Redis at 4 MiB (issue 5)."""


def compare(
    addresses: dict[str, str], servers: dict[str, psutil.Process], options: argparse.Namespace
) -> Iterator[Row]:
    """The subjects in turns, for every size, operation and number of clients."""
    for value_bytes in options.values:
        fill(addresses, value_bytes)
        for count in options.clients:
            for what in ("get", "put"):
                timed = {name: Timed(what, name, value_bytes, count) for name in SUBJECTS}
                clients = {name: Clients(what, addresses[name], value_bytes, count, servers[name]) for name in SUBJECTS}
                for _ in range(options.rounds):
                    for name in SUBJECTS:
                        turn = clients[name].turn(options.seconds)
                        if turn.errors:
                            raise SystemExit(f"{name}: {turn.errors[0]}")
                        timed[name].add(turn.seconds[what], turn.wall_seconds, turn.cpu_seconds)
                for name in SUBJECTS:
                    clients[name].stop()
                    yield timed[name].row()


def ratios(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Every subject's rate over that of Redis with as many clients, and the goals."""
    rate = {(row.what, row.value_bytes, row.clients, row.subject): row.mb_per_s for row in rows}
    goals = {(what, subject): goal for what, subject, goal in GOALS}
    found = []
    for (what, value_bytes, clients, subject), mine in rate.items():
        if subject != "redis":
            ratio = round(mine / rate[what, value_bytes, clients, "redis"], 2)
            goal = goals.get((what, subject)) if value_bytes == 4 * MIB else None
            found.append(
                {"what": what, "subject": subject, "value_bytes": value_bytes, "clients": clients, "of_redis": ratio}
                | ({} if goal is None else {"goal": goal})
            )
    return found


def show(record: object) -> None:
    """One line of a table."""
    print("  ".join(f"{name} {value}" for name, value in asdict(record).items()), flush=True)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--values", type=int, nargs="+", default=[256 * 1024, 4 * MIB], help="bytes of a value")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--load-seconds", type=float, default=60.0)
    parser.add_argument("--idle-connections", type=int, default=10_000)
    parser.add_argument("--no-load", action="store_true")
    parser.add_argument("--no-idle", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    loads: list[Load] = []
    idles: list[Idle] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_redis() as (redis_server, redis_address),
        running_daemon(Path(folder) / "data") as (daemon, addresses),
    ):
        addresses["redis"] = redis_address
        servers = {name: redis_server if name == "redis" else daemon for name in SUBJECTS}
        for row in compare(addresses, servers, options):
            rows.append(row)
            show(row)
        if not options.no_idle:
            token = (Path(folder) / "data" / TOKEN_NAME).read_text()
            idles.append(idle(addresses["kvloom http"], token, daemon, options.idle_connections))
            show(idles[-1])
        if not options.no_load:
            fill(addresses, 4 * MIB)
            for name in ("kvloom http", "kvloom grpc"):
                for found_load in load(name, addresses[name], daemon, options.load_seconds):
                    loads.append(found_load)
                    show(found_load)
    found = ratios(rows)
    for ratio in found:
        print(ratio)
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        record = {"machine": machine, "at": time.strftime("%Y-%m-%d"), "rows": [asdict(row) for row in rows]}
        more = {"ratios": found, "load": [asdict(item) for item in loads], "idle": [asdict(item) for item in idles]}
        options.json.write_text(json.dumps(record | more, indent=1) + "\n")


if __name__ == "__main__":
    main()
