"""Tenants and their API keys: what the credentials file says, as records, and the keys themselves. Pure.

One TOML file, the same on all daemons of one network store, has everything they must agree on: the secret that
namespaces are derived from, the tenants with their quotas, and the keys. Keys are kept as digests only. A key is 32
random bytes, so there is nothing to guess: a fast hash protects it as well as a slow one would, and a slow one (argon2)
would let anybody keep a daemon busy by sending keys that do not exist.
"""

import base64
import difflib
import hmac
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from blake3 import blake3

from .. import limits
from ..codec.level import LossyCodec
from ..errors import ConfigError, InvalidRequest
from ..kvstore.key import KEY_BYTES
from ..kvstore.namespace import Namespace
from ..kvstore.quota import Quota
from .admission import TenantShare
from .caller import Scope, scope_names
from .config import parse_size, parse_ttl

__all__ = [
    "ApiKey",
    "Credentials",
    "NewKey",
    "Tenant",
    "check_tenant_name",
    "key_digest",
    "key_id_of",
    "new_key",
    "parse_credentials",
    "with_key",
    "with_revocation",
]

_DIGEST_CONTEXT: Final = "kvloom 2026-11 digest of an api key at rest"
_KEY_ID_BYTES: Final = 6
_TEXT: Final = re.compile(r"kvl_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
_KEY_ID: Final = re.compile(r"[0-9a-f]{12}", re.ASCII)
_NAMESPACE_SECRET: Final = "namespace_secret"  # noqa: S105 - its name
_TENANT_FIELDS: Final = (
    "memory_bytes",
    "memory_guaranteed_bytes",
    "ssd_bytes",
    "ssd_guaranteed_bytes",
    "network_bytes",
    "inflight_bytes",
    "requests",
    "connections",
    "ttl",
    "codec",
)
_KEY_FIELDS: Final = ("tenant", "scopes", "digest", "created", "expires", "revoked", "note")


@dataclass(frozen=True, slots=True)
class Tenant:
    """What the file says of one tenant; ``None`` is what the daemon does for everybody.

    ``keeps_ttl`` is whether it says how long chunks are kept; ``ttl_seconds`` is ``None`` for ever.
    """

    memory: Quota = field(default_factory=Quota)
    ssd: Quota = field(default_factory=Quota)
    network_bytes: int | None = None
    share: TenantShare | None = None
    keeps_ttl: bool = False
    ttl_seconds: float | None = None
    codec: LossyCodec | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key: whose it is, what it allows, and until when. ``digest`` is :func:`key_digest` of its text."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    note: str = ""

    def state(self, now: datetime) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.expires is None or now < self.expires else "expired"

    def is_of(self, text: str, now: datetime) -> bool:
        """Whether ``text`` is this key and it holds now; takes as long whichever digit is wrong."""
        return hmac.compare_digest(key_digest(text), self.digest) and self.state(now) == "valid"


@dataclass(frozen=True, slots=True)
class Credentials:
    """All that the file says. Without a ``namespace_secret`` a daemon uses its own."""

    namespace_secret: bytes | None = field(default=None, repr=False)
    tenants: Mapping[str, Tenant] = field(default_factory=lambda: MappingProxyType({}))
    keys: Mapping[str, ApiKey] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; ``text`` is not kept anywhere."""

    text: str = field(repr=False)
    key: ApiKey


def key_digest(text: str) -> bytes:
    """What is kept of a key: BLAKE3-256 of its text in a context of its own."""
    return blake3(text.encode(), derive_key_context=_DIGEST_CONTEXT).digest()


def key_id_of(text: str) -> str | None:
    """The id in a key's text; ``None`` for what cannot be a key."""
    match = _TEXT.fullmatch(text)
    return None if match is None else match[1]


def new_key(
    random: bytes,
    *,
    tenant: str,
    scopes: Collection[Scope],
    now: datetime,
    expires: datetime | None = None,
    note: str = "",
) -> NewKey:
    """A key made from 38 ``random`` bytes; :class:`ConfigError` for a tenant, scopes or a note that cannot be."""
    if len(random) != _KEY_ID_BYTES + KEY_BYTES:
        raise ConfigError(f"a key is made from {_KEY_ID_BYTES + KEY_BYTES} random bytes, not {len(random)}")
    check_tenant_name(tenant)
    if not scopes:
        raise ConfigError(f"a key needs a scope: {scope_names(Scope)}")
    if len(note) > limits.KEY_NOTE_CHARS_MAX or not note.isprintable():
        raise ConfigError(f"note {note[:40]!r} is not up to {limits.KEY_NOTE_CHARS_MAX} printable characters")
    key_id = random[:_KEY_ID_BYTES].hex()
    text = f"kvl_{key_id}_{base64.urlsafe_b64encode(random[_KEY_ID_BYTES:]).rstrip(b'=').decode()}"
    return NewKey(text, ApiKey(key_id, tenant, frozenset(scopes), key_digest(text), now, expires, None, note))


def check_tenant_name(name: str) -> None:
    """Raise :class:`ConfigError` for what cannot be a namespace's name."""
    try:
        Namespace(name, bytes(KEY_BYTES))
    except InvalidRequest as error:
        raise ConfigError(str(error).replace("namespace", "tenant", 1)) from error


def with_key(text: str, key: ApiKey) -> str:
    """The file's ``text`` with ``key`` added at its end; what people wrote stays as it is."""
    lines = [
        f"[keys.{key.key_id}]",
        f'tenant = "{key.tenant}"',
        "scopes = [" + ", ".join(f'"{scope}"' for scope in Scope if scope in key.scopes) + "]",
        f'digest = "{key.digest.hex()}"',
        f"created = {_timestamp(key.created)}",
    ]
    if key.expires is not None:
        lines.append(f"expires = {_timestamp(key.expires)}")
    if key.note:
        escaped = key.note.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'note = "{escaped}"')
    before = f"{text.rstrip()}\n\n" if text.strip() else ""
    return before + "\n".join(lines) + "\n"


