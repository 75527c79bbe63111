"""The daemon's configuration: what the texts of the settings mean, with defaults that fit the machine.

Every value arrives as text, from wherever it was said (:mod:`.config_sources`), is parsed in one place, and is refused
with one line that begins with its name and says the limit.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from .. import limits
from ..clients.discovery import DEFAULT_HOST, DEFAULT_PORT, is_loopback
from ..codec.level import LossyCodec
from ..errors import ConfigError
from ..kvstore.eviction_choice import EvictionChoice
from ..kvstore.network import parse_network
from ..kvstore.tiered.admission import AdmissionRule
from .machine import Machine
from .settings import ConfigText, HttpAuth, LogFormat, LogLevel, TraceExport

__all__ = [
    "ConfigText",
    "DaemonConfig",
    "HttpAuth",
    "LogFormat",
    "LogLevel",
    "TlsFiles",
    "TraceExport",
    "format_size",
    "parse_size",
    "parse_ttl",
    "resolve_config",
]

_MEMORY_BYTES_DEFAULT_MAX: Final = 4 * 1024**3
_MEMORY_SHARE: Final = 0.25
_SSD_BYTES_DEFAULT_MAX: Final = 64 * 1024**3
_SSD_SHARE: Final = 0.20
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_DURATION = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
_SECONDS_OF = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
Choice = TypeVar("Choice", bound=StrEnum)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of the HTTP edge; with ``client_ca`` clients need a certificate that it has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """All that a daemon needs to know; ``port`` 0 takes a free one, ``ssd_bytes`` 0 keeps nothing on disk.

    ``codec`` is what the lossy levels of its namespace are coded with, ``ttl_seconds`` how long it keeps a chunk that
    is put without a time to live (``None``: for ever), ``ssd_admission`` which chunks are written to the SSD,
    ``network_quota_bytes`` what a namespace may have on the shared tier, whichever daemon put it there. ``network`` is
    the line that configures the network tier (it may hold a password), ``root_secret`` the file that daemons of one
    network store have in common. ``encryption_secret`` is the file of the secret
    that the keys of what is on disk are wrapped under; ``None`` stores it as it is. ``credentials`` is the file of
    tenants and keys, which need not be there on loopback; elsewhere it has to be, and ``tls`` too.
    """

    host: str
    port: int
    data_dir: Path
    memory_bytes: int
    ssd_bytes: int
    dirty_bytes_max: int
    codec: LossyCodec
    ssd_admission: AdmissionRule
    ttl_seconds: float | None
    network_quota_bytes: int | None
    encryption_secret: Path | None
    log_format: LogFormat
    log_level: LogLevel
    network: str | None = field(default=None, repr=False)
    root_secret: Path | None = None
    credentials: Path | None = None
    http_auth: HttpAuth = HttpAuth.TOKEN
    tls: TlsFiles | None = None
    eviction: EvictionChoice = field(default_factory=EvictionChoice)
    """What the memory and the SSD tier give up first."""
    grpc_port: int | None = None
    """Where gRPC is served beside HTTP, on the same ``host``; ``None`` serves none."""
    traces: TraceExport = TraceExport.OFF

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def resolve_config(text: ConfigText, machine: Machine) -> DaemonConfig:
    """Parse and complete ``text`` for ``machine``, probed at ``text.directory()``; raises :class:`ConfigError`."""
    tls = _tls(text)
    http_auth = _choice("http_auth", text.http_auth or HttpAuth.TOKEN, HttpAuth)
    memory_bytes = _tier_size("memory", text.memory, _default_memory(machine), machine.memory_total_bytes)
    return DaemonConfig(
        host=_host(text.host or DEFAULT_HOST, tls, http_auth),
        port=DEFAULT_PORT if text.port is None else _port("port", text.port),
        data_dir=text.directory().absolute(),
        memory_bytes=memory_bytes,
        ssd_bytes=_ssd_size(text.ssd, machine),
        dirty_bytes_max=min(limits.DIRTY_BYTES_MAX, memory_bytes // 2),
        codec=_choice("codec", text.codec or LossyCodec.KVLOOM, LossyCodec),
        ssd_admission=_choice("ssd_admission", text.ssd_admission or AdmissionRule.ALWAYS, AdmissionRule),
        ttl_seconds=None if text.ttl is None else parse_ttl("ttl", text.ttl),
        network_quota_bytes=None if text.network_quota in (None, "off") else _quota(text.network_quota),
        encryption_secret=Path(text.encryption_secret).absolute() if text.encryption_secret else None,
        log_format=_choice("log_format", text.log_format or LogFormat.AUTO, LogFormat),
        log_level=_choice("log_level", text.log_level or LogLevel.INFO, LogLevel),
        network=_network(text.network),
        root_secret=_path(text.root_secret),
        credentials=_path(text.credentials),
        http_auth=http_auth,
        tls=tls,
        eviction=EvictionChoice() if text.eviction is None else EvictionChoice.parse(text.eviction),
        grpc_port=None if text.grpc_port in (None, "off") else _port("grpc_port", text.grpc_port),
        traces=_choice("traces", text.traces or TraceExport.OFF, TraceExport),
    )


def parse_size(name: str, text: str) -> int:
    """Bytes of ``512MiB``, ``1.5GB``, ``4g`` (binary where no B says otherwise) or a plain number."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{name} {text[:40]!r} is not a size such as 512MiB or 4GiB")
    number, prefix, binary, b = match.groups()
    base = 1000 if prefix and b and not binary else 1024
    return int(float(number) * base ** _POWERS[prefix.lower()])


