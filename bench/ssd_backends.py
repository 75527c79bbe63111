"""Which backend the SSD tier should have: churn at ten times its capacity, then reads, then opening it again.

``python bench/ssd_backends.py [--json FILE] [--directory DIR] [--quota-mib N] [--records N] [--rounds N]``

Four backends, in turns: ``lmdb`` keeps the records as values in LMDB (a minimal version lives here); ``log`` is the
product with its index switched off; ``log+lmdb`` is that with every group's changes committed to LMDB too; and
``log+index`` is the product, whose index a process of its own writes, off the path of the puts. One fdatasync per
group commit in all of them. A row is the median of the rounds. Write amplification is what the process and its children
wrote to the disk (``/proc/self/io``) over what was put; so is CPU time that of both. ``open`` is opening 100,000 small
records: after a clean close, after a crash (lists and index as they are), without the index, without the lists, and
for LMDB walking its records, without a check for damage.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
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
    index_cpu_s_per_gb: float
    write_amplification: float
    get_mb_per_s: float
    get_p99_ms: float
    get_cpu_s_per_gb: float


@dataclass(frozen=True, slots=True)
class Opened:
    """One opening: time, CPU time of the process, CPU time of that of the index."""

    seconds: float
    cpu_s: float
    index_cpu_s: float


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


class ProductBackend:
    """The product: its index is written by another process."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._tier = SsdTier.open(directory, quota_bytes)
        pipe = self._tier._index._pipe
        self.helper = None if pipe is None else pipe.pid

    async def put(self, record: Record) -> None:
        """Durable on return."""
        await self._tier.put(record)

    async def get(self, key: StorageKey) -> bool:
        """Whether it was found and is right."""
        return isinstance(await self._tier.get(key), Hit)

    async def close(self) -> None:
        """Close the tier."""
        await self._tier.close()


class LogBackend(ProductBackend):
    """The product with its index switched off."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        super().__init__(directory, quota_bytes)
        index = self._tier._index
        with index._writing:
            index.kill()
            index._pipe, index._retry_at = None, float("inf")
            self._tier._catalogue.lose_changes()
        self.helper = None


class SynchronousBackend(LogBackend):
    """The log, and its index in LMDB on the way of every put: one more transaction, and sync, per group."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        super().__init__(directory, quota_bytes)
        (directory / "lmdb").mkdir()
        self._index = lmdb.open(str(directory / "lmdb"), map_size=256 * MIB)
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


BACKENDS: dict[str, Callable[[Path, int], LmdbBackend | ProductBackend]] = {
    "lmdb": LmdbBackend,
    "log+lmdb": SynchronousBackend,
    "log": LogBackend,
    "log+index": ProductBackend,
}


def key_of(number: int) -> StorageKey:
    return StorageKey(bytes(16) + blake3(number.to_bytes(8, "little")).digest()[:16])


def written_to_disk(helper: int | None = None) -> int:
    """Bytes that this process, and ``helper``, had written to the disk."""
    wrote = 0
    for process in ("self", helper):
        for line in Path(f"/proc/{process}/io").read_text().splitlines() if process is not None else ():
            if line.startswith("write_bytes:"):
                wrote += int(line.split()[1])
    return wrote


def cpu_seconds(helper: int | None = None) -> float:
    """CPU time of this process, and ``helper``."""
    return time.process_time() + (0.0 if helper is None else task_seconds(f"/proc/{helper}"))


def task_seconds(task: str) -> float:
    """CPU time of one thread."""
    return int(Path(task, "schedstat").read_text().split()[0]) / 1e9


def index_seconds(backend: "LmdbBackend | ProductBackend") -> float:
    """CPU time that the index takes by itself: its thread and its process."""
    helper = getattr(backend, "helper", None)
    if helper is None or not isinstance(backend, ProductBackend):
        return 0.0
    thread = backend._tier._index._thread.native_id
    return task_seconds(f"/proc/self/task/{thread}") + task_seconds(f"/proc/{helper}")


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
    for path in directory.glob("*.list"):
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

    helper = getattr(backend, "helper", None)
    wrote, cpu, start = written_to_disk(helper), cpu_seconds(helper), time.perf_counter()
    index_cpu = index_seconds(backend)
    async with asyncio.TaskGroup() as group:
        for seed in range(clients):
            group.create_task(client(seed))
    put_s, put_cpu = time.perf_counter() - start, cpu_seconds(helper) - cpu
    wrote, index_cpu = written_to_disk(helper) - wrote, index_seconds(backend) - index_cpu
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
        round(index_cpu / size * 1e9, 4),
        round(wrote / size, 2),
        round(read_bytes / get_s / 1e6, 1),
        round(1e3 * float(np.percentile(reads, 99)), 2),
        round(get_cpu / read_bytes * 1e9, 2),
    )


