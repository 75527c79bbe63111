"""What the credentials mean to one daemon: every tenant's namespace, quotas and share, and who holds which key."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .. import limits
from ..codec.level import LossyCodec
from ..errors import ConfigError
from ..kvstore.key import OwnerId
from ..kvstore.namespace import Namespace, derive_namespace
from ..kvstore.quota import Quota, Quotas
from .admission import TenantShare
from .credentials import Credentials, Tenant

__all__ = ["DEFAULT_TENANT", "TenantTable"]

DEFAULT_TENANT = "default"
"""Whom this user's own programs are, without a key."""
_NAMED_SHARE = TenantShare(
    limits.INFLIGHT_BYTES_MAX // 2, limits.REQUESTS_INFLIGHT_MAX // 2, limits.CONNECTIONS_MAX // 2
)


@dataclass(frozen=True, slots=True)
class TenantTable:
    """The tenants of a daemon. ``secret`` (32 bytes) is what namespaces are derived from.

    ``codec``, ``ttl_seconds`` and ``network_bytes`` are for tenants of whom the credentials do not say other.
    """

    secret: bytes = field(repr=False)
    credentials: Credentials = field(default_factory=Credentials)
    codec: LossyCodec = LossyCodec.KVLOOM
    ttl_seconds: float | None = None
    network_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.credentials.namespace_secret not in (None, self.secret):
            raise ConfigError("namespace_secret differs from the secret in use: that needs a restart")

    def namespace(self, name: str) -> Namespace:
        """The namespace of the tenant called ``name``."""
        rules = self._rules(name)
        codec = self.codec if rules.codec is None else rules.codec
        ttl_seconds = rules.ttl_seconds if rules.keeps_ttl else self.ttl_seconds
        return derive_namespace(self.secret, name, codec=codec, ttl_seconds=ttl_seconds)

    def share(self, name: str) -> TenantShare:
        """What the tenant may have inside the daemon: half of everything, unless it is said, or is everybody's own."""
        share = self._rules(name).share
        if share is not None:
            return share
        return TenantShare() if name == DEFAULT_TENANT else _NAMED_SHARE

    def memory_quotas(self) -> Quotas:
        """Every tenant's quota in the memory tier."""
        return self._quotas(lambda tenant: tenant.memory)

    def ssd_quotas(self) -> Quotas:
        """Every tenant's quota in the SSD tier."""
        return self._quotas(lambda tenant: tenant.ssd)

    def network_quotas(self) -> Quotas:
        """Every tenant's quota on the network store, whichever daemon put it there."""
        default = Quota(self.network_bytes)
        named = self._quotas(
            lambda tenant: default if tenant.network_bytes is None else Quota(tenant.network_bytes)
        ).by_owner
        return Quotas(default, named)

    def _rules(self, name: str) -> Tenant:
        return self.credentials.tenants.get(name, Tenant())

    def _quotas(self, of: Callable[[Tenant], Quota]) -> Quotas:
        quotas: dict[OwnerId, Quota] = {}
        for name, tenant in self.credentials.tenants.items():
            quotas[self.namespace(name).owner] = of(tenant)
        return Quotas(by_owner=quotas)
