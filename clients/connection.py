"""One blocking HTTP connection to a daemon: bounded waits, bodies read straight into one buffer of their length."""

import socket
from typing import TYPE_CHECKING, Any, Final

from .. import limits
from ..codec.following import Following
from ..errors import DaemonSilent, DaemonUnavailable, InvalidData
from .discovery import Endpoint
from .http_head import HEAD_END, ReplyHead, host_header, parse_head, request_head
from .http_message import Buffer, HttpReply, HttpRequest
from .naming import NameLookup
from .patience import UNBOUNDED, Deadline
from .protocol import Operation
from .summed import Summing, receive_buffer, word_sum_of

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "StaleConnection"]

_PIECE_BYTES: Final = 512 * 1024
_SENT_BYTES: Final = 1024 * 1024
_HEAD_BYTES: Final = 8 * 1024
"""What is received at once of a reply that begins."""
_SENT_WITH_HEAD_BYTES_MAX: Final = 64 * 1024
_INTERIM_MAX: Final = 8
_OK: Final = 200


class StaleConnection(Exception):
    """A connection used before was closed by the daemon meanwhile: nothing was answered, a fresh one may be tried."""


class _Ended(Exception):
    """The daemon closed the connection without a byte of a reply."""


class Connection:
    """Connects on first use. Not thread-safe: whoever holds it, owns it."""

    def __init__(self, endpoint: Endpoint, names: NameLookup, context: "ssl.SSLContext | None" = None) -> None:
        """``names`` finds the addresses of ``endpoint``; ``context`` is what a secure one is verified with."""
        self._endpoint, self._names, self._context = endpoint, names, context
        self._host = host_header(endpoint.host, endpoint.port)
        self._socket: socket.socket | None = None
        self._used = False
        self.reusable = False
        """Whether the connection stands and may carry another exchange."""

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.reusable = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, request: HttpRequest, operation: Operation[Any], deadline: Deadline = UNBOUNDED) -> HttpReply:
        """Send ``request`` and read the whole reply, until ``deadline``.

        Raises :class:`DaemonUnavailable` where nobody answers, the answer stops, or it is longer than the operation
        allows; :class:`StaleConnection` where only a fresh connection can tell.
        """
        reused, self._used = self._used, True
        self.reusable = False
        try:
            if self._socket is None:
                self._socket = self._connect(deadline)
            waiting = _Waiting(self._socket, deadline, operation.answer_seconds_max)
            self._send(waiting, request)
            head, early = self._head(waiting)
            waiting.seconds_max = limits.PROGRESS_SECONDS_MAX
            reply = self._read(waiting, head, early, operation)
            self.reusable = not head.closes and head.length == len(reply.body)
        except TimeoutError as error:
            raise DaemonSilent(f"daemon at {self._endpoint} did not go on within its time limit") from error
        except (_Ended, BrokenPipeError, ConnectionResetError) as error:
            if reused:
                raise StaleConnection from error
            raise DaemonUnavailable(f"daemon at {self._endpoint} closed the connection: {error}") from error
        except (OSError, InvalidData) as error:
            raise DaemonUnavailable(f"daemon at {self._endpoint} broke off: {error}") from error
        finally:
            if not self.reusable:
                self.close()
        return reply

    def _connect(self, deadline: Deadline) -> socket.socket:
        try:
            return self._open(deadline)
        except OSError as error:
            self._names.forget()
            verified = getattr(error, "verify_message", None)
            if verified:
                raise DaemonUnavailable(f"certificate of {self._endpoint} does not hold: {verified.lower()}") from error
            reason = error.strerror or str(error)
            raise DaemonUnavailable(f"no daemon answers at {self._endpoint}: {reason.lower()}") from error

    def _open(self, deadline: Deadline) -> socket.socket:
        """A socket that is connected, at the first address where somebody answers, and secure where that is asked."""
        failure = OSError("its name stands for no address")
        for address in self._names.addresses(deadline.left(limits.CONNECT_SECONDS_MAX)):
            connecting = socket.socket(address.family, socket.SOCK_STREAM)
            try:
                connecting.settimeout(deadline.left(limits.CONNECT_SECONDS_MAX))
                connecting.connect(address.place)
                connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._context is None:
                    return connecting
                connecting.settimeout(deadline.left(limits.CONNECT_SECONDS_MAX))
                return self._context.wrap_socket(connecting, server_hostname=self._endpoint.host)
            except OSError as error:
                connecting.close()
                failure = error
        raise failure

    def _send(self, waiting: "_Waiting", request: HttpRequest) -> None:
        parts = request.parts
        body_bytes = sum(len(part) for part in parts)
        head = request_head(request.method, request.target, self._host, request.headers, body_bytes)
        if body_bytes <= _SENT_WITH_HEAD_BYTES_MAX:
            head, parts = b"".join((head, *parts)), ()
        try:
            waiting.send(head)
            for part in parts:
                view = memoryview(part).cast("B")
                for start in range(0, len(view), _SENT_BYTES):
                    waiting.send(view[start : start + _SENT_BYTES])
        except (BrokenPipeError, ConnectionResetError):
            # A daemon that refuses a body early answers and closes before all of it is sent; the answer, where there
            # is one, waits in the receive buffer and is read next. Where there is none, reading raises the same error.
            return

    def _head(self, waiting: "_Waiting") -> tuple[ReplyHead, bytes]:
        """The head of the reply, and what has come of what follows it."""
        data = b""
        for _ in range(_INTERIM_MAX):
            while (end := data.find(HEAD_END)) < 0:
                if len(data) > limits.REQUEST_HEADER_BYTES_MAX:
                    raise InvalidData(f"its reply's head has over {limits.REQUEST_HEADER_BYTES_MAX} bytes")
                more = waiting.receive(_HEAD_BYTES)
                if not more and not data:
                    raise _Ended("no reply was sent")
                if not more:
                    raise InvalidData(f"its reply ended after {len(data)} bytes of the head")
                data += more
            head, data = parse_head(data[:end]), data[end + len(HEAD_END) :]
            if not head.is_interim:
                return head, data
        raise InvalidData(f"over {_INTERIM_MAX} interim replies and no other")

    def _read(self, waiting: "_Waiting", head: ReplyHead, early: bytes, operation: Operation[Any]) -> HttpReply:
        length = head.length
        if length is None or length > operation.reply_bytes_max:
            raise DaemonUnavailable(
                f"daemon at {self._endpoint} declares a reply of {length} bytes, "
                f"the limit is {operation.reply_bytes_max}"
            )
        if len(early) > length:
            raise DaemonUnavailable(f"daemon at {self._endpoint} sent more than the {length} bytes that it declared")
        total = word_sum_of(head.headers) if self._endpoint.is_near else None
        is_chunk = length > _PIECE_BYTES and head.status == _OK
        if is_chunk and total is not None:
            view = receive_buffer(length)
            summing = Summing(view)
            self._fill(waiting, view, early, summing)
            return HttpReply(head.status, head.headers, view.toreadonly(), None, total, summing.total)
        buffer = bytearray(length)
        following = operation.follow(buffer) if is_chunk else None
        self._fill(waiting, memoryview(buffer), early, following)
        verified = None if following is None else following.verified
        return HttpReply(head.status, head.headers, memoryview(buffer).toreadonly(), verified, total)

    def _fill(self, waiting: "_Waiting", view: memoryview, early: bytes, following: Following | Summing | None) -> None:
        """Read the body a piece at a time; while one is looked at, the next ones come."""
        position = len(early)
        view[:position] = early
        while position < len(view):
            count = waiting.receive_into(view[position : position + _PIECE_BYTES])
            if not count:
                raise DaemonUnavailable(f"daemon at {self._endpoint} sent {position} of {len(view)} bytes and closed")
            position += count
            if following is not None:
                following.advance(position)


class _Waiting:
    """A socket, each wait for which ends after ``seconds_max``, and by the deadline of the whole.

    So a peer that sends byte after byte cannot put the deadline off.
    """

    def __init__(self, connected: socket.socket, deadline: Deadline, seconds_max: float) -> None:
        self._socket, self._deadline = connected, deadline
        self.seconds_max = seconds_max
        self._set: float | None = None

    def send(self, data: Buffer) -> None:
        """Send all of ``data``."""
        self._limit()
        self._socket.sendall(data)

    def receive(self, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` of what comes; none at the end."""
        self._limit()
        return self._socket.recv(size_bytes)

    def receive_into(self, view: memoryview) -> int:
        """Fill the front of ``view`` with what comes; how much that is, nothing at the end."""
        self._limit()
        return self._socket.recv_into(view)

    def _limit(self) -> None:
        seconds = self._deadline.left(self.seconds_max)
        if seconds != self._set:
            self._socket.settimeout(seconds)
            self._set = seconds
