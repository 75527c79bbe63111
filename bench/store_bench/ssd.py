"""The SSD tier beside the plain system calls on the same disk, taking turns in every round.

``raw write`` writes one value after the other and syncs each (``fdatasync``), in a file whose blocks are allocated and
written already, which is the fastest that a file can be; however many clients there are, it is one stream. ``raw
write, parallel`` lets as many threads do so at once, each in a file of its own. ``raw pread`` reads values in random
order into new memory. Reads come from the disk: the page cache of the files is dropped before every turn, and a turn
reads no value twice; ``, cached`` reads what the page cache holds. ``kvloom ssd`` is :class:`SsdTier` with
``ack=disk``, every read verified.
"""

import asyncio
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from random import Random
from threading import Lock

from kvloom.kvstore.key import KEY_BYTES, ContentKey, StorageKey, storage_key
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Record

from .rows import Row, Timed, say

MIB = 1024 * 1024
QUOTA_BYTES = 512 * MIB
"""Of the tier, and of a raw file that is written round and round: both find the same share of it in the page cache."""
READ_BYTES = 256 * MIB
"""The newest values are read, so many bytes of them."""


class Subject(ABC):
    """Something that keeps values on the disk; ``name`` is for the table."""

    name: str
    cached = False

    @abstractmethod
    def run(self, what: str, clients: int, seconds: float, *, once: bool = False) -> list[float]:
        """Have ``clients`` put or get values for ``seconds``, or get each ``once``; the seconds that each took."""

    @abstractmethod
    def drop_cache(self) -> None:
        """Have the next reads come from the disk."""

    @abstractmethod
    def close(self) -> None:
        """Remove everything."""