def format_size(size_bytes: float) -> str:
    """``size_bytes`` for a person, in binary units: ``4.0 GiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _default_memory(machine: Machine) -> int:
    share = int(machine.memory_available_bytes * _MEMORY_SHARE)
    return max(limits.TIER_BYTES_MIN, min(_MEMORY_BYTES_DEFAULT_MAX, share))


def _ssd_size(text: str | None, machine: Machine) -> int:
    """The SSD tier's limit; 0 where it was switched off, or nothing was said and the disk is all but full."""
    disk_bytes = machine.disk_free_bytes + machine.own_disk_bytes
    default = min(_SSD_BYTES_DEFAULT_MAX, int(disk_bytes * _SSD_SHARE))
    if text in ("0", "off") or (text is None and default < limits.TIER_BYTES_MIN):
        return 0
    return _tier_size("ssd", text, default, disk_bytes)


def _tier_size(name: str, text: str | None, default: int, most: int) -> int:
    size = default if text is None else parse_size(name, text)
    if size < limits.TIER_BYTES_MIN:
        raise ConfigError(f"{name} is {format_size(size)}, at least {format_size(limits.TIER_BYTES_MIN)} is needed")
    if size > most:
        raise ConfigError(f"{name} is {format_size(size)}, this machine has {format_size(most)}")
    return size


def _network(text: str | None) -> str | None:
    """The line as it is, once it is known to hold; ``off`` switches off what the environment says."""
    if text is None or text == "off":
        return None
    try:
        parse_network(text)
    except ConfigError as error:
        line = str(error)
        raise ConfigError(line if line.startswith("network ") else f"network: {line}") from error
    return text


def _host(host: str, tls: TlsFiles | None, http_auth: HttpAuth) -> str:
    """The address to listen on; beyond loopback only with TLS and with keys."""
    if is_loopback(host):
        return host
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigError(f"host {host[:80]!r} is neither an IP address nor localhost") from error
    said = f"host {host[:80]!r} is not a loopback address (127.0.0.1, ::1 or localhost)"
    if tls is None:
        raise ConfigError(
            f"{said}: set tls_certificate and tls_key to PEM files, and make keys with 'kvloom keys create', "
            "to serve other machines"
        )
    if http_auth is HttpAuth.OFF:
        raise ConfigError(f"{said}: http_auth cannot be off there")
    return host


def _tls(text: ConfigText) -> TlsFiles | None:
    certificate, key, client_ca = (_path(item) for item in (text.tls_certificate, text.tls_key, text.tls_client_ca))
    if certificate is None or key is None:
        for name, path in (("tls_certificate", certificate), ("tls_key", key), ("tls_client_ca", client_ca)):
            if path is not None:
                raise ConfigError(f"{name} is set, but TLS needs both tls_certificate and tls_key")
        return None
    return TlsFiles(certificate, key, client_ca)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser().absolute()


def _port(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise ConfigError(f"{name} {text[:40]!r} is not a number from 0 to 65535{_service_link(text)}")
    return int(text)


def _service_link(text: str) -> str:
    """Kubernetes tells every pod of a Service called kvloom in ``KVLOOM_PORT`` where that is."""
    return "; Kubernetes sets it for a Service: enableServiceLinks: false" if text.startswith("tcp://") else ""


def _quota(text: str) -> int:
    size_bytes = parse_size("network_quota", text)
    if size_bytes < limits.TIER_BYTES_MIN:
        least = format_size(limits.TIER_BYTES_MIN)
        raise ConfigError(f"network_quota is {format_size(size_bytes)}, at least {least} is needed")
    return size_bytes


def parse_ttl(name: str, text: str) -> float | None:
    """Seconds of ``90``, ``15m``, ``12h`` or ``30d``; ``None`` for ``never``."""
    if text == "never":
        return None
    match = _DURATION.fullmatch(text.strip())
    seconds = 0 if match is None else int(match[1]) * _SECONDS_OF[match[2]]
    if not 1 <= seconds <= limits.TTL_SECONDS_MAX:
        most_days = limits.TTL_SECONDS_MAX // 86_400
        raise ConfigError(
            f"{name} {text[:40]!r} is not never or a time such as 90, 15m, 12h or 30d, up to {most_days}d"
        )
    return float(seconds)


def _choice(name: str, text: str, kind: type[Choice]) -> Choice:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} {text[:40]!r} is not one of {', '.join(kind)}") from error
