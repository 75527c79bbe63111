"""The daemon's configuration: defaults that fit the machine, then the environment, then flags.

Every value arrives as text, is parsed in one place, and is refused with one line that names it and the limit.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from .. import limits
from ..clients.discovery import DATA_DIR_VARIABLE, DEFAULT_HOST, DEFAULT_PORT, data_directory
from ..codec.level import LossyCodec
from ..errors import ConfigError
from ..kvstore.eviction_choice import EvictionChoice
from ..kvstore.network import parse_network
from ..kvstore.tiered.admission import AdmissionRule
from .machine import Machine

__all__ = ["ConfigText", "DaemonConfig", "LogFormat", "LogLevel", "format_size", "parse_size", "resolve_config"]

_MEMORY_BYTES_DEFAULT_MAX: Final = 4 * 1024**3
_MEMORY_SHARE: Final = 0.25
_SSD_BYTES_DEFAULT_MAX: Final = 64 * 1024**3
_SSD_SHARE: Final = 0.20
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_DURATION = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
_SECONDS_OF = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
Choice = TypeVar("Choice", bound=StrEnum)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


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


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """All that a daemon needs to know; ``port`` 0 takes a free one, ``ssd_bytes`` 0 keeps nothing on disk.

    ``codec`` is what the lossy levels of its namespace are coded with, ``ttl_seconds`` how long it keeps a chunk that
    is put without a time to live (``None``: for ever), ``ssd_admission`` which chunks are written to the SSD,
    ``network_quota_bytes`` what a namespace may have on the shared tier, whichever daemon put it there. ``network`` is
    the line that configures the network tier (it may hold a password), ``root_secret`` the file that daemons of one
    network store have in common. ``encryption_secret`` is the file of the secret
    that the keys of what is on disk are wrapped under; ``None`` stores it as it is.
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
    eviction: EvictionChoice = field(default_factory=EvictionChoice)
    """What the memory and the SSD tier give up first."""


@dataclass(frozen=True, slots=True)
class ConfigText:
    """Values as somebody wrote them; ``None`` where nothing was said. Field ``x`` is ``KVLOOM_X`` and ``--x``."""

    host: str | None = None
    port: str | None = None
    data_dir: str | None = None
    memory: str | None = None
    ssd: str | None = None
    codec: str | None = None
    ssd_admission: str | None = None
    ttl: str | None = None
    network_quota: str | None = None
    encryption_secret: str | None = None
    log_format: str | None = None
    log_level: str | None = None
    network: str | None = None
    root_secret: str | None = None
    eviction: str | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "ConfigText":
        """What the ``KVLOOM_*`` variables say; an empty variable says nothing."""
        return cls(*(environ.get(f"KVLOOM_{field.name.upper()}") or None for field in fields(cls)))

    def over(self, other: "ConfigText") -> "ConfigText":
        """These values, and those of ``other`` where nothing was said here."""
        mine = (getattr(self, field.name) for field in fields(self))
        theirs = (getattr(other, field.name) for field in fields(self))
        return ConfigText(*(b if a is None else a for a, b in zip(mine, theirs, strict=True)))

    def directory(self) -> Path:
        """The data directory these values name, or the user's default one."""
        return data_directory({} if self.data_dir is None else {DATA_DIR_VARIABLE: self.data_dir})


def resolve_config(text: ConfigText, machine: Machine) -> DaemonConfig:
    """Parse and complete ``text`` for ``machine``, probed at ``text.directory()``; raises :class:`ConfigError`."""
    memory_bytes = _tier_size("memory", text.memory, _default_memory(machine), machine.memory_total_bytes)
    return DaemonConfig(
        host=_loopback(text.host or DEFAULT_HOST),
        port=_port(text.port),
        data_dir=text.directory().absolute(),
        memory_bytes=memory_bytes,
        ssd_bytes=_ssd_size(text.ssd, machine),
        dirty_bytes_max=min(limits.DIRTY_BYTES_MAX, memory_bytes // 2),
        codec=_choice("codec", text.codec or LossyCodec.KVLOOM, LossyCodec),
        ssd_admission=_choice("ssd_admission", text.ssd_admission or AdmissionRule.ALWAYS, AdmissionRule),
        ttl_seconds=_ttl(text.ttl),
        network_quota_bytes=None if text.network_quota in (None, "off") else _quota(text.network_quota),
        encryption_secret=Path(text.encryption_secret).absolute() if text.encryption_secret else None,
        log_format=_choice("log_format", text.log_format or LogFormat.AUTO, LogFormat),
        log_level=_choice("log_level", text.log_level or LogLevel.INFO, LogLevel),
        network=_network(text.network),
        root_secret=None if text.root_secret is None else Path(text.root_secret).expanduser().absolute(),
        eviction=EvictionChoice() if text.eviction is None else EvictionChoice.parse(text.eviction),
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
    parse_network(text)
    return text


def _loopback(host: str) -> str:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"host {host[:80]!r} is not a loopback address (127.0.0.1, ::1 or localhost): "
            "this version listens on loopback only, it has no TLS and no credentials"
        )
    return host


def _port(text: str | None) -> int:
    if text is None:
        return DEFAULT_PORT
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise ConfigError(f"port {text[:40]!r} is not a number from 0 to 65535")
    return int(text)


def _quota(text: str) -> int:
    size_bytes = parse_size("network_quota", text)
    if size_bytes < limits.TIER_BYTES_MIN:
        least = format_size(limits.TIER_BYTES_MIN)
        raise ConfigError(f"network_quota is {format_size(size_bytes)}, at least {least} is needed")
    return size_bytes


def _ttl(text: str | None) -> float | None:
    """Seconds of ``90``, ``15m``, ``12h`` or ``30d``; ``None`` for nothing said or ``never``."""
    if text is None or text == "never":
        return None
    match = _DURATION.fullmatch(text.strip())
    seconds = 0 if match is None else int(match[1]) * _SECONDS_OF[match[2]]
    if not 1 <= seconds <= limits.TTL_SECONDS_MAX:
        most_days = limits.TTL_SECONDS_MAX // 86_400
        raise ConfigError(f"ttl {text[:40]!r} is not never or a time such as 90, 15m, 12h or 30d, up to {most_days}d")
    return float(seconds)


def _choice(name: str, text: str, kind: type[Choice]) -> Choice:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} {text[:40]!r} is not one of {', '.join(kind)}") from error
