"""What a network tier moves, and what its breaker does when the network fails.

    python bench/network.py --network valkey://127.0.0.1:6379 [--network s3://bucket/x ...] [--faults] [--json FILE]

Transfers: every store named (the credentials are those of its environment), values of 256 KiB and 4 MiB, 1 and 8 at
once; puts, whole gets, gets of a tenth, and ``contains`` of 100 keys; through the tier with its guards, as a daemon
uses it. The stores take turns, round by round. Compared with a plain client of the same engine where there is one: for
Valkey, GET and SET of whole values by the same client library. Columns as in ``store.py``; CPU is that of this process,
without the stores'; a row of "get a tenth" counts the bytes that were asked for.

``--faults`` (Valkey only): a proxy between the tier and the first store misbehaves in five ways. Measured are the
seconds until the breaker opens and closes again, and how long reads of what the daemon has in memory take
meanwhile, beside the same reads with nothing wrong, while 4 clients keep asking for what only the network has.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from store_bench.rows import Row, Timed, heading, line

from kvloom.codec.container import ByteRange
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.network import open_network_tier, parse_network
from kvloom.kvstore.network.address import ValkeyAddress
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.tier import Record, Tier

SIZES = (256 * 1024, 4 * 1024 * 1024)
CLIENTS = (1, 8)
ROUND_BYTES = 64 * 1024 * 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FaultRow:
    """One fault; local reads are of a 256 KiB record in memory."""

    fault: str
    opens_s: float
    closes_s: float
    local_p50_ms: float
    local_p99_ms: float
    plain_p50_ms: float
    plain_p99_ms: float


async def timed_calls(timed: Timed, calls: list[Callable[[], Awaitable[object]]]) -> None:
    """Make all ``calls``, as many at a time as there are clients: one turn."""
    waiting, latencies = iter(calls), []

    async def client() -> None:
        for call in waiting:
            started = time.perf_counter()
            await call()
            latencies.append(time.perf_counter() - started)

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(timed.clients)))
    timed.add(latencies, time.perf_counter() - started, time.process_time() - cpu)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


async def hit(tier: Tier, record: Record, ranges: list[ByteRange] | None = None) -> None:
    """Read and insist."""
    found = await tier.get(record.storage_key, ranges)
    if not isinstance(found, Hit):
        raise SystemExit(f"expected a hit, got {found}")


async def transfers(urls: list[str], rounds: int) -> list[Row]:
    """Every combination, the stores interleaved."""
    tiers = {url.partition(":")[0]: open_network_tier(url) for url in urls}
    plain = await plain_valkey(urls[0])
    timings: dict[tuple[str, str, int, int], Timed] = {}

    async def measure(what: str, subject: str, size: int, clients: int, calls: list) -> None:
        case = (what, subject, size, clients)
        await timed_calls(timings.setdefault(case, Timed(*case)), calls)

    for size in SIZES:
        records = [make_record(number, size) for number in range(ROUND_BYTES // size)]
        tenth = [ByteRange(size // 2, size // 2 + size // 10)]
        for _ in range(rounds):
            for clients in CLIENTS:
                for subject, tier in tiers.items():
                    calls = [partial(tier.put, record) for record in records]
                    await measure("put", subject, size, clients, calls)
                    calls = [partial(hit, tier, record) for record in records]
                    await measure("get", subject, size, clients, calls)
                    calls = [partial(hit, tier, record, tenth) for record in records]
                    await measure("get a tenth", subject, size // 10, clients, calls)
                if plain is not None:
                    calls = [partial(plain.set, b"plain" + record.storage_key, record.payload) for record in records]
                    await measure("put", "valkey-py", size, clients, calls)
                    calls = [partial(plain.get, b"plain" + record.storage_key) for record in records]
                    await measure("get", "valkey-py", size, clients, calls)
    keys = [make_record(number, 0).storage_key for number in range(100)]
    for subject, tier in tiers.items():
        for _ in range(rounds):
            await measure("contains 100", subject, 32 * len(keys), 1, [partial(tier.contains_many, keys)] * 5)
        await tier.delete_owner(records[0].owner)
        await tier.close()
    if plain is not None:
        await plain.flushdb()
        await plain.aclose()
    return [found.row() for _, found in sorted(timings.items())]


async def plain_valkey(url: str) -> Any:
    """The client library alone, where the first store is one Valkey server."""
    address = parse_network(url)
    if not isinstance(address, ValkeyAddress) or len(address.hosts) > 1 or address.tls:
        return None
    from valkey.asyncio import Valkey

    return Valkey(host=address.hosts[0].host, port=address.hosts[0].port)


async def local_reads(memory: MemoryTier, record: Record, seconds: float) -> list[float]:
    """Read from memory for a while, with a pause for others after each."""
    taken, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        await hit(memory, record)
        taken.append(time.perf_counter() - started)
        await asyncio.sleep(0.001)
    return taken


async def faults(url: str) -> list[FaultRow]:
    """Each fault once; see the top of the file."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
    from network_proxy import Fault, NetworkProxy

    address = parse_network(url)
    if not isinstance(address, ValkeyAddress):
        raise SystemExit("--faults needs a Valkey store as the first --network")
    record, rows = make_record(1, 256 * 1024), []
    for fault in (fault for fault in Fault if fault is not Fault.NONE):
        proxy = NetworkProxy(address.hosts[0].port)
        tier, memory = open_network_tier(f"valkey://127.0.0.1:{proxy.port}/bench"), MemoryTier(16 * MIB)
        await memory.put(record)
        await tier.put(record)
        ended = asyncio.Event()

        async def ask(tier: Tier, ended: asyncio.Event) -> None:
            while not ended.is_set():
                await tier.get(record.storage_key, [ByteRange(0, 16_384)])
                await asyncio.sleep(0.01)

        clients = [asyncio.ensure_future(ask(tier, ended)) for _ in range(4)]
        plain = await local_reads(memory, record, 3.0)
        reading = asyncio.ensure_future(local_reads(memory, record, 3.0))
        await asyncio.to_thread(proxy.set, fault)
        opens = await until(lambda tier=tier: tier.is_open)
        failing = await reading
        await asyncio.to_thread(proxy.set, Fault.NONE)
        closes = await until(lambda tier=tier: not tier.is_open)
        ended.set()
        await asyncio.gather(*clients)
        await tier.close()
        proxy.close()
        milliseconds = (round(1e3 * value, 3) for value in (*percentiles(failing), *percentiles(plain)))
        rows.append(FaultRow(fault.value, round(opens, 3), round(closes, 3), *milliseconds))
    return rows


async def until(holds: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    started = time.perf_counter()
    while not holds():
        if time.perf_counter() - started > 60:
            raise SystemExit("the breaker did not do what it should within 60 s")
        await asyncio.sleep(0.002)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", required=True, metavar="URL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    moved = asyncio.run(transfers(arguments.network, arguments.rounds))
    failed = asyncio.run(faults(arguments.network[0])) if arguments.faults else []
    print("\n".join([heading(), *map(line, moved)]))
    for row in failed:
        print(row)
    if arguments.json:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        result = {
            "machine": machine,
            "transfers": [asdict(row) for row in moved],
            "faults": [asdict(r) for r in failed],
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
