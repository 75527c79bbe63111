"""One blocking HTTP connection to a daemon: bounded waits, bodies read straight into one buffer of their length."""

import http.client
from typing import TYPE_CHECKING, Any

from .. import limits
from ..errors import DaemonUnavailable
from .discovery import Endpoint
from .http_message import HttpReply, HttpRequest
from .protocol import Operation

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "StaleConnection"]


class StaleConnection(Exception):
    """A connection used before was closed by the daemon meanwhile: nothing was answered, a fresh one may be tried."""


class Connection:
    """Connects on first use. Not thread-safe: whoever holds it, owns it."""

    def __init__(self, endpoint: Endpoint, context: "ssl.SSLContext | None" = None) -> None:
        """``context`` is what a secure ``endpoint`` is verified with."""
        self._endpoint = endpoint
        wait = limits.CONNECT_SECONDS_MAX
        self._http = (
            http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=wait, context=context)
            if endpoint.secure
            else http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=wait)
        )
        self._used = False
        self.reusable = False
        """Whether the connection stands and may carry another exchange."""

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.reusable = False
        self._http.close()

    def exchange(self, request: HttpRequest, operation: Operation[Any]) -> HttpReply:
        """Send ``request`` and read the whole reply.

        Raises :class:`DaemonUnavailable` where nobody answers, the answer stops, or it is longer than the operation
        allows; :class:`StaleConnection` where only a fresh connection can tell.
        """
        reused, self._used = self._used, True
        self.reusable = False
        try:
            if self._http.sock is None:
                self._connect()
            self._http.sock.settimeout(operation.answer_seconds_max)
            self._send(request)
            response = self._http.getresponse()
            self._http.sock and self._http.sock.settimeout(limits.PROGRESS_SECONDS_MAX)
            reply = self._read(response, operation)
            self.reusable = not response.will_close
        except TimeoutError as error:
            raise DaemonUnavailable(f"daemon at {self._endpoint} did not go on within its time limit") from error
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

    def _connect(self) -> None:
        try:
            self._http.connect()
        except OSError as error:
            verified = getattr(error, "verify_message", None)
            if verified:
                raise DaemonUnavailable(f"certificate of {self._endpoint} does not hold: {verified.lower()}") from error
            reason = error.strerror or str(error)
            raise DaemonUnavailable(f"no daemon answers at {self._endpoint}: {reason.lower()}") from error

    def _send(self, request: HttpRequest) -> None:
        try:
            self._http.request(request.method, request.target, request.body or None, dict(request.headers))
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
        body = bytearray(length)
        view = memoryview(body)
        position = 0
        while position < length:
            count = response.readinto(view[position:])
            if not count:
                raise DaemonUnavailable(f"daemon at {self._endpoint} sent {position} of {length} bytes and closed")
            position += count
        response.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return HttpReply(response.status, headers, body)
