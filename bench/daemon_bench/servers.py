"""The servers that are compared, each started for the run, and what is put into them."""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from kvloom.clients import KvloomClient
from kvloom.clients.discovery import DATA_DIR_VARIABLE, DaemonNote

from .clients import WORKING_SET_BYTES, chunk, key_of

__all__ = ["fill", "redis_lacks", "running_daemon", "running_redis"]

_REDIS = ("valkey-server", "redis-server")


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


def redis_lacks() -> str | None:
    """What is missing for :func:`running_redis` and its clients, ``None`` where nothing is."""
    if not any(map(shutil.which, _REDIS)):
        return f"none of {', '.join(_REDIS)} is installed"
    if importlib.util.find_spec("redis") is None:
        return "redis-py is not installed (pip install redis hiredis)"
    return None


@contextlib.contextmanager
def running_redis() -> Iterator[tuple[psutil.Process, str]]:
    """A Valkey or Redis server with memory only, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
    program = next(filter(None, map(shutil.which, _REDIS)))
    process = subprocess.Popen([program, *options], stdout=subprocess.PIPE, text=True)
    try:
        while "eady to accept connections" not in process.stdout.readline():
            if process.poll() is not None:
                raise SystemExit(f"{program} did not start")
        yield psutil.Process(process.pid), f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def fill(addresses: dict[str, str], value_bytes: int) -> None:
    """Put the working set into the daemon, and into Redis where there is one."""
    store = None
    if "redis" in addresses:
        import redis

        store = redis.Redis.from_url(addresses["redis"])
        store.flushall()
    with KvloomClient(addresses["kvloom http"], local=False) as client:
        for number in range(WORKING_SET_BYTES // value_bytes):
            data = chunk(number, value_bytes)
            client.delete(key_of(number))
            client.put(key_of(number), data)
            if store is not None:
                store.set(key_of(number), data)
