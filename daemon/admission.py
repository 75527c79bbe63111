"""Who may come in: the daemon's phase, the requests inside it, and the bytes they hold, in all and per tenant.

Everything is refused early and says so: before a body is read, its length is reserved against one budget, so the
memory that requests in flight can hold is bounded whatever the number of connections. A tenant has a share of that
budget, so that no one tenant can keep all others out. Single-threaded (event loop).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from .. import limits
from ..errors import Overloaded, TenantOverloaded

__all__ = ["Admission", "Phase", "TenantShare"]


class Phase(StrEnum):
    """A daemon's life; requests for data are served only while ``READY``."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class TenantShare:
    """What one tenant may have inside a daemon at once."""

    inflight_bytes: int = limits.INFLIGHT_BYTES_MAX
    requests: int = limits.REQUESTS_INFLIGHT_MAX
    connections: int = limits.CONNECTIONS_MAX


@dataclass(slots=True)
class _Held:
    """What one tenant has inside now."""

    requests: int = 0
    size_bytes: int = 0
    connections: int = 0

    @property
    def is_nothing(self) -> bool:
        return not (self.requests or self.size_bytes or self.connections)


class Admission:
    """Counts requests, connections and bytes in flight. Not thread-safe: all calls come from the event loop.

    ``share_of`` says what a tenant may have; it is asked every time, so it may change.
    """

    def __init__(
        self,
        *,
        inflight_bytes_max: int = limits.INFLIGHT_BYTES_MAX,
        share_of: Callable[[str], TenantShare] = lambda tenant: TenantShare(),
    ) -> None:
        self._phase = Phase.STARTING
        self._requests = 0
        self._connections = 0
        self._strangers = 0
        self._bytes = 0
        self._bytes_max = inflight_bytes_max
        self._share_of = share_of
        self._held: dict[str, _Held] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def phase(self) -> Phase:
        """Where the daemon is in its life."""
        return self._phase

    @property
    def requests(self) -> int:
        """Requests inside."""
        return self._requests

    @property
    def connections(self) -> int:
        """Connections, strangers' included."""
        return self._connections

    @property
    def inflight_bytes(self) -> int:
        """Bytes reserved by the requests inside."""
        return self._bytes

    @property
    def inflight_bytes_max(self) -> int:
        """The budget."""
        return self._bytes_max

    def share_of(self, tenant: str) -> TenantShare:
        """What ``tenant`` may have inside now."""
        return self._share_of(tenant)

    def open(self) -> None:
        """Serve from now on."""
        self._phase = Phase.READY

    def drain(self) -> None:
        """Refuse every new request from now on; those inside go on."""
        self._phase = Phase.DRAINING

    def require_ready(self) -> None:
        """:class:`Overloaded` unless the daemon is ready: all that :meth:`enter` is to a request that never waits."""
        if self._phase is not Phase.READY:
            raise Overloaded(f"daemon is {self._phase}, try again in a moment")

    @contextmanager
    def enter(self, tenant: str) -> Iterator[None]:
        """Hold the place of one request of ``tenant``.

        Raises :class:`Overloaded` unless the daemon is ready and has a place, and :class:`TenantOverloaded` where the
        tenant has as many as it may.
        """
        self.require_ready()
        if self._requests >= limits.REQUESTS_INFLIGHT_MAX:
            raise Overloaded(f"{self._requests} requests are inside, the limit is {limits.REQUESTS_INFLIGHT_MAX}")
        with self._holding(tenant) as held:
            most = self._share_of(tenant).requests
            if held.requests >= most:
                raise TenantOverloaded(f"{held.requests} requests of this tenant are inside, its limit is {most}")
            self._requests += 1
            held.requests += 1
            self._empty.clear()
            try:
                yield
            finally:
                self._requests -= 1
                held.requests -= 1
                if self._requests == 0:
                    self._empty.set()

    @contextmanager
    def reserve(self, size_bytes: int, tenant: str) -> Iterator[None]:
        """Hold ``size_bytes`` of the budget for ``tenant``.

        Raises :class:`Overloaded` where they do not fit beside what is held, :class:`TenantOverloaded` where they do
        not fit into the tenant's share.
        """
        if self._bytes + size_bytes > self._bytes_max:
            raise Overloaded(
                f"request needs {size_bytes} bytes beside {self._bytes} in flight, the limit is {self._bytes_max}"
            )
        with self._holding(tenant) as held:
            most = self._share_of(tenant).inflight_bytes
            if held.size_bytes + size_bytes > most:
                raise TenantOverloaded(
                    f"request needs {size_bytes} bytes beside {held.size_bytes} of this tenant in flight, "
                    f"its limit is {most}"
                )
            self._bytes += size_bytes
            held.size_bytes += size_bytes
            try:
                yield
            finally:
                self._bytes -= size_bytes
                held.size_bytes -= size_bytes

    def connect(self, tenant: str | None) -> None:
        """Count a connection as one of ``tenant``, or as a stranger's where no key has come over it yet.

        Raises :class:`Overloaded` where there are too many in all or of strangers, and :class:`TenantOverloaded` where
        the tenant has as many as it may.
        """
        if tenant is None:
            if self._connections >= limits.CONNECTIONS_MAX:
                raise Overloaded(f"there are {self._connections} connections, the limit is {limits.CONNECTIONS_MAX}")
            if self._strangers >= limits.STRANGERS_MAX:
                raise Overloaded(f"{self._strangers} connections have sent no key, the limit is {limits.STRANGERS_MAX}")
            self._strangers += 1
        else:
            with self._holding(tenant) as held:
                most = self._share_of(tenant).connections
                if held.connections >= most:
                    raise TenantOverloaded(f"this tenant has {held.connections} connections, its limit is {most}")
                held.connections += 1
        self._connections += 1

    def disconnect(self, tenant: str | None) -> None:
        """One connection that :meth:`connect` has counted is gone, or is somebody else's now."""
        self._connections -= 1
        if tenant is None:
            self._strangers -= 1
            return
        with self._holding(tenant) as held:
            held.connections -= 1

    async def empty(self) -> None:
        """Wait until no request is inside. Safe to cancel."""
        await self._empty.wait()

    @contextmanager
    def _holding(self, tenant: str) -> Iterator[_Held]:
        """What ``tenant`` holds; forgotten when that is nothing."""
        held = self._held.setdefault(tenant, _Held())
        try:
            yield held
        finally:
            if held.is_nothing and self._held.get(tenant) is held:
                del self._held[tenant]
