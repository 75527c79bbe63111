"""The byte stream of one blocking connection to a daemon's Unix socket: frames, and the descriptors beside them.

It knows nothing of what frames mean. Errors are those of the socket; a stream that ends or makes no sense is
:class:`EOFError` or :class:`InvalidRequest`, after which it is of no use.
"""

import array
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from .. import limits
from ..kvstore.tier import Buffer
from .local_wire import FRAME_BYTES, Frame
from .patience import UNBOUNDED, Deadline

__all__ = ["LocalGone", "LocalStream", "unix_address"]

_RECEIVE_BYTES: Final = 64 * 1024
_PARTS_MAX: Final = 64
_JOINED_BYTES_MAX: Final = 16 * 1024
_TIMEVAL: Final = struct.Struct("@ll")
_CREDENTIALS: Final = struct.Struct("3i")
_ADDRESS_BYTES_MAX: Final = 100
_DESCRIPTORS_BYTES: Final = limits.LOCAL_GET_KEYS_MAX * array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTORS_BYTES) if hasattr(socket, "CMSG_SPACE") else 0
# As plain numbers: the operators of the socket module's flags take longer than the calls that they are for.
_RECEIVE_FLAGS: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_LOST: Final = int(getattr(socket, "MSG_CTRUNC", 0))
_PROBE_FLAGS: Final = int(getattr(socket, "MSG_DONTWAIT", 0)) | int(getattr(socket, "MSG_NOSIGNAL", 0))


class LocalGone(Exception):
    """There is no socket, it is not this user's daemon's, or the connection broke: HTTP may still answer."""


@contextlib.contextmanager
def unix_address(path: Path) -> Iterator[str]:
    """An address for the socket at ``path``, short enough for the system however long the path is."""
    if len(os.fsencode(path)) <= _ADDRESS_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class LocalStream:
    """Connects when made; raises :class:`LocalGone` where there is no daemon of this very user."""

    def __init__(self, path: Path) -> None:
        self._socket = _connect(path)
        self._deadline = UNBOUNDED
        self._received = b""
        self._wait_seconds = 0.0
        self.descriptors: deque[int] = deque()
        """What came and nobody has taken: who takes one closes it."""
        self.announced = 0
        """How many of them the last frame has brought."""

    @property
    def is_read_up(self) -> bool:
        """Whether nothing has come behind the last frame."""
        return not self._received

    @property
    def is_open_there(self) -> bool:
        """Whether somebody is at the other end, without sending anything."""
        try:
            self._socket.send(b"", _PROBE_FLAGS)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket, and what nobody has taken. Idempotent."""
        self._socket.close()
        while self.descriptors:
            os.close(self.descriptors.popleft())

    @contextlib.contextmanager
    def until(self, deadline: Deadline) -> Iterator[None]:
        """Questions and answers in this context have until ``deadline``, all together."""
        if not deadline.bounded:
            yield
            return
        self._deadline = deadline
        try:
            yield
        finally:
            self._deadline = UNBOUNDED
            if self._socket.fileno() >= 0:
                self._socket.settimeout(None)

    def send(self, parts: Sequence[Buffer], descriptors: Sequence[int], *, wait: bool = True) -> None:
        """Send all of ``parts``, ``descriptors`` with the first byte; ``wait=False``: or :class:`BlockingIOError`."""
        if sum(map(len, parts)) <= _JOINED_BYTES_MAX:
            joined = b"".join(parts)
            if wait and not descriptors:
                self._bound()
                self._socket.sendall(joined)
                return
            parts = (joined,)
        pending = deque(memoryview(part) for part in parts if len(part))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        flags = 0 if wait else socket.MSG_DONTWAIT
        while pending:
            if wait:
                self._bound()
            sent = self._socket.sendmsg(tuple(islice(pending, _PARTS_MAX)), ancillary, flags)
            ancillary, flags = [], 0
            while pending and sent >= len(pending[0]):
                sent -= len(pending.popleft())
            if sent:
                pending[0] = pending[0][sent:]

    def receive(self) -> tuple[Frame, memoryview]:
        """The next frame, which has all the descriptors that it declares, and its body."""
        data = self._received or self._more()
        while len(data) < FRAME_BYTES:
            data += self._more()
        frame = Frame.decode(data, reply=True)
        end = FRAME_BYTES + frame.body_bytes
        if len(data) < end <= _RECEIVE_BYTES:
            while len(data) < end:
                data += self._more()
        if len(data) >= end:
            self._received = data[end:]
            body = memoryview(data)[FRAME_BYTES:end]
        else:
            body = self._receive_long(memoryview(data)[FRAME_BYTES:], frame.body_bytes)
        if len(self.descriptors) < frame.descriptors:
            raise EOFError(f"{len(self.descriptors)} of {frame.descriptors} descriptors came")
        self.announced = frame.descriptors
        return frame, body

    def _receive_long(self, begun: memoryview, body_bytes: int) -> memoryview:
        body = bytearray(body_bytes)
        body[: len(begun)] = begun
        view = memoryview(body)
        position = len(begun)
        self._received = b""
        self.set_wait(limits.PROGRESS_SECONDS_MAX)
        while position < body_bytes:
            self._bound()
            count = self._socket.recv_into(view[position:])
            if not count:
                raise EOFError(f"closed after {position} of {body_bytes} bytes")
            position += count
        return view

    def _more(self) -> bytes:
        self._bound()
        data, ancillary, flags, _ = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self.descriptors.extend(numbers)
        if flags & _LOST:
            raise EOFError("descriptors were lost: too many are open")
        if not data:
            raise EOFError("closed")
        return data

    def _bound(self) -> None:
        """Give the next call of the socket what is left of the time for all of them, where that is bounded."""
        if self._deadline is not UNBOUNDED:
            self._socket.settimeout(self._deadline.left(limits.PROGRESS_SECONDS_MAX))

    def set_wait(self, seconds: float) -> None:
        """How long a receive may take from now on."""
        if seconds != self._wait_seconds:
            whole = int(seconds)
            packed = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
            self._wait_seconds = seconds


def _connect(path: Path) -> socket.socket:
    """Connect to a daemon of this very user; :class:`LocalGone` where there is none."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise LocalGone("this system has no sockets that tell who is at the other end")
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with unix_address(path) as address:
            connected.setblocking(False)  # a full queue is an answer: HTTP has another
            connected.connect(address)
            connected.setblocking(True)
        _, user, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if user != os.geteuid():
            raise LocalGone(f"socket {path} is served by user {user}, not by {os.geteuid()}")
        seconds = _TIMEVAL.pack(int(limits.PROGRESS_SECONDS_MAX), 0)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    except (OSError, LocalGone) as error:
        connected.close()
        raise LocalGone(f"no daemon at {path}: {error}") from error
    return connected
