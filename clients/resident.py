"""A pool of decoded chunks for programs that block: over a daemon, on a thread of its own, registered with it."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import limits
from ..codec.container import Container
from ..codec.layout import Layout
from ..codec.level import Level
from ..codec.profiles import AnyProfile, parse_profile
from ..errors import InvalidData
from ..kvstore.gpu.arrays import open_arrays
from ..kvstore.gpu.lease import PoolLease
from ..kvstore.gpu.pages import KvViews
from ..kvstore.gpu.pool import DecodedPool, PoolStats
from ..kvstore.gpu.source import ChunkWanted, Encoding
from ..kvstore.key import ContentKey
from ..kvstore.outcome import Hit, Outcome
from ..kvstore.tier import Ack
from .client import KvloomClient
from .discovery import find_local_socket
from .pool_registration import PoolRegistration

__all__ = ["DaemonSource", "PoolPlace", "ResidentChunks"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolPlace:
    """Where decoded chunks are kept, by the names of :func:`~..kvstore.gpu.arrays.open_arrays`, in how many bytes."""

    limit_bytes: int
    device: str = "host"


class DaemonSource:
    """A pool's source that is a daemon; profiles are kept once read."""

    def __init__(self, client: KvloomClient) -> None:
        self._client = client
        self._profiles: dict[bytes, AnyProfile] = {}
        self._reading = threading.Lock()

    def load(self, keys: Sequence[ContentKey], level: Level) -> Sequence[Outcome[Container]]:
        """As :meth:`ChunkSource.load`."""
        return self._client.get_many(keys, level=level)

    def profile(self, digest: bytes) -> AnyProfile | None:
        """As :meth:`ChunkSource.profile`."""
        found = self._profiles.get(digest)
        if found is not None:
            return found
        with self._reading:  # it is large: nobody reads one that somebody else is reading
            found = self._profiles.get(digest)
            if found is None:
                outcome = self._client.get_profile(digest)
                if isinstance(outcome, Hit):
                    with suppress(InvalidData):
                        found = self._profiles[digest] = parse_profile(outcome.value)
        return found

    def add_profile(self, profile: AnyProfile) -> None:
        """Keep a profile that need not be read."""
        self._profiles[profile.digest] = profile

    def store(self, key: ContentKey, container: bytes, parent: ContentKey | None) -> None:
        """As :meth:`ChunkSource.store`."""
        self._client.put(key, container, ack=Ack.MEMORY, parent=parent)


class ResidentChunks:
    """A :class:`DecodedPool` over a daemon. Safe to use from several threads; :meth:`close` it.

    The pool registers with a daemon of this machine and reports to it. Raises :class:`ConfigError` where there is no
    such memory, and :class:`MissingDependency`.
    """

    def __init__(self, place: PoolPlace, layout: Layout, client: KvloomClient, *, source: DaemonSource) -> None:
        self.pool = DecodedPool(layout, source, limit_bytes=place.limit_bytes, arrays=open_arrays(place.device))
        path = find_local_socket(client.endpoint)
        self._registration = None if path is None else PoolRegistration(path, self.pool)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvloom-pool", daemon=True)
        self._thread.start()
        self._reporting = asyncio.run_coroutine_threadsafe(self._report(), self._loop)

    def get_many(self, wanted: Sequence[ChunkWanted]) -> list[Outcome[PoolLease]]:
        """As :meth:`DecodedPool.get_many`."""
        return self._run(self.pool.get_many(wanted))

    def put(self, wanted: ChunkWanted, keys: KvViews, values: KvViews, *, encoding: Encoding | None = None) -> bool:
        """As :meth:`DecodedPool.put`."""
        return self._run(self.pool.put(wanted, keys, values, encoding=encoding))

    def prefetch(self, wanted: Sequence[ChunkWanted]) -> int:
        """As :meth:`DecodedPool.prefetch`."""

        async def begin() -> int:
            return self.pool.prefetch(wanted)

        return self._run(begin())

    def drain(self) -> None:
        """Wait until all that was put is stored, or refused."""
        self._run(self.pool.drained())

    def stats(self) -> PoolStats:
        """As :meth:`DecodedPool.stats`."""
        return self.pool.stats()

    def close(self) -> None:
        """Store what is left, end the registration and the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self._reporting.cancel()
        self._run(self.pool.close())
        self._run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._registration is not None:
            self._registration.close()

    def report(self) -> bool:
        """Tell the daemon now what has changed; whether it knows."""
        return self._registration is not None and self._registration.report()

    async def _report(self) -> None:
        """Report at once, and then regularly."""
        while self._registration is not None:
            await asyncio.to_thread(self._registration.report)
            await asyncio.sleep(limits.POOL_REPORT_SECONDS)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise
