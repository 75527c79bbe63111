"""The one line that configures a network tier, parsed: which engine, where, and under which prefix. Pure.

::

    valkey://[user:password@]host[:port][,host[:port]…][/prefix]     valkeys:// with TLS; redis:// and rediss:// too
    s3://bucket[/prefix]                                             endpoint, region, credentials: AWS_* variables
    mooncake://host[:port][/prefix][?protocol=rdma&device=…&…]       host is the master's

Everything else is refused with an error that names it; a password is never in an error.
"""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ...errors import ConfigError

__all__ = [
    "HostPort",
    "MooncakeAddress",
    "NetworkAddress",
    "S3Address",
    "ValkeyAddress",
    "parse_network",
]

PREFIX_DEFAULT: Final = "kvloom"
_VALKEY_SCHEMES: Final = {"valkey": False, "valkeys": True, "redis": False, "rediss": True}
_VALKEY_PORT: Final = 6379
_MOONCAKE_PORT: Final = 50051
_MOONCAKE_ADMIN_PORT: Final = 9003
_MOONCAKE_PROTOCOLS: Final = ("tcp", "rdma")
_MOONCAKE_OPTIONS: Final = ("protocol", "device", "metadata", "local", "admin", "segment", "buffer")
_HOSTS_MAX: Final = 64
_URL_CHARACTERS_MAX: Final = 4096
_PREFIX: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_S3_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_SIZE: Final = re.compile(r"(\d{1,12})(B|KiB|MiB|GiB|TiB)?")
_POWERS: Final = {None: 0, "B": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}


@dataclass(frozen=True, slots=True)
class HostPort:
    """One server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ValkeyAddress:
    """Valkey or Redis: one server, or some nodes of a cluster, which are asked for the others."""

    hosts: tuple[HostPort, ...]
    tls: bool
    prefix: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"valkey{'s' if self.tls else ''}://{','.join(map(str, self.hosts))}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class S3Address:
    """A bucket; ``prefix`` without slashes at its ends."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class MooncakeAddress:
    """A Mooncake master.

    ``segment_bytes`` of this machine's memory are lent to the pool, ``buffer_bytes`` are for transfers. ``metadata`` is
    a metadata server's URL, or ``P2PHANDSHAKE`` for none. ``local`` is the name under which other clients reach this
    one, ``admin_port`` the master's HTTP port, which lists what is stored.
    """

    master: HostPort
    admin_port: int
    prefix: str
    protocol: str
    device: str
    metadata: str
    local: str
    segment_bytes: int
    buffer_bytes: int

    def __str__(self) -> str:
        return f"mooncake://{self.master}/{self.prefix}"


NetworkAddress = ValkeyAddress | S3Address | MooncakeAddress


