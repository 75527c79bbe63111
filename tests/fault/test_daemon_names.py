"""A daemon that is named by a name whose resolver hangs, lies or is gone: lookups end in their time, gets miss."""

import asyncio
import os
import socket
import threading

import pytest

from kvloom.clients import AsyncKvloomClient, KvloomClient, RetryPolicy
from kvloom.errors import DaemonUnavailable
from kvloom.kvstore.outcome import Unavailable

NAME = "kvloom.test"
GIVE_UP_SECONDS = 60
LOOKUP_SECONDS = 0.05
ONCE = RetryPolicy(tries_max=1)


@pytest.fixture
def hanging(monkeypatch):
    """``getaddrinfo`` that does not answer for ``NAME`` before the test is over, or a minute has passed."""
    real, let = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host, *arguments, **options):
        if host == NAME:
            let.wait(GIVE_UP_SECONDS)
        return real("127.0.0.1" if host == NAME else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield let
    let.set()


def test_a_blocking_client_goes_on_without_the_daemon(hanging):
    keys = [os.urandom(32) for _ in range(3)]
    with KvloomClient(f"http://{NAME}:9", local=False, lookup_seconds=LOOKUP_SECONDS, retries=ONCE) as client:
        for _ in range(10):
            assert client.exists(keys) == [False] * 3
        assert isinstance(client.get(keys[0]), Unavailable)
        with pytest.raises(DaemonUnavailable, match="name was not found within"):
            client.health()
    assert not hanging.is_set()


def test_so_does_a_client_of_an_event_loop_and_the_loop_ends(hanging):
    """``asyncio.run`` waits for the loop's own threads when it ends: none of them may hang in the resolver."""

    async def ask() -> None:
        address = f"http://{NAME}:9"
        async with AsyncKvloomClient(address, local=False, lookup_seconds=LOOKUP_SECONDS, retries=ONCE) as client:
            assert await client.exists([os.urandom(32)]) == [False]
            assert isinstance(await client.get(os.urandom(32)), Unavailable)
            with pytest.raises(DaemonUnavailable, match="name was not found within"):
                await client.health()

    asyncio.run(ask())
    assert not hanging.is_set()


@pytest.fixture
def nowhere(monkeypatch):
    def getaddrinfo(host, *arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_without_an_address_is_named(nowhere):
    with (
        KvloomClient(f"http://{NAME}:9", local=False, retries=ONCE) as client,
        pytest.raises(DaemonUnavailable, match=f"{NAME}:9: name or service not known"),
    ):
        client.health()


async def test_so_it_is_from_an_event_loop(nowhere):
    async with AsyncKvloomClient(f"http://{NAME}:9", local=False, retries=ONCE) as client:
        with pytest.raises(DaemonUnavailable, match=f"{NAME}:9: "):
            await client.health()
