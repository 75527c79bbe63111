"""Which backend the SSD tier should have: churn at ten times its capacity, then reads, then opening it again.

``python bench/ssd_backends.py [--json FILE] [--directory DIR] [--quota-mib N] [--records N]``

Three backends, interleaved: ``lmdb`` keeps the records as values in LMDB, as kvloom did until this was measured (a
minimal copy lives here); ``log`` is the product; ``log+lmdb`` is the product with every group's index changes also
committed to LMDB. One fdatasync per group commit in all of them. Write amplification is what the process wrote to the
disk (``/proc/self/io``) over what was put. ``open`` is opening 100,000 small records after a clean close and after a
crash (no list, no order), and for LMDB walking the index, without the check for damage in a child process.
"""

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from random import Random

import lmdb
import numpy as np
from blake3 import blake3

from kvloom.kvstore.key import ContentKey, StorageKey
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.record import check_payload, encode_record, parse_record_header
from kvloom.kvstore.ssd.extent import Extent
from kvloom.kvstore.ssd.segment import Place
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.ssd.writer import _Pending
from kvloom.kvstore.tier import Record

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One backend under one load."""

    backend: str
    load: str
    value_bytes: int
    clients: int
    put_mb_per_s: float
    put_p50_ms: float
    put_p99_ms: float
    put_cpu_s_per_gb: float
    write_amplification: float
    get_mb_per_s: float
    get_p99_ms: float
    get_cpu_s_per_gb: float


class LmdbBackend:
    """Records as values in LMDB, one writer thread with group commit, least recently used out first."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._environment = lmdb.open(str(directory), map_size=quota_bytes // 4096 * 4096, max_readers=32)
        self._budget_bytes = quota_bytes * 7 // 8 - 2 * min(64 * MIB, quota_bytes // 16)
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._used_bytes = 0
        self._queue: deque[tuple[bytes, bytes, Future[None]]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._readers = ThreadPoolExecutor(8)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def put(self, record: Record) -> None:
        """Durable on return."""
        value = await asyncio.get_running_loop().run_in_executor(self._readers, encode_record, record)
        done: Future[None] = Future()
        with self._changed:
            self._queue.append((record.storage_key, value, done))
            self._changed.notify()
        await asyncio.wrap_future(done)

    async def get(self, key: StorageKey) -> bool:
        """Whether it was found and is right."""
        with self._changed:
            if key in self._sizes:
                self._sizes.move_to_end(key)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, key)

    async def close(self) -> None:
        """Write what waits, close."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._readers.shutdown()
        self._environment.close()

    def _read(self, key: bytes) -> bool:
        with self._environment.begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                return False
            header = parse_record_header(value, record_bytes=len(value))
            payload = np.frombuffer(value[128:], np.uint8).copy()
        check_payload(header, payload.data)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if not self._queue:
                    return
                batch = list(self._queue)
                self._queue.clear()
            self._commit(batch)
            for _, _, done in batch:
                done.set_result(None)

    def _commit(self, batch: Sequence[tuple[bytes, bytes, Future[None]]]) -> None:
        extra_bytes = 0
        while True:
            victims = self._victims(sum(len(value) + 4096 for _, value, _ in batch) + extra_bytes)
            try:
                with self._environment.begin(write=True) as transaction:
                    for key in victims:
                        transaction.delete(key)
                    for key, value, _ in batch:
                        transaction.put(key, value)
            except lmdb.MapFullError:
                with self._environment.begin(write=True) as transaction:
                    for key in victims:
                        transaction.delete(key)
                for _ in range(2):  # freed pages can be used two transactions later
                    with self._environment.begin(write=True) as transaction:
                        transaction.put(b"turn", os.urandom(8))
                extra_bytes = 2 * extra_bytes + sum(len(value) for _, value, _ in batch)
            else:
                break
        with self._changed:
            self._note(batch)

    def _note(self, batch: Sequence[tuple[bytes, bytes, Future[None]]]) -> None:
        for key, value, _ in batch:
            self._used_bytes += len(value) + 4096 - self._sizes.pop(key, 0)
            self._sizes[key] = len(value) + 4096

    def _victims(self, needed_bytes: int) -> list[bytes]:
        with self._changed:
            return self._least_recent(needed_bytes)

    def _least_recent(self, needed_bytes: int) -> list[bytes]:
        victims = []
        while self._sizes and self._used_bytes + needed_bytes > self._budget_bytes:
            key, size = self._sizes.popitem(last=False)
            self._used_bytes -= size
            victims.append(key)
        return victims


class LogBackend:
    """The product."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._tier = SsdTier.open(directory, quota_bytes)

    async def put(self, record: Record) -> None:
        """Durable on return."""
        await self._tier.put(record)

    async def get(self, key: StorageKey) -> bool:
        """Whether it was found and is right."""
        return isinstance(await self._tier.get(key), Hit)

    async def close(self) -> None:
        """Close the tier."""
        await self._tier.close()


class IndexedLogBackend(LogBackend):
    """The product, and its index in LMDB as well: one more transaction, and sync, per group."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        super().__init__(directory, quota_bytes)
        (directory / "index").mkdir()
        self._index = lmdb.open(str(directory / "index"), map_size=256 * MIB)
        writer = self._tier._writer
        note = writer._note

        def note_and_index(written: Sequence[_Pending], extent: Extent, places: Sequence[Place]) -> None:
            with self._index.begin(write=True) as transaction:
                for item, place in zip(written, places, strict=True):
                    transaction.put(item.frame.key, item.frame.record_header + place.packed().to_bytes(12, "little"))
            note(written, extent, places)

        writer._note = note_and_index

    async def close(self) -> None:
        """Close both."""
        await super().close()
        self._index.close()


BACKENDS: dict[str, Callable[[Path, int], LmdbBackend | LogBackend]] = {
    "lmdb": LmdbBackend,
    "log+lmdb": IndexedLogBackend,
    "log": LogBackend,
}


def key_of(number: int) -> StorageKey:
    return StorageKey(blake3(number.to_bytes(8, "little")).digest())


def written_to_disk() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise RuntimeError("no write_bytes in /proc/self/io")


def drop_caches(directory: Path) -> None:
    """Have the files of ``directory`` read from the disk again."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def forget_lists(directory: Path) -> None:
    """What a crash that lost every list would leave."""
    for path in (*directory.glob("*.list"), directory / "index"):
        path.unlink()


