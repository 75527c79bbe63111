"""Disks that fail as told, and disks that write down what was done to them so that a power cut can be replayed."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import pytest

from kvloom.kvstore.ssd.disk import Disk

PAGE = 4096


class FailingDisk(Disk):
    """The real disk, until ``failures`` says otherwise: how many calls of a method still work, and then which errno."""

    def __init__(self) -> None:
        self.failures: dict[str, tuple[int, int]] = {}
        self.failed = 0

    def _may_fail(self, method: str) -> None:
        left, number = self.failures.get(method, (1, 0))
        if number == 0:
            return
        self.failures[method] = (max(0, left - 1), number)
        if left == 0:
            self.failed += 1
            raise OSError(number, os.strerror(number))

    def create(self, path: Path, size_bytes: int) -> int:
        self._may_fail("create")
        return super().create(path, size_bytes)

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        if self.failures.get("write", (1, 0))[0] == 0 and self.failures["write"][1] == errno.EIO:
            super().write(descriptor, [bytes(buffers[0])[: len(buffers[0]) // 2]], offset)  # some of it got there
        self._may_fail("write")
        super().write(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        self._may_fail("sync")
        super().sync(descriptor)

    def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._may_fail("read")
        return super().read(descriptor, buffers, offset)

    def read_cached(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        try:
            self._may_fail("read_cached")
        except OSError as error:
            raise BlockingIOError from error
        return super().read_cached(descriptor, buffers, offset)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._may_fail("truncate")
        super().truncate(descriptor, size_bytes)

    def resize(self, descriptor: int, old_bytes: int, new_bytes: int) -> None:
        self._may_fail("resize")
        super().resize(descriptor, old_bytes, new_bytes)

    def rename(self, old: Path, new: Path) -> None:
        self._may_fail("rename")
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._may_fail("unlink")
        super().unlink(path)

    def write_small(self, path: Path, data: bytes) -> None:
        self._may_fail("write_small")
        super().write_small(path, data)

    def sync_directory(self, directory: Path) -> None:
        self._may_fail("sync_directory")
        super().sync_directory(directory)


@dataclass(frozen=True)
class Done:
    """One change of the file system; ``file`` numbers inodes, ``data`` is the new content or the new size."""

    what: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    name: str = ""
    size: int = 0


@dataclass
class _Inode:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Done] = field(default_factory=list)


class RecordingDisk(Disk):
    """The real disk, with a journal of what was done. :meth:`after_power_cut` is what may be left of it."""

    def __init__(self) -> None:
        self.journal: list[Done] = []
        self._files: dict[int, int] = {}
        self._start: dict[str, tuple[int, bytes]] = {}
        self._numbers = count()

    def adopt(self, directory: Path) -> None:
        """Begin with what lies in ``directory``, all of it durable."""
        for path in directory.iterdir():
            self._start[path.name] = (self._new(path.stat().st_ino), path.read_bytes())

    def _new(self, inode: int) -> int:
        self._files[inode] = next(self._numbers)  # a number comes back for a new file once the old one is gone
        return self._files[inode]

    def _file(self, descriptor: int) -> int:
        return self._files[os.fstat(descriptor).st_ino]

    def create(self, path: Path, size_bytes: int) -> int:
        descriptor = super().create(path, size_bytes)
        self.journal.append(Done("new", self._new(path.stat().st_ino), size=size_bytes))
        self.journal.append(Done("link", self._file(descriptor), name=path.name))
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        super().write(descriptor, buffers, offset)
        data = b"".join(bytes(buffer) for buffer in buffers)
        self.journal.append(Done("write", self._file(descriptor), offset, data))

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.journal.append(Done("sync", self._file(descriptor)))

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        super().truncate(descriptor, size_bytes)
        self.journal.append(Done("size", self._file(descriptor), size=size_bytes))

    def resize(self, descriptor: int, old_bytes: int, new_bytes: int) -> None:
        super().resize(descriptor, old_bytes, new_bytes)
        self.journal.append(Done("size", self._file(descriptor), size=new_bytes))

    def write_small(self, path: Path, data: bytes) -> None:
        super().write_small(path, data)
        number = self._new(path.stat().st_ino)
        self.journal.append(Done("new", number))
        self.journal.append(Done("link", number, name=path.name))
        self.journal.append(Done("write", number, 0, data))

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self.journal.append(Done("rename", name=f"{old.name}>{new.name}"))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.journal.append(Done("unlink", name=path.name))

    def sync_directory(self, directory: Path) -> None:
        super().sync_directory(directory)
        self.journal.append(Done("sync_directory"))

    def after_power_cut(self, at: int, random: Random, target: Path) -> None:
        """Write into ``target`` what a disk may hold if power goes after ``at`` entries of the journal.

        What was synced is there. Of what was not, any part may be: data page by page, in any order; names as any
        number of the first changes, since file systems journal them in order.
        """
        names = {name: number for name, (number, _) in self._start.items()}
        inodes = {number: _Inode(bytearray(data)) for number, data in self._start.values()}
        waiting: list[Done] = []
        for done in self.journal[:at]:
            if done.what == "new":
                inodes[done.file] = _Inode(bytearray(done.size))
            elif done.what in ("write", "size"):
                inodes[done.file].pending.append(done)
            elif done.what == "sync":
                for each in inodes[done.file].pending:
                    _apply(inodes[done.file].durable, each)
                inodes[done.file].pending.clear()
            elif done.what == "sync_directory":
                for each in waiting:
                    _rename(names, each)
                waiting.clear()
            else:
                waiting.append(done)
        for each in waiting[: random.randint(0, len(waiting))]:
            _rename(names, each)
        for name, number in names.items():
            inode = inodes[number]
            pieces = [piece for each in inode.pending for piece in _pieces(each) if random.random() < 0.5]
            if random.random() < 0.5:
                random.shuffle(pieces)
            for piece in pieces:
                _apply(inode.durable, piece)
            (target / name).write_bytes(inode.durable)


def _pieces(done: Done) -> list[Done]:
    if done.what == "size":
        return [done]
    starts = [done.offset, *range((done.offset // PAGE + 1) * PAGE, done.offset + len(done.data), PAGE)]
    stops = [*starts[1:], done.offset + len(done.data)]
    return [
        Done("write", done.file, start, done.data[start - done.offset : stop - done.offset])
        for start, stop in zip(starts, stops, strict=True)
    ]


def _apply(content: bytearray, done: Done) -> None:
    if done.what == "size":
        del content[done.size :]
        content.extend(bytes(done.size - len(content)))
        return
    content.extend(bytes(max(0, done.offset + len(done.data) - len(content))))
    content[done.offset : done.offset + len(done.data)] = done.data


def _rename(names: dict[str, int], done: Done) -> None:
    if done.what == "link":
        names[done.name] = done.file
    elif done.what == "unlink":
        names.pop(done.name, None)
    else:
        old, new = done.name.split(">")
        if old in names:
            names[new] = names.pop(old)


@pytest.fixture
def failing_disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def recording_disk() -> RecordingDisk:
    return RecordingDisk()
