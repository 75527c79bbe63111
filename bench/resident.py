"""What a resident chunk costs the daemon beside its own bytes: index, eviction policy, record header, all of it.

    python bench/resident.py [--records 1000000] [--policy lru] [--json FILE]

Fills a memory tier with records of 64 payload bytes and compares the memory of the process before and after, shared
memory included. Nothing is estimated: what the allocator wastes counts. Compared with the target of 400 bytes.
"""

import argparse
import asyncio
import gc
import json
import os
from pathlib import Path

import psutil

from kvloom.kvstore.eviction import POLICIES, make_policy
from kvloom.kvstore.key import ContentKey, StorageKey
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.tier import Record

PAYLOAD_BYTES = 64
TARGET_BYTES = 400


def resident_bytes() -> int:
    """Memory of this process now, as the system counts it."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def fill(tier: MemoryTier, records: int) -> None:
    """Put as many records as asked, each under keys of its own."""
    payload = bytes(PAYLOAD_BYTES)
    for number in range(records):
        await tier.put(Record(StorageKey(os.urandom(32)), ContentKey(os.urandom(32)), payload, number))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--policy", choices=tuple(POLICIES), default="lru")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    asyncio.run(fill(MemoryTier(1024**2), 1000))  # what the first put loads is no cost of a record
    tier = MemoryTier(max(1024**3, arguments.records * 2048), policy=make_policy(arguments.policy))
    before = resident_bytes()
    asyncio.run(fill(tier, arguments.records))
    grown = resident_bytes() - before
    held = tier.capacity().records
    row = {
        "policy": arguments.policy,
        "records": held,
        "payload_bytes": PAYLOAD_BYTES,
        "bytes_per_record": round(grown / held - PAYLOAD_BYTES, 1),
        "target_bytes": TARGET_BYTES,
    }
    print(f"{'policy':<12}{'records':>12}{'bytes each, beside payload':>30}{'target':>10}")
    print(f"{row['policy']:<12}{held:>12,}{row['bytes_per_record']:>30}{TARGET_BYTES:>10}")
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
