"""Both clients through a real daemon's Unix socket: mapped reads, leases, and what is left when either end dies."""

import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvloom.clients import AsyncKvloomClient, ChunkToPut, KvloomClient, local_wire
from kvloom.clients.async_http_daemon import AsyncHttpDaemon
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.http_daemon import HttpDaemon
from kvloom.codec.container import Container
from kvloom.codec.level import EXACT
from kvloom.errors import InvalidData, InvalidKey, InvalidRequest, KeyMismatch, MalformedContainer
from kvloom.kvstore.outcome import Hit, Miss, Unavailable
from kvloom.kvstore.tier import Ack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memfds and peer credentials")
MIB = 1024**2


class Blocking:
    """The async client with the face of the sync one."""

    def __init__(self, address=None, **options):
        self._runner = asyncio.Runner()
        self._client = AsyncKvloomClient(address, **options)

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if not inspect.iscoroutinefunction(method):
            return method
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))

    def close(self):
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def connect(request, monkeypatch):
    """A function that makes a client of the kind under test, which finds the daemon by its note."""
    made = []

    def connect(daemon, **options):
        monkeypatch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
        made.append((KvloomClient if request.param == "sync" else Blocking)(**options))
        return made[-1]

    def close(client):
        made.remove(client)
        client.close()

    connect.close = close
    yield connect
    for client in made:
        client.close()


@pytest.fixture
def no_http(monkeypatch):
    """Nothing may fall back on HTTP."""

    def refuse(*_, **__):
        raise AssertionError("HTTP was used")

    monkeypatch.setattr(HttpDaemon, "run", refuse)
    monkeypatch.setattr(AsyncHttpDaemon, "run", refuse)


@pytest.fixture
def chunk(container_bytes):
    def make(size_bytes=30_000, **options):
        key = os.urandom(32)
        return key, container_bytes([EXACT], content_key=key, segment_bytes=size_bytes, seed=key[0], **options)

    return make


def is_mapped(view):
    """Whether the view's memory is a segment of a daemon."""
    address = np.frombuffer(view, np.uint8).ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < stop:
            return "kvloom-segment" in line and line.split()[1].startswith("r--s")
    return False


@pytest.mark.usefixtures("no_http")
def test_the_socket_is_used_without_being_asked_for(daemon, connect, chunk):
    client = connect(daemon)
    key, data = chunk()
    assert client.put(key, data).ack is Ack.MEMORY
    outcome = client.get(key)
    assert isinstance(outcome, Hit)
    assert (outcome.tier, outcome.value.data) == ("memory", data)
    assert outcome.value.data.readonly
    assert is_mapped(outcome.value.data)
    assert client.exists([key, os.urandom(32)]) == [True, False]
    assert client.get(os.urandom(32)) == Miss()
    assert client.stats().hits >= 1
    assert client.delete(key) is True
    assert client.delete(key) is False
    assert client.get(key) == Miss()
    assert outcome.value.data == data


def test_without_it_nothing_changes(daemon, connect, chunk):
    client = connect(daemon, local=False)
    key, data = chunk()
    client.put(key, data)
    outcome = client.get(key)
    assert outcome.value.data == data
    assert not is_mapped(outcome.value.data)


@pytest.mark.usefixtures("no_http")
def test_large_and_small_puts_and_both_acks(daemon, connect, container_bytes):
    client = connect(daemon)
    for ack in Ack:
        for size_bytes in (0, 10, 100_000, 900_000):
            key = os.urandom(32)
            data = container_bytes([EXACT], content_key=key, segment_bytes=size_bytes, seed=1)
            assert client.put(key, data, ack=ack).ack is ack
            assert client.get(key).value.data == data


@pytest.mark.usefixtures("no_http")
def test_a_time_to_live_goes_through_the_socket(daemon, connect, container_bytes):
    client = connect(daemon)
    for size_bytes in (10, 400_000):
        key = os.urandom(32)
        client.put(key, container_bytes([EXACT], content_key=key, segment_bytes=size_bytes), ttl_seconds=90.5)
        entry = daemon.ask("GET", f"/chunks/{key.hex()}/info").json()["chunk"]
        assert 90_000 <= entry["expires_at_ms"] - entry["stored_at_ms"] <= 90_500
        for wrong in (0.0, 1e12):
            with pytest.raises(InvalidRequest):
                client.put(key, b"container", ttl_seconds=wrong)


