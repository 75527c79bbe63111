"""What each tenant has open over gRPC: connections and calls, within the shares it has over HTTP.

gRPC does not say when a connection comes or goes, only over which one a call comes. So a connection counts for a
tenant while a call of that tenant is under way over it; without any it is closed after
:data:`limits.GRPC_IDLE_SECONDS_MAX`, and all of them together are bounded by gRPC itself.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from .. import limits
from ..errors import Overloaded, TenantOverloaded
from .admission import Admission

__all__ = ["GrpcShares"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Connection:
    """A connection, as far as one tenant's calls come over it."""

    tenant: str
    peer: str


class GrpcShares:
    """Belongs to one event loop. Connections are counted in ``admission``, beside those of HTTP."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._calls: Counter[str] = Counter()
        self._connections: Counter[_Connection] = Counter()
        self._lingering = 0

    @contextmanager
    def calling(self, tenant: str, peer: str) -> Iterator[None]:
        """Hold the place of one call of ``tenant`` that comes from ``peer``, and of its connection.

        Raises :class:`TenantOverloaded` where the tenant has as many of either as it may, :class:`Overloaded` where all
        together have as many connections.
        """
        most = self._admission.share_of(tenant).requests
        if self._calls[tenant] >= most:
            raise TenantOverloaded(f"{self._calls[tenant]} calls of this tenant are under way, its limit is {most}")
        connection = _Connection(tenant, peer)
        if not self._connections[connection]:
            if self._admission.connections >= limits.CONNECTIONS_MAX:
                raise Overloaded(f"there are {limits.CONNECTIONS_MAX} connections, the limit")
            self._admission.connect(tenant)
        self._connections[connection] += 1
        self._calls[tenant] += 1
        try:
            yield
        finally:
            _count_down(self._calls, tenant)
            _count_down(self._connections, connection)
            if connection not in self._connections:
                self._admission.disconnect(tenant)

    @contextmanager
    def lingering(self) -> Iterator[bool]:
        """Whether one more refused call may be read on from, for as long as the context lasts."""
        may = self._lingering < limits.GRPC_LINGERING_MAX
        self._lingering += may
        try:
            yield may
        finally:
            self._lingering -= may


def _count_down(counts: Counter[T], item: T) -> None:
    counts[item] -= 1
    if not counts[item]:
        del counts[item]
