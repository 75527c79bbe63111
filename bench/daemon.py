"""Measure the daemon's edges beside Redis: reads and writes over loopback, many clients for a while, idle connections.

    python bench/daemon.py --json daemon.json
    python bench/daemon.py --seconds 5 --clients 1 8 --no-load --no-idle

With these defaults it takes about seven minutes on two cores, and ends with what was reached of each goal.
Each subject is asked for the same chunks in random order by as many blocking clients, spread over processes; subjects
take turns in every round, so that a machine that is busy meanwhile disturbs all of them alike. kvloom's clients verify
every byte they are given. Columns are those of ``bench/store.py``. ``bare`` is gRPC in Python without kvloom, which
shows what of gRPC's distance to Redis is the library's (``--no-bare`` leaves it out). ``load``: 64 clients for a
minute, half of them reading, half of them writing, each with a line of their own. ``idle``: memory that connections
which ask nothing cost the daemon. Without a Redis or Valkey server, or without redis-py, there is nothing to compare
with: then rates and the other goals remain.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from daemon_bench.bare import BARE, running_bare
from daemon_bench.clients import MIB, Clients
from daemon_bench.many import Idle, Load, idle, load
from daemon_bench.servers import fill, redis_lacks, running_daemon, running_redis
from store_bench.rows import Row, Timed

from kvloom.clients.access import TOKEN_NAME

EDGES, REDIS = ("kvloom http", "kvloom grpc"), "redis"
GOALS = (("get", "kvloom http", 1.0), ("get", "kvloom grpc", 0.6))
"""What, of whom, at least how many times as fast as Redis at 4 MiB (issue 5)."""
P99_OF_P50_MAX, IDLE_MB_MAX = 5.0, 1000.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A subject's rate over that of Redis with as many clients, and what it is to reach, if anything."""

    what: str
    subject: str
    value_bytes: int
    clients: int
    of_redis: float
    goal: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, and whether it was reached."""

    goal: str
    measured: str
    met: bool


def compare(
    addresses: dict[str, str], servers: dict[str, psutil.Process], options: argparse.Namespace
) -> Iterator[Row]:
    """The subjects in turns, for every size, operation and number of clients."""
    for value_bytes in options.values:
        fill(addresses, value_bytes)
        for count in options.clients:
            for what in ("get", "put"):
                subjects = [name for name in servers if what == "get" or name not in BARE]
                print(f"# {what} of {value_bytes} bytes, {count} at a time: {', '.join(subjects)}", flush=True)
                yield from take_turns(what, value_bytes, count, subjects, addresses, servers, options)


def take_turns(
    what: str,
    value_bytes: int,
    count: int,
    subjects: Sequence[str],
    addresses: dict[str, str],
    servers: dict[str, psutil.Process],
    options: argparse.Namespace,
) -> Iterator[Row]:
    """One row of each subject."""
    timed = {name: Timed(what, name, value_bytes, count) for name in subjects}
    clients = {name: Clients(what, addresses[name], value_bytes, count, servers[name]) for name in subjects}
    for _ in range(options.rounds):
        for name in subjects:
            turn = clients[name].turn(options.seconds)
            if turn.errors:
                raise SystemExit(f"{name}: {turn.errors[0]}")
            timed[name].add(turn.seconds[what], turn.wall_seconds, turn.cpu_seconds)
    for name in subjects:
        clients[name].stop()
        yield timed[name].row()


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Every subject's rate over that of Redis with as many clients, and the goals."""
    rate = {(row.what, row.value_bytes, row.clients, row.subject): row.mb_per_s for row in rows}
    goals = {(what, subject): goal for what, subject, goal in GOALS}
    return [
        Ratio(
            what,
            subject,
            value_bytes,
            clients,
            round(mine / rate[what, value_bytes, clients, REDIS], 2),
            goals.get((what, subject)) if value_bytes == 4 * MIB else None,
        )
        for (what, value_bytes, clients, subject), mine in rate.items()
        if subject != REDIS and (what, value_bytes, clients, REDIS) in rate
    ]


def verdicts(found: Sequence[Ratio], loads: Sequence[Load], idles: Sequence[Idle], wanted: int) -> Iterator[Verdict]:
    """What of each goal was reached, as far as it was measured."""
    for item in found:
        if item.goal is not None:
            goal = f"{item.subject}: {item.what} of 4 MiB, {item.clients} at a time, at least {item.goal} of Redis"
            yield Verdict(goal, str(item.of_redis), bool(item.of_redis >= item.goal))
    for seen in loads:
        goal = f"{seen.subject}: {seen.clients} clients, {seen.what}: no error, p99 under {P99_OF_P50_MAX} p50"
        measured = f"{seen.errors} errors, {seen.p99_of_p50}"
        yield Verdict(goal, measured, bool(not seen.errors and seen.p99_of_p50 < P99_OF_P50_MAX))  # of NumPy's
    for cost in idles:
        goal = f"{wanted} idle connections under {IDLE_MB_MAX:.0f} MB"
        measured = f"{cost.connections}: {cost.memory_mb} MB"
        yield Verdict(goal, measured, cost.connections >= wanted and cost.memory_mb < IDLE_MB_MAX)


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
    parser.add_argument("--no-bare", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    loads: list[Load] = []
    idles: list[Idle] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        daemon, addresses = stack.enter_context(running_daemon(folder / "data"))
        servers = dict.fromkeys(EDGES, daemon)
        if (lacking := redis_lacks()) is None:
            servers[REDIS], addresses[REDIS] = stack.enter_context(running_redis())
        else:
            print(f"# no comparison with Redis: {lacking}", flush=True)
        for name, kind in () if options.no_bare else BARE.items():
            servers[name], addresses[name] = stack.enter_context(running_bare(kind))
        for row in compare(addresses, servers, options):
            rows.append(row)
            show(row)
        if not options.no_idle:
            print(f"# {options.idle_connections} idle connections", flush=True)
            token = (folder / "data" / TOKEN_NAME).read_text()
            idles.append(idle(addresses["kvloom http"], token, daemon, options.idle_connections))
            show(idles[-1])
        if not options.no_load:
            fill(addresses, 4 * MIB)
            for name in EDGES:
                print(f"# {name} under load for {options.load_seconds:.0f} s", flush=True)
                for found_load in load(name, addresses[name], daemon, options.load_seconds):
                    loads.append(found_load)
                    show(found_load)
    found = ratios(rows)
    reached = list(verdicts(found, loads, idles, options.idle_connections))
    for record in (*found, *reached):
        show(record)
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        tables = {"rows": rows, "ratios": found, "load": loads, "idle": idles, "goals": reached}
        told = {name: [asdict(item) for item in table] for name, table in tables.items()}
        record = {"machine": machine, "at": time.strftime("%Y-%m-%d"), "load_average": os.getloadavg()[0]}
        options.json.write_text(json.dumps(record | told, indent=1) + "\n")


if __name__ == "__main__":
    main()
