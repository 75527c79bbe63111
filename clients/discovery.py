"""Where the daemon is: an address given, one in the environment, or the note that a running daemon leaves."""

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import platformdirs

from ..errors import ConfigError

__all__ = [
    "ADDRESS_VARIABLE",
    "DATA_DIR_VARIABLE",
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "URL_VARIABLE",
    "DaemonNote",
    "Endpoint",
    "data_directory",
    "find_daemon",
    "find_local_socket",
    "is_loopback",
    "parse_address",
]

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 7117
ADDRESS_VARIABLE: Final = "KVLOOM_ADDRESS"
URL_VARIABLE: Final = "KVLOOM_URL"
"""The same; it wins where both are set."""
DATA_DIR_VARIABLE: Final = "KVLOOM_DATA_DIR"
_NOTE_NAME: Final = "daemon.json"
_NOTE_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address, with TLS or without; ``str()`` is ``host:port`` with IPv6 addresses in brackets."""

    host: str
    port: int
    secure: bool = False

    @property
    def is_near(self) -> bool:
        """Whether it is on this machine by its name alone: what goes there passes no network."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """``http://host:port`` or ``https://host:port``."""
        return f"{'https' if self.secure else 'http'}://{self}"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DaemonNote:
    """What a running daemon writes to ``daemon.json``; stale after a crash, so only ever a hint.

    ``local`` is the path of its Unix socket, ``grpc_port`` where it serves gRPC, where it does.
    """

    endpoint: Endpoint
    pid: int
    version: str
    local: str | None = None
    grpc_port: int | None = None

    @property
    def grpc_endpoint(self) -> Endpoint | None:
        """Where it serves gRPC."""
        return None if self.grpc_port is None else Endpoint(self.endpoint.host, self.grpc_port, self.endpoint.secure)

    @staticmethod
    def path(data_dir: Path) -> Path:
        """Where the note of the daemon that owns ``data_dir`` lies."""
        return data_dir / _NOTE_NAME

    def write(self, data_dir: Path) -> None:
        """Replace the note atomically, readable by this user only (mode 0600)."""
        target = self.path(data_dir)
        draft = target.with_suffix(".tmp")
        draft.unlink(missing_ok=True)
        document: dict[str, str | int] = {
            "host": self.endpoint.host,
            "port": self.endpoint.port,
            "pid": self.pid,
            "version": self.version,
        }
        if self.endpoint.secure:
            document["tls"] = True
        if self.local is not None:
            document["local"] = self.local
        if self.grpc_port is not None:
            document["grpc_port"] = self.grpc_port
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file)
        draft.replace(target)

    @classmethod
    def read(cls, data_dir: Path) -> "DaemonNote | None":
        """The note in ``data_dir``, or ``None`` where there is none that can be read."""
        try:
            with cls.path(data_dir).open("rb") as file:
                document = json.loads(file.read(_NOTE_BYTES_MAX))
            endpoint = Endpoint(str(document["host"]), int(document["port"]), document.get("tls") is True)
            local, port = document.get("local"), document.get("grpc_port")
            return cls(
                endpoint,
                int(document["pid"]),
                str(document["version"]),
                None if local is None else str(local),
                None if port is None else int(port),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def data_directory(environ: Mapping[str, str]) -> Path:
    """The directory a daemon of this user keeps its data in: ``KVLOOM_DATA_DIR``, or the platform's own place."""
    return Path(environ.get(DATA_DIR_VARIABLE) or platformdirs.user_data_dir("kvloom", appauthor=False)).expanduser()


def parse_address(text: str) -> Endpoint:
    """Parse ``host:port``, ``host``, ``http://host:port`` or ``https://host:port``; else :class:`ConfigError`."""
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"address {text[:80]!r} does not parse: {error}") from error
    if (
        not host
        or parts.scheme not in ("", "http", "https")
        or parts.path not in ("", "/")
        or parts.query
        or parts.username
    ):
        raise ConfigError(f"address {text[:80]!r} is not host:port")
    return Endpoint(host, DEFAULT_PORT if port is None else port, parts.scheme == "https")


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address, is this machine's own and nobody else's."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_daemon(
    address: str | None = None, *, environ: Mapping[str, str] | None = None, data_dir: Path | None = None
) -> Endpoint:
    """The daemon to talk to: ``address``, ``KVLOOM_URL``, ``KVLOOM_ADDRESS``, the note in ``data_dir``, or the default.

    ``environ`` is ``os.environ`` and ``data_dir`` this user's data directory unless given. Nothing is contacted.
    """
    variables = os.environ if environ is None else environ
    explicit = address or variables.get(URL_VARIABLE) or variables.get(ADDRESS_VARIABLE)
    if explicit:
        return parse_address(explicit)
    note = DaemonNote.read(data_dir or data_directory(variables))
    return Endpoint(DEFAULT_HOST, DEFAULT_PORT) if note is None else note.endpoint


def find_local_socket(
    endpoint: Endpoint, *, environ: Mapping[str, str] | None = None, data_dir: Path | None = None
) -> Path | None:
    """The Unix socket of the daemon at ``endpoint``, where the note in this user's data directory names one."""
    variables = os.environ if environ is None else environ
    note = DaemonNote.read(data_dir or data_directory(variables))
    return None if note is None or note.endpoint != endpoint or note.local is None else Path(note.local)
