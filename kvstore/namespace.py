"""Namespaces: whose chunks are whose, and what their lossy levels are coded with.

Each has a secret of its own that turns content keys into storage keys.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from .. import limits
from ..codec.level import LossyCodec
from ..errors import ConfigError, InvalidRequest
from .atomic_file import create_file
from .key import KEY_BYTES, OwnerId, owner_id

__all__ = [
    "Namespace",
    "check_ttl",
    "derive_namespace",
    "load_or_create_root_secret",
    "load_root_secret",
]

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_GROUP_AND_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Namespace:
    """A tenant: ``name`` is for people, the 32 bytes of ``secret`` never leave the server.

    ``codec`` is what lossy levels put from now on must be coded with; what is stored already stays readable.
    ``ttl_seconds`` is how long a chunk is kept that is put without saying so, for ever by default.
    """

    name: str
    secret: bytes = field(repr=False)
    codec: LossyCodec = LossyCodec.KVLOOM
    ttl_seconds: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= limits.NAMESPACE_CHARS_MAX or not set(self.name) <= _NAME_CHARACTERS:
            raise InvalidRequest(
                f"namespace {self.name[:80]!r} is not 1 to {limits.NAMESPACE_CHARS_MAX} of a-z 0-9 . _ -"
            )
        if len(self.secret) != KEY_BYTES:
            raise InvalidRequest(f"namespace secret has {len(self.secret)} bytes, must have {KEY_BYTES}")
        if self.ttl_seconds is not None:
            check_ttl(self.ttl_seconds)

    @property
    def owner(self) -> OwnerId:
        """Whose its records are; the first bytes of its storage keys."""
        return owner_id(self.secret)


def check_ttl(ttl_seconds: float) -> None:
    """Raise :class:`InvalidRequest` for a time to live that is not within the limits."""
    if not 0.001 <= ttl_seconds <= limits.TTL_SECONDS_MAX:
        raise InvalidRequest(f"time to live is {ttl_seconds} s, must be 0.001 to {limits.TTL_SECONDS_MAX}")


def derive_namespace(
    root_secret: bytes, name: str, *, codec: LossyCodec = LossyCodec.KVLOOM, ttl_seconds: float | None = None
) -> Namespace:
    """The namespace called ``name`` under ``root_secret`` (32 bytes): its secret is keyed BLAKE3 of the name."""
    return Namespace(name, blake3(name.encode(), key=root_secret).digest(), codec, ttl_seconds)


def load_or_create_root_secret(path: Path) -> bytes:
    """The 32 bytes in ``path``; where it is missing, new random ones, written durably and readable by its owner only.

    Blocks. Of several processes that create it at once one wins and all return the same. Raises :class:`ConfigError`
    for a file that others may read, that has another length, or that cannot be read or written.
    """
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_file(path, secrets.token_bytes(KEY_BYTES))
    except OSError as error:
        raise ConfigError(f"root secret {path} cannot be used: {error.strerror}") from error
    return load_root_secret(path)


def load_root_secret(path: Path) -> bytes:
    """The 32 bytes in ``path``, which must be there: daemons that share a store share this file, none may invent it.

    Blocks. Raises :class:`ConfigError` as :func:`load_or_create_root_secret` does.
    """
    try:
        mode = path.stat().st_mode & 0o777
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"root secret {path} cannot be used: {error.strerror}") from error
    if mode & _GROUP_AND_OTHERS:
        raise ConfigError(f"root secret {path} has mode {mode:o}, others may use it: chmod 600 {path}")
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"root secret {path} has {len(secret)} bytes, must have {KEY_BYTES}")
    return secret
