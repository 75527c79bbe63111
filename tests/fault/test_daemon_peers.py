"""Clients against daemons that are dead, slow or lying: a bounded wait, a typed outcome, never a wrong byte."""

import asyncio
import itertools
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kvloom import limits
from kvloom.clients import AsyncKvloomClient, KvloomClient, RetryPolicy, protocol
from kvloom.clients.plan_wire import PlanQuestion
from kvloom.codec.level import EXACT
from kvloom.errors import DaemonSilent, DaemonUnavailable, InvalidData, KvloomError
from kvloom.kvstore.key import ModelIdentity
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Unavailable

KEY = bytes(range(32))
PATIENCE_SECONDS = 0.2


class Peer:
    """A server that says the same bytes to everyone who has sent a head, then closes, or stays silent."""

    def __init__(self, says: bytes | None, *, hang: bool = False, exchanges: int = 1) -> None:
        self._says, self._hang, self._exchanges = says, hang, exchanges
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            for _ in range(self._exchanges):
                self._answer(connection)
            if self._hang:
                self._open.append(connection)
            else:
                connection.close()

    def _answer(self, connection: socket.socket) -> None:
        received = b""
        while self._says is not None and b"\r\n\r\n" not in received:
            part = connection.recv(65536)
            if not part:
                return
            received += part
        if self._says:
            connection.sendall(self._says)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._open:
            connection.close()


@pytest.fixture
def peer():
    made: list[Peer] = []

    def make(says: bytes | None, **options: bool) -> Peer:
        made.append(Peer(says, **options))
        return made[-1]

    yield make
    for item in made:
        item.close()


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """A function that runs one method of a client of ``address``."""

    def options(named):
        return {name: named.pop(name) for name in ("lookup_seconds", "hedge_seconds") if name in named}

    def sync(address, method, *arguments, **named):
        with KvloomClient(address, **options(named)) as client:
            return getattr(client, method)(*arguments, **named)

    def with_loop(address, method, *arguments, **named):
        async def main():
            async with AsyncKvloomClient(address, **options(named)) as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(main())

    return sync if request.param == "sync" else with_loop


@pytest.fixture
def impatient(monkeypatch):
    """Waits are short where a test is about waiting; elsewhere a busy machine may take its time."""
    monkeypatch.setattr(protocol.Operation, "answer_seconds_max", PATIENCE_SECONDS)
    monkeypatch.setattr("kvloom.limits.PROGRESS_SECONDS_MAX", PATIENCE_SECONDS)


class Dribbler:
    """A server that takes what comes and answers with a byte whenever its reader has taken the one before."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._dribble, args=(connection,), daemon=True).start()

    def _dribble(self, connection: socket.socket) -> None:
        says = itertools.chain(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", itertools.repeat(32))
        with suppress(OSError), connection:
            while not self._ended.wait(0.01):
                connection.sendall(bytes((next(says),)))

    def close(self) -> None:
        self._ended.set()
        self._listener.close()


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_lookup_ends_however_a_peer_puts_it_off(ask, kind):
    peer = Dribbler()
    address = peer.address if kind == "http" else f"grpc://{peer.address}"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, address, "exists", [KEY], lookup_seconds=0.3)
        try:
            assert asked.result(timeout=9) == [False]  # the peer would go on for a quarter of an hour
        finally:
            peer.close()


def test_a_plan_that_does_not_come_in_time_is_none(peer):
    """The silence is longer than the test may take: no limit but the question's own ends it."""
    silent = peer(None, hang=True)
    question = PlanQuestion("engine", keys=(KEY.hex(),))
    with KvloomClient(silent.address) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.plan, question, seconds_max=0.3)
        assert asked.result(timeout=9) is None  # without a limit of its own it would take the client's


def test_what_nobody_answers_is_tried_as_often_as_was_said(peer):
    counted = peer(b"")
    with KvloomClient(counted.address, retries=RetryPolicy(tries_max=4)) as client, pytest.raises(DaemonUnavailable):
        client.health()
    assert counted.connections == 4
    with KvloomClient(counted.address, retries=RetryPolicy(tries_max=1)) as client, pytest.raises(DaemonUnavailable):
        client.health()
    assert counted.connections == 5


def test_a_daemon_that_is_gone_is_soon_asked_once_per_call(peer):
    counted = peer(b"")
    with KvloomClient(counted.address) as client:
        for _ in range(100):
            assert isinstance(client.get(KEY), Unavailable)
    assert 100 <= counted.connections <= 100 + limits.RETRY_TOKENS_MAX + 100 * limits.RETRY_TOKENS_PER_CALL


@pytest.mark.usefixtures("impatient")
def test_what_was_silent_for_its_whole_time_is_not_tried_again(peer, ask):
    silent = peer(None, hang=True)
    with pytest.raises(DaemonSilent):
        ask(silent.address, "health")
    assert silent.connections == 1


