"""Clients against a Unix socket that lies, breaks off or keeps silent: HTTP instead, a bounded wait, no wrong byte."""

import array
import asyncio
import os
import socket
import sys
import threading
from contextlib import suppress

import pytest

from kvloom.clients import AsyncKvloomClient, KvloomClient, protocol
from kvloom.clients.discovery import DaemonNote, Endpoint
from kvloom.clients.local_replies import Failed, GetReply, Granted, Inline, Mapped
from kvloom.clients.local_wire import FRAME_BYTES, SOCKET_NAME, Frame, Kind
from kvloom.codec.container import ByteRange
from kvloom.codec.level import EXACT
from kvloom.errors import DaemonUnavailable, NotFound
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Unavailable
from kvloom.kvstore.sharing import word_sum

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memfds and peer credentials")
KEY = bytes(range(32))


class LyingDaemon:
    """Says hello as a daemon does, gives the boards it has, by default none, and says one thing to all that is asked.

    That is the same bytes with the same descriptors, what a function makes of the question, or nothing.
    """

    def __init__(self, data_dir, says=None, descriptors=()):
        self._says, self.descriptors, self.boards = says, descriptors, ()
        self.questions = []
        (data_dir / SOCKET_NAME).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(data_dir / SOCKET_NAME))
        self._listener.listen()
        self._open = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):
            while True:
                connected, _ = self._listener.accept()
                self._open.append(connected)
                threading.Thread(target=self._answer, args=(connected,), daemon=True).start()

    def _answer(self, connected):
        with suppress(OSError):
            while data := connected.recv(FRAME_BYTES, socket.MSG_WAITALL):
                frame = Frame.decode(data, reply=False)
                connected.recv(frame.body_bytes, socket.MSG_WAITALL)
                if frame.kind is Kind.HELLO:
                    connected.sendall(Frame(Kind.HELLO, frame.number, 2).encode() + b"{}")
                elif frame.kind is Kind.BOARD:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.boards))]
                    answer = Frame(Kind.BOARD, frame.number, 0, len(self.boards)).encode()
                    connected.sendmsg([answer], rights if self.boards else [])
                elif frame.kind is not Kind.RELEASE:
                    self.questions.append(frame.kind)
                    if self._says is None:
                        continue
                    says = self._says(frame) if callable(self._says) else self._says
                    if not says:
                        connected.close()
                        return
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.descriptors))]
                    connected.sendmsg([says], rights if self.descriptors else [])

    def close(self):
        self._listener.close()
        for connected in self._open:
            connected.close()


@pytest.fixture
def lying(tmp_path, monkeypatch):
    """A function that starts a lying daemon which the clients find; nothing answers over HTTP."""
    made = []
    monkeypatch.setenv("KVLOOM_DATA_DIR", str(tmp_path))
    DaemonNote(Endpoint("127.0.0.1", 1), os.getpid(), "0", str(tmp_path / SOCKET_NAME)).write(tmp_path)

    def start(says=None, descriptors=()):
        made.append(LyingDaemon(tmp_path, says, descriptors))
        return made[-1]

    yield start
    for item in made:
        item.close()


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """A function that runs one method of a client."""

    def sync(method, *arguments, **named):
        with KvloomClient() as client:
            return getattr(client, method)(*arguments, **named)

    def with_loop(method, *arguments, **named):
        async def main():
            async with AsyncKvloomClient() as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(main())

    return sync if request.param == "sync" else with_loop


def got(*results, granted=(), gone=()):
    """An answer to a GET."""
    body = b"".join(bytes(part) for part in GetReply(results, granted, gone).encode())
    return lambda frame: Frame(frame.kind, frame.number, len(body), len(granted)).encode() + body


def memory(data):
    """A memfd that holds ``data``."""
    descriptor = os.memfd_create("lie")
    os.write(descriptor, data)
    return descriptor


PLACE = (ByteRange(0, 10),)
LIES = {
    "closes": b"",
    "HTTP": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "another kind": lambda frame: Frame(Kind.STATS, frame.number, 2).encode() + b"{}",
    "another number": lambda frame: Frame(frame.kind, frame.number + 1, 0).encode(),
    "exabytes": b"KVLL\x03\x04\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff",
    "descriptors that do not come": lambda frame: Frame(frame.kind, frame.number, 0, 1).encode(),
    "nothing in it": lambda frame: Frame(frame.kind, frame.number, 0).encode(),
    "no results": got(),
    "too many results": got(Mapped(1, 1, PLACE, "memory"), Mapped(2, 1, PLACE, "memory")),
    "a segment never passed": got(Mapped(1, 9, PLACE, "memory")),
    "an error that is none": lambda frame: Frame(Kind.ERROR, frame.number, 3).encode() + b"[1]",
}


@pytest.mark.parametrize("name", LIES)
def test_what_no_daemon_would_say_is_no_daemon(lying, ask, name):
    lying(LIES[name])
    outcome = ask("get", KEY)
    assert isinstance(outcome, Unavailable), outcome
    assert "no daemon answers at 127.0.0.1:1" in outcome.detail


