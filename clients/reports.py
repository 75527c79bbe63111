"""Operations that only ask for figures: of the daemon, and of the tenants it serves."""
# ruff: noqa: D102 - what request() and parse() promise is said once, in Operation

from typing import Any, ClassVar, TypeVar

from . import leases, wire
from .http_message import HttpReply, HttpRequest
from .protocol import Operation, read_reply
from .tenancy import TenantStats

__all__ = ["CheckHealth", "GetStats", "GetTenant", "ListNamespaces", "Question"]

T = TypeVar("T")


class Question(Operation[T]):
    """A question without arguments, answered by one record."""

    target: ClassVar[str]
    kind: ClassVar[type[Any]]

    def request(self) -> HttpRequest:
        return HttpRequest("GET", self.target, {})

    def parse(self, reply: HttpReply) -> T:
        record: T = read_reply(self.kind, reply)
        return record


class GetStats(Question[wire.DaemonStats]):
    """What the daemon and its tiers hold and have done."""

    target, kind = "/stats", wire.DaemonStats


class GetTenant(Question[TenantStats]):
    """What the caller's own tenant did and holds."""

    target, kind = "/tenant", TenantStats


class CheckHealth(Question[wire.Health]):
    """Which daemon answers, and in which phase it is."""

    target, kind = "/healthz", wire.Health


class ListNamespaces(Question[leases.NamespaceList]):
    """The namespaces of the daemon, with what they hold and may hold."""

    target, kind = "/namespaces", leases.NamespaceList
