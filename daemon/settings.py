"""The table of a daemon's settings: one field each, with its kind, default, limits and help.

Everything that speaks of settings is made of this table: the flags of ``kvloom serve``, the ``KVLOOM_*`` variables, the
keys of the configuration file and ``kvloom config``. What the values mean is :mod:`.config`'s business.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from .. import limits
from ..clients.discovery import DATA_DIR_VARIABLE, DEFAULT_HOST, DEFAULT_PORT, data_directory
from ..codec.level import LossyCodec
from ..kvstore.eviction_choice import DEFAULT_POLICY, PolicyName
from ..kvstore.tiered.admission import AdmissionRule

__all__ = [
    "SETTINGS",
    "ConfigText",
    "HttpAuth",
    "Kind",
    "LogFormat",
    "LogLevel",
    "Setting",
    "TraceExport",
    "setting_named",
]

_METADATA: Final = "kvloom setting"
_SIZE_LIMITS: Final = f"{limits.TIER_BYTES_MIN // 1024**2} MiB to what this machine has"
_TTL_LIMITS: Final = f"never, or 1 s to {limits.TTL_SECONDS_MAX // 86_400}d"


class LogFormat(StrEnum):
    """How log lines look; ``auto`` is ``console`` on a terminal and ``json`` elsewhere."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe line that is written; ``debug`` includes one line per request."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class HttpAuth(StrEnum):
    """What HTTP asks of programs without an API key.

    ``token``: what this user's daemon leaves in a file for this user's programs. ``off``: nothing, so that all users of
    the machine have the default tenant's chunks; only on loopback.
    """

    TOKEN = "token"  # noqa: S105 - the name of a choice
    OFF = "off"


class TraceExport(StrEnum):
    """Where OpenTelemetry traces go; ``otlp`` is configured further by the ``OTEL_*`` variables of that standard."""

    OFF = "off"
    OTLP = "otlp"