async def opening(root: Path, records: int, value_bytes: int) -> dict[str, Opened]:
    """What it takes to open ``records`` small records."""
    quota = records * (value_bytes + 1024) * 2
    opened: dict[str, Opened] = {}

    async def filled(name: str) -> tuple[Path, LmdbBackend | ProductBackend]:
        directory = Path(tempfile.mkdtemp(dir=root))
        backend = BACKENDS[name](directory, quota)
        for first in range(0, records, 2000):
            numbers = range(first, min(first + 2000, records))
            made = [Record(key_of(number), ContentKey(bytes(32)), bytes(value_bytes), 1) for number in numbers]
            await asyncio.gather(*(backend.put(record) for record in made))
        return directory, backend

    async def log(what: str, directory: Path) -> None:
        drop_caches(directory)
        start, cpu, children = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        tier = SsdTier.open(directory, quota)
        took, used = time.perf_counter() - start, time.process_time() - cpu
        assert tier.capacity().records == records, tier.capacity()
        await tier.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        helper = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
        opened[what] = Opened(round(took, 2), round(used, 2), round(helper, 2))
        print(json.dumps({"open": what, **asdict(opened[what])}), flush=True)

    directory, backend = await filled("log+index")
    assert isinstance(backend, ProductBackend)
    await backend._tier.write_index()
    shutil.copytree(directory, directory / "crashed")
    await log("log+index, crashed", directory / "crashed")
    shutil.rmtree(directory / "crashed")
    await backend.close()
    await log("log+index, closed", directory)
    (directory / "index").unlink(missing_ok=True)
    await log("log+index, index lost", directory)
    forget_lists(directory)
    await log("log+index, lists lost", directory)
    shutil.rmtree(directory)
    directory, backend = await filled("lmdb")
    await backend.close()
    drop_caches(directory)
    start, cpu = time.perf_counter(), time.process_time()
    with lmdb.open(str(directory), map_size=quota) as environment, environment.begin(buffers=True) as reading:
        found = {bytes(key): len(value) for key, value in reading.cursor()}
    assert len(found) == records
    took, used = time.perf_counter() - start, time.process_time() - cpu
    opened["lmdb, records walked"] = Opened(round(took, 2), round(used, 2), 0.0)
    print(json.dumps({"open": "lmdb, records walked", **asdict(opened["lmdb, records walked"])}), flush=True)
    shutil.rmtree(directory)
    return opened


def median_of(rows: Sequence[Row]) -> Row:
    """The median of every figure of rounds of one subject."""
    figures = {
        field.name: round(float(np.median([getattr(row, field.name) for row in rows])), 4)
        for field in fields(Row)
        if field.name not in ("backend", "load", "value_bytes", "clients")
    }
    return replace(rows[0], **figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--quota-mib", type=int, default=256)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--values", type=int, nargs="+", default=[4 * MIB, 256 * 1024], help="bytes of a value")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.directory))
    rows: list[Row] = []
    try:
        for value_bytes, clients, reuse in product(arguments.values, arguments.clients, (False, True)):
            if reuse and clients == 1:
                continue
            times = arguments.times if clients > 1 else max(2, arguments.times // 3)
            quota_bytes = arguments.quota_mib * MIB
            measured: dict[str, list[Row]] = {name: [] for name in arguments.backends}
            for _ in range(arguments.rounds):
                for name in arguments.backends:
                    row = asyncio.run(churn(name, root, quota_bytes, value_bytes, clients, times, reuse=reuse))
                    measured[name].append(row)
            for name in arguments.backends:
                rows.append(median_of(measured[name]))
                each = [row.put_mb_per_s for row in measured[name]]
                print(json.dumps(asdict(rows[-1])), "put MB/s of each round", each, flush=True)
        opened = asyncio.run(opening(root, arguments.records, 1000)) if arguments.records else {}
    finally:
        shutil.rmtree(root)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"rows": [asdict(row) for row in rows], "open": {what: asdict(row) for what, row in opened.items()}},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
