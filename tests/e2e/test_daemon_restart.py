"""A restart while clients go on: the old process drains, the new one has all that was acknowledged, warm."""

import os
import random
import socket
import subprocess
import sys
import threading
from collections import Counter

import pytest

from kvloom import limits
from kvloom.clients import KvloomClient, RetryPolicy
from kvloom.codec.level import EXACT
from kvloom.errors import DaemonUnavailable, Overloaded
from kvloom.kvstore.outcome import Hit, Miss, Throttled, Unavailable
from kvloom.kvstore.tier import Ack

KVLOOM = (sys.executable, "-m", "kvloom.daemon.cli")
PASSING = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
COUNT = 24
HITS_AFTERWARDS = 40
WAIT_SECONDS = 120


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


class Hammer:
    """Threads that put and get without a pause, each over a client of its own; what they saw, and what was stored."""

    def __init__(self, make_chunk, chunks):
        self._make_chunk = make_chunk
        self.stored = dict(chunks)
        self.seen = Counter()
        self.failures = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._moved = threading.Condition(self._lock)
        self._threads = []

    def run(self, work, client):
        def guarded():
            with client:
                while not self._stop.is_set():
                    try:
                        work(client)
                    except Exception as error:  # noqa: BLE001 - whatever it is, the test fails with it
                        self.failures.append(repr(error))
                        return

        self._threads.append(threading.Thread(target=guarded))
        self._threads[-1].start()

    def get(self, client):
        with self._lock:
            key = random.choice(list(self.stored))
            data = self.stored[key]
        outcome = client.get(key)
        assert isinstance(outcome, Hit | Miss | Unavailable | Throttled)
        assert not isinstance(outcome, Hit) or outcome.value.data == data
        self._note(type(outcome).__name__)

    def look_up(self, client):
        with self._lock:
            key = random.choice(list(self.stored))
        self._note(f"exists {client.exists([key])[0]}")

    def put(self, client):
        """Acknowledged in memory only: it is the drain that sees to it that nothing is lost."""
        key = os.urandom(32)
        data = self._make_chunk(key)
        while not self._stop.is_set():
            try:
                client.put(key, data, ack=Ack.MEMORY)
            except (DaemonUnavailable, Overloaded):
                self._note("put again")
                continue
            with self._lock:
                self.stored[key] = data
            self._note("put")
            return

    def wait_for(self, what, count):
        """Until so many more of ``what`` were seen."""
        with self._moved:
            wanted = self.seen[what] + count
            assert self._moved.wait_for(lambda: self.seen[what] >= wanted or self.failures, WAIT_SECONDS), self.seen
        assert not self.failures

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _note(self, what):
        with self._moved:
            self.seen[what] += 1
            self._moved.notify_all()


@pytest.fixture
def make_chunk(container_bytes):
    return lambda key: container_bytes([EXACT], content_key=key, segment_bytes=30_000, seed=key[0])


@pytest.fixture
def hammer(make_chunk):
    keys = [os.urandom(32) for _ in range(COUNT)]
    hammer = Hammer(make_chunk, {key: make_chunk(key) for key in keys})
    yield hammer
    hammer.stop()


