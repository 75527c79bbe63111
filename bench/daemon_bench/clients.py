"""Blocking clients in processes of their own, which do the same again and again; run as a program, one such process.

python bench/daemon_bench/clients.py WHAT ADDRESS BYTES THREADS
"""

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

from kvloom.clients import KvloomClient
from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.kvstore.outcome import Hit

__all__ = ["MIB", "WORKING_SET_BYTES", "Clients", "Turn", "chunk", "key_of"]

MIB = 1024**2
WORKING_SET_BYTES = 192 * MIB
PROCESSES_MAX = 8
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
    if address.startswith("bare://"):
        from bare import download  # beside this program

        return download(address, value_bytes)
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
        commands = [[sys.executable, __file__, what, address, str(value_bytes), str(count)] for count in each]
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


if __name__ == "__main__":
    _what, _address, _value_bytes, _threads = sys.argv[1:]
    work(_what, _address, int(_value_bytes), int(_threads))
