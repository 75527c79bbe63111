"""One connection to the Unix socket as the daemon's event loop sees it: bytes and descriptors, with every wait bounded.

asyncio's streams cannot pass descriptors, so the socket is used directly: what is there is taken at once, and only what
is not there yet is waited for.
"""

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from .. import limits
from ..clients.local_wire import FRAME_BYTES, Frame
from ..errors import InvalidRequest
from ..kvstore.tier import Buffer

__all__ = ["LocalSocket", "peer_user"]

_CREDENTIALS: Final = struct.Struct("3i")
_RECEIVE_BYTES: Final = 64 * 1024
_PARTS_MAX: Final = 64
_JOINED_BYTES_MAX: Final = 16 * 1024
_DESCRIPTORS_MAX: Final = 4
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)


def peer_user(connected: socket.socket) -> int:
    """The user at the other end of a Unix socket, by the kernel's word."""
    packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(packed)[1]
    return user


class LocalSocket:
    """Owns ``connected``, which must not block. One reader and writer at a time.

    Reads raise :class:`EOFError` at the end of the stream and :class:`TimeoutError` where a frame that has begun, or
    one that is being sent, does not move for :data:`limits.PROGRESS_SECONDS_MAX`.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._number = connected.fileno()
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()

    def close(self) -> None:
        """Close the socket and what descriptors came and were not taken. Idempotent."""
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    async def next_frame(self, *, seconds_max: float | None = None) -> Frame | None:
        """The next frame's header; None where the peer has closed between frames.

        Waits ``seconds_max`` for it to begin. Raises :class:`InvalidRequest` for one that does not hold.
        """
        if not self._received and not await self._more(seconds_max):
            return None
        while len(self._received) < FRAME_BYTES:
            await self._more_of_frame()
        frame = Frame.decode(bytes(self._received[:FRAME_BYTES]), reply=False)
        del self._received[:FRAME_BYTES]
        return frame

    async def read(self, size_bytes: int) -> memoryview:
        """The next ``size_bytes`` in a buffer of their own; the caller has bounded them."""
        body = bytearray(size_bytes)
        view = memoryview(body)
        position = min(size_bytes, len(self._received))
        view[:position] = self._received[:position]
        del self._received[:position]
        while position < size_bytes:
            try:
                count = self._socket.recv_into(view[position:])
            except BlockingIOError:
                await self._readable(limits.PROGRESS_SECONDS_MAX)
                continue
            if not count:
                raise EOFError(f"closed after {position} of {size_bytes} bytes")
            position += count
        return view

    def take_descriptor(self) -> int:
        """The descriptor that came with the frame, now the caller's; :class:`InvalidRequest` where there is none."""
        if not self._descriptors:
            raise InvalidRequest("the frame declares a descriptor and none came")
        return self._descriptors.popleft()

    async def send(self, parts: Sequence[Buffer], descriptors: Sequence[int] = ()) -> None:
        """Send ``parts``, large ones not joined, and with their first byte the descriptors, which stay the caller's."""
        if sum(len(part) for part in parts) <= _JOINED_BYTES_MAX:
            parts = (b"".join(parts),)
        pending = deque(memoryview(part).cast("B") for part in parts if len(part))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        while pending:
            try:
                sent = self._socket.sendmsg(tuple(islice(pending, _PARTS_MAX)), ancillary)
            except BlockingIOError:
                await self._writable()
                continue
            ancillary = []
            while pending and sent >= len(pending[0]):
                sent -= len(pending.popleft())
            if sent:
                pending[0] = pending[0][sent:]

    async def _more_of_frame(self) -> None:
        if not await self._more(limits.PROGRESS_SECONDS_MAX):
            raise EOFError(f"closed after {len(self._received)} bytes of a frame")

    async def _more(self, seconds_max: float | None) -> bool:
        """Receive what is there, or wait for it; whether the peer has not closed."""
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    _RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._readable(seconds_max)
                continue
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    self._descriptors.extend(numbers)
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > _DESCRIPTORS_MAX:
                raise InvalidRequest(f"more than {_DESCRIPTORS_MAX} descriptors came, or more than can be open")
            self._received += data
            return bool(data)

    async def _readable(self, seconds_max: float | None) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(self._number, _wake, ready)
        try:
            if seconds_max is None:
                await ready
            else:
                async with asyncio.timeout(seconds_max):
                    await ready
        finally:
            self._loop.remove_reader(self._number)

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._number, _wake, ready)
        try:
            async with asyncio.timeout(limits.PROGRESS_SECONDS_MAX):
                await ready
        finally:
            self._loop.remove_writer(self._number)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
