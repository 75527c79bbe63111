"""Bodies over HTTP: read into one buffer of the declared length, written from the store's own buffers; both bounded."""

import asyncio
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final

from aiohttp import web

from .. import limits
from ..clients.summed import receive_buffer
from ..errors import BodyTooLarge, InvalidRequest, TruncatedBody

__all__ = ["body_bytes", "continue_now", "read_body", "read_exactly", "write_parts", "write_some"]

Buffer = bytes | bytearray | memoryview
_SMALL_BYTES_MAX: Final = 64 * 1024


def body_bytes(request: web.Request, *, what: str, limit: int) -> int:
    """The bytes to reserve for the request's body, before any of it is read: its length, or ``limit`` if undeclared.

    Raises :class:`BodyTooLarge` for a declared length past ``limit`` and :class:`InvalidRequest` for a body in a
    content encoding (nothing is ever decompressed: that is how small bodies become large ones).
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise InvalidRequest(f"{what} has content encoding {encoding[:40]!r}, only identity is accepted")
    declared = request.content_length
    if declared is None:
        return limit if request.body_exists else 0
    if declared > limit:
        raise BodyTooLarge(f"{what} declares {declared} bytes, the limit is {limit}")
    return declared


async def read_body(request: web.Request, *, what: str, limit: int) -> memoryview:
    """Read the body, whose length :func:`body_bytes` has checked, into one buffer; the caller owns it.

    Raises :class:`TruncatedBody` where the body ends early, or over one :data:`limits.BODY_WINDOW_SECONDS` comes more
    slowly than :data:`limits.BODY_BYTES_PER_SECOND_MIN`, and :class:`BodyTooLarge` where one of undeclared length grows
    past ``limit``.
    """
    declared = request.content_length
    # A part that is set into a bytearray is copied once more on its way; into a view it is not.
    known, most = (None, limit) if declared is None else (receive_buffer(declared), declared)
    grown = bytearray()
    position = 0
    window = _Window()
    try:
        while True:
            async with asyncio.timeout_at(window.ends):
                part = await request.content.readany()
            if not part:
                break
            window.add(len(part))
            if position + len(part) > most:
                raise BodyTooLarge(f"{what} has over {most} bytes, the limit")
            if known is None:
                grown += part
            else:
                known[position : position + len(part)] = part
            position += len(part)
    except TimeoutError as error:
        raise TruncatedBody(f"{what} stopped after {_of(position, declared)}") from error
    except (ConnectionError, web.RequestPayloadError) as error:
        raise TruncatedBody(f"{what} broke off after {_of(position, declared)}") from error
    if declared is not None and position < declared:
        raise TruncatedBody(f"{what} ended after {_of(position, declared)}")
    return memoryview(grown) if known is None else known


async def read_exactly(request: web.Request, size_bytes: int, *, what: str, may_end: bool = False) -> bytearray | None:
    """The next ``size_bytes`` of the body, in one buffer; ``None`` where it has ended before the first and ``may_end``.

    Raises :class:`TruncatedBody` as :func:`read_body` does.
    """
    data = bytearray(size_bytes)
    position = 0
    window = _Window()
    try:
        while position < size_bytes:
            async with asyncio.timeout_at(window.ends):
                part = await request.content.read(min(size_bytes - position, limits.STREAM_FRAME_BYTES))
            if not part and request.content.at_eof():
                break
            data[position : position + len(part)] = part
            position += len(part)
            window.add(len(part))
    except TimeoutError as error:
        raise TruncatedBody(f"{what} stopped after {_of(position, size_bytes)}") from error
    except (ConnectionError, web.RequestPayloadError) as error:
        raise TruncatedBody(f"{what} broke off after {_of(position, size_bytes)}") from error
    if position < size_bytes:
        if may_end and not position:
            return None
        raise TruncatedBody(f"{what} ended after {_of(position, size_bytes)}")
    return data


async def continue_now(request: web.Request) -> None:
    """Tell a client that waits for it to send the body: the headers have been judged."""
    if request.headers.get("Expect"):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


async def write_parts(request: web.Request, response: web.StreamResponse, parts: Iterable[Buffer]) -> None:
    """Send ``parts`` as the body. See :func:`write_some`."""
    await response.prepare(request)
    await write_some(request, response, parts)
    await response.write_eof()


async def write_some(request: web.Request, response: web.StreamResponse, parts: Iterable[Buffer]) -> None:
    """Send ``parts`` as the next bytes of a body that has begun, a frame at a time; large ones are not copied.

    A client that takes no byte for :data:`limits.PROGRESS_SECONDS_MAX` loses its connection. Safe to cancel: the
    connection is closed then, as the body is not whole.
    """
    transport = request.transport
    with _Progress(transport) as progress:
        for frame in gathered(parts):
            await response.write(frame)
            progress.note()


def gathered(parts: Iterable[Buffer]) -> Iterator[Buffer]:
    """``parts`` cut into frames; small ones, of which layers may be many, are put together with what follows them."""
    small: list[memoryview] = []
    size_bytes = 0
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            if not small and len(view) > _SMALL_BYTES_MAX:
                yield view[: limits.STREAM_FRAME_BYTES]
                view = view[limits.STREAM_FRAME_BYTES :]
                continue
            taken = view[: _SMALL_BYTES_MAX - size_bytes]
            small.append(taken)
            size_bytes += len(taken)
            view = view[len(taken) :]
            if size_bytes == _SMALL_BYTES_MAX:
                yield b"".join(small)
                small, size_bytes = [], 0
    if small:
        yield b"".join(small)


class _Progress:
    """Aborts a connection over which nothing was taken for :data:`limits.PROGRESS_SECONDS_MAX`.

    One timer for a body, which looks again when something has moved since: one for each frame would take longer than
    handing the frame over.
    """

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._ends = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._aborted = False

    def __enter__(self) -> "_Progress":
        self.note()
        self._timer = self._loop.call_at(self._ends, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._aborted:
            raise ConnectionAbortedError(f"client took no byte for {limits.PROGRESS_SECONDS_MAX} s") from error

    def note(self) -> None:
        """Something was taken."""
        self._ends = self._loop.time() + limits.PROGRESS_SECONDS_MAX

    def _look(self) -> None:
        if self._loop.time() < self._ends:
            self._timer = self._loop.call_at(self._ends, self._look)
            return
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()


class _Window:
    """The time in which a body must go on: at its end either enough has come, and the next begins, or too little."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin(self._loop.time())

    def add(self, size_bytes: int) -> None:
        """So many bytes have come."""
        self._wanted_bytes -= size_bytes
        now = self._loop.time()
        if self._wanted_bytes <= 0:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self.ends = now + limits.BODY_WINDOW_SECONDS
        self._wanted_bytes = limits.BODY_WINDOW_SECONDS * limits.BODY_BYTES_PER_SECOND_MIN


def _of(position: int, declared: int | None) -> str:
    return f"{position} bytes" if declared is None else f"{position} of {declared} bytes"
