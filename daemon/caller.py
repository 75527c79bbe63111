"""Who asks: a tenant's namespace and what its credential allows. Pure.

An edge finds out who calls, from a key or from the socket, and hands the caller to every method of the service. What
a caller may do is checked there (:meth:`Caller.require`), so no edge can forget it; edges check the same scope earlier
where that saves reading a body.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ..errors import Forbidden
from ..kvstore.namespace import Namespace

__all__ = ["ALL_SCOPES", "Caller", "Scope", "scope_names"]


class Scope(StrEnum):
    """What a credential allows; none includes another.

    ``READ`` finds, reads and pins the tenant's chunks, ``WRITE`` stores and forgets them. ``ADMIN`` is for operators:
    it sees the figures of the whole daemon, other tenants' included, and may forget all of a tenant's chunks at once.
    """

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


ALL_SCOPES: Final = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """One tenant's credential in use; ``key_id`` names it in the log and is no secret."""

    namespace: Namespace
    scopes: frozenset[Scope]
    key_id: str = ""

    @property
    def tenant(self) -> str:
        """The name of the tenant, by which its share of the daemon is counted."""
        return self.namespace.name

    def require(self, scope: Scope) -> None:
        """Raise :class:`Forbidden` unless the credential has ``scope``."""
        if scope not in self.scopes:
            raise Forbidden(f"this needs scope {scope}, the key has {scope_names(self.scopes)}")


def scope_names(scopes: Iterable[Scope]) -> str:
    """Scopes as people read them, in their order: ``read, write``."""
    given = set(scopes)
    return ", ".join(scope for scope in Scope if scope in given) or "none"