@pytest.mark.parametrize("hedge", [None, 0.05])
def test_a_read_that_hangs_is_hedged_where_that_was_asked_for(ask, container_bytes, hedge):
    """The first connection never answers, every further one does."""
    good = ok(container_bytes([EXACT], content_key=KEY))
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                held.append(listener.accept()[0])
                if len(held) > 1:
                    held[-1].recv(65536)
                    held[-1].sendall(good)

    threading.Thread(target=serve, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        if hedge is None:
            patch.setattr(protocol.Operation, "answer_seconds_max", PATIENCE_SECONDS)
        outcome = ask(f"127.0.0.1:{listener.getsockname()[1]}", "get", KEY, hedge_seconds=hedge)
    assert isinstance(outcome, Unavailable if hedge is None else Hit)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for item in held:
        item.close()


def ok(body: bytes, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


LIES = {
    "closes at once": b"",
    "not HTTP": b"+PONG\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "no length": b"HTTP/1.1 200 OK\r\n\r\nabc",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "a body of exabytes": ok(b"", 2**60),
    "half a body": ok(b"KVLC", 1000),
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000,
    "another server": b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnginx",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", LIES)
def test_what_no_daemon_would_say_is_no_daemon(peer, ask, name):
    address = peer(LIES[name]).address
    outcome = ask(address, "get", KEY)
    assert isinstance(outcome, Unavailable), outcome
    assert "\n" not in outcome.detail
    assert ask(address, "exists", [KEY, KEY]) == [False, False]
    with pytest.raises(DaemonUnavailable):
        ask(address, "put", KEY, b"container")


@pytest.mark.parametrize("says", [None, b"", b"HTTP/1.1 200 OK\r\n", ok(b"KVLC", 1000)])
@pytest.mark.usefixtures("impatient")
def test_a_daemon_that_stops_is_given_up_after_the_limit(peer, ask, says):
    address = peer(says, hang=True).address
    outcome = ask(address, "get", KEY)
    assert outcome == Unavailable("daemon", f"daemon at {address} did not go on within its time limit")
    assert ask(address, "longest_prefix", ModelIdentity(KEY, KEY), [1, 2, 3]).tokens == 0


def test_nobody_there(ask):
    assert isinstance(ask("127.0.0.1:1", "get", KEY), Unavailable)
    assert ask("127.0.0.1:1", "exists", [KEY]) == [False]
    for method in ("stats", "health", "list_chunks"):
        with pytest.raises(DaemonUnavailable, match=r"no daemon answers at 127\.0\.0\.1:1: connection refused"):
            ask("127.0.0.1:1", method)


@pytest.mark.usefixtures("impatient")
def test_a_batch_does_not_wait_for_a_dead_daemon_again_and_again(peer, ask):
    silent = peer(None, hang=True)
    outcomes = ask(silent.address, "get_many", [os.urandom(32) for _ in range(200)])
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 200
    assert silent.connections <= 8


def test_wrong_bytes_are_corrupt_and_never_a_hit(peer, ask, container_bytes):
    good = container_bytes([EXACT], content_key=KEY)
    flipped = bytearray(good)
    flipped[-1] ^= 1
    for lie in (bytes(flipped), good[:-1], b"", container_bytes([EXACT], content_key=bytes(32)), b"x" * 500):
        assert isinstance(ask(peer(ok(lie)).address, "get", KEY), Corrupt)
    hit = ask(peer(ok(good)).address, "get", KEY)
    assert isinstance(hit, Hit)
    assert hit.value.data == good


def test_nonsense_records_are_typed_errors(peer, ask):
    for body in (b"[]", b"{}", b"\xff", b'{"exists": [true, true, true]}', b"[" * 10_000):
        address = peer(ok(body)).address
        with pytest.raises(InvalidData):
            ask(address, "exists", [KEY])
        with pytest.raises(KvloomError):
            ask(address, "stats")


def test_an_error_that_this_version_does_not_know_is_an_outcome(peer, ask):
    body = b'{"error": "from_the_future", "message": "later"}'
    says = b"HTTP/1.1 599 Later\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert ask(peer(says).address, "get", KEY) == Unavailable("daemon", "later")


def test_a_connection_closed_while_idle_is_replaced_without_a_word(peer):
    body = b'{"error": "not_found", "message": "no"}'
    says = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    once = peer(says)  # keeps nothing alive, and does not say so
    with KvloomClient(once.address) as client:
        assert [client.get(KEY) for _ in range(5)] == [Miss()] * 5

    async def main():
        async with AsyncKvloomClient(once.address) as client:
            return [await client.get(KEY) for _ in range(5)]

    assert asyncio.run(main()) == [Miss()] * 5
