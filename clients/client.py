"""The blocking client: every call is an operation, asked over the Unix socket, HTTP or gRPC, again if need be."""

import time
from collections.abc import Sequence
from contextvars import copy_context
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from .. import limits
from ..codec.container import Container
from ..codec.level import Level
from ..errors import DaemonUnavailable, KvloomError
from ..kvstore.key import ChunkRef, ContentKey, ModelIdentity, chunk_refs
from ..kvstore.outcome import Outcome, Unavailable
from ..kvstore.tier import Ack
from ..tracing import Role, recording, span, traced
from . import planning, protocol, reports, upkeep, wire
from .access import Trust, find_access
from .discovery import Endpoint, find_daemon, find_local_socket
from .grpc_daemon import GrpcDaemon, grpc_endpoint
from .hedging import Hedge, check_hedge_seconds
from .http_daemon import HttpDaemon
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
from .pins import Pin
from .plan_wire import EngineReport, PlanQuestion, PlanReply
from .protocol import Operation, PrefixReply
from .put_batch import ChunkPut, ChunkToPut, PutChunks
from .scrubs import GetScrub, ScrubReport, StartScrub
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

    Lookups (:meth:`exists`, :meth:`longest_prefix`) have ``lookup_seconds`` in all for every thousand keys, whatever
    the daemon does: the argument, ``KVLOOM_LOOKUP_SECONDS``, or :data:`limits.LOOKUP_SECONDS_DEFAULT`. What is not
    known by then is a miss; on a machine where 50 ms may pass unnoticed, more of them turn misses back into hits.
    ``retries`` says how often a call is tried that nobody answers or that was refused for now, all calls together from
    one budget (:mod:`.patience`); what was silent for its whole time is not. ``hedge_seconds``, off by default: a read
    or a lookup over HTTP or gRPC that has no answer by then is asked a second time, and the first answer counts.

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
        lookup_seconds: float | None = None,
        retries: RetryPolicy | None = None,
        hedge_seconds: float | None = None,
    ) -> None:
        over_grpc = grpc_endpoint(address)
        self._endpoint = over_grpc or find_daemon(address, data_dir=data_dir)
        access = find_access(self._endpoint, api_key=api_key, trust=trust, data_dir=data_dir)
        self._remote = HttpDaemon(access, connections_max=connections_max) if over_grpc is None else GrpcDaemon(access)
        self._connections_max = connections_max
        path = find_local_socket(self._endpoint, data_dir=data_dir) if local and over_grpc is None else None
        self._local = None if path is None else LocalDaemon(path, connections_max=connections_max, key=access.key)
        self._lookup_seconds = find_lookup_seconds(lookup_seconds)
        self._retries, self._budget = retries or RetryPolicy(), RetryBudget()
        self._hedge_seconds = check_hedge_seconds(hedge_seconds)
        self._hedge: Hedge | None = None
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
        hedge, self._hedge = self._hedge, None
        if hedge is not None:
            hedge.close()
        if self._local is not None:
            self._local.close()
        self._remote.close()

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

    def get(
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
        if level is None and layers is None and self._local is not None and not recording():
            found = self._local.read_again(key)  # before anything else: the rest takes as long as reading it
            if found is not None:
                return found
        return self._run(protocol.GetChunk(key, level, layers), deadline_in(seconds_max))

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
            try:
                return self._tried(protocol.GetChunk(key, level), local=False)
            except DaemonUnavailable as error:
                gone.append(Unavailable(protocol.DAEMON, str(error)))
                return gone[0]

        if len(keys) < 2:
            return [read(key) for key in keys]
        reads = [partial(copy_context().run, read, key) for key in keys]  # in the trace of whoever asks
        return list(self._pool().map(lambda run: run(), reads))

    def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether it is stored; all false where the daemon cannot say."""
        deadline = lookup_deadline(len(keys), self._lookup_seconds)
        return [found for batch in protocol.ChunksExist.batches(keys) for found in self._run(batch, deadline)]

    def longest_prefix(
        self,
        identity: ModelIdentity,
        tokens: "Sequence[int] | NDArray[np.integer]",
        *,
        chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT,
    ) -> PrefixReply:
        """The leading chunks of ``tokens`` that are stored. Tokens do not leave the process, only keys do."""
        refs: list[ChunkRef] = chunk_refs(identity, tokens, chunk_tokens=chunk_tokens)
        deadline = lookup_deadline(len(refs), self._lookup_seconds)
        matched = 0
        for batch in protocol.MatchPrefix.batches(refs):
            count = self._run(batch, deadline)
            matched += count
            if count < len(batch.keys):
                break
        return protocol.prefix_reply(refs, matched)

    def delete(self, key: ContentKey) -> bool:
        """Forget a chunk on every tier; whether there was one."""
        return self._run(protocol.DeleteChunk(key))

    @traced("kvloom PutChunks")
    def put_many(self, chunks: Sequence[ChunkToPut], *, ack: Ack = Ack.MEMORY) -> list[ChunkPut]:
        """Store containers with a few long requests; what became of each stands in the order of ``chunks``.

        A chunk that was refused has its typed error, and so have all that were not stored for certain when the daemon
        could not go on: to put those again is always right. Raises for what no daemon would take, before any is sent.
        """
        batches = PutChunks.batches(chunks, ack)
        outcomes: list[ChunkPut] = []
        for index, batch in enumerate(batches):
            try:
                stored = self._tried(batch)
            except DaemonUnavailable as error:
                return [*outcomes, *(item for left in batches[index:] for item in left.failed(error))]
            except KvloomError as error:
                stored = batch.failed(error)
            outcomes.extend(stored)
        return outcomes

    def delete_many(self, keys: Sequence[ContentKey]) -> list[bool]:
        """Forget chunks on every tier; for each, whether there was one."""
        return [found for batch in upkeep.DeleteChunks.batches(keys) for found in self._run(batch)]

    def delete_namespace(self) -> int:
        """Forget every chunk of this client's tenant, counted once per tier; needs scope ``admin``."""
        return self._run(upkeep.EraseNamespace())

    def pin(self, keys: Sequence[ContentKey], *, lease_seconds: float = limits.LEASE_SECONDS_DEFAULT) -> Pin:
        """Keep chunks from being evicted, for as long as the ``with`` block lasts and at most ``lease_seconds``.

        Raises :class:`StorageFull` where that would pin more bytes than a tenant may, :class:`Overloaded` for too many
        leases; nothing is pinned then. What is not stored is not pinned either, and the pin says so.
        """
        return Pin(self._run(upkeep.PinChunks(tuple(keys), lease_seconds)), self.release)

    def release(self, lease: bytes) -> bool:
        """End a lease (:attr:`Pin.lease`) now; whether it was running."""
        return self._run(upkeep.ReleaseLease(lease))

    def hint(self, keys: Sequence[ContentKey], *, finished: bool = True) -> int:
        """Say that chunks will not be used again (or will, after all); for how many keys the daemon took note.

        Advice, like a prefetch: where no daemon answers, or one has too much to do, that is 0 and no error.
        """
        return sum(self._run(batch) for batch in upkeep.HintChunks.batches(keys, finished=finished))

    def prefetch(self, keys: Sequence[ContentKey]) -> int:
        """Have chunks copied into the daemon's memory; for how many that is under way or not needed."""
        return sum(self._run(batch) for batch in upkeep.PrefetchChunks.batches(keys))

    def plan(self, question: PlanQuestion, *, seconds_max: float | None = None) -> PlanReply | None:
        """Whether to load or to recompute each chunk of a prompt; ``None`` where no daemon says so in time."""
        return self._run(planning.AskPlan(question), deadline_in(seconds_max))

    def report(self, report: EngineReport, *, seconds_max: float | None = None) -> int:
        """Tell the planner what things took; how many measurements were taken in, 0 where no daemon listens in time."""
        return self._run(planning.SendReport(report), deadline_in(seconds_max))

    def list_chunks(self, *, limit: int = limits.LIST_CHUNKS_DEFAULT, prefix: str = "") -> wire.ChunkList:
        """Some of the chunks stored, those whose key begins with the digits ``prefix``."""
        return self._run(protocol.ListChunks(limit, prefix))

    def info(self, key: ContentKey) -> wire.ChunkDetail:
        """What is stored under ``key``: levels, sizes, tier, layout. Raises :class:`NotFound`."""
        return self._run(protocol.DescribeChunk(key))

    def stats(self) -> wire.DaemonStats:
        """What the daemon, its tiers and its tenants hold and have done; needs scope ``admin``."""
        return self._run(reports.GetStats())

    def tenant(self) -> TenantStats:
        """What this client's own tenant holds and has done."""
        return self._run(reports.GetTenant())

    def namespaces(self) -> tuple[TenantStats, ...]:
        """The same for every tenant of the daemon, with their quotas; needs scope ``admin``."""
        return self._run(reports.ListNamespaces()).namespaces

    def start_scrub(self) -> ScrubReport:
        """Have the daemon read all of its SSD tier and verify it, unless it does so already; needs scope ``admin``.

        It goes on by itself: :meth:`scrub_report` says how far. Raises :class:`NotFound` where there is no such tier.
        """
        return self._run(StartScrub())

    def scrub_report(self) -> ScrubReport:
        """How far the last scrub asked for has come; needs scope ``admin``."""
        return self._run(GetScrub())

    def health(self) -> wire.Health:
        """Which daemon answers, and in which phase it is. Raises :class:`DaemonUnavailable`."""
        return self._run(reports.CheckHealth())

    def put_profile(self, data: Buffer) -> bytes:
        """Put a codec profile on the daemon's shelf; returns its digest."""
        return self._run(protocol.PutProfile(data))

    def get_profile(self, digest: bytes) -> Outcome[bytes]:
        """Read a codec profile, verified against its digest."""
        return self._run(protocol.GetProfile(digest))

    def _run(self, operation: Operation[T], deadline: Deadline = UNBOUNDED) -> T:
        with span(f"kvloom {type(operation).__name__}", role=Role.CLIENT, daemon=str(self._endpoint)):
            return self._ask(operation, deadline)

    def _ask(self, operation: Operation[T], deadline: Deadline) -> T:
        try:
            return self._tried(operation, deadline)
        except DaemonUnavailable as error:
            return operation.without_daemon(error)

    def _tried(self, operation: Operation[T], deadline: Deadline = UNBOUNDED, *, local: bool = True) -> T:
        """The parsed answer, after further tries where they may help; raises where there is none."""
        attempts = Attempts(operation, self._retries, self._budget, deadline)
        while True:
            try:
                result = self._once(operation, deadline, local=local)
                again = operation.again(result)
                return result if again is None else self._once(again, deadline, local=local)
            except KvloomError as error:
                wait_seconds = attempts.wait_after(error)
                if wait_seconds is None:
                    raise
            time.sleep(wait_seconds)

    def _once(self, operation: Operation[T], deadline: Deadline, *, local: bool) -> T:
        if local and self._local is not None and self._local.takes(operation):
            try:
                return self._local.run(operation, deadline)
            except LocalGone:
                pass
        if self._hedge_seconds is None or not operation.hedged:
            return self._remote.run(operation, deadline)
        if self._hedge is None:
            self._hedge = Hedge(self._hedge_seconds, self._budget, threads=2 * self._connections_max)
        return self._hedge.first(lambda: self._remote.run(operation, deadline))

    def _pool(self) -> "ThreadPoolExecutor":
        from concurrent.futures import ThreadPoolExecutor  # here: most clients never read many at once

        if self._workers is None:
            self._workers = ThreadPoolExecutor(self._connections_max, thread_name_prefix="kvloom-client")
        return self._workers
