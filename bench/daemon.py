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
import contextlib
import itertools
import json
import os
import platform
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from store_bench.rows import Row, Timed

from kvloom.clients import KvloomClient
from kvloom.clients.access import TOKEN_NAME
from kvloom.clients.discovery import DATA_DIR_VARIABLE, DaemonNote
from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.kvstore.outcome import Hit

MIB = 1024**2
WORKING_SET_BYTES = 192 * MIB
PROCESSES_MAX = 8
SUBJECTS = ("kvloom http", "kvloom grpc", "redis")
GOALS = (("get", "kvloom http", 1.0), ("get", "kvloom grpc", 0.6))
"""What, of whom, at least how many times as fast as Redis at 4 MiB (issue 5)."""
LOAD_CLIENTS, LOAD_P99_MAX, IDLE_BYTES_MAX = 64, 5.0, 10**9


@dataclass(frozen=True, slots=True)
class Load:
    """What the readers or the writers among many clients saw for a while, and what the daemon needed for both."""

    subject: str
    what: str
    clients: int
    seconds: float
    operations: int
    errors: int
    p50_ms: float
    p99_ms: float
    p99_of_p50: float
    memory_mb_before: float
    memory_mb_max: float


@dataclass(frozen=True, slots=True)
class Idle:
    """What connections that ask nothing cost."""

    connections: int
    memory_mb: float
    bytes_each: float


_CLIENTS = itertools.count()


def key_of(number: int) -> bytes:
    """The key of chunk ``number``."""
    return number.to_bytes(32, "little")