@pytest.mark.usefixtures("no_http")
def test_many_are_put_through_the_socket(daemon, connect, container_bytes):
    client = connect(daemon)
    keys = [os.urandom(32) for _ in range(4)]
    chunks = [
        ChunkToPut(name, container_bytes([EXACT], content_key=name, segment_bytes=size, seed=size))
        for name, size in zip(keys, (10, 400_000, 500, 300_000), strict=True)
    ]
    chunks.insert(2, ChunkToPut(os.urandom(32), b"no container"))
    results = client.put_many(chunks)
    assert [item.ack for item in results] == [Ack.MEMORY, Ack.MEMORY, None, Ack.MEMORY, Ack.MEMORY]
    assert isinstance(results[2].error, InvalidData)
    assert [item.value.data for item in client.get_many(keys)] == [
        item.container for item in chunks if item.key in keys
    ]


@pytest.mark.usefixtures("no_http")
def test_layers_come_as_over_http(daemon, connect, chunk):
    client = connect(daemon)
    key, data = chunk(layers=6)
    client.put(key, data)
    original = Container.parse(data)
    for layers in (range(6), range(2, 4), range(5, 6)):
        found = client.get(key, level=EXACT, layers=layers).value
        assert found.header.layers == layers
        for item in found.header.segments:
            place = (item.level, item.layer, item.kind)
            assert found.segment(*place) == original.segment(*place)
    with pytest.raises(InvalidRequest, match="layers 5-6 asked for, the chunk has 0-5"):
        client.get(key, layers=range(5, 7))


@pytest.mark.usefixtures("no_http")
def test_many_at_once_keep_their_order(daemon, connect, chunk):
    client = connect(daemon)
    chunks = dict(chunk(500) for _ in range(300))
    for key, data in chunks.items():
        client.put(key, data)
    asked = [*chunks, os.urandom(32), *list(chunks)[:5]]
    outcomes = client.get_many(asked)
    assert [isinstance(outcome, Hit) for outcome in outcomes] == [key in chunks for key in asked]
    assert all(outcome.value.data == chunks[key] for key, outcome in zip(asked, outcomes, strict=True) if key in chunks)
    assert client.get_many([]) == []


@pytest.mark.usefixtures("no_http")
def test_what_is_wrong_is_the_same_error_as_over_http(daemon, connect, chunk):
    client = connect(daemon)
    key, data = chunk(200_000)
    flipped = bytearray(data)
    flipped[-1] ^= 1
    with pytest.raises(MalformedContainer):
        client.put(key, flipped)
    with pytest.raises(KeyMismatch):
        client.put(os.urandom(32), data)
    for call in (
        client.get,
        client.delete,
        lambda short: client.put(short, data),
        lambda short: client.exists([short]),
    ):
        with pytest.raises(InvalidKey, match="64 lower-case"):
            call(b"short")
    assert client.put(key, data).ack is Ack.MEMORY


@pytest.mark.usefixtures("no_http")
def test_a_chunk_on_disk_only_comes_through_the_socket(start_daemon, connect, chunk):
    daemon = start_daemon("--memory", "8MiB", "--ssd", "64MiB")
    client = connect(daemon)
    key, data = chunk()
    client.put(key, data, ack=Ack.DISK)
    daemon.kill()  # one that is stopped notes what it has in memory, and has it there again
    daemon.start()
    client = connect(daemon)
    outcome = client.get(key)
    assert (outcome.tier, outcome.value.data) == ("ssd", data)
    assert not is_mapped(outcome.value.data)


@pytest.mark.usefixtures("no_http")
def test_threads_share_a_client(daemon, chunk, monkeypatch):
    monkeypatch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
    with KvloomClient() as client:
        chunks = dict(chunk(20_000) for _ in range(40))

        def visit(item):
            key, data = item
            client.put(key, data)
            return all(client.get(key).value.data == data for _ in range(5))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(visit, chunks.items()))


@pytest.mark.usefixtures("no_http")
def test_what_is_held_survives_eviction_and_the_client_that_read_it(start_daemon, connect, chunk):
    daemon = start_daemon("--memory", "8MiB", "--ssd", "off")
    client = connect(daemon)
    key, data = chunk(100_000)
    client.put(key, data)
    held = np.frombuffer(client.get(key).value.data, np.uint8)
    connect.close(client)
    churning = connect(daemon)
    for _ in range(60):
        other, filler = chunk(100_000)
        churning.put(other, filler)
        assert churning.get(other).value.data == filler
    assert bytes(held) == data
    assert churning.get(key) == Miss()


