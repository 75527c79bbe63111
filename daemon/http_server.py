"""The HTTP edge as a server: its socket, its connections, and TLS where that is configured."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from .. import limits
from ..errors import ConfigError
from .authenticator import Authenticator
from .http_api import HttpApi
from .http_connection import GuardedProtocol
from .metrics import Metrics
from .service import Service

__all__ = ["bind_http", "serve_http"]

_CLOSE_SECONDS_MAX: Final = 1.0


def bind_http(host: str, port: int) -> socket.socket:
    """A socket bound and not yet listening: a port in use is found before the disk is touched."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"port {port} on {host} cannot be used: {reason}; --port 0 takes a free one") from error
    return listener


@asynccontextmanager
async def serve_http(
    service: Service,
    metrics: Metrics,
    authenticator: Authenticator,
    listener: socket.socket,
    *,
    loopback: bool,
    tls: ssl.SSLContext | None,
) -> AsyncIterator[None]:
    """Serve on ``listener`` while the context lasts."""
    api = HttpApi(service, metrics, authenticator, loopback=loopback, port=listener.getsockname()[1])
    runner = web.AppRunner(api.application(), shutdown_timeout=_CLOSE_SECONDS_MAX)
    await runner.setup()
    try:
        server = await asyncio.get_running_loop().create_server(
            _protocol_factory(runner, service),
            sock=listener,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else limits.TLS_HANDSHAKE_SECONDS_MAX,
        )
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _protocol_factory(runner: web.AppRunner, service: Service) -> Callable[[], GuardedProtocol]:
    loop = asyncio.get_running_loop()
    manager = runner.server
    if manager is None:
        raise RuntimeError("the runner is not set up")
    return lambda: GuardedProtocol(manager, service.admission, loop)