class Kind(StrEnum):
    """What a setting's text is read as."""

    TEXT = "text"
    PORT = "port"
    SIZE = "size"
    TIME = "time"
    FILE = "file"
    DIRECTORY = "directory"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. ``default`` and ``limits`` are for people, ``example`` is a value that a daemon accepts.

    ``effective`` is where :class:`.DaemonConfig` has what became of it; the value of one that is ``secret`` is not
    shown.
    """

    name: str
    kind: Kind
    help: str
    default: str
    limits: str
    example: str
    effective: str
    metavar: str
    choices: tuple[str, ...] = ()
    secret: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"KVLOOM_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """Its flag."""
        return f"--{self.name.replace('_', '-')}"


def _setting(
    kind: Kind,
    line: str,
    *,
    default: str,
    effective: str,
    limit: str = "",
    example: str = "",
    metavar: str = "",
    choices: type[StrEnum] | None = None,
    secret: bool = False,
) -> Any:
    """A field of :class:`ConfigText` and its row of the table."""
    allowed = () if choices is None else tuple(choices)
    metadata = {
        "kind": kind,
        "help": line,
        "default": default,
        "limits": limit or ", ".join(allowed),
        "example": example or default,
        "effective": effective,
        "metavar": metavar or kind.value.upper(),
        "choices": allowed,
        "secret": secret,
    }
    return field(default=None, metadata={_METADATA: metadata})


@dataclass(frozen=True, slots=True)
class ConfigText:
    """Values as somebody wrote them; ``None`` where nothing was said. Field ``x`` is ``KVLOOM_X`` and ``--x``."""

    host: str | None = _setting(
        Kind.TEXT,
        "Address to listen on; beyond loopback with TLS and keys.",
        default=DEFAULT_HOST,
        limit="an IP address or localhost",
        effective="host",
        metavar="HOST",
    )
    port: str | None = _setting(
        Kind.PORT,
        "Port; 0 takes a free one.",
        default=str(DEFAULT_PORT),
        limit="0 to 65535",
        effective="port",
    )
    grpc_port: str | None = _setting(
        Kind.PORT,
        "Serve gRPC there too; 0 takes a free one.",
        default="off",
        limit="0 to 65535, or off",
        example="7118",
        effective="grpc_port",
    )
    data_dir: str | None = _setting(
        Kind.DIRECTORY,
        "Where chunks are kept.",
        default="this user's data directory",
        limit="on a local disk",
        example="/var/lib/kvloom",
        effective="data_dir",
        metavar="DIR",
    )
    memory: str | None = _setting(
        Kind.SIZE,
        "Memory tier.",
        default="a quarter of what is free, at most 4GiB",
        limit=_SIZE_LIMITS,
        example="64MiB",
        effective="memory_bytes",
    )
    ssd: str | None = _setting(
        Kind.SIZE,
        "SSD tier; 0 for none.",
        default="a fifth of free disk, at most 64GiB",
        limit=f"0, or {_SIZE_LIMITS}",
        example="256MiB",
        effective="ssd_bytes",
    )
    network: str | None = _setting(
        Kind.TEXT,
        "Shared store: valkey://…, s3://… or mooncake://….",
        default="none",
        limit="a URL, or off",
        example="off",
        effective="network",
        metavar="URL",
        secret=True,
    )
    root_secret: str | None = _setting(
        Kind.FILE,
        "32 random bytes that all daemons of one shared store have.",
        default="none",
        limit="a file of mode 0600",
        example="/etc/kvloom/root.secret",
        effective="root_secret",
    )
    credentials: str | None = _setting(
        Kind.FILE,
        "Tenants and keys.",
        default="DATA_DIR/credentials.toml",
        limit="a file of mode 0600",
        example="/etc/kvloom/credentials.toml",
        effective="credentials",
    )
    http_auth: str | None = _setting(
        Kind.CHOICE,
        "Without a key on loopback: token or off.",
        default=HttpAuth.TOKEN.value,
        effective="http_auth",
        metavar="HOW",
        choices=HttpAuth,
    )
    tls_certificate: str | None = _setting(
        Kind.FILE,
        "PEM file of the certificate and its chain.",
        default="none",
        limit="with tls_key",
        example="/etc/kvloom/tls.crt",
        effective="tls.certificate",
    )
    tls_key: str | None = _setting(
        Kind.FILE,
        "PEM file of its private key.",
        default="none",
        limit="with tls_certificate",
        example="/etc/kvloom/tls.key",
        effective="tls.key",
    )
    tls_client_ca: str | None = _setting(
        Kind.FILE,
        "Who must have signed clients' certificates.",
        default="none",
        limit="with tls_certificate and tls_key",
        example="/etc/kvloom/clients.crt",
        effective="tls.client_ca",
    )
    codec: str | None = _setting(
        Kind.CHOICE,
        "Of lossy levels: kvloom or cachegen.",
        default=LossyCodec.KVLOOM.value,
        effective="codec",
        metavar="NAME",
        choices=LossyCodec,
    )
    ssd_admission: str | None = _setting(
        Kind.CHOICE,
        "always, or second-use to spare the SSD.",
        default=AdmissionRule.ALWAYS.value,
        effective="ssd_admission",
        metavar="RULE",
        choices=AdmissionRule,
    )
    eviction: str | None = _setting(
        Kind.TEXT,
        "gittins, lru, … or memory=gittins,ssd=lru.",
        default=DEFAULT_POLICY.value,
        limit=", ".join(PolicyName),
        effective="eviction",
        metavar="POLICY",
    )
    ttl: str | None = _setting(
        Kind.TIME,
        "How long a chunk is kept: 90, 15m, 12h, 30d or never.",
        default="never",
        limit=_TTL_LIMITS,
        effective="ttl_seconds",
    )
    network_quota: str | None = _setting(
        Kind.SIZE,
        "Of a namespace on the network store.",
        default="off",
        limit=f"off, or {limits.TIER_BYTES_MIN // 1024**2} MiB and more",
        effective="network_quota_bytes",
    )
    encryption_secret: str | None = _setting(
        Kind.FILE,
        "Encrypt what is on disk; made where missing.",
        default="none",
        limit="a file of mode 0600",
        example="/etc/kvloom/encryption.secret",
        effective="encryption_secret",
    )
    log_format: str | None = _setting(
        Kind.CHOICE,
        "auto, console or json.",
        default=LogFormat.AUTO.value,
        effective="log_format",
        metavar="FORM",
        choices=LogFormat,
    )
    log_level: str | None = _setting(
        Kind.CHOICE,
        "debug, info, warning or error.",
        default=LogLevel.INFO.value,
        effective="log_level",
        metavar="LEVEL",
        choices=LogLevel,
    )
    traces: str | None = _setting(
        Kind.CHOICE,
        "OpenTelemetry traces: off or otlp.",
        default=TraceExport.OFF.value,
        effective="traces",
        metavar="WHERE",
        choices=TraceExport,
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "ConfigText":
        """What the ``KVLOOM_*`` variables say; an empty variable says nothing."""
        return cls(*(environ.get(item.variable) or None for item in SETTINGS))

    def over(self, other: "ConfigText") -> "ConfigText":
        """These values, and those of ``other`` where nothing was said here."""
        mine = (getattr(self, item.name) for item in SETTINGS)
        theirs = (getattr(other, item.name) for item in SETTINGS)
        return ConfigText(*(b if a is None else a for a, b in zip(mine, theirs, strict=True)))

    def said(self) -> dict[str, str]:
        """The values that were said, by name."""
        texts = ((item.name, getattr(self, item.name)) for item in SETTINGS)
        return {name: text for name, text in texts if text is not None}

    def directory(self) -> Path:
        """The data directory these values name, or the user's default one."""
        return data_directory({} if self.data_dir is None else {DATA_DIR_VARIABLE: self.data_dir})


SETTINGS: Final = tuple(Setting(item.name, **item.metadata[_METADATA]) for item in fields(ConfigText))
"""Every setting there is, in the order in which people are shown them."""
_BY_NAME: Final = {item.name: item for item in SETTINGS}


def setting_named(name: str) -> Setting:
    """The setting called ``name``, which must be one."""
    return _BY_NAME[name]
