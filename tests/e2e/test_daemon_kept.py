"""Chunks read again without asking the daemon: as fresh, as safe and as well counted as those that are asked for."""

import gc
import os
import sys

import numpy as np
import pytest

from kvloom import limits
from kvloom.clients import KvloomClient, local_connection
from kvloom.codec.level import EXACT
from kvloom.kvstore.outcome import Hit, Miss

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memfds and locks of open files")


@pytest.fixture
def connect(monkeypatch):
    made = []

    def connect(daemon):
        monkeypatch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
        made.append(KvloomClient())
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def chunk(container_bytes):
    def make(size_bytes=30_000):
        key = os.urandom(32)
        return key, container_bytes([EXACT], content_key=key, segment_bytes=size_bytes, seed=key[0])

    return make


@pytest.fixture
def questions(monkeypatch):
    """The kinds of all questions asked through the socket."""
    asked = []
    ask = local_connection.LocalConnection.ask

    def note(self, kind, *rest, **options):
        asked.append(kind.name)
        return ask(self, kind, *rest, **options)

    monkeypatch.setattr(local_connection.LocalConnection, "ask", note)
    return asked


def stored(client, chunk, size_bytes=30_000):
    """A chunk that was read once."""
    key, data = chunk(size_bytes)
    client.put(key, data)
    assert client.get(key).value.data == data
    return key, data


def test_a_second_read_asks_nobody(daemon, connect, chunk, questions):
    client = connect(daemon)
    key, data = stored(client, chunk)
    asked = len(questions)
    for _ in range(3):
        outcome = client.get(key)
        assert (outcome.tier, outcome.value.data) == ("memory", data)
        assert outcome.value.data.readonly
        assert outcome.value.header.tokens > 0
        del outcome
    assert [found.value.data for found in client.get_many([key])] == [data]
    assert questions[asked:] == []


def test_two_readers_at_once_both_have_it(daemon, connect, chunk):
    client = connect(daemon)
    key, data = stored(client, chunk)
    held = [client.get(key) for _ in range(3)]
    assert [item.value.data for item in held] == [data] * 3
    held.clear()
    assert client.get(key).value.data == data


def test_deleted_is_gone_at_once(daemon, connect, chunk):
    client, other = connect(daemon), connect(daemon)
    key, data = stored(client, chunk)
    assert other.delete(key) is True
    assert client.get(key) == Miss()
    other.put(key, data)
    assert client.get(key).value.data == data


def test_deleted_while_read_is_gone_and_stays_readable(daemon, connect, chunk):
    client, other = connect(daemon), connect(daemon)
    key, data = stored(client, chunk)
    held = client.get(key)
    assert other.delete(key) is True
    assert client.get(key) == Miss()
    assert held.value.data == data
    del held
    assert client.get(key) == Miss()


def test_what_expires_is_not_kept(daemon, connect, chunk, questions):
    client = connect(daemon)
    key, data = chunk()
    client.put(key, data, ttl_seconds=3600)
    assert client.get(key).value.data == data
    asked = len(questions)
    assert client.get(key).value.data == data
    assert questions[asked:] == ["GET"]


def test_kept_leases_hold_no_memory(start_daemon, connect, chunk):
    """Ten times the tier is read and kept; the newest are there, and all bytes are right."""
    daemon = start_daemon("--memory", "4MiB", "--ssd", "off")
    client = connect(daemon)
    chunks = [stored(client, chunk, 100_000) for _ in range(80)]
    found = [client.get(key) for key, _ in chunks]
    assert isinstance(found[-1], Hit)
    assert Miss() in found
    for (_, data), outcome in zip(chunks, found, strict=True):
        assert outcome == Miss() or outcome.value.data == data


def test_what_is_read_again_survives_the_eviction_of_its_record(start_daemon, connect, chunk):
    daemon = start_daemon("--memory", "8MiB", "--ssd", "off")
    client, churning = connect(daemon), connect(daemon)
    key, data = stored(client, chunk, 100_000)
    held = np.frombuffer(client.get(key).value.data, np.uint8)
    for _ in range(80):
        stored(churning, chunk, 100_000)
    assert bytes(held) == data
    assert client.get(key) == Miss()
    del held
    assert client.get(key) == Miss()


def test_a_dead_daemon_gives_nothing_that_was_kept(start_daemon, connect, chunk):
    daemon = start_daemon("--ssd", "off")
    client = connect(daemon)
    key, data = stored(client, chunk)
    daemon.kill()
    assert not isinstance(client.get(key), Hit)
    daemon.start()
    assert client.get(key) == Miss()
    client.put(key, data)
    assert client.get(key).value.data == data


def test_reads_are_counted(daemon, connect, chunk):
    client = connect(daemon)
    key, _ = stored(client, chunk)
    hits = client.stats().hits
    reads = limits.LOCAL_USES_DEFERRED_MAX + 10
    for _ in range(reads):
        assert isinstance(client.get(key), Hit)
    assert client.stats().hits == hits + reads


def test_a_kept_chunk_whose_bytes_have_changed_is_asked_for(daemon, connect, chunk, questions):
    client = connect(daemon)
    key, data = stored(client, chunk)
    assert client.get(key).value.data == data
    client._local._kept[key]._sum ^= 1
    asked = len(questions)
    assert client.get(key).value.data == data
    assert questions[asked:] == ["GET"]


def test_a_fork_ends_no_lease_of_its_parent(start_daemon, connect, chunk):
    daemon = start_daemon("--memory", "8MiB", "--ssd", "off")
    client, churning = connect(daemon), connect(daemon)
    key, data = stored(client, chunk, 100_000)
    kept, _ = stored(client, chunk)
    held = client.get(key)
    child = os.fork()
    if child == 0:
        del held
        gc.collect()
        os._exit(0 if client._local.read_again(kept) is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    for _ in range(80):
        stored(churning, chunk, 100_000)
    assert held.value.data == data
