"""A daemon over HTTP for programs that block: connections kept, bodies read into one buffer."""

from collections import deque
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import DaemonSilent, Unauthenticated
from ..tracing import propagated
from .access import Access
from .connection import Connection, StaleConnection
from .http_message import HttpReply, HttpRequest
from .naming import NameLookup
from .patience import UNBOUNDED, Deadline
from .protocol import Operation

__all__ = ["HttpDaemon"]

T = TypeVar("T")


class HttpDaemon:
    """Connections to one daemon, opened when needed. Safe to use from several threads at once.

    ``access`` says where it is, whom to trust, and which credential goes with every request.
    """

    def __init__(self, access: Access, *, connections_max: int) -> None:
        self._access = access
        self._endpoint = access.endpoint
        self._names = NameLookup(access.endpoint)
        self._context = access.trust.context() if access.endpoint.secure else None
        self._connections_max = connections_max
        self._idle: deque[Connection] = deque()

    def close(self) -> None:
        """Close idle connections. The object may be used again afterwards."""
        while self._idle:
            self._idle.pop().close()

    def run(self, operation: Operation[T], deadline: Deadline = UNBOUNDED) -> T:
        """The parsed answer to ``operation``; :class:`DaemonUnavailable` where there is none by ``deadline``."""
        try:
            return operation.parse(self._exchange(operation, deadline))
        except TimeoutError as error:
            raise DaemonSilent(f"daemon at {self._endpoint} did not go on within its time limit") from error

    def _exchange(self, operation: Operation[Any], deadline: Deadline) -> HttpReply:
        request = operation.request()
        access = self._access
        reply = self._send(request, operation, access, deadline)
        if reply.status == Unauthenticated.http_status and (renewed := access.renewed()) is not None:
            self._access = renewed
            reply = self._send(request, operation, renewed, deadline)
        return reply

    def _send(self, request: HttpRequest, operation: Operation[Any], access: Access, deadline: Deadline) -> HttpReply:
        request = replace(request, headers={**request.headers, **access.headers(), **propagated()})
        connection = self._connection()
        try:
            reply = connection.exchange(request, operation, deadline)
        except StaleConnection:
            # The daemon was restarted, or closed a connection idle for long; every operation may be sent twice.
            connection = Connection(self._endpoint, self._names, self._context)
            reply = connection.exchange(request, operation, deadline)
        if connection.reusable and len(self._idle) < self._connections_max:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def _connection(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return Connection(self._endpoint, self._names, self._context)
