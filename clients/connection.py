"""One blocking HTTP connection to a daemon: bounded waits, bodies read straight into one buffer of their length."""

import http.client
import io
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from .. import limits
from ..codec.following import Following
from ..errors import DaemonSilent, DaemonUnavailable
from .discovery import Endpoint
from .http_message import HttpReply, HttpRequest
from .naming import NameLookup
from .patience import UNBOUNDED, Deadline
from .protocol import Operation
from .summed import Summing, word_sum_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

__all__ = ["Connection", "StaleConnection"]


_PIECE_BYTES: Final = 256 * 1024


class StaleConnection(Exception):
    """A connection used before was closed by the daemon meanwhile: nothing was answered, a fresh one may be tried."""


class Connection:
    """Connects on first use. Not thread-safe: whoever holds it, owns it."""

    def __init__(self, endpoint: Endpoint, names: NameLookup, context: "ssl.SSLContext | None" = None) -> None:
        """``names`` finds the addresses of ``endpoint``; ``context`` is what a secure one is verified with."""
        self._endpoint, self._names, self._context = endpoint, names, context
        self._http = http.client.HTTPConnection(endpoint.host, endpoint.port)
        self._used = False
        self.reusable = False
        """Whether the connection stands and may carry another exchange."""

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.reusable = False
        self._http.close()

    def exchange(self, request: HttpRequest, operation: Operation[Any], deadline: Deadline = UNBOUNDED) -> HttpReply:
        """Send ``request`` and read the whole reply, until ``deadline``.

        Raises :class:`DaemonUnavailable` where nobody answers, the answer stops, or it is longer than the operation
        allows; :class:`StaleConnection` where only a fresh connection can tell.
        """
        reused, self._used = self._used, True
        self.reusable = False
        try:
            if self._http.sock is None:
                self._connect(deadline)
            self._http.sock.settimeout(deadline.left(operation.answer_seconds_max))
            self._http.response_class = cast("type[http.client.HTTPResponse]", _response_class(deadline))
            self._send(request)
            response = self._http.getresponse()
            if not deadline.bounded and self._http.sock:
                self._http.sock.settimeout(limits.PROGRESS_SECONDS_MAX)
            reply = self._read(response, operation)
            self.reusable = not response.will_close
        except TimeoutError as error:
            raise DaemonSilent(f"daemon at {self._endpoint} did not go on within its time limit") from error
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            if reused:
                raise StaleConnection from error
            raise DaemonUnavailable(f"daemon at {self._endpoint} closed the connection: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnavailable(f"daemon at {self._endpoint} broke off: {error!r}") from error
        finally:
            if not self.reusable:
                self._http.close()
        return reply

    def _connect(self, deadline: Deadline) -> None:
        try:
            self._http.sock = self._open(deadline)
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

    def _send(self, request: HttpRequest) -> None:
        try:
            headers, parts = dict(request.headers), request.parts
            body: object = parts[0] if len(parts) == 1 else parts or None
            if len(parts) > 1:
                headers["Content-Length"] = str(sum(len(part) for part in parts))
            self._http.request(request.method, request.target, cast("Any", body), headers)
        except (BrokenPipeError, ConnectionResetError):
            # A daemon that refuses a body early answers and closes before all of it is sent; the answer, where there
            # is one, waits in the receive buffer and is read next. Where there is none, reading raises the same error.
            return

    def _read(self, response: http.client.HTTPResponse, operation: Operation[Any]) -> HttpReply:
        length = response.length
        if length is None or length > operation.reply_bytes_max:
            raise DaemonUnavailable(
                f"daemon at {self._endpoint} declares a reply of {length} bytes, "
                f"the limit is {operation.reply_bytes_max}"
            )
        headers = {name.lower(): value for name, value in response.getheaders()}
        total = word_sum_of(headers) if self._endpoint.is_near else None
        if length > _PIECE_BYTES and response.status == http.HTTPStatus.OK:
            buffer = bytearray(length)
            view = memoryview(buffer)
            if total is not None:
                summing = Summing(buffer)
                self._fill(response, view, summing)
                return HttpReply(response.status, headers, view.toreadonly(), None, total, summing.total)
            following = operation.follow(buffer)
            if following is not None:
                self._fill(response, view, following)
                return HttpReply(response.status, headers, view.toreadonly(), following.verified)
        body = response.read(length)  # straight into the bytes that are returned, which nobody fills with zeros first
        if len(body) < length:
            raise DaemonUnavailable(f"daemon at {self._endpoint} sent {len(body)} of {length} bytes and closed")
        response.close()
        return HttpReply(response.status, headers, body, word_sum=total)

    def _fill(self, response: http.client.HTTPResponse, view: memoryview, following: Following | Summing) -> None:
        """Read the body a piece at a time; while one is looked at, the next ones come."""
        position = 0
        while position < len(view):
            count = response.readinto(view[position : position + _PIECE_BYTES])
            if not count:
                raise DaemonUnavailable(f"daemon at {self._endpoint} sent {position} of {len(view)} bytes and closed")
            position += count
            following.advance(position)
        response.close()


def _response_class(deadline: Deadline) -> "Callable[..., http.client.HTTPResponse]":
    """What a reply is read with: where there is a deadline, a peer that sends byte after byte cannot put it off."""
    return partial(_response_until, deadline) if deadline.bounded else http.client.HTTPResponse


def _response_until(deadline: Deadline, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(cast("socket.socket", _ReadUntil(sock, deadline)), **options)


class _ReadUntil:
    """A socket of which only reading is left."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = sock, deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """As a socket's own, for ``rb``."""
        return io.BufferedReader(_FileUntil(self._socket, self._deadline))


class _FileUntil(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = sock, deadline
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open as http.client expects of it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._deadline.left(limits.PROGRESS_SECONDS_MAX))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
