"""The Unix socket: who may connect, what a client can do to the memory it is given, and what garbage comes to."""

import array
import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients import wire
from kvloom.clients.local_board import BOARD_BYTES, Board, unlock
from kvloom.clients.local_replies import Failed, GetReply, Mapped
from kvloom.clients.local_wire import (
    FRAME_BYTES,
    PUT_BYTES,
    SOCKET_NAME,
    Frame,
    GetQuestion,
    Hello,
    Kind,
    PutQuestion,
    decode_error,
)
from kvloom.codec.level import EXACT
from kvloom.errors import InvalidData, InvalidRequest, KeyMismatch, KvloomError, Overloaded, TooManyItems, TruncatedBody
from kvloom.kvstore.tier import Ack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memfds and peer credentials")
KEY = bytes(range(32))


@pytest.fixture
def path(edge, tmp_path):
    return tmp_path / "data" / SOCKET_NAME


class Raw:
    """A connection that sends what it is told; blocking calls run in threads, since the daemon is in this process."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        self.socket.connect(str(path))

    async def send(self, data, *descriptors):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        await asyncio.to_thread(self.socket.sendmsg, [data], rights)

    async def receive(self):
        """The next frame, its body and its descriptors; None at the end."""
        data, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, self.socket, FRAME_BYTES, 8)
        if not data:
            return None
        frame = Frame.decode(data, reply=True)
        body = b""
        while len(body) < frame.body_bytes:
            body += await asyncio.to_thread(self.socket.recv, frame.body_bytes - len(body))
        return frame, body, descriptors

    async def ask(self, kind, body=b"", *descriptors):
        await self.send(Frame(kind, 7, len(body), len(descriptors)).encode() + body, *descriptors)
        return await self.receive()

    async def error(self):
        frame, body, _ = await self.receive()
        assert frame.kind is Kind.ERROR
        return decode_error(body)


@pytest.fixture
def connect(path):
    made = []

    def connect():
        made.append(Raw(path))
        return made[-1]

    yield connect
    for raw in made:
        raw.socket.close()


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def stored(edge, container_bytes, key=KEY):
    data = container_bytes([EXACT], content_key=key, segment_bytes=4000)
    await edge.running.service.put(edge.me, key, data, ack=Ack.MEMORY)
    return data


def test_socket_and_note_are_for_this_user_only(path):
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_turned_away_even_where_the_files_let_him_in(path):
    for place in (path, *path.parents):
        if place == path.parents[-1] or place.stat().st_uid != os.geteuid():
            continue
        with contextlib.suppress(PermissionError):
            place.chmod(place.stat().st_mode | (0o666 if place == path else 0o055))
    script = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(sys.argv[1])\n"
        "os.write(s.fileno(), bytes.fromhex(sys.argv[2])); print(len(s.recv(100)), end='')\n"
    )
    hello = Frame(Kind.HELLO, 1, 0).encode().hex()
    command = ["/usr/bin/env", "python3", "-c", script, str(path), hello]
    for user, expected in ((65534, (b"0", b"")), (0, None)):
        ran = await asyncio.to_thread(subprocess.run, command, user=user, group=user, capture_output=True, timeout=60)
        if expected is None:
            assert int(ran.stdout) > FRAME_BYTES, ran.stderr
        else:
            assert ran.stdout in expected, ran
            assert ran.stdout == b"0" or b"ConnectionResetError" in ran.stderr or b"BrokenPipeError" in ran.stderr


async def test_memory_that_was_passed_cannot_be_written(edge, connect, container_bytes):
    data = await stored(edge, container_bytes)
    _, body, descriptors = await connect().ask(Kind.GET, GetQuestion([KEY]).encode())
    reply = GetReply.decode(body)
    (found,), (granted,), (descriptor,) = reply.results, reply.granted, descriptors
    assert isinstance(found, Mapped)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, granted.size_bytes, flags=mmap.MAP_SHARED)
    for attack in (
        lambda: os.pwrite(descriptor, b"x", 0),
        lambda: os.ftruncate(descriptor, 0),
        lambda: os.ftruncate(descriptor, 2 * granted.size_bytes),
        lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        lambda: fcntl.fcntl(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError):
            attack()
    place = found.ranges[0]
    assert os.pread(descriptor, place.length, place.start) == data
    os.close(descriptor)


async def test_hello_says_who_and_how_much(connect):
    frame, body, _ = await connect().ask(Kind.HELLO)
    said = wire.decode(Hello, body)
    assert (frame.kind, said.phase, said.pid) == (Kind.HELLO, "ready", os.getpid())
    assert (said.keys_max, said.get_keys_max) == (limits.KEYS_PER_REQUEST_MAX, limits.LOCAL_GET_KEYS_MAX)


async def test_a_segment_is_passed_once_per_connection(edge, connect, container_bytes):
    await stored(edge, container_bytes)
    one, other = connect(), connect()
    for raw, expected in ((one, 1), (one, 0), (other, 1), (one, 0)):
        _, body, descriptors = await raw.ask(Kind.GET, GetQuestion([KEY, KEY]).encode())
        assert len(descriptors) == len(GetReply.decode(body).granted) == expected
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", InvalidRequest),
        (bytes(FRAME_BYTES), InvalidRequest),
        (struct.pack("<4sBBHII", b"KVLL", 3, Kind.CONTAINS, 0, 1, 2**32 - 1), TooManyItems),
        (struct.pack("<4sBBHII", b"KVLL", 3, Kind.PUT, 0, 1, 2**32 - 1), TooManyItems),
        (struct.pack("<4sBBHII", b"KVLL", 3, Kind.HELLO, 1, 1, 0), InvalidRequest),
        (Frame(Kind.CONTAINS, 1, 33).encode() + bytes(33), InvalidRequest),
        (Frame(Kind.DELETE, 1, 0).encode(), InvalidRequest),
        (Frame(Kind.RELEASE, 1, 7).encode() + bytes(7), InvalidRequest),
        (Frame(Kind.GET, 1, 3).encode() + bytes(3), InvalidRequest),
        (Frame(Kind.PUT, 1, 3).encode() + bytes(3), InvalidRequest),
        (Frame(Kind.PUT, 1, PUT_BYTES).encode() + PutQuestion(KEY, Ack.MEMORY, 1).encode(), InvalidRequest),
        (Frame(Kind.PUT, 1, PUT_BYTES, 1).encode() + PutQuestion(KEY, Ack.MEMORY, 1, 0).encode(), InvalidRequest),
    ],
)
async def test_frames_that_do_not_hold_are_answered_and_the_connection_closed(edge, connect, data, kind):
    raw = connect()
    await raw.send(data)
    assert isinstance(await raw.error(), kind)
    with contextlib.suppress(ConnectionResetError):
        assert await raw.receive() is None
    assert (await connect().ask(Kind.HELLO))[0].kind is Kind.HELLO


async def test_what_the_store_refuses_does_not_end_the_connection(edge, connect, container_bytes):
    raw = connect()
    wrong = container_bytes([EXACT], content_key=bytes(32))
    for data, kind in ((b"x", InvalidData), (wrong, KeyMismatch)):
        frame, body, _ = await raw.ask(Kind.PUT, PutQuestion(KEY, Ack.MEMORY, len(data)).encode() + data)
        assert frame.kind is Kind.ERROR
        assert isinstance(decode_error(body), kind)
    frame, body, _ = await raw.ask(Kind.CONTAINS, KEY + KEY)
    assert (frame.kind, body) == (Kind.CONTAINS, bytes(2))


async def test_a_drain_refuses_and_the_connection_stays(edge, connect, container_bytes):
    await stored(edge, container_bytes)
    raw = connect()
    assert (await raw.ask(Kind.CONTAINS, KEY))[1] == b"\x01"
    edge.running.service.admission.drain()
    for kind, body in ((Kind.CONTAINS, KEY), (Kind.GET, GetQuestion([KEY]).encode()), (Kind.DELETE, KEY)):
        frame, answer, _ = await raw.ask(kind, body)
        assert frame.kind is Kind.ERROR
        assert isinstance(decode_error(answer), Overloaded)
    assert (await raw.ask(Kind.STATS))[0].kind is Kind.STATS


async def test_only_a_memfd_of_the_declared_length_is_read(edge, connect, tmp_path, container_bytes):
    data = container_bytes([EXACT], content_key=KEY)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    pipe, other_end = os.pipe()
    memory = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    for descriptor in (file, memory):
        os.write(descriptor, data)
    question = PutQuestion(KEY, Ack.MEMORY, len(data), 0).encode()
    too_long = PutQuestion(KEY, Ack.MEMORY, len(data) + 1, 0).encode()
    far = PutQuestion(KEY, Ack.MEMORY, len(data), 2**61).encode()
    for body, descriptor, kind in (
        (question, file, InvalidRequest),
        (question, pipe, InvalidRequest),
        (too_long, memory, TruncatedBody),
        (far, memory, TruncatedBody),
    ):
        _, answer, _ = await connect().ask(Kind.PUT, body, descriptor)
        assert isinstance(decode_error(answer), kind)
    frame, answer, _ = await connect().ask(Kind.PUT, question, memory)
    assert (frame.kind, answer) == (Kind.PUT, b"\x00")
    for descriptor in (file, memory, pipe, other_end):
        os.close(descriptor)


async def test_what_is_passed_is_judged_after_it_was_copied(edge, connect, container_bytes):
    """Whoever passes a file and then changes it changes nothing that was kept."""
    data = container_bytes([EXACT], content_key=KEY, segment_bytes=4000)
    memory = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    os.write(memory, data)
    raw = connect()
    await raw.ask(Kind.PUT, PutQuestion(KEY, Ack.MEMORY, len(data), 0).encode(), memory)
    os.pwrite(memory, bytes(len(data)), 0)
    os.ftruncate(memory, 0)
    async with edge.running.service.reading(edge.me, KEY) as chunk:
        assert b"".join(chunk.parts) == data
    os.close(memory)


async def test_descriptors_nobody_asked_for_are_closed(edge, connect):
    before = open_files()
    for _ in range(20):
        raw = connect()
        reader, writer = os.pipe()
        with contextlib.suppress(OSError):
            await raw.send(Frame(Kind.HELLO, 1, 0, 1).encode(), reader, reader, reader)
            await raw.receive()
        raw.socket.close()
        os.close(reader)
        os.close(writer)
    for _ in range(10_000):
        if open_files() <= before + 2:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{open_files()} files are open, {before} were before")


async def test_leases_end_with_the_connection_and_twice_released_is_once(edge, connect, container_bytes):
    data = await stored(edge, container_bytes)
    raw = connect()
    _, body, descriptors = await raw.ask(Kind.GET, GetQuestion([KEY]).encode())
    os.close(descriptors[0])
    lease = GetReply.decode(body).results[0].lease
    await edge.running.service.delete(edge.me, KEY)
    assert edge.stats().tiers[0].used_bytes >= len(data)
    for _ in range(2):
        await raw.send(Frame(Kind.RELEASE, 0, 16).encode() + struct.pack("<QQ", lease, 2**63))
    assert (await raw.ask(Kind.STATS))[0].kind is Kind.STATS
    assert edge.stats().tiers[0].used_bytes == 0


async def kept(edge, raw, container_bytes):
    """The board of a connection, and a lease on it, locked for the client."""
    data = await stored(edge, container_bytes)
    _, _, (board,) = await raw.ask(Kind.BOARD)
    _, body, descriptors = await raw.ask(Kind.GET, GetQuestion([KEY]).encode())
    os.close(descriptors[0])
    found = GetReply.decode(body).results[0]
    assert found.kept
    return data, board, found.lease


async def test_a_board_is_written_by_nobody_but_the_daemon(edge, connect, container_bytes):
    _, board, lease = await kept(edge, connect(), container_bytes)
    words = mmap.mmap(board, BOARD_BYTES, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    assert memoryview(words).cast("Q")[lease % limits.LOCAL_BOARD_LEASES_MAX] == lease
    again = os.open(f"/proc/self/fd/{board}", os.O_RDWR)
    for attack in (
        lambda: mmap.mmap(board, BOARD_BYTES, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: mmap.mmap(again, BOARD_BYTES, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: os.pwrite(again, bytes(8), 0),
        lambda: os.ftruncate(again, 0),
    ):
        with pytest.raises(PermissionError):
            attack()
    os.close(again)
    os.close(board)


async def test_an_idle_kept_lease_ends_with_its_record_and_one_that_is_read_when_it_is_released(
    edge, connect, container_bytes
):
    for idle in (True, False):
        raw = connect()
        data, board, lease = await kept(edge, raw, container_bytes)
        if idle:
            unlock(board, lease)
        await edge.running.service.delete(edge.me, KEY)
        assert (edge.stats().tiers[0].used_bytes >= len(data)) is not idle
        assert not Board(board).stands(lease)
        await raw.send(Frame(Kind.RELEASE, 0, 8).encode() + struct.pack("<Q", lease))
        assert (await raw.ask(Kind.STATS))[0].kind is Kind.STATS
        assert edge.stats().tiers[0].used_bytes == 0


async def test_who_comes_with_a_key_keeps_nothing(edge, connect):
    raw = connect()
    await raw.ask(Kind.HELLO, (await edge.grant("acme")).text.encode())
    frame, _, descriptors = await raw.ask(Kind.BOARD)
    assert (frame.kind, descriptors) == (Kind.BOARD, [])


async def test_questions_sent_at_once_are_answered_in_order_whatever_each_takes(edge, connect, container_bytes):
    await stored(edge, container_bytes)
    raw, missing = connect(), bytes(32)
    assert (await raw.ask(Kind.HELLO))[0].kind is Kind.HELLO  # from now on answers may be given at once
    questions = [[KEY], [KEY, missing], [missing], [KEY, KEY], [missing, KEY]]
    frames = []
    for number, keys in enumerate(questions):
        body = GetQuestion(keys).encode()
        frames.append(Frame(Kind.GET, number, len(body)).encode() + body)
    await raw.send(b"".join(frames))
    leases = []
    for number, keys in enumerate(questions):
        frame, body, descriptors = await raw.receive()
        assert (frame.kind, frame.number, len(descriptors)) == (Kind.GET, number, number == 0)
        for descriptor in descriptors:
            os.close(descriptor)
        results = GetReply.decode(body).results
        assert [isinstance(result, Mapped) for result in results] == [key == KEY for key in keys]
        leases += [result.lease for result in results if isinstance(result, Mapped)]
    assert len(leases) == len(set(leases)) == 5
    await edge.running.service.delete(edge.me, KEY)
    assert edge.stats().tiers[0].used_bytes > 0
    await raw.send(Frame(Kind.RELEASE, 0, 8 * len(leases)).encode() + struct.pack(f"<{len(leases)}Q", *leases))
    assert (await raw.ask(Kind.STATS))[0].kind is Kind.STATS
    assert edge.stats().tiers[0].used_bytes == 0


async def test_what_was_lent_to_a_question_that_is_refused_answers_no_other(
    edge, connect, container_bytes, monkeypatch
):
    await stored(edge, container_bytes)
    raw, missing = connect(), bytes(32)
    assert (await raw.ask(Kind.HELLO))[0].kind is Kind.HELLO
    monkeypatch.setattr("kvloom.limits.REQUESTS_INFLIGHT_MAX", 0)
    frame, body, _ = await raw.ask(Kind.GET, GetQuestion([KEY, missing]).encode())
    assert frame.kind is Kind.ERROR
    assert isinstance(decode_error(body), Overloaded)
    monkeypatch.undo()
    frame, body, descriptors = await raw.ask(Kind.GET, GetQuestion([missing, missing]).encode())
    assert (frame.kind, descriptors) == (Kind.GET, [])
    assert all(isinstance(result, Failed) for result in GetReply.decode(body).results)
    await edge.running.service.delete(edge.me, KEY)
    assert edge.stats().tiers[0].used_bytes == 0


async def test_too_many_connections_are_turned_away_and_those_inside_go_on(edge, connect, monkeypatch):
    monkeypatch.setattr("kvloom.limits.LOCAL_CONNECTIONS_MAX", 3)
    inside = [connect() for _ in range(3)]
    for raw in inside:
        assert (await raw.ask(Kind.HELLO))[0].kind is Kind.HELLO
    with contextlib.suppress(ConnectionError):
        assert await connect().ask(Kind.HELLO) is None
    inside[0].socket.close()
    for raw in inside[1:]:
        assert (await raw.ask(Kind.HELLO))[0].kind is Kind.HELLO


async def test_a_frame_that_stands_still_is_given_up(edge, connect, monkeypatch):
    monkeypatch.setattr("kvloom.limits.PROGRESS_SECONDS_MAX", 0.1)
    for begun in (b"", b"KVLL", Frame(Kind.CONTAINS, 1, 64).encode() + bytes(3)):
        raw = connect()
        if begun:
            await raw.send(begun)
        assert await asyncio.to_thread(raw.socket.recv, 1) == b""


async def test_what_does_not_fit_the_budget_is_refused_before_it_is_read(edge, connect):
    length = limits.CONTAINER_BYTES_MAX
    with edge.running.service.admission.reserve(limits.INFLIGHT_BYTES_MAX - 1, "default"):
        raw = connect()
        question = PutQuestion(KEY, Ack.MEMORY, length).encode()
        await raw.send(Frame(Kind.PUT, 1, len(question) + length).encode() + question)
        assert isinstance(await raw.error(), Overloaded)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_bytes_bring_the_daemon_down(fuzzed, data):
    kinds = st.sampled_from([*Kind, 0, 99])
    frames = st.tuples(kinds, st.integers(0, 2), st.binary(max_size=120), st.integers(-4, 4))
    sent = b""
    for kind, descriptors, body, wrong in data.draw(st.lists(frames, max_size=4)):
        size = max(0, len(body) + (wrong if wrong > 2 else 0))
        sent += struct.pack("<4sBBHII", b"KVLL", 3, kind, descriptors, 1, size) + body
    sent += data.draw(st.binary(max_size=40))
    fuzzed(sent)


@pytest.fixture
def fuzzed(tmp_path, container_bytes):
    """A function that sends bytes to a daemon, reads all that comes back, and sees that it still serves."""
    from kvloom.daemon.config import ConfigText, resolve_config
    from kvloom.daemon.machine import probe_machine
    from kvloom.daemon.server import open_daemon

    text = ConfigText(port="0", data_dir=str(tmp_path / "data"), memory="8MiB", ssd="off")
    runner = asyncio.Runner()
    context = open_daemon(resolve_config(text, probe_machine(text.directory())))
    runner.run(context.__aenter__())

    async def visit(sent):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "data" / SOCKET_NAME))
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            writer.write_eof()
            async with asyncio.timeout(30):
                answer = await reader.read()
            while answer:
                frame = Frame.decode(answer[:FRAME_BYTES], reply=True)
                if frame.kind is Kind.ERROR:
                    assert isinstance(decode_error(answer[FRAME_BYTES : FRAME_BYTES + frame.body_bytes]), KvloomError)
                answer = answer[FRAME_BYTES + frame.body_bytes :]
        writer.close()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "data" / SOCKET_NAME))
        writer.write(Frame(Kind.HELLO, 9, 0).encode())
        hello = Frame.decode(await reader.readexactly(FRAME_BYTES), reply=True)
        assert (hello.kind, hello.number) == (Kind.HELLO, 9)
        writer.close()

    yield lambda sent: runner.run(visit(sent))
    runner.run(context.__aexit__(None, None, None))
    runner.close()
