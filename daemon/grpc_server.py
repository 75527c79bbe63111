"""The gRPC edge as a server: its port, its limits, TLS where that is configured, health and reflection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from .. import limits
from ..errors import ConfigError
from .authenticator import Authenticator
from .grpc_api import SERVICE_NAME, GrpcApi
from .metrics import Metrics
from .service import Service

__all__ = ["RunningGrpc", "TlsPaths", "serve_grpc"]

_CLOSE_SECONDS_MAX: Final = 1.0
_IDENTITY_ONLY: Final = 1
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second daemon that takes half of the calls
    ("grpc.max_receive_message_length", limits.GRPC_QUESTION_BYTES_MAX),
    ("grpc.max_send_message_length", limits.JSON_BODY_BYTES_MAX),
    ("grpc.max_metadata_size", limits.REQUEST_HEADER_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", limits.REQUEST_HEADER_BYTES_MAX),
    ("grpc.max_concurrent_streams", limits.GRPC_STREAMS_PER_CONNECTION_MAX),
    ("grpc.max_allowed_incoming_connections", limits.CONNECTIONS_MAX),
    ("grpc.max_connection_idle_ms", int(limits.GRPC_IDLE_SECONDS_MAX * 1000)),
    ("grpc.server_handshake_timeout_ms", int(limits.TLS_HANDSHAKE_SECONDS_MAX * 1000)),
    # Nothing is ever decompressed: that is how small messages become large ones.
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
    # Frames as large as our own messages: fewer of them, and a window that holds a message.
    ("grpc.http2.max_frame_size", limits.STREAM_FRAME_BYTES),
    ("grpc.http2.lookahead_bytes", limits.GRPC_FRAME_BYTES_MAX),
)


class TlsPaths(Protocol):
    """PEM files: the server's certificate and key, and the CA that clients' certificates must be of, if any."""

    @property
    def certificate(self) -> Path:
        """The server's certificate chain."""

    @property
    def key(self) -> Path:
        """Its key."""

    @property
    def client_ca(self) -> Path | None:
        """Who must have signed a client's certificate; ``None`` asks for none."""


class _Certificates:
    """What connections are secured with from now on: the files as they were when they were read last."""

    def __init__(self, paths: TlsPaths) -> None:
        self._paths = paths
        self._asks = paths.client_ca is not None
        self._given = self._current = self._read()

    def reload(self) -> None:
        """Read the files anew; :class:`ConfigError` where they cannot be, and nothing changes."""
        self._current = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow :meth:`reload`."""
        changed = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._changed)  # the stubs know no None
        return grpc.dynamic_ssl_server_credentials(self._given, changed, require_client_authentication=self._asks)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC before each handshake, in a thread of its own: what is new since it asked last."""
        current = self._current
        if current is self._given:
            return None
        self._given = current
        return current

    def _read(self) -> grpc.ServerCertificateConfiguration:
        paths = self._paths
        try:
            pair = (paths.key.read_bytes(), paths.certificate.read_bytes())
            roots = None if paths.client_ca is None else paths.client_ca.read_bytes()
        except OSError as error:
            raise ConfigError(f"TLS file {error.filename} cannot be read: {(error.strerror or '').lower()}") from error
        return grpc.ssl_server_certificate_configuration([pair], roots)


@dataclass(frozen=True, slots=True)
class RunningGrpc:
    """An edge that serves at ``port``."""

    port: int
    checks: health.aio.HealthServicer
    certificates: _Certificates | None

    def reload_certificates(self) -> None:
        """Read the TLS files anew, for the connections made from now on. Blocks; :class:`ConfigError` as at the start.

        Whether they hold is for the caller to find out before: gRPC does not say.
        """
        if self.certificates is not None:
            self.certificates.reload()

    async def drain(self) -> None:
        """Say to whoever checks the health that no more calls are taken."""
        await self.checks.enter_graceful_shutdown()


@asynccontextmanager
async def serve_grpc(
    service: Service,
    metrics: Metrics,
    authenticator: Authenticator,
    *,
    host: str,
    port: int,
    tls: TlsPaths | None = None,
) -> AsyncIterator[RunningGrpc]:
    """Serve on ``host`` while the context lasts; ``port`` 0 takes a free one.

    Raises :class:`ConfigError` where the port or the TLS files cannot be used.
    """
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=limits.REQUESTS_INFLIGHT_MAX)
    server.add_generic_rpc_handlers((GrpcApi(service, metrics, authenticator).handler(),))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        certificates = None if tls is None else await asyncio.to_thread(_Certificates, tls)
        if certificates is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, certificates.credentials())
    except RuntimeError as error:
        raise ConfigError(f"gRPC port {port} on {host} cannot be used: {error}") from error
    if not bound:
        raise ConfigError(f"gRPC port {port} on {host} cannot be used; --grpc-port 0 takes a free one")
    await server.start()
    for name in ("", SERVICE_NAME):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield RunningGrpc(bound, checks, certificates)
    finally:
        await checks.enter_graceful_shutdown()
        await server.stop(_CLOSE_SECONDS_MAX)