def parse_network(url: str) -> NetworkAddress:
    """Parse the line; :class:`ConfigError` names the part that is wrong and what it may be."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator or len(url) > _URL_CHARACTERS_MAX:
        raise ConfigError(
            f"network {_shown(url)!r} is not valkey://host:port, s3://bucket/prefix or mooncake://host:port"
        )
    if scheme in _VALKEY_SCHEMES:
        return _valkey(scheme, rest)
    if scheme == "s3":
        return _s3(rest)
    if scheme == "mooncake":
        return _mooncake(rest)
    raise ConfigError(f"network scheme {scheme[:20]!r} is not one of valkey, valkeys, redis, rediss, s3, mooncake")


def _valkey(scheme: str, rest: str) -> ValkeyAddress:
    _refuse_query(rest)
    place, _, path = rest.partition("/")
    credentials, at, hosts = place.rpartition("@")
    username, _, password = credentials.partition(":")
    if at and not password:
        raise ConfigError("network: what stands before the @ is not user:password or :password")
    if path.isdigit():
        raise ConfigError(
            f"network: /{path[:20]} would be a database number; a prefix such as /{PREFIX_DEFAULT} is meant"
        )
    return ValkeyAddress(
        hosts=_hosts(hosts, _VALKEY_PORT),
        tls=_VALKEY_SCHEMES[scheme],
        prefix=_prefix(path),
        username=unquote(username) or None,
        password=unquote(password) or None,
    )


def _s3(rest: str) -> S3Address:
    _refuse_query(rest)
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"network: {_shown(bucket)!r} is not the name of a bucket")
    if prefix and not _S3_PREFIX.fullmatch(prefix):
        raise ConfigError(f"network: prefix {_shown(prefix)!r} is not made of A-Z a-z 0-9 . _ - and single slashes")
    return S3Address(bucket, prefix or PREFIX_DEFAULT)


def _mooncake(rest: str) -> MooncakeAddress:
    place, _, query = rest.partition("?")
    host, _, path = place.partition("/")
    masters = _hosts(host, _MOONCAKE_PORT)
    if len(masters) > 1:
        raise ConfigError(f"network: {len(masters)} Mooncake masters, one is needed")
    options = _options(query)
    protocol = options.get("protocol", "tcp")
    if protocol not in _MOONCAKE_PROTOCOLS:
        raise ConfigError(f"network: protocol {_shown(protocol)!r} is not one of {', '.join(_MOONCAKE_PROTOCOLS)}")
    if protocol == "rdma" and "device" not in options:
        raise ConfigError("network: protocol=rdma needs device=, such as device=mlx5_0")
    metadata = options.get("metadata", "P2PHANDSHAKE")
    if metadata != "P2PHANDSHAKE" and urlsplit(metadata).scheme not in ("http", "https", "etcd", "redis"):
        raise ConfigError(f"network: metadata {_shown(metadata)!r} is not P2PHANDSHAKE or the URL of a metadata server")
    return MooncakeAddress(
        master=masters[0],
        admin_port=_port(options.get("admin", str(_MOONCAKE_ADMIN_PORT))),
        prefix=_prefix(path),
        protocol=protocol,
        device=options.get("device", ""),
        metadata=metadata,
        local=options.get("local", "127.0.0.1"),
        segment_bytes=_size("segment", options.get("segment", "0")),
        buffer_bytes=_size("buffer", options.get("buffer", "512MiB")),
    )


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, strict_parsing=bool(query), max_num_fields=len(_MOONCAKE_OPTIONS))
    except ValueError as error:
        raise ConfigError(f"network: options {_shown(query)!r} are not name=value&name=value") from error
    options = dict(pairs)
    for name, _ in pairs:
        if name not in _MOONCAKE_OPTIONS:
            raise ConfigError(f"network: option {_shown(name)!r} is not one of {', '.join(_MOONCAKE_OPTIONS)}")
    if len(options) != len(pairs):
        raise ConfigError(f"network: an option stands twice in {_shown(query)!r}")
    return options


def _refuse_query(rest: str) -> None:
    for mark in "?#":
        if mark in rest:
            raise ConfigError(
                f"network: {mark + _shown(rest.partition(mark)[2])!r} is not understood; there are no options"
            )


def _hosts(text: str, port_default: int) -> tuple[HostPort, ...]:
    items = text.split(",")
    if len(items) > _HOSTS_MAX:
        raise ConfigError(f"network names {len(items)} hosts, the limit is {_HOSTS_MAX}")
    return tuple(_host(item, port_default) for item in items)


def _host(text: str, port_default: int) -> HostPort:
    host, colon, port = text, "", ""
    if not text.endswith("]"):
        host, colon, port = text.rpartition(":") if ":" in text else (text, "", "")
    if not _HOST.fullmatch(host):
        raise ConfigError(f"network: {_shown(text)!r} is not host or host:port")
    return HostPort(host.strip("[]"), _port(port) if colon else port_default)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise ConfigError(f"network: port {_shown(text)!r} is not a number from 1 to 65535")
    return int(text)


def _prefix(text: str) -> str:
    if not text:
        return PREFIX_DEFAULT
    if not _PREFIX.fullmatch(text):
        raise ConfigError(f"network: prefix {_shown(text)!r} is not 1 to 64 of a-z 0-9 . _ -")
    return text


def _size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"network: {name} {_shown(text)!r} is not a size such as 512MiB")
    return int(match[1]) << 10 * _POWERS[match[2]]


def _shown(text: str) -> str:
    """``text`` for an error: short, and without what could be a password."""
    return text.rpartition("@")[2][:60]
