"""The asyncio client: aiohttp underneath, the same calls and the same meanings as :class:`.client.KvloomClient`."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from .. import limits
from ..codec.container import Container
from ..codec.level import Level
from ..errors import DaemonUnavailable, Unauthenticated
from ..kvstore.key import ContentKey, ModelIdentity, chunk_refs
from ..kvstore.outcome import Outcome, Unavailable
from ..kvstore.tier import Ack
from ..tracing import Role, propagated, span, traced_async
from . import protocol, wire
from .access import Trust, find_access
from .discovery import Endpoint, find_daemon, find_local_socket
from .grpc_daemon import AsyncGrpcDaemon, grpc_endpoint
from .http_message import Buffer, HttpReply, HttpRequest
from .local_connection import LocalGone
from .local_daemon import LocalDaemon
from .protocol import Operation, PrefixReply
from .tenancy import TenantStats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["AsyncKvloomClient"]

T = TypeVar("T")


class AsyncKvloomClient:
    """A daemon, seen from an event loop. Belongs to the loop of its first call; every method is safe to cancel.

    See :class:`kvloom.clients.KvloomClient` for how the daemon is found and what a dead one means.
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
        self._grpc = None if over_grpc is None else AsyncGrpcDaemon(self._access)
        self._context = self._access.trust.context() if self._endpoint.secure and over_grpc is None else None
        self._connections_max = connections_max
        path = find_local_socket(self._endpoint, data_dir=data_dir) if local and over_grpc is None else None
        key = self._access.key
        self._local = None if path is None else LocalDaemon(path, connections_max=connections_max, key=key)
        self._workers: ThreadPoolExecutor | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The address this client talks to."""
        return self._endpoint

    async def __aenter__(self) -> "AsyncKvloomClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. The client may be used again afterwards."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        workers, self._workers = self._workers, None
        if workers is not None:
            await asyncio.to_thread(workers.shutdown)
        if self._local is not None:
            self._local.close()
        if self._grpc is not None:
            await self._grpc.close()

    async def put(
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
        return await self._run(protocol.PutChunk(key, container, ack, ttl_seconds, parent))

    async def get(
        self, key: ContentKey, *, level: Level | None = None, layers: range | None = None
    ) -> Outcome[Container]:
        """Read a chunk, verified: whole, up to ``level``, or only ``layers``. Not stored at ``level`` is a miss.

        Lossy levels come in whole blocks of layers, maybe more than were asked for: ``header.layers`` has them.
        """
        return await self._run(protocol.GetChunk(key, level, layers))

    @traced_async("kvloom GetChunks")
    async def get_many(self, keys: Sequence[ContentKey], *, level: Level | None = None) -> list[Outcome[Container]]:
        """Read many chunks over a few connections at once; outcomes stand in the order of ``keys``.

        After one read found no daemon, the rest do not wait for it again.
        """
        if self._local is not None:
            try:
                return await self._aside(lambda local: local.get_many(keys, level=level))
            except LocalGone:
                pass
            except DaemonUnavailable as error:
                return [Unavailable(protocol.DAEMON, str(error)) for _ in keys]
        gone: list[Unavailable] = []
        slots = asyncio.Semaphore(self._connections_max)

        async def read(key: ContentKey) -> Outcome[Container]:
            async with slots:
                if gone:
                    return gone[0]
                operation = protocol.GetChunk(key, level)
                try:
                    return await self._answer(operation)
                except DaemonUnavailable as error:
                    gone.append(Unavailable(protocol.DAEMON, str(error)))
                    return gone[0]

        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(read(key)) for key in keys]
        return [item.result() for item in reads]

    async def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether it is stored; all false where the daemon cannot say."""
        return [found for batch in protocol.ChunksExist.batches(keys) for found in await self._run(batch)]

    async def longest_prefix(
        self,
        identity: ModelIdentity,
        tokens: "Sequence[int] | NDArray[np.integer]",
        *,
        chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT,
    ) -> PrefixReply:
        """The leading chunks of ``tokens`` that are stored. Tokens do not leave the process, only keys do."""
        refs = await asyncio.to_thread(chunk_refs, identity, tokens, chunk_tokens=chunk_tokens)
        matched = 0
        for batch in protocol.MatchPrefix.batches(refs):
            count = await self._run(batch)
            matched += count
            if count < len(batch.keys):
                break
        return protocol.prefix_reply(refs, matched)

    async def delete(self, key: ContentKey) -> bool:
        """Forget a chunk on every tier; whether there was one."""
        return await self._run(protocol.DeleteChunk(key))

    async def list_chunks(self, *, limit: int = limits.LIST_CHUNKS_DEFAULT, prefix: str = "") -> wire.ChunkList:
        """Some of the chunks stored, those whose key begins with the digits ``prefix``."""
        return await self._run(protocol.ListChunks(limit, prefix))

    async def info(self, key: ContentKey) -> wire.ChunkDetail:
        """What is stored under ``key``: levels, sizes, tier, layout. Raises :class:`NotFound`."""
        return await self._run(protocol.DescribeChunk(key))

    async def stats(self) -> wire.DaemonStats:
        """What the daemon, its tiers and its tenants hold and have done; needs scope ``admin``."""
        return await self._run(protocol.GetStats())

    async def tenant(self) -> TenantStats:
        """What this client's own tenant holds and has done."""
        return await self._run(protocol.GetTenant())

    async def health(self) -> wire.Health:
        """Which daemon answers, and in which phase it is. Raises :class:`DaemonUnavailable`."""
        return await self._run(protocol.CheckHealth())

    async def put_profile(self, data: Buffer) -> bytes:
        """Put a codec profile on the daemon's shelf; returns its digest."""
        return await self._run(protocol.PutProfile(data))

    async def get_profile(self, digest: bytes) -> Outcome[bytes]:
        """Read a codec profile, verified against its digest."""
        return await self._run(protocol.GetProfile(digest))

    async def _run(self, operation: Operation[T]) -> T:
        with span(f"kvloom {type(operation).__name__}", role=Role.CLIENT, daemon=str(self._endpoint)):
            return await self._ask(operation)

    async def _ask(self, operation: Operation[T]) -> T:
        try:
            if self._local is not None and self._local.takes(operation):
                with suppress(LocalGone):
                    return await self._aside(lambda local: local.run(operation))
            return await self._answer(operation)
        except DaemonUnavailable as error:
            return operation.without_daemon(error)

    async def _aside(self, ask: Callable[[LocalDaemon], T]) -> T:
        """Ask through the Unix socket in a thread: what is mapped is verified there too, off the event loop."""
        local = self._local
        if local is None:
            raise LocalGone("no local socket is known")
        if self._workers is None:
            self._workers = ThreadPoolExecutor(self._connections_max, thread_name_prefix="kvloom-client")
        return await asyncio.get_running_loop().run_in_executor(self._workers, ask, local)

    async def _answer(self, operation: Operation[T]) -> T:
        """The parsed answer; :class:`DaemonUnavailable` where there is none."""
        if self._grpc is not None:
            return await self._grpc.run(operation)
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
            raise DaemonUnavailable(f"daemon at {self._endpoint} did not go on within its time limit") from error
        except aiohttp.ClientConnectorCertificateError as error:
            message = getattr(error.certificate_error, "verify_message", str(error.certificate_error))
            raise DaemonUnavailable(f"certificate of {self._endpoint} does not hold: {message.lower()}") from error
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno
            reason = str(error.os_error) if number is None else os.strerror(number)  # asyncio's own text is longer
            raise DaemonUnavailable(f"no daemon answers at {self._endpoint}: {reason.lower()}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise DaemonUnavailable(f"daemon at {self._endpoint} broke off: {error!r}") from error
        if len(reply.body) < limits.STREAM_FRAME_BYTES:
            return operation.parse(reply)
        return await asyncio.to_thread(operation.parse, reply)

    async def _exchange(self, request: HttpRequest, operation: Operation[Any]) -> HttpReply:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.CONNECT_SECONDS_MAX, sock_read=operation.answer_seconds_max
        )
        async with self._open_session().request(
            request.method,
            f"{self._endpoint.url}{request.target}",
            data=request.body or None,
            headers={**request.headers, **self._access.headers(), **propagated()},
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            length = response.content_length
            if length is None or length > operation.reply_bytes_max:
                raise DaemonUnavailable(
                    f"daemon at {self._endpoint} declares a reply of {length} bytes, "
                    f"the limit is {operation.reply_bytes_max}"
                )
            body = bytearray(length)
            position = 0
            async for part in response.content.iter_any():
                body[position : position + len(part)] = part
                position += len(part)
            headers = {name.lower(): value for name, value in response.headers.items()}
            return HttpReply(response.status, headers, memoryview(body)[:position])

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections_max, ssl=self._context or True),
                auto_decompress=False,
                read_bufsize=limits.STREAM_FRAME_BYTES,
            )
        return self._session
