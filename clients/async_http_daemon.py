"""A daemon over HTTP for an event loop: aiohttp, the same outcomes as :class:`.http_daemon.HttpDaemon`."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from .. import limits
from ..errors import DaemonSilent, DaemonUnavailable, Unauthenticated
from ..tracing import propagated
from .access import Access
from .http_message import Buffer, HttpReply, HttpRequest
from .naming import NameLookup
from .protocol import Operation
from .summed import Summing, receive_buffer, word_sum_of

__all__ = ["AsyncHttpDaemon"]

T = TypeVar("T")


class AsyncHttpDaemon:
    """Connections to one daemon. Belongs to the event loop of its first call; safe to cancel."""

    def __init__(self, access: Access, *, connections_max: int) -> None:
        self._access = access
        self._endpoint = access.endpoint
        self._names = NameLookup(access.endpoint)
        self._context = access.trust.context() if access.endpoint.secure else None
        self._connections_max = connections_max
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections. The object may be used again afterwards."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def run(self, operation: Operation[T]) -> T:
        """See :meth:`.http_daemon.HttpDaemon.run`; a deadline for the whole is the caller's to set."""
        request, access = operation.request(), self._access
        try:
            try:
                reply = await self._exchange(request, operation)
            except aiohttp.ServerDisconnectedError:
                # The daemon was restarted, or closed a connection idle for long; every operation may be sent twice.
                reply = await self._exchange(request, operation)
            if reply.status == Unauthenticated.http_status and (renewed := access.renewed()) is not None:
                self._access = renewed
                reply = await self._exchange(request, operation)
        except TimeoutError as error:
            raise DaemonSilent(f"daemon at {self._endpoint} did not go on within its time limit") from error
        except aiohttp.ClientConnectorCertificateError as error:
            message = getattr(error.certificate_error, "verify_message", str(error.certificate_error))
            raise DaemonUnavailable(f"certificate of {self._endpoint} does not hold: {message.lower()}") from error
        except aiohttp.ClientConnectorError as error:
            self._names.forget()
            number = error.os_error.errno
            reason = str(error.os_error) if number is None else os.strerror(number)  # asyncio's own text is longer
            raise DaemonUnavailable(f"no daemon answers at {self._endpoint}: {reason.lower()}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise DaemonUnavailable(f"daemon at {self._endpoint} broke off: {error!r}") from error
        if reply.summed is not None or len(reply.body) < limits.STREAM_FRAME_BYTES:
            return operation.parse(reply)
        return await asyncio.to_thread(operation.parse, reply)

    async def _exchange(self, request: HttpRequest, operation: Operation[Any]) -> HttpReply:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.CONNECT_SECONDS_MAX, sock_read=operation.answer_seconds_max
        )
        headers, parts = {**request.headers, **self._access.headers(), **propagated()}, request.parts
        if len(parts) > 1:
            headers["Content-Length"] = str(sum(len(part) for part in parts))
        async with self._open_session().request(
            request.method,
            f"{self._endpoint.url}{request.target}",
            data=_each(parts) if len(parts) > 1 else parts[0] if parts else None,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            length = response.content_length
            if length is None or length > operation.reply_bytes_max:
                raise DaemonUnavailable(
                    f"daemon at {self._endpoint} declares a reply of {length} bytes, "
                    f"the limit is {operation.reply_bytes_max}"
                )
            names = {name.lower(): value for name, value in response.headers.items()}
            total = word_sum_of(names) if self._endpoint.is_near else None
            # A view, because a part set into a bytearray itself is copied once more on its way.
            body = memoryview(bytearray(length)) if total is None else receive_buffer(length)
            summing = None if total is None else Summing(body)
            position = 0
            async for part in response.content.iter_any():
                body[position : position + len(part)] = part
                position += len(part)
                if summing is not None:
                    summing.advance(position)
            summed = None if summing is None else summing.total
            return HttpReply(response.status, names, body[:position].toreadonly(), None, total, summed)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._connections_max,
                    ssl=self._context or True,
                    resolver=_Resolver(self._names),
                    use_dns_cache=False,
                ),
                auto_decompress=False,
                read_bufsize=limits.STREAM_FRAME_BYTES,
            )
        return self._session


class _Resolver(AbstractResolver):
    """Asks :class:`NameLookup`: a look-up that hangs in the loop's own threads would hold up its end."""

    def __init__(self, names: NameLookup) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of the one daemon that is asked for here."""
        return [
            ResolveResult(
                hostname=host,
                host=address.place[0],
                port=port,
                family=address.family,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._names.addresses_async(limits.CONNECT_SECONDS_MAX)
            if family in (socket.AF_UNSPEC, address.family)
        ]

    async def close(self) -> None:
        """Nothing to let go of."""


async def _each(parts: tuple[Buffer, ...]) -> AsyncIterator[Buffer]:
    for part in parts:
        yield part