def chunk(number: int, value_bytes: int) -> bytes:
    """A container of about ``value_bytes`` random bytes, in the segments of a small model."""
    layout = Layout.uniform(layers=30, kv_heads=3, head_dim=64)
    writer = ContainerWriter(layout, tokens=256, first_position=0, content_key=key_of(number))
    generator = np.random.default_rng(number)
    for layer in range(30):
        for kind in Kind:
            writer.put(EXACT, layer, kind, generator.bytes((value_bytes - 1500) // 60))
    return writer.commit()


def operation(what: str, address: str, value_bytes: int) -> Callable[[], object]:
    """What one client does again and again; it fails where it does not get what is there."""
    count = WORKING_SET_BYTES // value_bytes
    pick = random.Random(f"{os.getpid()} {threading.get_ident()}").randrange
    own = os.getpid() * 1000 + next(_CLIENTS)  # puts of one key wait for each other
    data = chunk(own, value_bytes)
    if address.startswith("redis://"):
        import hiredis  # noqa: F401 - redis-py parses with it where it can be imported
        import redis

        store = redis.Redis.from_url(address)
        return (
            (lambda: store.set(key_of(own), data)) if what == "put" else (lambda: len(store.get(key_of(pick(count)))))
        )
    client = KvloomClient(address, local=False)

    def get() -> int:
        found = client.get(key_of(pick(count)))
        if not isinstance(found, Hit):
            raise RuntimeError(f"not a hit: {found}")
        return len(found.value.data)

    return (lambda: client.put(key_of(own), data)) if what == "put" else get


def work(what: str, address: str, value_bytes: int, threads: int) -> None:
    """The life of a client process: for each line with a number of seconds, measure that long and print the result."""
    kinds = [("get", "put")[index % 2] if what == "mixed" else what for index in range(threads)]
    operations = [operation(kind, address, value_bytes) for kind in kinds]
    for run in operations:
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        errors: list[str] = []

        def measure(run: Callable[[], object], end: float, seconds: list[float], errors: list[str]) -> None:
            while (start := time.perf_counter()) < end:
                try:
                    run()
                    seconds.append(time.perf_counter() - start)
                except Exception as error:  # noqa: BLE001 - counted, whatever it is
                    errors.append(repr(error)[:200])

        cpu, end = time.process_time(), time.perf_counter() + float(line)
        running = [
            threading.Thread(target=measure, args=(run, end, taken[kind], errors))
            for kind, run in zip(kinds, operations, strict=True)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        cpu = time.process_time() - cpu
        print(json.dumps({"seconds": taken, "errors": errors, "cpu": cpu}), flush=True)


@dataclass(frozen=True, slots=True)
class Turn:
    """Latencies by operation, errors, and the time by the wall and by the processors of clients and server."""

    seconds: dict[str, list[float]]
    errors: list[str]
    wall_seconds: float
    cpu_seconds: float


class Clients:
    """The clients of one subject: processes started once and set to work together."""

    def __init__(self, what: str, address: str, value_bytes: int, clients: int, server: psutil.Process) -> None:
        self.server = server
        each = [len(part) for part in np.array_split(range(clients), min(clients, PROCESSES_MAX))]
        commands = [
            [sys.executable, __file__, "--worker", what, address, str(value_bytes), str(count)] for count in each
        ]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
        ]
        for process in self.processes:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit(f"a client of {address} did not start")

    def turn(self, seconds: float) -> Turn:
        """All of them at once, for so long."""
        before, start = _cpu(self.server), time.perf_counter()
        for process in self.processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        results = [json.loads(process.stdout.readline()) for process in self.processes]
        wall = time.perf_counter() - start
        cpu = _cpu(self.server) - before + sum(result["cpu"] for result in results)
        latencies: dict[str, list[float]] = {}
        for result in results:
            for kind, taken in result["seconds"].items():
                latencies.setdefault(kind, []).extend(taken)
        return Turn(latencies, [error for result in results for error in result["errors"]], wall, cpu)

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.stdin.close()
            process.wait()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextlib.contextmanager
def running_daemon(directory: Path) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """A daemon with memory only, and its addresses by subject; clients started meanwhile find its token."""
    os.environ[DATA_DIR_VARIABLE] = str(directory)
    command = [sys.executable, "-m", "kvloom.daemon.cli", "serve", "--port", "0", "--grpc-port", "0", "--ssd", "off"]
    memory = ("--memory", str(4 * WORKING_SET_BYTES), "--log-format", "json")
    process = subprocess.Popen([*command, *memory], stderr=subprocess.PIPE, text=True)
    try:
        while '"ready"' not in (line := process.stderr.readline()):
            if not line:
                raise SystemExit("the daemon did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        note = DaemonNote.read(directory)
        if note is None:
            raise SystemExit("the daemon left no note")
        addresses = {"kvloom http": str(note.endpoint), "kvloom grpc": f"grpc://127.0.0.1:{note.grpc_port}"}
        yield psutil.Process(process.pid), addresses
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def running_redis() -> Iterator[tuple[psutil.Process, str]]:
    """A Valkey or Redis server with memory only, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
    folders = os.environ["PATH"].split(os.pathsep)
    names = [name for name in ("valkey-server", "redis-server") if any((Path(at) / name).exists() for at in folders)]
    if not names:
        raise SystemExit("neither valkey-server nor redis-server is installed")
    process = subprocess.Popen([names[0], *options], stdout=subprocess.PIPE, text=True)
    try:
        while "eady to accept connections" not in process.stdout.readline():
            if process.poll() is not None:
                raise SystemExit(f"{names[0]} did not start")
        yield psutil.Process(process.pid), f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def fill(addresses: dict[str, str], value_bytes: int) -> None:
    """Put the working set into the daemon and into Redis."""
    import redis

    store = redis.Redis.from_url(addresses["redis"])
    store.flushall()
    with KvloomClient(addresses["kvloom http"], local=False) as client:
        for number in range(WORKING_SET_BYTES // value_bytes):
            data = chunk(number, value_bytes)
            client.delete(key_of(number))
            client.put(key_of(number), data)
            store.set(key_of(number), data)


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


def load(name: str, address: str, server: psutil.Process, seconds: float) -> Iterator[Load]:
    """Many clients for a while, half of them reading, half of them writing: a line for either."""
    clients = Clients("mixed", address, 4 * MIB, LOAD_CLIENTS, server)
    before, most, ended = server.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.1):
            most = max(most, server.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    turn = clients.turn(seconds)
    ended.set()
    watching.join()
    clients.stop()
    for line in sorted(set(turn.errors))[:3]:
        print(f"{name}: {line}")
    for what, taken in sorted(turn.seconds.items()):
        p50, p99 = np.percentile(taken, (50, 99)) * 1e3
        yield Load(
            name, what, LOAD_CLIENTS, round(turn.wall_seconds, 1), len(taken), len(turn.errors),
            round(p50, 2), round(p99, 2),
            round(p99 / p50, 2), round(before / 1e6, 1), round(most / 1e6, 1),
        )  # fmt: skip


def idle(address: str, token: str, server: psutil.Process, wanted: int) -> Idle:
    """Open connections that have asked once, with a key, and ask no more, as many as may be and are answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, _, port = address.rpartition(":")
    request = f"GET /tenant HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    before = server.memory_info().rss
    with contextlib.ExitStack() as stack:
        opened = 0
        for _ in range(min(wanted, hard - 100)):
            try:
                connected = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                connected.sendall(request)
                if not connected.recv(4096).startswith(b"HTTP/1.1 200 "):
                    break
            except OSError:
                break
            opened += 1
        cost = server.memory_info().rss - before
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return Idle(opened, round(cost / 1e6, 1), round(cost / max(1, opened)))


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
    parser.add_argument("--worker", nargs=4, metavar=("WHAT", "ADDRESS", "BYTES", "THREADS"), help=argparse.SUPPRESS)
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
    if options.worker:
        what, address, value_bytes, threads = options.worker
        work(what, address, int(value_bytes), int(threads))
        return
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
