"""What many clients see for a while, and what many connections that ask nothing cost."""

import contextlib
import resource
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil

from .clients import MIB, Clients

__all__ = ["Idle", "Load", "idle", "load"]

LOAD_CLIENTS = 64


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