def with_revocation(text: str, key_id: str, now: datetime) -> str:
    """The file's ``text`` with the key ``key_id`` revoked; it must be in it, on a ``[keys.…]`` line of its own."""
    header = re.compile(rf"^[ \t]*\[[ \t]*keys[ \t]*\.[ \t]*\"?{re.escape(key_id)}\"?[ \t]*\][^\n]*$", re.MULTILINE)
    match = header.search(text)
    if match is None:
        raise ConfigError(f"key {key_id} has no line [keys.{key_id}] in the file: write revoked = … there by hand")
    return f"{text[: match.end()]}\nrevoked = {_timestamp(now)}{text[match.end() :]}"


def parse_credentials(text: str) -> Credentials:
    """What ``text`` says; :class:`ConfigError` names the table and the value that cannot be used."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"credentials are not TOML: {error}") from error
    _only("the file", document, (_NAMESPACE_SECRET, "tenants", "keys"))
    tenants = {name: _tenant(name, table) for name, table in _tables("tenants", document, limits.TENANTS_MAX).items()}
    keys = {key_id: _key(key_id, table) for key_id, table in _tables("keys", document, limits.API_KEYS_MAX).items()}
    secret = document.get(_NAMESPACE_SECRET)
    return Credentials(
        None if secret is None else _hex(_NAMESPACE_SECRET, secret), MappingProxyType(tenants), MappingProxyType(keys)
    )


def _tenant(name: str, table: Mapping[str, Any]) -> Tenant:
    check_tenant_name(name)
    where = f"[tenants.{name}]"
    _only(where, table, _TENANT_FIELDS)

    def size(field_name: str) -> int | None:
        value = table.get(field_name)
        if value is None:
            return None
        if type(value) is int and value >= 0:
            return value
        if not isinstance(value, str):
            raise ConfigError(f"{where} {field_name} is {value!r}, not a size such as 512MiB")
        return parse_size(f"{where} {field_name}", value)

    def count(field_name: str, most: int) -> int:
        value = table.get(field_name, most)
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(f"{where} {field_name} is {value!r}, must be 1 to {most}")
        return value

    share = None
    if any(item in table for item in ("inflight_bytes", "requests", "connections")):
        inflight = size("inflight_bytes")
        share = TenantShare(
            limits.INFLIGHT_BYTES_MAX if inflight is None else inflight,
            count("requests", limits.REQUESTS_INFLIGHT_MAX),
            count("connections", limits.CONNECTIONS_MAX),
        )
    ttl, codec = table.get("ttl"), table.get("codec")
    try:
        return Tenant(
            Quota(size("memory_bytes"), size("memory_guaranteed_bytes") or 0),
            Quota(size("ssd_bytes"), size("ssd_guaranteed_bytes") or 0),
            size("network_bytes"),
            share,
            ttl is not None,
            None if ttl is None else parse_ttl(f"{where} ttl", str(ttl)),
            None if codec is None else LossyCodec(codec),
        )
    except ValueError as error:
        raise ConfigError(f"{where} codec is {codec!r}, not one of {', '.join(LossyCodec)}") from error


def _key(key_id: str, table: Mapping[str, Any]) -> ApiKey:
    where = f"[keys.{key_id[:40]}]"
    if not _KEY_ID.fullmatch(key_id):
        raise ConfigError(f"{where} is not named by 12 hexadecimal digits: make keys with kvloom keys create")
    _only(where, table, _KEY_FIELDS)
    for needed in ("tenant", "scopes", "digest", "created"):
        if needed not in table:
            raise ConfigError(f"{where} lacks {needed}")
    tenant, scopes = str(table["tenant"]), table["scopes"]
    check_tenant_name(tenant)
    known = {scope.value: scope for scope in Scope}
    if not isinstance(scopes, list) or not scopes or not all(scope in known for scope in scopes):
        raise ConfigError(f"{where} scopes are {scopes!r}, must be some of {', '.join(known)}")
    created = _time(where, "created", table["created"])
    expires, revoked = (
        None if table.get(name) is None else _time(where, name, table[name]) for name in ("expires", "revoked")
    )
    return ApiKey(
        key_id,
        tenant,
        frozenset(known[scope] for scope in scopes),
        _hex(f"{where} digest", table["digest"]),
        created,
        expires,
        revoked,
        str(table.get("note", "")),
    )


def _tables(name: str, document: Mapping[str, Any], most: int) -> dict[str, Mapping[str, Any]]:
    tables = document.get(name, {})
    if not isinstance(tables, dict) or not all(isinstance(item, dict) for item in tables.values()):
        raise ConfigError(f"{name} is not made of tables [{name}.NAME]")
    if len(tables) > most:
        raise ConfigError(f"there are {len(tables)} {name}, the limit is {most}")
    return tables


def _only(where: str, table: Mapping[str, Any], names: Collection[str]) -> None:
    for name in table:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
            raise ConfigError(f"{where} has {name[:40]!r}, which means nothing; {hint}")


def _hex(what: str, value: Any) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", value, re.ASCII):
        raise ConfigError(f"{what} is not {2 * KEY_BYTES} lower-case hexadecimal digits")
    return bytes.fromhex(value)


def _time(where: str, name: str, value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise ConfigError(f"{where} {name} is {value!r}, not a time such as 2027-01-31T12:00:00Z")
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