class RawFile(Subject):
    """``pwrite`` with ``fdatasync``, and ``pread``."""

    def __init__(self, root: Path, value_bytes: int, name: str, *, parallel: bool = False) -> None:
        self.name = name
        self._parallel = parallel
        self._value = os.urandom(value_bytes)
        self._values = (QUOTA_BYTES // (8 if parallel else 1)) // value_bytes
        self._paths = [root / f"raw-{name}-{number}".replace(" ", "-") for number in range(8 if parallel else 1)]
        self._files = [self._filled(path) for path in self._paths]
        self._next = count()
        self._one_stream = Lock()

    def _filled(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        for number in range(self._values):
            os.pwrite(descriptor, self._value, number * len(self._value))
        os.fsync(descriptor)
        return descriptor

    def run(self, what: str, clients: int, seconds: float, *, once: bool = False) -> list[float]:
        end = time.perf_counter() + seconds
        numbers = picked(READ_BYTES // len(self._value), once=once)

        def client(number: int) -> list[float]:
            latencies = []
            descriptor = self._files[number % len(self._files)]
            for chosen in count() if what == "put" else numbers:
                if (start := time.perf_counter()) >= end:
                    break
                if what == "put" and self._parallel:
                    self._write(descriptor)
                elif what == "put":
                    with self._one_stream:
                        self._write(descriptor)
                else:
                    os.pread(descriptor, len(self._value), chosen * len(self._value))
                latencies.append(time.perf_counter() - start)
            return latencies

        with ThreadPoolExecutor(clients) as threads:
            return [latency for latencies in threads.map(client, range(clients)) for latency in latencies]

    def _write(self, descriptor: int) -> None:
        os.pwrite(descriptor, self._value, next(self._next) % self._values * len(self._value))
        os.fdatasync(descriptor)

    def drop_cache(self) -> None:
        for descriptor in self._files:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for descriptor, path in zip(self._files, self._paths, strict=True):
            os.close(descriptor)
            path.unlink()


class KvloomSsd(Subject):
    """The tier, its quota written twice before anything is timed, so that its files have been used and used again."""

    def __init__(self, root: Path, value_bytes: int, name: str) -> None:
        self.name = name
        self._directory = Path(tempfile.mkdtemp(dir=root))
        self._value = os.urandom(value_bytes)
        self._values = READ_BYTES // value_bytes
        self._numbers = count()
        self._newest = 0
        self._loop = asyncio.new_event_loop()
        self._tier = SsdTier.open(self._directory, QUOTA_BYTES)
        self._loop.run_until_complete(self._fill())

    async def _fill(self) -> None:
        while self._tier.written_bytes < QUOTA_BYTES * 9 // 4:
            await asyncio.gather(*(self._put() for _ in range(16)))

    async def _put(self) -> None:
        number = next(self._numbers)
        await self._tier.put(Record(key_of(number), ContentKey(bytes(32)), self._value, 1))
        self._newest = max(self._newest, number)

    async def _get(self, number: int) -> None:
        outcome = await self._tier.get(key_of(number))
        if not isinstance(outcome, Hit):
            raise SystemExit(f"not a hit: {outcome}")

    def run(self, what: str, clients: int, seconds: float, *, once: bool = False) -> list[float]:
        numbers, newest = picked(self._values, once=once), self._newest
        end = time.perf_counter() + seconds

        async def client() -> list[float]:
            latencies = []
            for chosen in count() if what == "put" else numbers:
                if (start := time.perf_counter()) >= end:
                    break
                await (self._put() if what == "put" else self._get(newest - chosen))
                latencies.append(time.perf_counter() - start)
            return latencies

        async def all_clients() -> list[float]:
            groups = await asyncio.gather(*(client() for _ in range(clients)))
            return [latency for latencies in groups for latency in latencies]

        return self._loop.run_until_complete(all_clients())

    def drop_cache(self) -> None:
        for segment in self._tier._segment_log.segments():
            os.posix_fadvise(segment.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._loop.run_until_complete(self._tier.close())
        self._loop.close()
        shutil.rmtree(self._directory)


def picked(values: int, *, once: bool) -> Iterable[int]:
    """Numbers below ``values`` for any number of threads together: each once in random order, or random ones."""
    random = Random(values)
    return iter(random.sample(range(values), values)) if once else iter(lambda: random.randrange(values), None)


def key_of(number: int) -> StorageKey:
    """All of one owner's: each of many owners has an eviction policy of his own."""
    return storage_key(bytes(KEY_BYTES), ContentKey(number.to_bytes(KEY_BYTES, "little")))


def rows(
    *, seconds: float, rounds: int, values: tuple[int, ...], clients: tuple[int, ...], directory: Path | None = None
) -> Iterator[Row]:
    """Measure everything; rows to be compared stand together."""
    root = Path(tempfile.mkdtemp(dir=directory))
    try:
        for value_bytes in values:
            say(f"ssd: writing the files for values of {value_bytes} bytes")
            raw, tier = RawFile(root, value_bytes, "raw write"), KvloomSsd(root, value_bytes, "kvloom ssd")
            parallel = RawFile(root, value_bytes, "raw write, parallel", parallel=True)
            writers = {"raw write": raw, "raw write, parallel": parallel, "kvloom ssd": tier}
            readers = {"raw pread": raw, "kvloom ssd": tier}
            for number in clients:
                say(f"ssd: put {value_bytes} bytes, {number} clients")
                yield from turns("put", writers, value_bytes, number, seconds, rounds)
            for number in clients:
                say(f"ssd: get {value_bytes} bytes, {number} clients")
                yield from turns("get", readers, value_bytes, number, seconds, rounds)
                cached = {f"{name}, cached": subject for name, subject in readers.items()}
                yield from turns("get", cached, value_bytes, number, seconds, rounds, cached=True)
            for subject in (raw, tier, parallel):
                subject.close()
    finally:
        shutil.rmtree(root)


def turns(
    what: str,
    subjects: dict[str, Subject],
    value_bytes: int,
    clients: int,
    seconds: float,
    rounds: int,
    *,
    cached: bool = False,
) -> Iterator[Row]:
    timed = {name: Timed(what, name, value_bytes, clients) for name in subjects}
    if cached:
        for subject in subjects.values():
            subject.run(what, clients, seconds)
    for _ in range(rounds):
        for name, subject in subjects.items():
            if not cached:
                subject.drop_cache() if what == "get" else os.sync()
            cpu, start = time.process_time(), time.perf_counter()
            latencies = subject.run(what, clients, seconds, once=what == "get" and not cached)
            timed[name].add(latencies, time.perf_counter() - start, time.process_time() - cpu)
    for each in timed.values():
        yield each.row()
