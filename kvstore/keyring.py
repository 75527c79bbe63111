"""The keys that records are encrypted under: one per owner, wrapped, in a file each; erasing it erases the owner.

``{owner in hex}.key`` – 60 bytes: 12 random ones as nonce, the owner's 32 random ones under AES-256-GCM, the tag. The
wrapping key is derived from a secret of 32 bytes that lies elsewhere (the daemon's, or one that an operator mounts);
whoever has the disk alone has neither. Authenticated with each key is whose it is, so key files cannot be exchanged.
"""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blake3 import blake3

from ..errors import ConfigError, MissingDependency, StorageUnavailable
from .atomic_file import create_file
from .tier import OWNER_BYTES, OwnerId

__all__ = ["Keyring", "OwnerKey"]

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_FILE_BYTES: Final = _NONCE_BYTES + _KEY_BYTES + _TAG_BYTES
_CONTEXT: Final = b"kvloom key wrapping 1"


@dataclass(frozen=True, slots=True)
class OwnerKey:
    """The key of one owner, unwrapped: 32 bytes that never leave the process."""

    secret: bytes = field(repr=False)


class Keyring:
    """The keys in ``directory``, wrapped under ``secret``. Thread-safe; methods that may touch files block."""

    def __init__(self, directory: Path, secret: bytes) -> None:
        """Raises :class:`ConfigError` for a secret of another length, a directory that cannot be used, or a key that
        does not unwrap: then the secret is not the one it was wrapped under, and nothing would be readable.
        """
        if len(secret) != _KEY_BYTES:
            raise ConfigError(f"encryption secret has {len(secret)} bytes, must have {_KEY_BYTES}")
        self._directory = directory
        self._lock = threading.Lock()
        self._keys: dict[OwnerId, OwnerKey] = {}
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise MissingDependency("encryption needs cryptography: pip install 'kvloom[encryption]'") from error
        self._wrapping = AESGCM(blake3(_CONTEXT, key=secret).digest())
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in directory.glob("*.key"):
                owner = self._owner_of(path)
                if path.read_bytes() == bytes(_FILE_BYTES):
                    _destroy(path)  # an erasure that a crash cut short
                else:
                    self._keys[owner] = self._unwrapped(owner, path)
        except OSError as error:
            raise ConfigError(f"key directory {directory} cannot be used: {error.strerror}") from error

    def key_of(self, owner: OwnerId) -> OwnerKey | None:
        """The owner's key, ``None`` where there is none: never made, or erased. Touches no file."""
        return self._keys.get(owner)

    def key_of_new(self, owner: OwnerId) -> OwnerKey:
        """The owner's key, made and durable if there was none; :class:`StorageUnavailable` where it cannot be."""
        known = self._keys.get(owner)
        if known is not None:
            return known
        with self._lock:
            known = self._keys.get(owner)
            if known is None:
                known = self._make(owner)
                self._keys[owner] = known
            return known

    def owners(self) -> list[OwnerId]:
        """All who have a key."""
        return list(self._keys)

    def erase(self, owner: OwnerId) -> bool:
        """Destroy the owner's key, durably; whether there was one. What was encrypted under it is lost for good.

        The file is overwritten before it is removed; a disk that remaps blocks may keep the wrapped key, which opens
        only with the secret. Raises :class:`StorageUnavailable` where the disk fails; the key is then still in use.
        """
        with self._lock:
            path = self._path(owner)
            try:
                existed = path.exists()
                if existed:
                    _destroy(path)
            except OSError as error:
                raise StorageUnavailable(f"key of an owner cannot be erased: {error.strerror}") from error
            return self._keys.pop(owner, None) is not None or existed

    def _path(self, owner: OwnerId) -> Path:
        return self._directory / f"{owner.hex()}.key"

    def _owner_of(self, path: Path) -> OwnerId:
        try:
            owner = bytes.fromhex(path.stem)
        except ValueError:
            owner = b""
        if len(owner) != OWNER_BYTES:
            raise ConfigError(f"key file {path} is not named after an owner")
        return OwnerId(owner)

    def _make(self, owner: OwnerId) -> OwnerKey:
        secret, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
        path = self._path(owner)
        try:
            if not create_file(path, nonce + self._wrapping.encrypt(nonce, secret, bytes(owner))):
                return self._unwrapped(owner, path)
        except OSError as error:
            raise StorageUnavailable(f"key of a new owner cannot be written: {error.strerror}") from error
        return OwnerKey(secret)

    def _unwrapped(self, owner: OwnerId, path: Path) -> OwnerKey:
        from cryptography.exceptions import InvalidTag

        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
        try:
            if len(data) != _FILE_BYTES:
                raise InvalidTag
            return OwnerKey(self._wrapping.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], bytes(owner)))
        except InvalidTag as error:
            raise ConfigError(f"key file {path} is damaged, or wrapped under another encryption secret") from error


def _destroy(path: Path) -> None:
    """Overwrite, remove, and make both durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, bytes(_FILE_BYTES), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
