"""The data directory of the SSD tier: who may use it, and in which format it is.

* ``lock`` – held (``flock``) by the one daemon that uses the directory; holds its process id for people
* ``format`` – one line naming the format of the rest
* ``*.log``, ``*.list`` – the segments of the log and what lies in them (:mod:`.ssd_segment`)
* ``index`` – which records were evicted and when the others were used last, in LMDB (:mod:`.index`)
* ``scrub`` – how far the background scrub has come (:mod:`.scrub`)
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from ...errors import ConfigError
from ..atomic_file import create_file

__all__ = ["DirectoryLock", "check_format", "prepare_directory"]

_FORMAT: Final = b"kvloom log 2\n"
_FORMAT_BYTES_MAX: Final = 100


class DirectoryLock:
    """Exclusive use of a data directory until :meth:`release` or the end of the process, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise ConfigError(f"data directory {directory} is in use by another daemon (process {holder})") from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the directory. Once only."""
        os.close(self._descriptor)


def prepare_directory(directory: Path) -> None:
    """Create ``directory`` where it is missing, for this user only; :class:`ConfigError` where that cannot be."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"data directory {directory} cannot be used: {error.strerror}") from error


def check_format(directory: Path) -> None:
    """Name the format in a new directory; :class:`ConfigError` for one of another format, which is left alone."""
    path = directory / "format"
    try:
        if not path.exists() and (directory / "lmdb").exists():
            raise ConfigError(f"{directory} was written by an older kvloom, in LMDB: remove {directory / 'lmdb'}")
        if not path.exists():
            create_file(path, _FORMAT)
        with path.open("rb") as file:
            form = file.read(_FORMAT_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"data directory {directory} cannot be used: {error.strerror}") from error
    if form != _FORMAT:
        raise ConfigError(f"{directory} is of format {form!r}, this kvloom reads {_FORMAT!r}")
