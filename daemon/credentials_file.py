"""The credentials file on disk: read by daemons, changed by ``kvloom keys``, noticed when it changes."""

import asyncio
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from .. import limits
from ..errors import ConfigError, NotFound
from ..kvstore.atomic_file import replace_file
from ..kvstore.key import KEY_BYTES
from .credentials import Credentials, NewKey, parse_credentials, with_key, with_revocation

__all__ = ["CREDENTIALS_NAME", "CredentialsFile"]

CREDENTIALS_NAME: Final = "credentials.toml"
"""Its name in the data directory, where it is unless another place is configured."""
_GROUP_AND_OTHERS: Final = 0o077
_HEADING: Final = """\
# Tenants and keys of kvloom; docs/OPERATIONS.md says what may stand here. It may be the same file on every daemon.
# Whoever reads it can compute where chunks are stored, and whoever writes it can make keys: keep it to yourself.
namespace_secret = "{secret}"
"""
_log = structlog.get_logger("kvloom.daemon")


class CredentialsFile:
    """One file; methods block unless they say otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Credentials:
        """What the file says, or nothing where it is not there.

        Raises :class:`ConfigError` for a file that others may read, that is too long, or that does not hold.
        """
        text = self._text()
        return Credentials() if text is None else self._parsed(text)

    def add(self, key: NewKey, namespace_secret: bytes | None = None) -> None:
        """Add a key; a file that is not there yet is made, with ``namespace_secret`` or a new random one."""
        with self._locked():
            text = self._text()
            if text is None:
                text = _HEADING.format(secret=(namespace_secret or secrets.token_bytes(KEY_BYTES)).hex())
            if key.key.key_id in self._parsed(text).keys:
                raise ConfigError(f"key {key.key.key_id} is there already")
            self._write(with_key(text, key.key))

    def revoke(self, key_id: str, now: datetime) -> bool:
        """Revoke a key for good; whether it was not revoked before. Raises :class:`NotFound`."""
        with self._locked():
            text = self._text() or ""
            key = self._parsed(text).keys.get(key_id)
            if key is None:
                raise NotFound(f"no key {key_id[:40]} in {self.path}")
            if key.revoked is not None:
                return False
            self._write(with_revocation(text, key_id, now))
            return True

    async def watch(
        self,
        apply: Callable[[Credentials], None],
        hurry: asyncio.Event,
        hurried: Callable[[], None] = lambda: None,
    ) -> None:
        """Call ``apply`` with what the file says whenever it has changed, until cancelled; ``hurry`` looks at once.

        ``hurried`` is called first whenever it does, whether there is a file or not. What does not hold is logged, and
        what was read last stays in force.
        """
        seen = await asyncio.to_thread(self._mark)
        while True:
            try:
                async with asyncio.timeout(limits.CREDENTIALS_POLL_SECONDS):
                    await hurry.wait()
            except TimeoutError:
                pass
            forced = hurry.is_set()
            hurry.clear()
            if forced:
                hurried()
            mark = await asyncio.to_thread(self._mark)
            if mark == seen and (mark is None or not forced):
                continue
            seen = mark
            try:
                if mark is None:
                    raise ConfigError(f"credentials file {self.path} is gone")
                apply(await asyncio.to_thread(self.read))
            except ConfigError as error:
                _log.error("credentials not taken over, those before stay", reason=str(error))

    def _mark(self) -> tuple[int, int, int] | None:
        """Changes whenever the file does."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _text(self) -> str | None:
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                data = file.read(limits.CREDENTIALS_BYTES_MAX + 1)
            text = data.decode()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"credentials file {self.path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"credentials file {self.path} is not UTF-8: {error.reason}") from error
        if mode & _GROUP_AND_OTHERS:
            raise ConfigError(
                f"credentials file {self.path} has mode {mode:o}, others may use it: chmod 600 {self.path}"
            )
        if len(data) > limits.CREDENTIALS_BYTES_MAX:
            raise ConfigError(f"credentials file {self.path} is longer than {limits.CREDENTIALS_BYTES_MAX} bytes")
        return text

    def _parsed(self, text: str) -> Credentials:
        try:
            return parse_credentials(text)
        except ConfigError as error:
            raise ConfigError(f"credentials file {self.path}: {error}") from error

    def _write(self, text: str) -> None:
        self._parsed(text)  # what is written must read back
        try:
            replace_file(self.path, text.encode())
        except OSError as error:
            raise ConfigError(f"credentials file {self.path} cannot be written: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the file meanwhile."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), flags, 0o600)
        except OSError as error:
            raise ConfigError(f"credentials file {self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
