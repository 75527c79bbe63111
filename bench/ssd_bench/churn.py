"""Churn at a multiple of a backend's capacity, then reads of what is left."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random

import numpy as np

from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.tier import Record

from .backends import BACKENDS, Backend, key_of
from .costs import cpu_seconds, drop_caches, index_seconds, written_to_disk

__all__ = ["Load", "Row", "churn", "median_of"]


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
class Load:
    """Puts of ``times`` the quota; with ``reuse`` a fifth of them over again, and one in four read back.

    What is put or read again is any of the last three quarters of a quota: records get used until they are evicted,
    which is the worst for a log.
    """

    quota_bytes: int
    value_bytes: int
    clients: int
    times: int
    reuse: bool

    @property
    def puts(self) -> int:
        """How many values are put."""
        return self.times * self.quota_bytes // self.value_bytes

    @property
    def window(self) -> int:
        """How many of the newest are used again."""
        return self.quota_bytes * 3 // 4 // self.value_bytes


@dataclass(frozen=True, slots=True)
class _Phase:
    """What all puts, or all reads, took: each of them, all together, and by the processors."""

    latencies_s: Sequence[float]
    size_bytes: int
    wall_s: float
    cpu_s: float

    @property
    def mb_per_s(self) -> float:
        return round(self.size_bytes / self.wall_s / 1e6, 1)

    @property
    def cpu_s_per_gb(self) -> float:
        return round(self.cpu_s / self.size_bytes * 1e9, 2)

    def percentile_ms(self, percent: float) -> float:
        return round(1e3 * float(np.percentile(self.latencies_s, percent)), 2)


async def churn(name: str, root: Path, load: Load) -> Row:
    """One round of one backend."""
    directory = Path(tempfile.mkdtemp(dir=root))
    backend = BACKENDS[name](directory, load.quota_bytes)
    helper = getattr(backend, "helper", None)
    wrote, index_cpu = written_to_disk(helper), index_seconds(backend)
    put = await _put_all(backend, load)
    wrote, index_cpu = written_to_disk(helper) - wrote, index_seconds(backend) - index_cpu
    drop_caches(directory)
    got = await _get_newest(backend, load)
    await backend.close()
    shutil.rmtree(directory)
    return Row(
        name,
        "reuse" if load.reuse else "fresh",
        load.value_bytes,
        load.clients,
        put.mb_per_s,
        put.percentile_ms(50),
        put.percentile_ms(99),
        put.cpu_s_per_gb,
        round(index_cpu / put.size_bytes * 1e9, 4),
        round(wrote / put.size_bytes, 2),
        got.mb_per_s,
        got.percentile_ms(99),
        got.cpu_s_per_gb,
    )


async def _put_all(backend: Backend, load: Load) -> _Phase:
    payload = Random(load.value_bytes).randbytes(load.value_bytes)
    numbers = iter(range(load.puts))
    latencies: list[float] = []

    async def client(seed: int) -> None:
        random = Random(seed)
        for number in numbers:
            again = load.reuse and number > load.window and random.random() < 0.2
            key = key_of(number - random.randrange(load.window) if again else number)
            record = Record(key, ContentKey(bytes(32)), payload, 1)
            start = time.perf_counter()
            await backend.put(record)
            latencies.append(time.perf_counter() - start)
            if load.reuse and number > load.window and random.random() < 0.25:
                await backend.get(key_of(number - random.randrange(load.window)))

    helper = getattr(backend, "helper", None)
    cpu, start = cpu_seconds(helper), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for seed in range(load.clients):
            group.create_task(client(seed))
    wall_s = time.perf_counter() - start
    return _Phase(latencies, load.puts * load.value_bytes, wall_s, cpu_seconds(helper) - cpu)


async def _get_newest(backend: Backend, load: Load) -> _Phase:
    """Read as many of the newest as half of the quota holds, each once."""
    wanted = iter(range(load.puts - load.quota_bytes // load.value_bytes // 2, load.puts))
    latencies: list[float] = []
    hits = 0

    async def reader() -> None:
        nonlocal hits
        for number in wanted:
            start = time.perf_counter()
            hits += await backend.get(key_of(number))
            latencies.append(time.perf_counter() - start)

    cpu, start = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.clients):
            group.create_task(reader())
    wall_s = time.perf_counter() - start
    return _Phase(latencies, max(1, hits * load.value_bytes), wall_s, time.process_time() - cpu)


def median_of(rows: Sequence[Row]) -> Row:
    """The median of every figure of rounds of one subject."""
    figures = {
        field.name: round(float(np.median([getattr(row, field.name) for row in rows])), 4)
        for field in fields(Row)
        if field.name not in ("backend", "load", "value_bytes", "clients")
    }
    return replace(rows[0], **figures)
