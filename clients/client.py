"""The blocking client: :mod:`http.client` underneath, connections kept and reused, bodies read into one buffer."""

from collections import deque
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .. import limits
from ..codec.container import Container
from ..codec.level import Level
from ..errors import DaemonUnavailable, Unauthenticated
from ..kvstore.key import ChunkRef, ContentKey, ModelIdentity, chunk_refs
from ..kvstore.outcome import Outcome, Unavailable
from ..kvstore.tier import Ack
from ..tracing import Role, propagated, span, traced
from . import protocol, wire
from .access import Access, Trust, find_access
from .connection import Connection, StaleConnection
from .discovery import Endpoint, find_daemon, find_local_socket
from .grpc_daemon import GrpcDaemon, grpc_endpoint
from .http_message import Buffer, HttpReply, HttpRequest
from .local_connection import LocalGone
from .local_daemon import LocalDaemon
from .protocol import Operation, PrefixReply
from .tenancy import TenantStats

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["KvloomClient"]

T = TypeVar("T")


class KvloomClient:
    """A daemon, seen by a program that may block. Safe to use from several threads at once.

    ``address`` is ``host:port`` or ``https://host:port``, or ``grpc://host:port`` and ``grpcs://host:port`` for
    gRPC (the ``[grpc]`` extra); without it the daemon is found through ``KVLOOM_URL`` or
    ``KVLOOM_ADDRESS``, the note of a running daemon, or the default port (:func:`.discovery.find_daemon`). ``api_key``
    says whose chunks these are; without it that is ``KVLOOM_API_KEY``, or the token that this user's daemon leaves for
    its programs (:func:`.access.find_access`). ``trust`` names the certificates of TLS. ``data_dir`` is where note and
    token are looked for. Nothing is contacted before the first call. Reads and lookups never raise for a dead, slow or
    lying daemon: they come to a miss, or to an outcome that says why, after at most :data:`limits.CONNECT_SECONDS_MAX`
    to connect and :data:`limits.PROGRESS_SECONDS_MAX` without a byte.

    Where the daemon's note names a Unix socket of this user, it is used by itself, and chunks in the daemon's memory
    are mapped instead of copied: a container read so is valid, and its memory taken, for as long as its ``data`` or
    anything made from it is referenced. ``local=False`` does without.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        trust: Trust | None = None,
        data_dir: Path | None = None,
        connections_max: int = limits.CLIENT_CONNECTIONS_MAX,
        local: bool = True,
    ) -> None:
        over_grpc = grpc_endpoint(address)
        self._endpoint = over_grpc or find_daemon(address, data_dir=data_dir)
        self._access = find_access(self._endpoint, api_key=api_key, trust=trust, data_dir=data_dir)
        self._grpc = None if over_grpc is None else GrpcDaemon(self._access)
        self._context = self._access.trust.context() if self._endpoint.secure and over_grpc is None else None
        self._connections_max = connections_max
        path = find_local_socket(self._endpoint, data_dir=data_dir) if local and over_grpc is None else None
        key = self._access.key
        self._local = None if path is None else LocalDaemon(path, connections_max=connections_max, key=key)
        self._idle: deque[Connection] = deque()
        self._workers: ThreadPoolExecutor | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The address this client talks to."""
        return self._endpoint

    def __enter__(self) -> "KvloomClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections and worker threads. The client may be used again afterwards."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()
        while self._idle:
            self._idle.pop().close()
        if self._local is not None:
            self._local.close()
        if self._grpc is not None:
            self._grpc.close()

    def put(
        self,
        key: ContentKey,
        container: Buffer,
        *,
        ack: Ack = Ack.MEMORY,
        ttl_seconds: float | None = None,
        parent: ContentKey | None = None,
    ) -> wire.PutReply:
        """Store a container, for ``ttl_seconds`` if given; returns once it has reached ``ack``.

        ``parent`` is the key of the chunk before it (:attr:`ChunkRef.parent`): leaves of a tree of prefixes are given
        up before what stands before them, so it should be said wherever there is one. Raises the typed error of
        whatever was wrong.
        """
        return self._run(protocol.PutChunk(key, container, ack, ttl_seconds, parent))

    def get(self, key: ContentKey, *, level: Level | None = None, layers: range | None = None) -> Outcome[Container]:
        """Read a chunk, verified: whole, up to ``level``, or only ``layers``. Not stored at ``level`` is a miss.

        Lossy levels come in whole blocks of layers, maybe more than were asked for: ``header.layers`` has them.
        """
        return self._run(protocol.GetChunk(key, level, layers))

    @traced("kvloom GetChunks")
    def get_many(self, keys: Sequence[ContentKey], *, level: Level | None = None) -> list[Outcome[Container]]:
        """Read many chunks over a few connections at once; outcomes stand in the order of ``keys``.

        After one read found no daemon, the rest do not wait for it again.
        """
        if self._local is not None:
            try:
                return self._local.get_many(keys, level=level)
            except LocalGone:
                pass
            except DaemonUnavailable as error:
                return [Unavailable(protocol.DAEMON, str(error)) for _ in keys]
        gone: list[Unavailable] = []

        def read(key: ContentKey) -> Outcome[Container]:
            if gone:
                return gone[0]
            operation = protocol.GetChunk(key, level)
            try:
                return self._answer(operation)
            except DaemonUnavailable as error:
                gone.append(Unavailable(protocol.DAEMON, str(error)))
                return gone[0]

        if len(keys) < 2:
            return [read(key) for key in keys]
        reads = [partial(copy_context().run, read, key) for key in keys]  # in the trace of whoever asks
        return list(self._pool().map(lambda run: run(), reads))

    def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether it is stored; all false where the daemon cannot say."""
        return [found for batch in protocol.ChunksExist.batches(keys) for found in self._run(batch)]

    def longest_prefix(
        self,
        identity: ModelIdentity,
        tokens: "Sequence[int] | NDArray[np.integer]",
        *,
        chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT,
    ) -> PrefixReply:
        """The leading chunks of ``tokens`` that are stored. Tokens do not leave the process, only keys do."""
        refs: list[ChunkRef] = chunk_refs(identity, tokens, chunk_tokens=chunk_tokens)
        matched = 0
        for batch in protocol.MatchPrefix.batches(refs):
            count = self._run(batch)
            matched += count
            if count < len(batch.keys):
                break
        return protocol.prefix_reply(refs, matched)

    def delete(self, key: ContentKey) -> bool:
        """Forget a chunk on every tier; whether there was one."""
        return self._run(protocol.DeleteChunk(key))

    def list_chunks(self, *, limit: int = limits.LIST_CHUNKS_DEFAULT, prefix: str = "") -> wire.ChunkList:
        """Some of the chunks stored, those whose key begins with the digits ``prefix``."""
        return self._run(protocol.ListChunks(limit, prefix))

    def info(self, key: ContentKey) -> wire.ChunkDetail:
        """What is stored under ``key``: levels, sizes, tier, layout. Raises :class:`NotFound`."""
        return self._run(protocol.DescribeChunk(key))

    def stats(self) -> wire.DaemonStats:
        """What the daemon, its tiers and its tenants hold and have done; needs scope ``admin``."""
        return self._run(protocol.GetStats())

    def tenant(self) -> TenantStats:
        """What this client's own tenant holds and has done."""
        return self._run(protocol.GetTenant())

    def health(self) -> wire.Health:
        """Which daemon answers, and in which phase it is. Raises :class:`DaemonUnavailable`."""
        return self._run(protocol.CheckHealth())

    def put_profile(self, data: Buffer) -> bytes:
        """Put a codec profile on the daemon's shelf; returns its digest."""
        return self._run(protocol.PutProfile(data))

    def get_profile(self, digest: bytes) -> Outcome[bytes]:
        """Read a codec profile, verified against its digest."""
        return self._run(protocol.GetProfile(digest))

    def _run(self, operation: Operation[T]) -> T:
        with span(f"kvloom {type(operation).__name__}", role=Role.CLIENT, daemon=str(self._endpoint)):
            return self._ask(operation)

    def _ask(self, operation: Operation[T]) -> T:
        try:
            if self._local is not None and self._local.takes(operation):
                try:
                    return self._local.run(operation)
                except LocalGone:
                    pass
            return self._answer(operation)
        except DaemonUnavailable as error:
            return operation.without_daemon(error)

    def _answer(self, operation: Operation[T]) -> T:
        """The parsed answer; :class:`DaemonUnavailable` where there is none."""
        if self._grpc is not None:
            return self._grpc.run(operation)
        return operation.parse(self._exchange(operation))

    def _exchange(self, operation: Operation[Any]) -> HttpReply:
        request = operation.request()
        access = self._access
        reply = self._send(request, operation, access)
        if reply.status == Unauthenticated.http_status and (renewed := access.renewed()) is not None:
            self._access = renewed
            reply = self._send(request, operation, renewed)
        return reply

    def _send(self, request: HttpRequest, operation: Operation[Any], access: Access) -> HttpReply:
        request = replace(request, headers={**request.headers, **access.headers(), **propagated()})
        connection = self._connection()
        try:
            reply = connection.exchange(request, operation)
        except StaleConnection:
            # The daemon was restarted, or closed a connection idle for long; every operation may be sent twice.
            connection = Connection(self._endpoint, self._context)
            reply = connection.exchange(request, operation)
        if connection.reusable and len(self._idle) < self._connections_max:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def _connection(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return Connection(self._endpoint, self._context)

    def _pool(self) -> "ThreadPoolExecutor":
        from concurrent.futures import ThreadPoolExecutor  # here: most clients never read many at once

        if self._workers is None:
            self._workers = ThreadPoolExecutor(self._connections_max, thread_name_prefix="kvloom-client")
        return self._workers
