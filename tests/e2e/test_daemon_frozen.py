"""Lookups of a daemon stopped in its tracks: they end in the time they were given, and are right again after."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvloom import limits
from kvloom.clients import AsyncKvloomClient, KvloomClient, protocol
from kvloom.clients.discovery import DaemonNote
from kvloom.codec.level import EXACT
from kvloom.kvstore.key import ModelIdentity, chunk_refs

LOOKUP_SECONDS = 0.05
GIVEN_UP_SECONDS = 30
FOREVER_SECONDS = 600.0


@pytest.fixture
def frozen(start_daemon):
    """A daemon that a test may stop and continue."""
    return start_daemon("--grpc-port", "0", "--memory", "32MiB", "--ssd", "64MiB")


@pytest.fixture(params=["http", "grpc", "local"])
def address(request, frozen, monkeypatch):
    monkeypatch.setenv("KVLOOM_DATA_DIR", str(frozen.data_dir))
    note = DaemonNote.read(frozen.data_dir)
    return {
        "http": {"address": str(note.endpoint), "local": False},
        "grpc": {"address": f"grpc://127.0.0.1:{note.grpc_port}"},
        "local": {"address": str(note.endpoint)},
    }[request.param]


class Blocking(KvloomClient):
    def set_lookup_seconds(self, seconds: float) -> None:
        self._lookup_seconds = seconds


class Loop:
    """The async client on a loop of its own, asked as the blocking one is."""

    def __init__(self, **options) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncKvloomClient(**options)

    def __getattr__(self, name):
        return lambda *arguments, **named: self._runner.run(getattr(self._client, name)(*arguments, **named))

    def set_lookup_seconds(self, seconds: float) -> None:
        self._client._lookup_seconds = seconds

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def connect(request, address):
    made = []

    def connect(**options):
        made.append((Blocking if request.param == "sync" else Loop)(**address, **options))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def stored(frozen, container_bytes):
    """Leading chunks of some tokens, stored."""
    identity, tokens = ModelIdentity(os.urandom(32), os.urandom(32)), np.arange(64)
    with frozen.client() as client:
        for ref in chunk_refs(identity, tokens, chunk_tokens=16):
            client.put(ref.key, container_bytes([EXACT], content_key=ref.key))
    return identity, tokens


def test_a_frozen_daemon_costs_a_lookup_its_time_and_no_more(frozen, connect, stored, monkeypatch):
    """Nothing but the time of the lookup would end the wait: all other limits are out of reach."""
    identity, tokens = stored
    keys = [ref.key for ref in chunk_refs(identity, tokens, chunk_tokens=16)]
    known = connect(lookup_seconds=20.0)
    assert known.exists(keys) == [True] * 4
    known.set_lookup_seconds(LOOKUP_SECONDS)  # a connection that stood before
    for name in ("PROGRESS_SECONDS_MAX", "CONNECT_SECONDS_MAX"):
        monkeypatch.setattr(limits, name, FOREVER_SECONDS)
    monkeypatch.setattr(protocol.Operation, "answer_seconds_max", FOREVER_SECONDS)
    frozen.signal(signal.SIGSTOP)
    try:
        for client in (known, connect(lookup_seconds=LOOKUP_SECONDS)):
            with ThreadPoolExecutor(1) as pool:
                looked = pool.submit(client.exists, keys * 2000)
                try:
                    assert looked.result(GIVEN_UP_SECONDS) == [False] * 8000
                    looked = pool.submit(client.longest_prefix, identity, tokens, chunk_tokens=16)
                    assert looked.result(GIVEN_UP_SECONDS).tokens == 0
                except TimeoutError:
                    frozen.signal(signal.SIGCONT)  # so that the test ends
                    raise
    finally:
        frozen.signal(signal.SIGCONT)
    known.set_lookup_seconds(20.0)
    assert known.exists(keys) == [True] * 4
    assert known.longest_prefix(identity, tokens, chunk_tokens=16).tokens == 64


def test_a_healthy_daemon_is_not_cut_off(connect, stored):
    identity, tokens = stored
    keys = [ref.key for ref in chunk_refs(identity, tokens, chunk_tokens=16)]
    client = connect(lookup_seconds=2.0)
    for _ in range(50):
        assert client.exists(keys) == [True] * 4
        assert client.longest_prefix(identity, tokens, chunk_tokens=16).tokens == 64
    assert client.exists(keys * 3000) == [True] * 12_000
