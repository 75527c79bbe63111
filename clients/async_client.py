"""The asyncio client: the same calls and the same meanings as :class:`.client.KvloomClient`."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from .. import limits
from ..codec.container import Container
from ..codec.level import Level
from ..errors import DaemonSilent, DaemonUnavailable, KvloomError
from ..kvstore.key import ContentKey, ModelIdentity, chunk_refs
from ..kvstore.outcome import Outcome, Unavailable
from ..kvstore.tier import Ack
from ..tracing import Role, span, traced_async
from . import planning, protocol, reports, upkeep, wire
from .access import Trust, find_access
from .async_http_daemon import AsyncHttpDaemon
from .discovery import Endpoint, find_daemon, find_local_socket
from .grpc_daemon import AsyncGrpcDaemon, grpc_endpoint
from .hedging import AsyncHedge, check_hedge_seconds
from .http_message import Buffer
from .local_daemon import LocalDaemon
from .local_stream import LocalGone
from .patience import (
    UNBOUNDED,
    Attempts,
    Deadline,
    RetryBudget,
    RetryPolicy,
    deadline_in,
    find_lookup_seconds,
    lookup_deadline,
)
from .pins import AsyncPin
from .plan_wire import EngineReport, PlanQuestion, PlanReply
from .protocol import Operation, PrefixReply
from .put_batch import ChunkPut, ChunkToPut, PutChunks
from .scrubs import GetScrub, ScrubReport, StartScrub
from .tenancy import TenantStats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["AsyncKvloomClient"]

T = TypeVar("T")


class AsyncKvloomClient:
    """A daemon, seen from an event loop. Belongs to the loop of its first call; every method is safe to cancel.

    See :class:`kvloom.clients.KvloomClient` for how the daemon is found, what a dead one means, and the arguments. A
    lookup's time passes while the loop is busy elsewhere, too.
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
        lookup_seconds: float | None = None,
        retries: RetryPolicy | None = None,
        hedge_seconds: float | None = None,
    ) -> None:
        over_grpc = grpc_endpoint(address)
        self._endpoint = over_grpc or find_daemon(address, data_dir=data_dir)
        access = find_access(self._endpoint, api_key=api_key, trust=trust, data_dir=data_dir)
        self._remote = (
            AsyncHttpDaemon(access, connections_max=connections_max) if over_grpc is None else AsyncGrpcDaemon(access)
        )
        self._connections_max = connections_max
        path = find_local_socket(self._endpoint, data_dir=data_dir) if local and over_grpc is None else None
        self._local = None if path is None else LocalDaemon(path, connections_max=connections_max, key=access.key)
        self._lookup_seconds = find_lookup_seconds(lookup_seconds)
        self._retries, self._budget = retries or RetryPolicy(), RetryBudget()
        wait = check_hedge_seconds(hedge_seconds)
        self._hedge = None if wait is None else AsyncHedge(wait, self._budget)
        self._workers: ThreadPoolExecutor | None = None

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
        workers, self._workers = self._workers, None
        if workers is not None:
            await asyncio.to_thread(workers.shutdown)
        if self._local is not None:
            self._local.close()
        await self._remote.close()

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
        self,
        key: ContentKey,
        *,
        level: Level | None = None,
        layers: range | None = None,
        seconds_max: float | None = None,
    ) -> Outcome[Container]:
        """Read a chunk, verified: whole, up to ``level``, or only ``layers``. Not stored at ``level`` is a miss.

        Lossy levels come in whole blocks of layers, maybe more than were asked for: ``header.layers`` has them. What
        has not come whole within ``seconds_max`` is given up (:class:`Unavailable`), and no more of it comes.
        """
        return await self._run(protocol.GetChunk(key, level, layers), deadline_in(seconds_max))

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
                try:
                    return await self._tried(protocol.GetChunk(key, level), local=False)
                except DaemonUnavailable as error:
                    gone.append(Unavailable(protocol.DAEMON, str(error)))
                    return gone[0]

        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(read(key)) for key in keys]
        return [item.result() for item in reads]

    async def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether it is stored; all false where the daemon cannot say."""
        deadline = lookup_deadline(len(keys), self._lookup_seconds)
        return [found for batch in protocol.ChunksExist.batches(keys) for found in await self._run(batch, deadline)]

    async def longest_prefix(
        self,
        identity: ModelIdentity,
        tokens: "Sequence[int] | NDArray[np.integer]",
        *,
        chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT,
    ) -> PrefixReply:
        """The leading chunks of ``tokens`` that are stored. Tokens do not leave the process, only keys do."""
        refs = await asyncio.to_thread(chunk_refs, identity, tokens, chunk_tokens=chunk_tokens)
        deadline = lookup_deadline(len(refs), self._lookup_seconds)
        matched = 0
        for batch in protocol.MatchPrefix.batches(refs):
            count = await self._run(batch, deadline)
            matched += count
            if count < len(batch.keys):
                break
        return protocol.prefix_reply(refs, matched)

    async def delete(self, key: ContentKey) -> bool:
        """Forget a chunk on every tier; whether there was one."""
        return await self._run(protocol.DeleteChunk(key))

    @traced_async("kvloom PutChunks")
    async def put_many(self, chunks: Sequence[ChunkToPut], *, ack: Ack = Ack.MEMORY) -> list[ChunkPut]:
        """Store containers with a few long requests; what became of each stands in the order of ``chunks``.

        A chunk that was refused has its typed error, and so have all that were not stored for certain when the daemon
        could not go on: to put those again is always right. Raises for what no daemon would take, before any is sent.
        """
        batches = PutChunks.batches(chunks, ack)
        outcomes: list[ChunkPut] = []
        for index, batch in enumerate(batches):
            try:
                stored = await self._tried(batch)
            except DaemonUnavailable as error:
                return [*outcomes, *(item for left in batches[index:] for item in left.failed(error))]
            except KvloomError as error:
                stored = batch.failed(error)
            outcomes.extend(stored)
        return outcomes

    async def delete_many(self, keys: Sequence[ContentKey]) -> list[bool]:
        """Forget chunks on every tier; for each, whether there was one."""
        return [found for batch in upkeep.DeleteChunks.batches(keys) for found in await self._run(batch)]

    async def delete_namespace(self) -> int:
        """Forget every chunk of this client's tenant, counted once per tier; needs scope ``admin``."""
        return await self._run(upkeep.EraseNamespace())

    async def pin(self, keys: Sequence[ContentKey], *, lease_seconds: float = limits.LEASE_SECONDS_DEFAULT) -> AsyncPin:
        """Keep chunks from being evicted, for as long as the block lasts and at most ``lease_seconds``.

        ``async with await client.pin(keys) as pin``. Raises :class:`StorageFull` where that would pin more bytes than a
        tenant may, :class:`Overloaded` for too many leases; nothing is pinned then. What is not stored is not pinned
        either, and the pin says so.
        """
        return AsyncPin(await self._run(upkeep.PinChunks(tuple(keys), lease_seconds)), self.release)

    async def release(self, lease: bytes) -> bool:
        """End a lease (:attr:`AsyncPin.lease`) now; whether it was running."""
        return await self._run(upkeep.ReleaseLease(lease))

    async def hint(self, keys: Sequence[ContentKey], *, finished: bool = True) -> int:
        """Say that chunks will not be used again (or will, after all); for how many keys the daemon took note.

        Advice, like a prefetch: where no daemon answers, or one has too much to do, that is 0 and no error.
        """
        return sum([await self._run(batch) for batch in upkeep.HintChunks.batches(keys, finished=finished)])

    async def prefetch(self, keys: Sequence[ContentKey]) -> int:
        """Have chunks copied into the daemon's memory; for how many that is under way or not needed."""
        return sum([await self._run(batch) for batch in upkeep.PrefetchChunks.batches(keys)])

    async def plan(self, question: PlanQuestion, *, seconds_max: float | None = None) -> PlanReply | None:
        """Whether to load or to recompute each chunk of a prompt; ``None`` where no daemon says so in time."""
        return await self._run(planning.AskPlan(question), deadline_in(seconds_max))

    async def report(self, report: EngineReport, *, seconds_max: float | None = None) -> int:
        """Tell the planner what things took; how many measurements were taken in, 0 where no daemon listens in time."""
        return await self._run(planning.SendReport(report), deadline_in(seconds_max))

    async def list_chunks(self, *, limit: int = limits.LIST_CHUNKS_DEFAULT, prefix: str = "") -> wire.ChunkList:
        """Some of the chunks stored, those whose key begins with the digits ``prefix``."""
        return await self._run(protocol.ListChunks(limit, prefix))

    async def info(self, key: ContentKey) -> wire.ChunkDetail:
        """What is stored under ``key``: levels, sizes, tier, layout. Raises :class:`NotFound`."""
        return await self._run(protocol.DescribeChunk(key))

    async def stats(self) -> wire.DaemonStats:
        """What the daemon, its tiers and its tenants hold and have done; needs scope ``admin``."""
        return await self._run(reports.GetStats())

    async def tenant(self) -> TenantStats:
        """What this client's own tenant holds and has done."""
        return await self._run(reports.GetTenant())

    async def namespaces(self) -> tuple[TenantStats, ...]:
        """The same for every tenant of the daemon, with their quotas; needs scope ``admin``."""
        return (await self._run(reports.ListNamespaces())).namespaces

    async def start_scrub(self) -> ScrubReport:
        """Have the daemon read all of its SSD tier and verify it, unless it does so already; needs scope ``admin``.

        It goes on by itself: :meth:`scrub_report` says how far. Raises :class:`NotFound` where there is no such tier.
        """
        return await self._run(StartScrub())

    async def scrub_report(self) -> ScrubReport:
        """How far the last scrub asked for has come; needs scope ``admin``."""
        return await self._run(GetScrub())

    async def health(self) -> wire.Health:
        """Which daemon answers, and in which phase it is. Raises :class:`DaemonUnavailable`."""
        return await self._run(reports.CheckHealth())

    async def put_profile(self, data: Buffer) -> bytes:
        """Put a codec profile on the daemon's shelf; returns its digest."""
        return await self._run(protocol.PutProfile(data))

    async def get_profile(self, digest: bytes) -> Outcome[bytes]:
        """Read a codec profile, verified against its digest."""
        return await self._run(protocol.GetProfile(digest))

    async def _run(self, operation: Operation[T], deadline: Deadline = UNBOUNDED) -> T:
        with span(f"kvloom {type(operation).__name__}", role=Role.CLIENT, daemon=str(self._endpoint)):
            return await self._ask(operation, deadline)

    async def _ask(self, operation: Operation[T], deadline: Deadline) -> T:
        try:
            return await self._tried(operation, deadline)
        except DaemonUnavailable as error:
            return operation.without_daemon(error)

    async def _tried(self, operation: Operation[T], deadline: Deadline = UNBOUNDED, *, local: bool = True) -> T:
        """The parsed answer, after further tries where they may help; raises where there is none."""
        attempts = Attempts(operation, self._retries, self._budget, deadline)
        while True:
            try:
                result = await self._within(operation, deadline, local=local)
                again = operation.again(result)
                return result if again is None else await self._within(again, deadline, local=local)
            except KvloomError as error:
                wait_seconds = attempts.wait_after(error)
                if wait_seconds is None:
                    raise
            await asyncio.sleep(wait_seconds)

    async def _within(self, operation: Operation[T], deadline: Deadline, *, local: bool) -> T:
        if not deadline.bounded:
            return await self._once(operation, deadline, local=local)
        try:
            async with asyncio.timeout(deadline.left(limits.LOOKUP_SECONDS_MAX)):
                return await self._once(operation, deadline, local=local)
        except TimeoutError as error:
            raise DaemonSilent(f"daemon at {self._endpoint} did not go on within its time limit") from error

    async def _once(self, operation: Operation[T], deadline: Deadline, *, local: bool) -> T:
        if local and self._local is not None and self._local.takes(operation):
            with suppress(LocalGone):
                return await self._aside(lambda local: local.run(operation, deadline))
        if self._hedge is None or not operation.hedged:
            return await self._remote.run(operation)
        return await self._hedge.first(lambda: self._remote.run(operation))

    async def _aside(self, ask: Callable[[LocalDaemon], T]) -> T:
        """Ask through the Unix socket in a thread: what is mapped is verified there too, off the event loop."""
        local = self._local
        if local is None:
            raise LocalGone("no local socket is known")
        if self._workers is None:
            self._workers = ThreadPoolExecutor(self._connections_max, thread_name_prefix="kvloom-client")
        return await asyncio.get_running_loop().run_in_executor(self._workers, ask, local)