@pytest.mark.parametrize("name", ["closes", "HTTP", "another kind", "exabytes"])
def test_lookups_are_misses_and_puts_raise(lying, ask, name):
    lying(LIES[name])
    assert ask("exists", [KEY, KEY]) == [False, False]
    assert [type(item) for item in ask("get_many", [KEY] * 3)] == [Unavailable] * 3
    with pytest.raises(DaemonUnavailable):
        ask("put", KEY, b"container")


def test_silence_is_given_up_after_the_limit_and_not_waited_for_twice(lying, ask, monkeypatch):
    monkeypatch.setattr(protocol.Operation, "answer_seconds_max", 0.2)
    silent = lying(None)
    outcome = ask("get", KEY)
    assert isinstance(outcome, Unavailable)
    assert "did not go on within its time limit" in outcome.detail
    assert silent.questions == [Kind.GET]


def test_a_board_that_is_too_short_is_no_daemon(lying, ask):
    liar = lying(got(Failed(NotFound("it is not here"))))
    assert ask("get", KEY) == Miss()
    liar.boards = (memory(b"short"),)
    assert "no daemon answers at 127.0.0.1:1" in ask("get", KEY).detail
    os.close(liar.boards[0])


def test_places_outside_of_the_segment_are_no_daemon(lying, ask, container_bytes):
    data = container_bytes([EXACT], content_key=KEY)
    for granted_bytes, start, stop in ((4096, 0, 4097), (4096, 4000, 2**63), (4096, 10, 5), (2**40, 0, 10)):
        descriptor = memory(data.ljust(4096))
        daemon = lying(
            got(Mapped(1, 1, (ByteRange(start, stop),), "memory"), granted=(Granted(1, granted_bytes),)), (descriptor,)
        )
        assert isinstance(ask("get", KEY), Unavailable)
        daemon.close()
        os.close(descriptor)


def test_wrong_bytes_are_corrupt_and_asked_for_again_through_the_socket(lying, ask, container_bytes):
    data = container_bytes([EXACT], content_key=KEY, segment_bytes=300)
    flipped = bytearray(data)
    flipped[-5] ^= 4
    descriptor = memory(bytes(flipped))
    whole = Mapped(1, 1, (ByteRange(0, len(data)),), "memory", word_sum=word_sum(data))

    def says(frame):
        first = len(daemon.questions) == 1
        daemon.descriptors = (descriptor,) if first else ()
        answer = got(whole, granted=(Granted(1, len(data)),)) if first else got(Inline((data,), "ssd"))
        return answer(frame)

    daemon = lying(says)
    outcome = ask("get", KEY)
    assert isinstance(outcome, Hit)
    assert (outcome.tier, outcome.value.data) == ("ssd", data)
    assert daemon.questions == [Kind.GET] * 2
    os.close(descriptor)


def test_a_wrong_chunk_among_many_is_asked_for_alone_when_all_have_been_answered(lying, ask, container_bytes):
    data = container_bytes([EXACT], content_key=KEY, segment_bytes=300)
    flipped = data[:-5] + bytes((data[-5] ^ 4,)) + data[-4:]
    descriptor = memory(flipped)
    whole = Mapped(1, 1, (ByteRange(0, len(data)),), "memory", word_sum=word_sum(data))
    missing = Failed(NotFound("not stored"))

    def says(frame):
        number = len(daemon.questions)
        daemon.descriptors = (descriptor,) if number == 1 else ()
        answers = {
            1: got(*[missing] * 3, whole, *[missing] * 12, granted=(Granted(1, len(data)),)),
            2: got(*[missing] * 16),
            3: got(missing),
            4: got(Inline((data,), "ssd")),
        }
        return answers[number](frame)

    daemon = lying(says)
    outcomes = ask("get_many", [KEY if index == 3 else bytes([100 + index]) * 32 for index in range(33)])
    assert [type(outcome) for outcome in outcomes] == [Hit if index == 3 else Miss for index in range(33)]
    assert outcomes[3].value.data == data
    assert daemon.questions == [Kind.GET] * 4
    os.close(descriptor)


def test_every_flipped_bit_of_a_mapped_chunk_is_found(lying, container_bytes):
    data = container_bytes([EXACT], content_key=KEY, layers=1, segment_bytes=20)
    descriptor = memory(data)
    whole = Mapped(1, 1, (ByteRange(0, len(data)),), "memory", word_sum=word_sum(data))
    state = {"granted": False}

    def says(frame):
        granted = () if state["granted"] else (Granted(1, len(data)),)
        state["granted"] = True
        daemon.descriptors = (descriptor,) if granted else ()
        return got(whole, granted=granted)(frame)

    daemon = lying(says)
    with KvloomClient() as client:
        assert isinstance(client.get(KEY), Hit)
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            os.pwrite(descriptor, flipped, 0)
            assert isinstance(client.get(KEY), Corrupt)
        os.pwrite(descriptor, data, 0)
        assert isinstance(client.get(KEY), Hit)
    os.close(descriptor)


def test_a_socket_of_another_user_is_not_believed(lying, ask, monkeypatch):
    daemon = lying(LIES["no results"])
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert isinstance(ask("get", KEY), Unavailable)
    assert daemon.questions == []
