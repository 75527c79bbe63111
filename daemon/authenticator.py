"""Who a credential belongs to: the one place where edges turn what they were sent into a caller."""

import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from .. import limits
from ..errors import Unauthenticated
from .admission import TenantShare
from .caller import ALL_SCOPES, Caller
from .credentials import ApiKey, Credentials, key_id_of
from .tenants import DEFAULT_TENANT, TenantTable

__all__ = ["Authenticator", "utc_now"]

_SCHEME: Final = "bearer "
_REFUSED: Final = "a key that holds is needed: Authorization: Bearer kvl_…"
_NO_DIGEST: Final = ApiKey("0" * 12, "", frozenset(), bytes(32), datetime.fromtimestamp(0, UTC))
_log = structlog.get_logger("kvloom.daemon")


def utc_now() -> datetime:
    """The time by which keys expire."""
    return datetime.now(UTC)


class Authenticator:
    """Knows every key, and ``local``: whom this user's programs speak for.

    ``token`` is what those send over HTTP; ``open_to_all``, only ever on loopback, takes whoever sends nothing for
    them. Why a key is refused stands in the log and not in the answer. Not thread-safe.
    """

    def __init__(
        self,
        tenants: TenantTable,
        *,
        token: str | None = None,
        open_to_all: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._token = token
        self._open_to_all = open_to_all
        self._now = now
        self._take(tenants)

    @property
    def tenants(self) -> TenantTable:
        """The tenants in force."""
        return self._tenants

    def replace(self, credentials: Credentials) -> None:
        """Put other credentials in force, from the next request on; raises :class:`ConfigError` and changes nothing."""
        self._take(replace(self._tenants, credentials=credentials))

    def share_of(self, tenant: str) -> TenantShare:
        """What a tenant may have inside the daemon."""
        return self._tenants.share(tenant)

    def by_header(self, values: list[str]) -> Caller:
        """The caller that the ``Authorization`` headers of a request name; :class:`Unauthenticated` where none."""
        if not values and self._open_to_all:
            return self.local
        if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated(_REFUSED)
        return self.by_key(values[0][len(_SCHEME) :].strip(" "))

    def by_key(self, text: str) -> Caller:
        """The caller whose key or token ``text`` is; :class:`Unauthenticated` for one that does not hold."""
        if len(text) > limits.CREDENTIAL_CHARS_MAX or not text.isascii():
            raise Unauthenticated(_REFUSED)
        if self._token is not None and hmac.compare_digest(text, self._token):
            return self.local
        key_id = key_id_of(text)
        key = None if key_id is None else self._tenants.credentials.keys.get(key_id)
        # Without such a key a digest is computed and compared as well: ids are not to be found out by the clock.
        if not (key or _NO_DIGEST).is_of(text, self._now()) or key is None:
            if key is not None:  # of keys that nobody has the log would have no end
                state = key.state(self._now())
                _log.info("key refused", key=key_id, reason="wrong secret" if state == "valid" else state)
            raise Unauthenticated(_REFUSED)
        return self._callers[key.key_id]

    def by_key_id(self, key_id: str) -> Caller:
        """The caller of a key that has been proven before, as it stands now; :class:`Unauthenticated` if not valid."""
        if key_id == self.local.key_id and (self._token is not None or self._open_to_all):
            return self.local
        key = self._tenants.credentials.keys.get(key_id)
        if key is None or key.state(self._now()) != "valid":
            raise Unauthenticated(_REFUSED)
        return self._callers[key_id]

    def _take(self, tenants: TenantTable) -> None:
        names = {key.tenant for key in tenants.credentials.keys.values()}
        namespaces = {name: tenants.namespace(name) for name in names}
        callers = {
            key.key_id: Caller(namespaces[key.tenant], key.scopes, key.key_id)
            for key in tenants.credentials.keys.values()
        }
        self._tenants, self._callers = tenants, callers
        self.local = Caller(tenants.namespace(DEFAULT_TENANT), ALL_SCOPES, "local")
