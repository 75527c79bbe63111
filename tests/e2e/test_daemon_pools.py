"""Pools of decoded chunks over a real daemon: registered while they live, known by what they hold, gone when dead."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pool_source import PLAIN, draw_kv, key_of, kv_like

from kvloom import codec
from kvloom.clients import wire
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.local_connection import LocalConnection
from kvloom.clients.local_stream import LocalGone
from kvloom.clients.local_wire import Kind
from kvloom.clients.pool_registration import resident_in_pools
from kvloom.clients.pool_wire import Held, PoolCounts, PoolIntroduction
from kvloom.clients.resident import DaemonSource, PoolPlace, ResidentChunks
from kvloom.errors import ConfigError, InvalidRequest, StorageFull
from kvloom.kvstore.gpu.source import ChunkWanted, Encoding
from kvloom.kvstore.outcome import Miss, Unavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="registration is over the Unix socket")
MIB = 1024**2


@pytest.fixture
def resident(monkeypatch):
    """A function: a pool over a daemon, registered with it, closed at the end."""

    @contextmanager
    def opened(daemon, limit_bytes=MIB):
        monkeypatch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
        client = daemon.client()
        chunks = ResidentChunks(PoolPlace(limit_bytes), PLAIN, client, source=DaemonSource(client))
        try:
            yield chunks
        finally:
            chunks.close()
            client.close()

    return opened


def put(client, number, tokens=20):
    kv = draw_kv(PLAIN, tokens, number)
    key = key_of(number)
    client.put(key, codec.encode(kv.keys, kv.values, layout=PLAIN, content_key=key))
    return key, kv


def socket_of(daemon):
    return Path(DaemonNote.read(daemon.data_dir).local)


def none_left(client):
    """Whether the daemon has noticed that no pool is there any more; it may answer a question or two before."""
    return any(client.stats().pools == () for _ in range(1000))


def held_by(daemon, keys):
    return [match.matched for match in resident_in_pools(socket_of(daemon), keys)]


def test_a_pool_loads_through_the_daemon_and_is_registered_with_it(start_daemon, resident):
    daemon = start_daemon()
    with resident(daemon) as chunks, daemon.client() as client:
        made = [put(client, number) for number in range(3)]
        wanted = [ChunkWanted(key) for key, _ in made]
        outcomes = chunks.get_many([*wanted, ChunkWanted(key_of(99))])
        assert isinstance(outcomes[3], Miss)
        for (_, kv), outcome in zip(made, outcomes[:3], strict=True):
            room = kv_like(PLAIN, 20)
            with outcome.value as lease:
                chunks.pool.copy_out(lease, room.keys, room.values)
            assert room.same_as(kv)
        assert chunks.report()
        keys = [key for key, _ in made]
        assert held_by(daemon, [*keys, key_of(99)]) == [3]
        (pool,) = client.stats().pools
        assert (pool.device, pool.pid, pool.limit_bytes) == ("host", os.getpid(), chunks.pool.limit_bytes)
        assert (pool.chunks, pool.tracked, pool.misses) == (3, 3, 4)
        assert b'kvloom_pool_chunks{device="host"' in daemon.ask("GET", "/metrics").body
        assert f"gpu (host, pid {os.getpid()})" in daemon.run("status", COLUMNS="160").stdout.decode()
        chunks.pool.forget(wanted[1])
        assert chunks.report()
        assert held_by(daemon, keys) == [1]
    assert none_left(client)
    assert held_by(daemon, keys) == []


def test_what_is_computed_goes_to_the_daemon_and_nobody_is_told_it_is_there_before(start_daemon, resident):
    daemon = start_daemon()
    kv = draw_kv(PLAIN, 20, 7)
    with resident(daemon) as chunks, daemon.client() as client:
        chunks.put(ChunkWanted(key_of(7), first_position=0), kv.keys, kv.values)
        assert chunks.report()
        assert held_by(daemon, [key_of(7)]) == [1]
        assert client.exists([key_of(7)]) == [False], "who would load it could not"
        chunks.put(ChunkWanted(key_of(8), first_position=0), kv.keys, kv.values, encoding=Encoding())
        chunks.drain()
        assert client.exists([key_of(8)]) == [True]
        assert np.array_equal(codec.decode(client.get(key_of(8)).value.data)[0], np.stack(kv.keys))
        assert chunks.prefetch([ChunkWanted(key_of(8))]) == 1
        wide = draw_kv(PLAIN, 5000, 1)
        with pytest.raises(StorageFull):
            chunks.put(ChunkWanted(key_of(9), first_position=0), wide.keys, wide.values)


def test_a_chunk_that_is_used_in_a_pool_stays_in_the_daemons_memory(start_daemon, resident):
    daemon = start_daemon("--memory", "1MiB", "--ssd", "64MiB", "--eviction", "lru")
    with resident(daemon) as chunks, daemon.client() as client:
        keys = [put(client, number, tokens=128)[0] for number in range(2)]
        for outcome in chunks.get_many([ChunkWanted(key) for key in keys]):
            outcome.value.release()
        for number in range(10, 60):
            put(client, number, tokens=128)
            chunks.get_many([ChunkWanted(keys[0])])[0].value.release()
            assert chunks.report()
        tiers = [client.info(key).chunk.tiers for key in keys]
        assert "memory" in tiers[0]
        assert "memory" not in tiers[1]


def test_a_pool_goes_with_its_process(start_daemon):
    daemon = start_daemon()
    code = (
        "import sys; from kvloom.clients import KvloomClient; from kvloom.codec import Layout, Rope\n"
        "from kvloom.clients.resident import *\n"
        "client = KvloomClient(sys.argv[1])\n"
        "layout = Layout.uniform(layers=1, kv_heads=1, head_dim=8)\n"
        "chunks = ResidentChunks(PoolPlace(2**20), layout, client, source=DaemonSource(client))\n"
        "assert chunks.report(); print('registered', flush=True); sys.stdin.read()"
    )
    environ = {**os.environ, "KVLOOM_DATA_DIR": str(daemon.data_dir)}
    command = [sys.executable, "-c", code, str(daemon.endpoint)]
    with (
        daemon.client() as client,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process,
    ):
        assert process.stdout.readline() == b"registered\n"
        assert [pool.pid for pool in client.stats().pools] == [process.pid]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert none_left(client)


def test_a_daemon_that_comes_back_learns_everything_anew(start_daemon, resident):
    daemon = start_daemon()
    with resident(daemon) as chunks:
        with daemon.client() as client:
            keys = [put(client, number)[0] for number in range(2)]
        for outcome in chunks.get_many([ChunkWanted(key) for key in keys]):
            outcome.value.release()
        assert chunks.report()
        daemon.kill()
        assert not chunks.report()
        with chunks.pool.resident(ChunkWanted(keys[0])) as lease:
            assert lease.tokens == 20, "what is resident needs no daemon"
        (outcome,) = chunks.get_many([ChunkWanted(key_of(50))])
        assert isinstance(outcome, Unavailable)
        with pytest.raises(LocalGone):
            held_by(daemon, keys)
        daemon.start()
        assert chunks.report()
        assert held_by(daemon, keys) == [2]


def test_reports_that_make_no_sense_end_the_connection(start_daemon):
    daemon = start_daemon()
    about = wire.encode(PoolIntroduction("host", 5, 6))
    held = Held(PoolCounts(), [key_of(1)]).encode()
    for frames in (
        [(Kind.HELD, held)],
        [(Kind.POOL, about), (Kind.POOL, about)],
        [(Kind.POOL, b"{}")],
        [(Kind.POOL, about), (Kind.HELD, held[:-1])],
        [(Kind.POOL, about.replace(b"host", b"h" * 100))],
    ):
        connection = LocalConnection(socket_of(daemon))
        for kind, body in frames[:-1]:
            connection.exchange(kind, (body,))
        with pytest.raises(InvalidRequest):
            connection.exchange(frames[-1][0], (frames[-1][1],))
        with pytest.raises(LocalGone):
            connection.exchange(Kind.HELLO, ())
        connection.close()
    assert none_left(daemon.client())


def test_a_pool_that_cannot_be_is_said_so_at_once(start_daemon, resident):
    daemon = start_daemon()
    with pytest.raises(ConfigError, match="free"), resident(daemon, limit_bytes=2**60):
        pass
    client = daemon.client()
    with pytest.raises(ConfigError, match="pool device 'gpu' is not"):
        ResidentChunks(PoolPlace(MIB, "gpu"), PLAIN, client, source=DaemonSource(client))