async def churn(
    name: str, root: Path, quota_bytes: int, value_bytes: int, clients: int, times: int, *, reuse: bool
) -> Row:
    """Put ``times`` the quota; with ``reuse`` a fifth of it over again, and one in four read back.

    What is put or read again is any of the last three quarters of a quota: records get used until they are evicted,
    which is the worst for a log.
    """
    directory = Path(tempfile.mkdtemp(dir=root))
    backend = BACKENDS[name](directory, quota_bytes)
    payload = Random(value_bytes).randbytes(value_bytes)
    puts = times * quota_bytes // value_bytes
    window = quota_bytes * 3 // 4 // value_bytes
    numbers = iter(range(puts))
    latencies: list[float] = []

    async def client(seed: int) -> None:
        random = Random(seed)
        for number in numbers:
            again = reuse and number > window and random.random() < 0.2
            key = key_of(number - random.randrange(window) if again else number)
            record = Record(key, ContentKey(bytes(32)), payload, 1)
            start = time.perf_counter()
            await backend.put(record)
            latencies.append(time.perf_counter() - start)
            if reuse and number > window and random.random() < 0.25:
                await backend.get(key_of(number - random.randrange(window)))

    wrote, cpu, start = written_to_disk(), time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for seed in range(clients):
            group.create_task(client(seed))
    put_s, put_cpu = time.perf_counter() - start, time.process_time() - cpu
    wrote = written_to_disk() - wrote
    size = puts * value_bytes

    drop_caches(directory)
    wanted = iter(range(puts - quota_bytes // value_bytes // 2, puts))
    reads: list[float] = []
    hits = 0

    async def reader() -> None:
        nonlocal hits
        for number in wanted:
            start = time.perf_counter()
            hits += await backend.get(key_of(number))
            reads.append(time.perf_counter() - start)

    cpu, start = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(reader())
    get_s, get_cpu = time.perf_counter() - start, time.process_time() - cpu
    read_bytes = max(1, hits * value_bytes)
    await backend.close()
    shutil.rmtree(directory)
    return Row(
        name,
        "reuse" if reuse else "fresh",
        value_bytes,
        clients,
        round(size / put_s / 1e6, 1),
        round(1e3 * float(np.percentile(latencies, 50)), 2),
        round(1e3 * float(np.percentile(latencies, 99)), 2),
        round(put_cpu / size * 1e9, 2),
        round(wrote / size, 2),
        round(read_bytes / get_s / 1e6, 1),
        round(1e3 * float(np.percentile(reads, 99)), 2),
        round(get_cpu / read_bytes * 1e9, 2),
    )


async def opening(root: Path, records: int, value_bytes: int) -> dict[str, float]:
    """Seconds to open ``records`` small records: the log closed, the log crashed, LMDB's index."""
    quota = records * (value_bytes + 1024) * 2
    seconds: dict[str, float] = {}
    for name in ("log", "lmdb"):
        directory = Path(tempfile.mkdtemp(dir=root))
        backend = BACKENDS[name](directory, quota)
        payload = bytes(value_bytes)
        for first in range(0, records, 2000):
            await asyncio.gather(
                *(
                    backend.put(Record(key_of(number), ContentKey(bytes(32)), payload, 1))
                    for number in range(first, min(first + 2000, records))
                )
            )
        await backend.close()
        drop_caches(directory)
        start = time.perf_counter()
        if name == "lmdb":
            with lmdb.open(str(directory), map_size=quota) as environment, environment.begin(buffers=True) as reading:
                found: dict[bytes, int] = {}
                for key, value in reading.cursor():
                    found[bytes(key)] = len(value)
            seconds["lmdb, records walked"] = time.perf_counter() - start
        else:
            tier = SsdTier.open(directory, quota)
            seconds["log, closed"] = time.perf_counter() - start
            assert tier.capacity().records == records
            await tier.close()
            forget_lists(directory)
            drop_caches(directory)
            start = time.perf_counter()
            tier = SsdTier.open(directory, quota)
            seconds["log, all lists lost"] = time.perf_counter() - start
            assert tier.capacity().records == records
            await tier.close()
        shutil.rmtree(directory)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--quota-mib", type=int, default=256)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--values", type=int, nargs="+", default=[4 * MIB, 256 * 1024], help="bytes of a value")
    parser.add_argument("--records", type=int, default=100_000)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.directory))
    rows: list[Row] = []
    try:
        for value_bytes, clients in product(arguments.values, (1, 8)):
            for name, reuse in product(BACKENDS, (False, True)):
                if reuse and (clients == 1 or name == "log+lmdb"):
                    continue
                times = arguments.times if clients == 8 else max(2, arguments.times // 3)
                quota_bytes = arguments.quota_mib * MIB
                row = asyncio.run(churn(name, root, quota_bytes, value_bytes, clients, times, reuse=reuse))
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True)
        opened = asyncio.run(opening(root, arguments.records, 1000)) if arguments.records else {}
        print(json.dumps(opened))
    finally:
        shutil.rmtree(root)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rows": [asdict(row) for row in rows], "open_seconds": opened}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
