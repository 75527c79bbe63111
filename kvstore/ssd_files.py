"""The data directory of the SSD tier: who may use it, whether its database is sound, where damaged ones go.

* ``lock`` – held (``flock``) by the one daemon that uses the directory; holds its process id for people
* ``lmdb/`` – the environment
* ``quarantine-N/`` – environments found damaged at open, kept for inspection while the quota has room for them
* ``compacting/`` – only while a shrunk quota is being put into effect
"""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from .. import limits
from ..errors import ConfigError, StorageUnavailable
from .ssd_check import DAMAGED_STATUS

__all__ = ["DirectoryLock", "environment_damage", "make_room_for_quarantine", "prepare_directory", "quarantine", "sync"]

_log = logging.getLogger(__name__)


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


def environment_damage(environment: Path) -> str | None:
    """One line naming what is damaged, ``None`` where the environment is sound or not there yet.

    Runs :mod:`.ssd_check` in a child process, since damage can end the process that meets it. Raises
    :class:`StorageUnavailable` where the check itself cannot run: nothing is quarantined on a guess.
    """
    data = environment / "data.mdb"
    if not data.exists() or data.stat().st_size == 0:
        return None
    command = [sys.executable, "-m", f"{__package__}.ssd_check", str(environment)]
    search_path = os.pathsep.join(item for item in sys.path if item)
    try:
        child = subprocess.run(  # noqa: S603 - our own module on our own directory
            command,
            env={**os.environ, "PYTHONPATH": search_path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limits.SSD_CHECK_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the check took longer than {limits.SSD_CHECK_SECONDS_MAX} seconds"
    except OSError as error:
        raise StorageUnavailable(f"the check of {environment} could not be started: {error.strerror}") from error
    if child.returncode == 0:
        return None
    if child.returncode == DAMAGED_STATUS:
        return child.stdout.strip() or "damaged"
    if child.returncode < 0:
        return f"the check of it was ended by {signal.Signals(-child.returncode).name}"
    last_line = (child.stderr.strip().splitlines() or ["no message"])[-1]
    raise StorageUnavailable(f"the check of {environment} failed with status {child.returncode}: {last_line}")


def quarantine(directory: Path, environment: Path, damage: str) -> Path:
    """Move a damaged environment aside as the next ``quarantine-N`` and say so in the log."""
    number = 1 + max((_number(path) for path in directory.glob("quarantine-*")), default=0)
    target = directory / f"quarantine-{number}"
    environment.rename(target)
    sync(directory)
    _log.error("%s is damaged (%s): moved to %s, starting empty", environment, damage, target)
    return target


def make_room_for_quarantine(directory: Path, limit_bytes: int) -> int:
    """Delete the oldest quarantined environments until all take at most half of the quota; bytes still taken."""
    kept = sorted(directory.glob("quarantine-*"), key=_number)
    sizes = [_tree_bytes(path) for path in kept]
    while sum(sizes) > limit_bytes // 2:
        path = kept.pop(0)
        _log.warning("%s (%d bytes) is deleted: it takes more than half of the quota", path, sizes.pop(0))
        shutil.rmtree(path)
    return sum(sizes)


def sync(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    suffix = path.name.rpartition("-")[2]
    return int(suffix) if suffix.isdecimal() else 0


def _tree_bytes(path: Path) -> int:
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
