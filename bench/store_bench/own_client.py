"""A client process of kvloom's, or of the plain copy it is compared with.

python own_client.py get|put|contains_many SUBJECT VALUE_BYTES VALUES
"""

import mmap
import os
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from kvloom.clients import KvloomClient
from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.kvstore.outcome import Hit
from kvloom.kvstore.tier import Ack

from .turns import content_of, serve_turns

LAYERS = 30
"""Two segments each: the container of a small model."""
BATCH = 32
KEYS_ASKED = 1000
PUT_VALUES = 8


def key_of(number: int) -> bytes:
    """The key of chunk ``number``."""
    return number.to_bytes(32, "little")


def chunk(number: int, value_bytes: int, *, key: bytes | None = None) -> bytes:
    """A container of about ``value_bytes`` random bytes."""
    layout = Layout.uniform(layers=LAYERS, kv_heads=3, head_dim=64)
    writer = ContainerWriter(layout, tokens=256, first_position=0, content_key=key or key_of(number))
    segment_bytes = (value_bytes - 1500) // (2 * LAYERS)
    content = content_of(number, 2 * LAYERS * segment_bytes)
    places = iter(range(0, len(content), segment_bytes))
    for layer in range(LAYERS):
        for kind in Kind:
            start = next(places)
            writer.put(EXACT, layer, kind, content[start : start + segment_bytes])
    return writer.commit()


def hit(outcome: Any) -> memoryview:
    """The bytes of a read, which must have been a hit."""
    if not isinstance(outcome, Hit):
        raise SystemExit(f"not a hit: {outcome}")
    return outcome.value.data


def copying(value_bytes: int, values: int) -> Callable[[], int]:
    """A plain memcpy out of as much memory as the stores keep."""
    source = np.random.default_rng(1).integers(0, 255, values * value_bytes, np.uint8)
    target = np.zeros(value_bytes, np.uint8)
    pick = random.Random(os.getpid()).randrange

    def copy() -> int:
        start = pick(values) * value_bytes
        np.copyto(target, source[start : start + value_bytes])
        return value_bytes

    return copy


def putting(client: KvloomClient, value_bytes: int) -> Callable[[], int]:
    """Puts a few chunks of this process's own again and again."""
    keys = [os.getpid().to_bytes(8, "little") + number.to_bytes(24, "little") for number in range(PUT_VALUES)]
    chunks = [chunk(number, value_bytes, key=key) for number, key in enumerate(keys)]
    pick = random.Random(os.getpid()).randrange

    def put() -> int:
        index = pick(len(keys))
        client.put(keys[index], chunks[index], ack=Ack.MEMORY)
        return len(chunks[index])

    return put


def getting(client: KvloomClient, subject: str, value_bytes: int, values: int) -> Callable[[], int]:
    """Gets chunks in random order, one or many at a time; every byte is read, since it is verified."""
    pick = random.Random(os.getpid()).randrange
    out = np.zeros(2 * value_bytes, np.uint8)

    first = subject.endswith(("first", "untouched"))
    kept = client._local._kept if first else {}
    for number in () if first else range(values):
        hit(client.get(key_of(number)))

    def get() -> int:
        kept.clear()
        return len(hit(client.get(key_of(pick(values)))))

    def get_many() -> int:
        kept.clear()
        return sum(len(hit(found)) for found in client.get_many([key_of(pick(values)) for _ in range(BATCH)]))

    def get_and_copy() -> int:
        view = hit(client.get(key_of(pick(values))))
        np.copyto(out[: len(view)], np.frombuffer(view, np.uint8))
        return len(view)

    return get_many if "x32" in subject else get_and_copy if subject.endswith("+ copy") else get


def forgetting(client: KvloomClient) -> Callable[[], None]:
    """Makes what this process has mapped what it was before its first touch: every page faults again."""

    def forget() -> None:
        for connection in client._local._idle:
            for segment in connection._segments._mapped.values():
                segment.madvise(mmap.MADV_DONTNEED)

    return forget


def operation(what: str, client: KvloomClient, subject: str, value_bytes: int, values: int) -> Callable[[], int]:
    """What the process does again and again, returning the bytes that it moved."""
    if subject == "memcpy":
        return copying(value_bytes, values)
    if what == "contains_many":
        keys = [key_of(number) for number in range(KEYS_ASKED)]
        return lambda: 32 * len(client.exists(keys))
    return putting(client, value_bytes) if what == "put" else getting(client, subject, value_bytes, values)


if __name__ == "__main__":
    _, what, subject, value_bytes, values = sys.argv
    client = KvloomClient(local=subject != "kvloom http")
    serve_turns(
        operation(what, client, subject, int(value_bytes), int(values)),
        BATCH if "x32" in subject else 1,
        forgetting(client) if subject.endswith("untouched") else None,
    )