@pytest.mark.usefixtures("no_http")
def test_leases_that_are_dropped_are_given_back(start_daemon, connect, chunk):
    """Ten times the tier is read; were leases kept, no new record would fit."""
    daemon = start_daemon("--memory", "4MiB", "--ssd", "off")
    client = connect(daemon)
    for _ in range(80):
        key, data = chunk(100_000)
        client.put(key, data)
        outcome = client.get(key)
        assert outcome.value.data == data
        assert is_mapped(outcome.value.data)


@pytest.mark.usefixtures("no_http")
def test_who_holds_half_of_the_memory_gets_copies(start_daemon, connect, chunk):
    daemon = start_daemon("--memory", "4MiB", "--ssd", "off")
    client = connect(daemon)
    held = []
    for _ in range(12):
        key, data = chunk(100_000)
        client.put(key, data)
        outcome = client.get(key)
        assert outcome.value.data == data
        held.append(outcome)
    kinds = [is_mapped(outcome.value.data) for outcome in held]
    assert kinds[0] is True
    assert kinds[-1] is False


HOLDER = """
import os, sys, time
from kvloom.clients import KvloomClient
client = KvloomClient()
held = [client.get(bytes.fromhex(key)) for key in sys.argv[1:]]
assert all(type(item).__name__ == "Hit" for item in held)
print("holding", flush=True)
sys.stdin.read()
"""


def test_a_client_that_is_killed_frees_its_leases(start_daemon, chunk, monkeypatch):
    daemon = start_daemon("--memory", "4MiB", "--ssd", "off")
    monkeypatch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
    chunks = dict(chunk(100_000) for _ in range(4))
    with KvloomClient() as client:
        for key, data in chunks.items():
            client.put(key, data)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *(key.hex() for key in chunks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout.readline() == b"holding\n"
            for key in chunks:
                client.delete(key)
            leased = client.stats().tiers[0].used_bytes
            assert leased >= sum(len(data) for data in chunks.values())
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        assert any(client.stats().tiers[0].used_bytes == 0 for _ in range(2000))


def test_a_daemon_that_is_killed_leaves_what_was_mapped(start_daemon, connect, chunk):
    daemon = start_daemon()
    client = connect(daemon)
    key, data = chunk(100_000)
    client.put(key, data)
    held = client.get(key)
    daemon.kill()
    assert held.value.data == data
    assert isinstance(client.get(key), Unavailable)
    assert client.exists([key]) == [False]
    assert [type(outcome) for outcome in client.get_many([key] * 3)] == [Unavailable] * 3
    assert held.value.data == data
    del held
    gc.collect()


@pytest.mark.usefixtures("no_http")
def test_a_daemon_started_again_is_found_again(start_daemon, connect, chunk):
    daemon = start_daemon()
    client = connect(daemon)
    key, data = chunk(100_000)
    client.put(key, data, ack=Ack.DISK)
    held = client.get(key)
    daemon.stop()
    assert not local_wire.socket_path(daemon.data_dir).exists()
    daemon.start()
    found = client.get(key)
    assert found.value.data == data == held.value.data
    assert client.put(*chunk()).ack is Ack.MEMORY


def test_a_socket_left_by_a_crash_is_replaced(start_daemon, connect, chunk):
    daemon = start_daemon()
    daemon.kill()
    assert local_wire.socket_path(daemon.data_dir).exists()
    daemon.start()
    assert DaemonNote.read(daemon.data_dir).local == str(local_wire.socket_path(daemon.data_dir))
    client = connect(daemon)
    key, data = chunk()
    client.put(key, data)
    assert is_mapped(client.get(key).value.data)


def test_a_socket_that_is_gone_means_http(start_daemon, connect, chunk):
    daemon = start_daemon()
    client = connect(daemon)
    local_wire.socket_path(daemon.data_dir).unlink()
    key, data = chunk()
    client.put(key, data)
    outcome = client.get(key)
    assert outcome.value.data == data
    assert not is_mapped(outcome.value.data)


@pytest.mark.usefixtures("no_http")
def test_a_data_directory_with_a_very_long_name_has_a_socket_too(start_daemon, connect, chunk):
    daemon = start_daemon(name="long" * 40)
    client = connect(daemon)
    key, data = chunk()
    client.put(key, data)
    assert is_mapped(client.get(key).value.data)


def test_a_drain_refuses_and_says_so(start_daemon, connect, chunk):
    daemon = start_daemon()
    client = connect(daemon)
    key, data = chunk()
    client.put(key, data)
    held = client.get(key)
    assert daemon.stop() == 0
    assert isinstance(client.get(key), Unavailable)
    assert held.value.data == data
