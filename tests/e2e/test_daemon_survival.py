"""What a daemon owes after it has acknowledged: a gentle end loses nothing, a crash nothing that was durable."""

import os
import signal
import socket
import threading

import pytest

from kvloom.clients import KvloomClient, wire
from kvloom.clients.discovery import DaemonNote
from kvloom.codec.level import EXACT
from kvloom.errors import DaemonUnavailable, KvloomError
from kvloom.kvstore.outcome import Hit, Miss, Unavailable
from kvloom.kvstore.tier import Ack

COUNT = 24


@pytest.fixture
def chunks(container_bytes):
    made = {}
    for index in range(COUNT):
        key = os.urandom(32)
        made[key] = container_bytes([EXACT], content_key=key, segment_bytes=20_000, seed=index)
    return made


@pytest.fixture
def large_chunks(container_bytes):
    """More than a disk takes in the moment between the last put and the end."""
    keys = [os.urandom(32) for _ in range(COUNT)]
    return {key: container_bytes([EXACT], content_key=key, layers=16, segment_bytes=400_000) for key in keys}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gentle_end_writes_what_was_only_in_memory(start_daemon, large_chunks, number):
    daemon = start_daemon()
    chunks = large_chunks
    with daemon.client() as client:
        for key, data in chunks.items():
            assert client.put(key, data, ack=Ack.MEMORY) == wire.PutReply(Ack.MEMORY)
    assert daemon.stop(number) == 0
    assert [line["event"] for line in daemon.log] == ["ready", "draining", "stopped"]
    assert not DaemonNote.path(daemon.data_dir).exists()
    with daemon.start().client() as client:
        for key, data in chunks.items():
            outcome = client.get(key)
            assert isinstance(outcome, Hit)
            assert outcome.value.data == data


def test_a_crash_loses_nothing_that_was_durable(start_daemon, chunks):
    daemon = start_daemon()
    with daemon.client() as client:
        for key, data in chunks.items():
            assert client.put(key, data, ack=Ack.DISK).ack is Ack.DISK
    daemon.kill()
    with daemon.start().client() as client:
        assert client.exists(list(chunks)) == [True] * COUNT
        for key, data in chunks.items():
            assert client.get(key).value.data == data


def test_killed_in_mid_write_it_keeps_every_acknowledged_chunk_and_serves_no_wrong_byte(start_daemon, chunks):
    daemon = start_daemon()
    acknowledged = []
    half = threading.Event()

    def ingest() -> None:
        with daemon.client() as client:
            for key, data in chunks.items():
                try:
                    client.put(key, data, ack=Ack.DISK)
                except KvloomError:
                    return
                acknowledged.append(key)
                if len(acknowledged) == COUNT // 2:
                    half.set()

    worker = threading.Thread(target=ingest)
    worker.start()
    assert half.wait(60)
    daemon.kill()
    worker.join()
    assert len(acknowledged) >= COUNT // 2
    with daemon.start().client() as client:
        assert all(client.exists(acknowledged))
        for key, data in chunks.items():
            outcome = client.get(key)
            assert isinstance(outcome, Hit | Miss)
            if isinstance(outcome, Hit):
                assert outcome.value.data == data


def test_a_client_lives_through_a_restart_on_the_same_port(start_daemon, chunks):
    key, data = next(iter(chunks.items()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    daemon = start_daemon("--port", str(port))
    with KvloomClient(f"127.0.0.1:{port}", data_dir=daemon.data_dir, local=False) as client:
        client.put(key, data, ack=Ack.DISK)
        daemon.stop()
        assert isinstance(client.get(key), Unavailable)
        assert client.exists([key]) == [False]
        daemon.start()
        assert isinstance(client.get(key), Hit)


def test_during_a_drain_what_is_inside_finishes_and_what_is_new_is_refused(start_daemon, container_bytes):
    daemon = start_daemon()
    endpoint = daemon.endpoint
    key = os.urandom(32)
    data = container_bytes([EXACT], content_key=key, segment_bytes=5000)
    known = f"Host: {endpoint}\r\nAuthorization: {daemon.key['Authorization']}\r\n"
    head = f"PUT /chunks/{key.hex()}?ack=disk HTTP/1.1\r\n{known}Content-Length: {len(data)}\r\n\r\n"
    with (
        socket.create_connection((endpoint.host, endpoint.port), timeout=60) as inside,
        socket.create_connection((endpoint.host, endpoint.port), timeout=60) as new,
    ):
        inside.sendall(head.encode() + data[:100])
        with daemon.client() as client:
            assert any(client.stats().requests_inflight for _ in range(1000))
        daemon.signal(signal.SIGTERM)
        with KvloomClient(str(endpoint)) as client:
            assert any(client.health().phase == "draining" for _ in range(1000))
        for target, status in (("/readyz", 503), ("/healthz", 200), (f"/chunks/{key.hex()}", 503)):
            new.sendall(f"GET {target} HTTP/1.1\r\n{known}\r\n".encode())
            answer = new.recv(65536)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert b"draining" in answer
        inside.sendall(data[100:])
        assert inside.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert daemon.stop() == 0
    with daemon.start().client() as client:
        assert client.get(key).value.data == data


def test_two_daemons_cannot_share_a_data_directory(start_daemon):
    daemon = start_daemon()
    result = daemon.run("serve", "--port", "0")
    assert result.returncode == 2
    assert result.stdout == b""
    assert b"is in use by another daemon" in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert daemon.client().health().phase == "ready"


def test_a_port_in_use_is_said_so_before_the_disk_is_touched(start_daemon, tmp_path):
    port = str(start_daemon().endpoint.port)
    other = tmp_path / "other"
    result = start_daemon(name="third").run("serve", "--port", port, KVLOOM_DATA_DIR=str(other))
    assert result.returncode == 2
    assert f"port {port} on 127.0.0.1 cannot be used: address already in use".encode() in result.stderr
    assert not (other / "chunks").exists()


def test_the_note_and_the_data_are_private(start_daemon):
    daemon = start_daemon()
    assert daemon.data_dir.stat().st_mode & 0o777 == 0o700
    for path in daemon.data_dir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_daemon_that_is_gone_costs_only_the_hit(start_daemon, chunks):
    daemon = start_daemon()
    endpoint = str(daemon.endpoint)
    daemon.kill()
    keys = list(chunks)
    with KvloomClient(endpoint) as client:
        assert isinstance(client.get(keys[0]), Unavailable)
        assert [type(outcome) for outcome in client.get_many(keys)] == [Unavailable] * COUNT
        assert client.exists(keys) == [False] * COUNT
        assert isinstance(client.get_profile(keys[0]), Unavailable)
        with pytest.raises(DaemonUnavailable, match=f"no daemon answers at {endpoint}: connection refused"):
            client.put(keys[0], chunks[keys[0]])
