"""What it takes to open a tier of many small records."""

import asyncio
import json
import resource
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import lmdb

from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Record

from .backends import BACKENDS, Backend, ProductBackend, key_of
from .costs import drop_caches, forget_lists

__all__ = ["Opened", "opening"]


@dataclass(frozen=True, slots=True)
class Opened:
    """One opening: time, CPU time of the process, CPU time of that of the index."""

    seconds: float
    cpu_s: float
    index_cpu_s: float


async def opening(root: Path, records: int, value_bytes: int) -> dict[str, Opened]:
    """What it takes to open ``records`` small records."""
    quota_bytes = records * (value_bytes + 1024) * 2
    opened: dict[str, Opened] = {}

    async def log(what: str, directory: Path) -> None:
        opened[what] = await _opened(directory, quota_bytes, records)
        print(json.dumps({"open": what, **asdict(opened[what])}), flush=True)

    directory, backend = await _filled("log+index", root, quota_bytes, records, value_bytes)
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
    quota_bytes *= 2  # it charges itself a page more for each
    directory, backend = await _filled("lmdb", root, quota_bytes, records, value_bytes)
    await backend.close()
    opened["lmdb, records walked"] = _walked(directory, quota_bytes, records)
    print(json.dumps({"open": "lmdb, records walked", **asdict(opened["lmdb, records walked"])}), flush=True)
    shutil.rmtree(directory)
    return opened


async def _filled(name: str, root: Path, quota_bytes: int, records: int, value_bytes: int) -> tuple[Path, Backend]:
    """A backend with so many records, and where it lies."""
    directory = Path(tempfile.mkdtemp(dir=root))
    backend = BACKENDS[name](directory, quota_bytes)
    for first in range(0, records, 2000):
        numbers = range(first, min(first + 2000, records))
        made = [Record(key_of(number), ContentKey(bytes(32)), bytes(value_bytes), 1) for number in numbers]
        await asyncio.gather(*(backend.put(record) for record in made))
    return directory, backend


async def _opened(directory: Path, quota_bytes: int, records: int) -> Opened:
    """The product, opened from a disk that nothing is cached of."""
    drop_caches(directory)
    start, cpu, children = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    tier = SsdTier.open(directory, quota_bytes)
    took, used = time.perf_counter() - start, time.process_time() - cpu
    assert tier.capacity().records == records, tier.capacity()
    await tier.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    helper = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    return Opened(round(took, 2), round(used, 2), round(helper, 2))


def _walked(directory: Path, quota_bytes: int, records: int) -> Opened:
    """LMDB, every record looked at once."""
    drop_caches(directory)
    start, cpu = time.perf_counter(), time.process_time()
    with lmdb.open(str(directory), map_size=quota_bytes) as environment, environment.begin(buffers=True) as reading:
        found = {bytes(key): len(value) for key, value in reading.cursor()}
    assert len(found) == records
    return Opened(round(time.perf_counter() - start, 2), round(time.process_time() - cpu, 2), 0.0)
