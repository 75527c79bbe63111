"""Local reads and writes timed: a daemon's mapped chunks beside a plain memcpy and Redis, in the same run.

    python bench/store_bench/local.py [--seconds 2] [--rounds 3] [--json FILE]

Every subject keeps the same chunks (the working set is larger than the caches) and is asked for them in random order by
one client process, then by eight. Subjects take turns within each round, so a machine that is busy meanwhile disturbs
all of them alike. A client of ``kvloom local`` reads every byte of what it is given, since it verifies it; ``+ copy``
copies it out as well. ``memcpy`` copies the same bytes within a client. ``x32`` asks for 32 chunks at a time. CPU is
that of clients and server together.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kvloom.clients import KvloomClient
from kvloom.clients.discovery import DATA_DIR_VARIABLE
from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.tier import Ack

MIB = 1024**2
WORKING_SET_BYTES = 192 * MIB
LAYERS = 30
"""Two segments each: the container of a small model."""
BATCH = 32
GETS = ("memcpy", "kvloom local", "kvloom local x32", "kvloom local + copy", "kvloom http", "redis")
PUTS = ("kvloom local", "kvloom http", "redis")
CONTAINS = ("kvloom local", "kvloom http")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    subject: str
    value_bytes: int
    clients: int
    mb_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_gb: float


def key_of(number: int) -> bytes:
    """The key of chunk ``number``."""
    return number.to_bytes(32, "little")


def chunk(number: int, value_bytes: int) -> bytes:
    """A container of about ``value_bytes`` random bytes."""
    layout = Layout.uniform(layers=LAYERS, kv_heads=3, head_dim=64)
    writer = ContainerWriter(layout, tokens=256, first_position=0, content_key=key_of(number))
    generator = np.random.default_rng(number)
    for layer in range(LAYERS):
        for kind in Kind:
            writer.put(EXACT, layer, kind, generator.bytes((value_bytes - 1500) // (2 * LAYERS)))
    return writer.commit()


def connect_redis(port: int) -> Any:
    """A client that parses with hiredis; fails where it would not."""
    import hiredis  # noqa: F401 - redis-py uses it where it can be imported
    import redis

    return redis.Redis(port=port)


def operation(what: str, subject: str, value_bytes: int, port: int) -> tuple[Callable[[], int], int]:
    """What one client does again and again, returning the bytes it moved, and how many values that is."""
    count = max(1, WORKING_SET_BYTES // value_bytes)
    pick = random.Random(os.getpid()).randrange
    if subject == "memcpy":
        source = np.random.default_rng(1).integers(0, 255, count * value_bytes, np.uint8)
        target = np.zeros(value_bytes, np.uint8)

        def copy() -> int:
            start = pick(count) * value_bytes
            np.copyto(target, source[start : start + value_bytes])
            return value_bytes

        return copy, 1
    if subject == "redis":
        redis = connect_redis(port)
        data = chunk(0, value_bytes)
        if what == "put":
            return lambda: redis.set(key_of(pick(count)), data) and len(data), 1
        return lambda: len(redis.get(key_of(pick(count)))), 1
    client = KvloomClient(local=subject != "kvloom http")
    if what == "contains_many":
        keys = [key_of(number) for number in range(1000)]
        return lambda: 32 * len(client.exists(keys)), 1
    if what == "put":
        chunks = {key_of(number): chunk(number, value_bytes) for number in range(8)}
        keys = list(chunks)

        def put() -> int:
            key = keys[pick(len(keys))]
            client.put(key, chunks[key], ack=Ack.MEMORY)
            return len(chunks[key])

        return put, 1
    if subject.endswith("x32"):

        def get_many() -> int:
            return sum(len(hit(found)) for found in client.get_many([key_of(pick(count)) for _ in range(BATCH)]))

        return get_many, BATCH
    if subject.endswith("+ copy"):
        out = np.zeros(2 * value_bytes, np.uint8)

        def get_and_copy() -> int:
            view = hit(client.get(key_of(pick(count))))
            np.copyto(out[: len(view)], np.frombuffer(view, np.uint8))
            return len(view)

        return get_and_copy, 1
    return lambda: len(hit(client.get(key_of(pick(count))))), 1


def hit(outcome: Any) -> memoryview:
    """The bytes of a read, which must have been a hit."""
    if not isinstance(outcome, Hit):
        raise SystemExit(f"not a hit: {outcome}")
    return outcome.value.data


def work(what: str, subject: str, value_bytes: int, port: int) -> None:
    """The life of a client process: for each line with a number of seconds, measure that long and print the result."""
    run, values = operation(what, subject, value_bytes, port)
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds: list[float] = []
        moved, cpu = 0, time.process_time()
        end = time.perf_counter() + float(line)
        while (start := time.perf_counter()) < end or not seconds:
            moved += run()
            seconds.append((time.perf_counter() - start) / values)
        print(json.dumps({"seconds": seconds, "bytes": moved, "cpu": time.process_time() - cpu}), flush=True)


class Clients:
    """Some client processes of one subject, started once and set to work together."""

    def __init__(
        self, what: str, subject: str, value_bytes: int, clients: int, port: int, server: psutil.Process
    ) -> None:
        self.what, self.subject, self.value_bytes = what, subject, value_bytes
        self.server = None if subject == "memcpy" else server
        command = [sys.executable, __file__, "--worker", what, subject, str(value_bytes), str(port)]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
        ]
        for process in self.processes:
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"a client of {subject} did not start")
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self.bytes, self.cpu = 0, 0.0

    def measure(self, seconds: float) -> None:
        """One turn."""
        before = self._server_cpu()
        start = time.perf_counter()
        for process in self.processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        results = [json.loads(process.stdout.readline()) for process in self.processes]
        moved = sum(result["bytes"] for result in results)
        self.rates.append(moved / 1e6 / (time.perf_counter() - start))
        self.bytes += moved
        self.cpu += self._server_cpu() - before + sum(result["cpu"] for result in results)
        for result in results:
            self.seconds += result["seconds"]

    def row(self) -> Row:
        """All turns together; the rate is the median turn's."""
        p50, p99 = np.percentile(self.seconds, (50, 99)) * 1e3
        rate = float(np.median(self.rates))
        return Row(
            self.what,
            self.subject,
            self.value_bytes,
            len(self.processes),
            round(rate, 1),
            round(float(p50), 4),
            round(float(p99), 4),
            round(self.cpu / (self.bytes / 1e9), 3),
        )

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.stdin.close()
            process.wait()

    def _server_cpu(self) -> float:
        if self.server is None:
            return 0.0
        times = self.server.cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def running_daemon(directory: Path) -> Iterator[psutil.Process]:
    """A daemon with memory only; clients started meanwhile find it."""
    os.environ[DATA_DIR_VARIABLE] = str(directory)
    memory = f"{4 * WORKING_SET_BYTES}"
    command = [sys.executable, "-m", "kvloom.daemon.cli", "serve", "--port", "0", "--memory", memory, "--ssd", "off"]
    process = subprocess.Popen([*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True)
    try:
        while '"ready"' not in (line := process.stderr.readline()):
            if not line:
                raise SystemExit("the daemon did not start")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def running_redis() -> Iterator[tuple[psutil.Process, int]]:
    """A Redis (or Valkey) server with memory only, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--protected-mode", "no"]
    name = next((name for name in ("valkey-server", "redis-server") if _installed(name)), None)
    if name is None:
        raise SystemExit("neither valkey-server nor redis-server is installed")
    process = subprocess.Popen([name, *options], stdout=subprocess.PIPE, text=True)
    try:
        while "eady to accept connections" not in process.stdout.readline():
            if process.poll() is not None:
                raise SystemExit(f"{name} did not start")
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


def _installed(name: str) -> bool:
    return any((Path(folder) / name).exists() for folder in os.environ["PATH"].split(os.pathsep))


def rows(*, seconds: float, rounds: int, values: tuple[int, ...], clients: tuple[int, ...]) -> Iterator[Row]:
    """Measure everything; rows of one table stand together."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running_redis() as (redis_server, port),
        running_daemon(Path(directory) / "data") as daemon,
    ):
        servers = {"redis": redis_server}
        yield from _turns("contains_many", CONTAINS, 32_000, 1, seconds, rounds, port, servers, daemon)
        for value_bytes in values:
            fill(value_bytes, port)
            for count in clients:
                yield from _turns("get", GETS, value_bytes, count, seconds, rounds, port, servers, daemon)
                yield from _turns("put", PUTS, value_bytes, count, seconds, rounds, port, servers, daemon)


