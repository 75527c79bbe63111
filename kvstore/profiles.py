"""The shelf of codec profiles: files named by the digest of their bytes, beside the chunks coded against them."""

import asyncio
import errno
from pathlib import Path

from blake3 import blake3

from .. import limits
from ..errors import BodyTooLarge, ConfigError, InvalidKey, KeyMismatch, StorageFull, StorageUnavailable
from .atomic_file import replace_file
from .key import KEY_BYTES, OwnerId
from .namespace import Namespace
from .outcome import Corrupt, Hit, Miss, Outcome, Unavailable
from .tier import Buffer

__all__ = ["ProfileShelf", "ProfileShelves"]

_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ProfileShelf:
    """One directory of at most ``limits.PROFILES_MAX`` profiles and ``limits.SHELF_BYTES_MAX`` bytes.

    All methods are safe to call concurrently.

    A digest is BLAKE3-256 of the profile's bytes. Files are written whole or not at all, and verified when read.
    """

    name = "profiles"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"profile directory {directory} cannot be used: {error.strerror}") from error

    async def put(self, digest: bytes, data: Buffer) -> None:
        """Keep a profile; durable on return.

        Raises :class:`KeyMismatch` where ``digest`` is not that of ``data``, :class:`BodyTooLarge`,
        :class:`StorageFull` (the disk, or too many profiles) and :class:`StorageUnavailable`.
        """
        if len(data) > limits.PROFILE_BYTES_MAX:
            raise BodyTooLarge(f"profile has {len(data)} bytes, the limit is {limits.PROFILE_BYTES_MAX}")
        await asyncio.to_thread(self._put, self._path(digest), digest, bytes(data))

    async def get(self, digest: bytes) -> Outcome[bytes]:
        """Read a profile and verify it."""
        return await asyncio.to_thread(self._get, self._path(digest), digest)

    async def list(self) -> list[bytes]:
        """The digests of all profiles, sorted."""
        return [*await asyncio.to_thread(self._digests)]

    def _path(self, digest: bytes) -> Path:
        if len(digest) != KEY_BYTES:
            raise InvalidKey(f"profile digest has {len(digest)} bytes, must have {KEY_BYTES}")
        return self._directory / digest.hex()

    def _put(self, path: Path, digest: bytes, data: bytes) -> None:
        actual = blake3(data).digest()
        if actual != digest:
            raise KeyMismatch(f"profile has digest {actual.hex()[:16]}…, it was put as {digest.hex()[:16]}…")
        if isinstance(self._get(path, digest), Hit):
            return
        if not path.exists() and len(self._digests()) >= limits.PROFILES_MAX:
            raise StorageFull(f"the shelf has {limits.PROFILES_MAX} profiles, the limit")
        held_bytes = self._bytes()
        if held_bytes + len(data) > limits.SHELF_BYTES_MAX:
            raise StorageFull(
                f"profile of {len(data)} bytes, the shelf has {held_bytes}, the limit is {limits.SHELF_BYTES_MAX}"
            )
        try:
            replace_file(path, data)
        except OSError as error:
            kind = StorageFull if error.errno in _FULL_ERRNOS else StorageUnavailable
            raise kind(f"profile {digest.hex()[:16]}… cannot be written: {error.strerror}") from error

    def _get(self, path: Path, digest: bytes) -> Outcome[bytes]:
        try:
            size_bytes = path.stat().st_size
            if size_bytes > limits.PROFILE_BYTES_MAX:
                return Corrupt(self.name, f"{path} has {size_bytes} bytes, the limit is {limits.PROFILE_BYTES_MAX}")
            data = path.read_bytes()
        except FileNotFoundError:
            return Miss()
        except OSError as error:
            return Unavailable(self.name, f"{path}: {error.strerror}")
        if blake3(data).digest() != digest:
            return Corrupt(self.name, f"{path} does not match its name")
        return Hit(data, self.name)

    def _bytes(self) -> int:
        return sum((self._directory / digest.hex()).stat().st_size for digest in self._digests())

    def _digests(self) -> tuple[bytes, ...]:
        names = (path.name for path in self._directory.iterdir())
        wanted = (name for name in names if len(name) == 2 * KEY_BYTES and set(name) <= set("0123456789abcdef"))
        return tuple(sorted(bytes.fromhex(name) for name in wanted))


class ProfileShelves:
    """A shelf for every tenant, made at its first use: what profiles there are is nobody else's business.

    ``default`` is the owner whose shelf is ``directory`` itself; those of others are below it. Belongs to one event
    loop; all methods are safe to cancel.
    """

    def __init__(self, directory: Path, default: OwnerId) -> None:
        self._directory = directory
        self._shelves = {default: ProfileShelf(directory)}
        self._known: dict[OwnerId, set[bytes]] = {}

    async def shelf(self, namespace: Namespace) -> ProfileShelf:
        """The shelf of ``namespace``; raises what making one raises."""
        owner = namespace.owner
        shelf = self._shelves.get(owner)
        if shelf is None:
            made = await asyncio.to_thread(ProfileShelf, self._directory / f"of-{owner.hex()}")
            shelf = self._shelves.setdefault(owner, made)
        return shelf

    async def known(self, namespace: Namespace) -> set[bytes]:
        """The digests on the shelf of ``namespace``; read from the disk once, so who puts one adds it."""
        known = self._known.get(namespace.owner)
        if known is None:
            found = await (await self.shelf(namespace)).list()
            known = self._known.setdefault(namespace.owner, set())
            known.update(found)
        return known

    def count(self, namespace: Namespace) -> int:
        """How many profiles of ``namespace`` are known."""
        return len(self._known.get(namespace.owner, ()))
