"""Writing a small file so that it is there whole or not at all, also after a power cut."""

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["create_file", "replace_file"]


def create_file(path: Path, data: bytes) -> bool:
    """Create ``path`` with ``data``, mode 0600; False, and nothing changed, where it already exists."""
    temporary = _write_beside(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_directory(path.parent)
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, mode 0600, in place of what is there."""
    temporary = _write_beside(path, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    _sync_directory(path.parent)


def _write_beside(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
