"""The daemon's end of the process that keeps the index (:mod:`.indexer`): starts it, asks it, gives up on it.

Every wait is bounded. A process that has ended, by whatever signal, does not answer in time or answers nonsense raises
:class:`StorageUnavailable`; an index that is damaged :class:`InvalidData`; one that has no room :class:`StorageFull`.
"""

import importlib.util
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidData, StorageFull, StorageUnavailable
from . import indexer

__all__ = ["IndexPipe", "Loaded"]

_ENTRIES: Final = np.dtype([("seed", "<u8"), ("offset", "<u4"), ("use", "<u8")])
_CLAIMS: Final = np.dtype([("seed", "<u8"), ("stop", "<u8")])
_READ_BYTES: Final = 1024 * 1024
_KILL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the index says. Offsets and stops are in units of 64 bytes, see :mod:`.indexer`."""

    entries: NDArray[np.void]
    """``seed``, ``offset``, ``use``; in any order."""
    claims: NDArray[np.void]
    """``seed``, ``stop``."""
    size_bytes: int
    damage: str
    """What does not hold, and is left out; empty where everything does."""


class IndexPipe:
    """One process, for the index at ``path``, of at most ``bytes_max``. Not thread-safe.

    ``how`` is :data:`.indexer.OPEN`, or :data:`.indexer.CHECK`, which changes nothing.
    """

    def __init__(self, path: Path, bytes_max: int, *, how: str = indexer.OPEN) -> None:
        program = [sys.executable, "-I", "-S", indexer.__file__, str(path), how, str(bytes_max), _folders()]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a file of this package
                program, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise StorageUnavailable(f"the process of the index cannot be started: {error.strerror}") from error
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self._to = self._process.stdin.fileno()
        self._from = self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def load(self, seconds: float) -> Loaded:
        """What the index says, once, before anything else is asked."""
        return self._answer(time.monotonic() + seconds)

    def write(
        self, rows: bytes, claims: bytes | None, *, bytes_max: int, seconds: float, action: int = indexer.WRITE
    ) -> int:
        """Have :data:`.indexer.ROW` and :data:`.indexer.CLAIM` structures written; the size of the file."""
        deadline = time.monotonic() + seconds
        counts = (len(rows) // indexer.ROW.size, len(claims or b"") // indexer.CLAIM.size)
        head = indexer.REQUEST.pack(action, claims is not None, *counts, bytes_max)
        self._send(head + rows + (claims or b""), deadline)
        return self._answer(deadline).size_bytes

    def reset(self, *, bytes_max: int, seconds: float) -> int:
        """Have it begin anew, with an empty file; its size."""
        return self.write(b"", None, bytes_max=bytes_max, seconds=seconds, action=indexer.RESET)

    def close(self, seconds: float) -> None:
        """Have the index made durable and the process end."""
        try:
            self.write(b"", None, bytes_max=0, seconds=seconds, action=indexer.CLOSE)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process at once; safe to call again. The descriptors may be anybody's from here on."""
        self._to = self._from = -1
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it hangs in a disk: whoever reaps it is not worth waiting for
            self._process.wait(_KILL_SECONDS)

    def _answer(self, deadline: float) -> Loaded:
        status, rows, claims, text_bytes, size_bytes = indexer.ANSWER.unpack(
            self._receive(indexer.ANSWER.size, deadline)
        )
        entries = self._receive(rows * indexer.ENTRY.size, deadline)
        stops = self._receive(claims * indexer.CLAIM.size, deadline)
        text = self._receive(text_bytes, deadline).decode(errors="replace")
        if status == indexer.FULL:
            raise StorageFull(f"the index is full: {text}")
        if status != indexer.DONE:
            raise InvalidData(f"the index is damaged: {text}")
        return Loaded(np.frombuffer(entries, _ENTRIES), np.frombuffer(stops, _CLAIMS), size_bytes, text)

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while len(view):
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._to, view) :]
            except BrokenPipeError:
                raise StorageUnavailable(self._ended()) from None

    def _receive(self, size_bytes: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size_bytes:
            self._wait(self._from, select.POLLIN, deadline)
            part = os.read(self._from, min(size_bytes, _READ_BYTES))
            if not part:
                raise StorageUnavailable(self._ended())
            parts.append(part)
            size_bytes -= len(part)
        return b"".join(parts)

    def _wait(self, descriptor: int, events: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, events)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise StorageUnavailable("the process of the index does not answer")

    def _ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_KILL_SECONDS)
            return f"the process of the index ended by {signal.Signals(-code).name if code < 0 else f'code {code}'}"
        return "the process of the index has closed its end"


def _folders() -> str:
    """Where the modules lie that the process imports; they are not imported here."""
    folders = []
    for name in ("lmdb", "xxhash"):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise StorageUnavailable(f"the index needs the module {name}, which is not installed")
        folders.append(str(Path(found.origin).parent.parent))
    return os.pathsep.join(dict.fromkeys(folders))