def fill(value_bytes: int, port: int) -> None:
    """Put the working set into the daemon and into Redis."""
    redis = connect_redis(port)
    redis.flushall()
    with KvloomClient() as client:
        for number in range(WORKING_SET_BYTES // value_bytes):
            data = chunk(number, value_bytes)
            client.delete(key_of(number))
            client.put(key_of(number), data)
            redis.set(key_of(number), data)


def _turns(
    what: str,
    subjects: tuple[str, ...],
    value_bytes: int,
    count: int,
    seconds: float,
    rounds: int,
    port: int,
    servers: dict[str, psutil.Process],
    daemon: psutil.Process,
) -> Iterator[Row]:
    everybody = [Clients(what, name, value_bytes, count, port, servers.get(name, daemon)) for name in subjects]
    for _ in range(rounds):
        for clients in everybody:
            clients.measure(seconds)
    for clients in everybody:
        clients.stop()
        yield clients.row()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=4, metavar=("WHAT", "SUBJECT", "BYTES", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--values", type=int, nargs="+", default=[256 * 1024, 4 * MIB], help="bytes of a value")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        what, subject, value_bytes, port = arguments.worker
        work(what, subject, int(value_bytes), int(port))
        return
    names = list(Row.__dataclass_fields__)
    print("".join(f"{name:>22}" for name in names))
    found = []
    for row in rows(
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        values=tuple(arguments.values),
        clients=tuple(arguments.clients),
    ):
        found.append(asdict(row))
        print("".join(f"{value:>22}" for value in asdict(row).values()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
