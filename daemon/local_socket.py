"""One connection to the Unix socket as the daemon's event loop sees it: bytes and descriptors, with every wait bounded.

asyncio's streams cannot pass descriptors, so the socket is used directly: what is there is taken at once, and only what
is not there yet is waited for. A question that can be answered without waiting is answered where the loop says that it
has come: waking a task for it would take longer than answering.
"""

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from .. import limits
from ..clients.local_wire import FRAME_BYTES, Frame
from ..errors import InvalidRequest, KvloomError
from ..kvstore.tier import Buffer

__all__ = ["LocalSocket", "Reply", "peer_user"]

_CREDENTIALS: Final = struct.Struct("3i")
_RECEIVE_BYTES: Final = 64 * 1024
_PARTS_MAX: Final = 64
_JOINED_BYTES_MAX: Final = 16 * 1024
_DESCRIPTORS_MAX: Final = 4
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
# As plain numbers: the operators of the socket module's flags take longer than the calls that they are for.
_RECEIVE_FLAGS: Final = int(socket.MSG_CMSG_CLOEXEC)
_LOST: Final = int(socket.MSG_CTRUNC)


def peer_user(connected: socket.socket) -> int:
    """The user at the other end of a Unix socket, by the kernel's word."""
    packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(packed)[1]
    return user


@dataclass(slots=True)
class Reply:
    """What goes back: the parts of a frame, none for no answer, and descriptors, which stay the caller's."""

    parts: Sequence[Buffer] = ()
    descriptors: Sequence[int] = ()


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
        self._pending: deque[memoryview] = deque()
        self._passing: Sequence[int] = ()
        self._waiter: asyncio.Future[None] | None = None
        self._watched = False
        self._between_frames = False
        self.at_once: Callable[[Frame, bytes], Reply | None] | None = None
        """Answers a frame and its body where that takes no waiting; None, or an error, leaves it to :meth:`next_frame`.

        Called whenever somebody waits in :meth:`next_frame`.
        """

    def close(self) -> None:
        """Close the socket and what descriptors came and were not taken. Idempotent."""
        if self._watched:
            self._loop.remove_reader(self._number)
            self._watched = False
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    async def next_frame(self, *, seconds_max: float | None = None) -> Frame | None:
        """The next frame's header that is not answered at once; None where the peer has closed between frames.

        Waits ``seconds_max`` for it to begin. Raises :class:`InvalidRequest` for one that does not hold.
        """
        while True:
            await self._send_pending()
            self._answer_at_once()
            if self._pending:
                continue
            if self._received:
                break
            try:
                if not self._take():
                    return None
            except BlockingIOError:
                self._between_frames = True
                try:
                    await self._readable(seconds_max)
                finally:
                    self._between_frames = False
        while len(self._received) < FRAME_BYTES:
            await self._more_of_frame()
        frame = Frame.decode(self._received, reply=False)
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
        self._queue(parts, descriptors)
        await self._send_pending()

    def _queue(self, parts: Sequence[Buffer], descriptors: Sequence[int]) -> None:
        if sum(len(part) for part in parts) <= _JOINED_BYTES_MAX:
            parts = (b"".join(parts),)
        self._pending.extend(memoryview(part).cast("B") for part in parts if len(part))
        self._passing = descriptors

    def _send_now(self) -> bool:
        """Send what is pending, as far as it goes; whether all went."""
        pending = self._pending
        while pending:
            passing = self._passing
            try:
                if len(pending) == 1 and not passing:
                    sent = self._socket.send(pending[0])
                else:
                    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passing))] if passing else []
                    sent = self._socket.sendmsg(tuple(islice(pending, _PARTS_MAX)), ancillary)
            except BlockingIOError:
                return False
            self._passing = ()
            while pending and sent >= len(pending[0]):
                sent -= len(pending.popleft())
            if sent:
                pending[0] = pending[0][sent:]
        return True

    async def _send_pending(self) -> None:
        while not self._send_now():
            await self._writable()

    def _answer_at_once(self) -> None:
        """Answer what has come and takes no waiting, until something does or an answer cannot be sent whole."""
        received = self._received
        while self.at_once is not None and len(received) >= FRAME_BYTES and not self._pending:
            try:
                frame = Frame.decode(received, reply=False)
                end = FRAME_BYTES + frame.body_bytes
                reply = self.at_once(frame, bytes(received[FRAME_BYTES:end])) if len(received) >= end else None
            except KvloomError:
                return
            if reply is None:
                return
            del received[:end]
            self._queue(reply.parts, reply.descriptors)
            self._send_now()

    async def _more_of_frame(self) -> None:
        while True:
            try:
                if not self._take():
                    raise EOFError(f"closed after {len(self._received)} bytes of a frame")
            except BlockingIOError:
                await self._readable(limits.PROGRESS_SECONDS_MAX)
            else:
                return

    def _take(self) -> bool:
        """Receive what is there; whether the peer has not closed. :class:`BlockingIOError` where nothing is."""
        data, ancillary, flags, _ = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if flags & _LOST or len(self._descriptors) > _DESCRIPTORS_MAX:
            raise InvalidRequest(f"more than {_DESCRIPTORS_MAX} descriptors came, or more than can be open")
        self._received += data
        return bool(data)

    async def _readable(self, seconds_max: float | None) -> None:
        """Wait until there is something to receive; between frames, until something came that needs the waiter."""
        waiter = self._waiter = self._loop.create_future()
        if not self._watched:
            self._loop.add_reader(self._number, self._on_readable)
            self._watched = True
        try:
            if seconds_max is None:
                await waiter
            else:
                async with asyncio.timeout(seconds_max):
                    await waiter
        finally:
            self._waiter = None

    def _on_readable(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            # Nobody wants more just now. Watching goes on when somebody does: mostly it never stops, which saves calls.
            self._loop.remove_reader(self._number)
            self._watched = False
            return
        if self._between_frames and self.at_once is not None:
            try:
                if self._take():
                    self._answer_at_once()
                    if not self._received and not self._pending:
                        return
            except BlockingIOError:
                return
            except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
                waiter.set_exception(error)
                return
        waiter.set_result(None)

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
