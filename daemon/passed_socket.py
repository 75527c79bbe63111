"""A socket that the service manager has opened and passes on: it listens also while no daemon runs.

Whoever connects during a restart waits in its queue and is served by the next daemon, instead of being refused. As
sd_listen_fds(3) says, without a library.
"""

import os
import socket
from collections.abc import Mapping
from typing import Final

from ..clients.discovery import is_loopback
from ..errors import ConfigError

__all__ = ["passed_listener"]

_FIRST: Final = 3
_PID, _COUNT = "LISTEN_PID", "LISTEN_FDS"


def passed_listener(environ: Mapping[str, str], *, host: str, first: int = _FIRST) -> socket.socket | None:
    """The socket passed to this process, ``None`` where there is none; to be closed by the caller.

    Raises :class:`ConfigError` where it is more than one, or none that HTTP can be served on, or where it would serve
    others than ``host`` does: what is checked beyond loopback must not be passed by.
    """
    if environ.get(_PID) != str(os.getpid()) or environ.get(_COUNT, "0") == "0":
        return None
    if environ[_COUNT] != "1":
        raise ConfigError(f"{environ[_COUNT][:10]} sockets were passed, kvloom takes one: ListenStream= for HTTP")
    try:
        passed = socket.socket(fileno=first)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise ConfigError(f"descriptor {first} was passed and is no socket: {reason}") from error
    try:
        _check(passed, host)
    except ConfigError:
        passed.detach()
        raise
    passed.set_inheritable(False)
    return passed


def _check(passed: socket.socket, host: str) -> None:
    if passed.family not in (socket.AF_INET, socket.AF_INET6) or passed.type != socket.SOCK_STREAM:
        raise ConfigError("the socket passed is not one of TCP")
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError("the socket passed does not listen")
    address = passed.getsockname()[0]
    if is_loopback(address) != is_loopback(host):
        raise ConfigError(f"the socket passed listens on {address}, host says {host}: both or none must be loopback")