def test_clients_go_on_over_a_restart_and_see_misses_and_retries_and_nothing_else(start_daemon, hammer):
    port, grpc_port = free_port(), free_port()
    daemon = start_daemon("--port", port, "--grpc-port", grpc_port, "--memory", "256MiB", "--ssd", "1GiB")
    with daemon.client() as client:
        for key, data in hammer.stored.items():
            client.put(key, data, ack=Ack.DISK)
    http, grpc, options = f"127.0.0.1:{port}", f"grpc://127.0.0.1:{grpc_port}", {"data_dir": daemon.data_dir}
    hammer.run(hammer.get, KvloomClient(http, local=False, **options))
    hammer.run(hammer.get, KvloomClient(grpc, **options))
    hammer.run(hammer.get, KvloomClient(http, local=True, **options))
    hammer.run(hammer.look_up, KvloomClient(http, local=False, **options))
    hammer.run(hammer.put, KvloomClient(http, local=False, **options))
    hammer.wait_for("Hit", HITS_AFTERWARDS)
    hammer.wait_for("put", 3)
    assert daemon.stop() == 0
    hammer.wait_for("Unavailable", 3)
    daemon.start()
    hammer.wait_for("Hit", HITS_AFTERWARDS)
    hammer.wait_for("exists True", 3)
    hammer.wait_for("put", 3)
    hammer.stop()
    assert hammer.failures == []
    with daemon.client() as client:
        for key, data in hammer.stored.items():
            outcome = client.get(key)
            assert isinstance(outcome, Hit)
            assert outcome.value.data == data
    lines = [line["event"] for line in daemon.log]
    assert "requests cut off" not in lines
    assert lines.index("draining") < lines.index("stopped")


def test_what_was_in_memory_is_in_memory_again_without_being_asked_for(start_daemon, hammer):
    daemon = start_daemon("--memory", "256MiB", "--ssd", "1GiB")
    with daemon.client() as client:
        for key, data in hammer.stored.items():
            client.put(key, data, ack=Ack.MEMORY)
    assert daemon.stop() == 0
    assert (daemon.data_dir / "warm").stat().st_mode & 0o777 == 0o600
    daemon.start()
    assert not (daemon.data_dir / "warm").exists()  # used once
    with daemon.client() as client:

        def in_memory():
            return next(tier.records for tier in client.stats().tiers if tier.name == "memory")

        while in_memory() < COUNT:
            pass
        assert all(client.get(key).tier == "memory" for key in hammer.stored)


def test_after_a_crash_memory_fills_with_what_is_used(start_daemon, hammer):
    daemon = start_daemon("--memory", "256MiB", "--ssd", "1GiB")
    key, data = next(iter(hammer.stored.items()))
    with daemon.client() as client:
        client.put(key, data, ack=Ack.DISK)
    daemon.kill()
    (daemon.data_dir / "warm").write_bytes(b"KVLW\x01 damaged")
    daemon.start()
    with daemon.client() as client:
        found = client.get(key)
        assert (found.tier, found.value.data) == ("ssd", data)


class HeldPort:
    """What systemd is to a daemon with a socket unit: it listens, and passes the socket to each daemon as 3."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        self._held = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._held.getsockname()[1]}"
        self._process = None

    def start(self):
        serve = (*KVLOOM, "serve", "--data-dir", str(self.data_dir), "--memory", "64MiB", "--ssd", "256MiB")
        number = self._held.fileno()
        command = [sys.executable, "-c", PASSING, str(number), *serve]
        self._process = subprocess.Popen(command, pass_fds=(number,), stderr=subprocess.DEVNULL)

    def stop(self):
        self._process.terminate()
        assert self._process.wait(WAIT_SECONDS) == 0

    def close(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._held.close()


@pytest.fixture
def held_port(tmp_path):
    port = HeldPort(tmp_path / "data")
    yield port
    port.close()


def test_while_a_manager_holds_the_port_a_put_waits_for_the_next_daemon(held_port, hammer, monkeypatch):
    keys = iter(hammer.stored.items())
    monkeypatch.setattr(limits, "CONNECT_SECONDS_MAX", float(WAIT_SECONDS))
    once = RetryPolicy(tries_max=1)
    with KvloomClient(held_port.address, data_dir=held_port.data_dir, local=False, retries=once) as client:
        for _ in range(3):
            key, data = next(keys)
            putting = threading.Thread(target=lambda: results.append(client.put(key, data, ack=Ack.DISK)))  # noqa: B023
            results = []
            putting.start()  # nobody is there
            held_port.start()
            putting.join(WAIT_SECONDS)
            assert [result.ack for result in results] == [Ack.DISK]
            assert client.get(key).value.data == data
            client.close()
            held_port.stop()
