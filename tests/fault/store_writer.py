"""Child of the crash tests: puts numbered chunks into a store on DIRECTORY and prints each number once it is durable.

Reads lines ``FIRST ACK DIRECTORY`` and forks a writer for each, so that hundreds of them import everything once.
Prints ``pid N``, then its numbers (``disk``: after each acknowledged put, ``memory``: after a flush), and ``end`` once
it has been killed.
"""

import asyncio
import os
import sys
from pathlib import Path

from blake3 import blake3

from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.memory.tier import MemoryTier
from kvloom.kvstore.namespace import derive_namespace
from kvloom.kvstore.ssd.tier import SsdTier
from kvloom.kvstore.tier import Ack
from kvloom.kvstore.tiered.store import TieredStore

LIMIT_BYTES = 64 * 1024 * 1024
NAMESPACE = derive_namespace(bytes(32), "crash")
WRITERS = 6


def key_of(number: int) -> ContentKey:
    return ContentKey(blake3(f"chunk {number}".encode()).digest())


def container_of(number: int) -> bytes:
    writer = ContainerWriter(
        Layout.uniform(layers=2, kv_heads=1, head_dim=4), tokens=3, first_position=0, content_key=key_of(number)
    )
    for layer in range(2):
        for kind in Kind:
            length = 10 + number * 37 % 3000
            writer.put(EXACT, layer, kind, blake3(f"{number}/{layer}/{kind}".encode()).digest(length=length))
    return writer.commit()


async def write(directory: Path, first: int, ack: Ack) -> None:
    store = TieredStore([MemoryTier(LIMIT_BYTES), SsdTier.open(directory, LIMIT_BYTES)], clock_ms=lambda: 1)
    await store.start()

    async def keep_putting(number: int) -> None:
        while True:
            await store.put(NAMESPACE, key_of(number), container_of(number), ack=ack)
            if ack is Ack.MEMORY:
                await store.flush()
            os.write(1, b"%d\n" % number)  # at once: half a line would run into what the parent is told next
            number += WRITERS

    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(keep_putting(first + writer))


def serve() -> None:
    for line in sys.stdin:
        first, ack, directory = line.rstrip("\n").split(" ", 2)
        child = os.fork()
        if child == 0:
            asyncio.run(write(Path(directory), int(first), Ack(ack)))
        print(f"pid {child}", flush=True)  # noqa: T201
        os.waitpid(child, 0)
        print("end", flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
