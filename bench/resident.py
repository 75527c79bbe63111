"""What a resident chunk costs the daemon beside its own bytes: index, eviction policy, record header, all of it.

    python bench/resident.py --json resident.json                  # a minute and a half
    python bench/resident.py --churn 8 --json resident.json        # twelve minutes, one core

Fills a memory tier with records of 64 payload bytes and compares the memory of the process before and after. Nothing
is estimated: what the allocator wastes counts. Compared with the target of 400 bytes. What lies in segments is counted
apart, as the system counts it (shared memory): of that a record takes its header and payload, and the rest, ``spare``,
is dead or kept for compaction, in proportion to the bytes of the tier and not to its records.

With ``--churn N`` the tier has room for about that many records, and N times as many are evicted by new ones before
the memory is read: what a policy remembers of the evicted counts then. The default policy remembers at most 7.5 keys
per resident, so 8 fill it; the room for them is taken at the first eviction.
"""

import argparse
import asyncio
import gc
import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvloom.kvstore.eviction import DEFAULT_POLICY, POLICIES, ChunkAttributes, EvictionPolicy, make_policy
from kvloom.kvstore.key import OWNER_BYTES, ContentKey, StorageKey
from kvloom.kvstore.memory.resident import HEADER_BYTES, footprint
from kvloom.kvstore.memory.tier import BOOKKEEPING_BYTES, MemoryTier
from kvloom.kvstore.tier import Record

PAYLOAD_BYTES = 64
MIB = 1024**2
TARGET_BYTES = 400
CHAIN = 8
"""Records in a prefix."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the process has now, as the system counts it: its own, and segments."""

    own_bytes: int
    shared_bytes: int


def memory() -> Memory:
    """Read it, with no garbage waiting."""
    gc.collect()
    info = psutil.Process().memory_info()
    return Memory(info.rss - info.shared, info.shared)


async def fill(tier: MemoryTier, records: int) -> None:
    """Put as many records as asked, each under keys of its own, with a place as chunks of clients that say it have."""
    payload, owner, parent = bytes(PAYLOAD_BYTES), os.urandom(OWNER_BYTES), None
    for number in range(records):
        key = StorageKey(owner + os.urandom(16))
        place = number % CHAIN
        attributes = ChunkAttributes(parent if place else None, 256 * place)
        await tier.put(Record(key, ContentKey(os.urandom(32)), payload, number, attributes=attributes))
        parent = key


def limit_bytes(policy: EvictionPolicy, records: int) -> int:
    """Of a tier that has room for about ``records``: what it charges for each, and what it keeps for compaction."""
    charged_bytes = footprint(PAYLOAD_BYTES) + BOOKKEEPING_BYTES + policy.resident_bytes
    return records * charged_bytes * 16 // 15


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--policy", choices=tuple(POLICIES), default=DEFAULT_POLICY)
    parser.add_argument("--churn", type=float, default=0.0, metavar="N", help="times that all records are replaced")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    asyncio.run(fill(MemoryTier(MIB), 1000))  # what the first put loads is no cost of a record
    policy = make_policy(arguments.policy)
    room_bytes = limit_bytes(policy, arguments.records) if arguments.churn else arguments.records * 2048
    tier = MemoryTier(max(MIB, room_bytes), policy=policy)
    before = memory()
    asyncio.run(fill(tier, round(arguments.records * (1 + arguments.churn))))
    after = memory()
    own_bytes = after.own_bytes - before.own_bytes
    shared_bytes = after.shared_bytes - before.shared_bytes
    capacity = tier.capacity()
    held = capacity.records
    row = {
        "policy": arguments.policy,
        "records": held,
        "evictions": capacity.evictions,
        "remembered": getattr(policy, "remembered", 0),
        "payload_bytes": PAYLOAD_BYTES,
        "bytes_per_record": round(own_bytes / held + HEADER_BYTES, 1),
        "spare_bytes_per_record": round(shared_bytes / held - footprint(PAYLOAD_BYTES), 1),
        "target_bytes": TARGET_BYTES,
    }
    heads = ("records", "evictions", "remembered", "bytes_per_record", "spare_bytes_per_record", "target_bytes")
    print(f"{arguments.policy:<12}" + "".join(f"{name:>24}" for name in heads))
    print(" " * 12 + "".join(f"{row[name]:>24,}" for name in heads))
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
