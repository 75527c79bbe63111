"""Hostile containers, checksums put right after every change so that they guard nothing.

The invariant: whatever the bytes, ``parse_header`` and ``verify`` either raise one of the typed errors in one short
line, or accept, and then the bytes are exactly what the writer would have written; and neither ever holds more memory
than the bytes they were given account for. Some 13,000 cases; ``KVLOOM_FUZZ_FACTOR=100`` makes it a million.
"""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom import limits
from kvloom.codec.container import ContainerHeader, join_layers, parse_header, select, verify
from kvloom.codec.layout import Layout
from kvloom.codec.level import DRAFT, ECONOMY, EXACT
from kvloom.errors import BodyTooLarge, InvalidData, InvalidTensor, MalformedContainer

FACTOR = int(os.environ.get("KVLOOM_FUZZ_FACTOR", "1"))
TYPED = (InvalidData, InvalidTensor, BodyTooLarge)
FIXED_BYTES, ENTRY_BYTES, CHECKSUM_BYTES = 96, 16, 8
INTERESTING = [
    0, 1, 2, 3, 5, 16, 17, 64, 65, 127, 128, 254, 255, 256, 512, 513, 4096, 4097, 9216, 9217, 2**15, 2**16 - 1, 2**16,
    2**16 + 1, 2**28, 2**28 + 1, 2**31 - 1, 2**31, 2**32 - 1,
]  # fmt: skip
# Offset and width of every number in the fixed header.
NUMBERS = [(4, 2), (6, 2), (8, 4), (12, 4), (16, 4), (20, 2), (22, 1), (23, 1), (24, 4), (28, 4)]
PLACES_IN_ENTRY = [(0, 1), (1, 1), (2, 2), (4, 4)]


@pytest.fixture(scope="session")
def corpus(container_bytes: Callable[..., bytes]) -> list[bytes]:
    """Valid containers of every shape of table, and one with the longest table that the levels of today allow."""
    made = [
        container_bytes(levels, layers=layers, segment_bytes=size, block_layers=block, seed=layers)
        for levels in ((EXACT,), (DRAFT,), (DRAFT, ECONOMY), (DRAFT, EXACT), (DRAFT, ECONOMY, EXACT))
        for layers, size, block in ((1, 0, 1), (2, 9, 1), (5, 40, 2))
    ]
    return [*made, container_bytes(layers=limits.LAYERS_MAX, segment_bytes=2)]


def put(data: bytearray, offset: int, width: int, value: int) -> None:
    if offset + width <= len(data):
        data[offset : offset + width] = (value % 256**width).to_bytes(width, "little")


def mutate(data: bytearray, rng: np.random.Generator) -> None:
    """One change, of the kinds that an attacker or a broken writer makes."""
    layout_bytes = struct.unpack_from("<I", data, 24)[0] if len(data) >= FIXED_BYTES else 0
    entries = (len(data) - FIXED_BYTES - layout_bytes) // ENTRY_BYTES
    entry = FIXED_BYTES + layout_bytes + ENTRY_BYTES * int(rng.integers(max(entries, 1)))
    at, value = int(rng.integers(len(data) + 1)), int(rng.choice(INTERESTING))
    match int(rng.integers(9)):
        case 0 | 1:
            put(data, *NUMBERS[int(rng.integers(len(NUMBERS)))], value)
        case 2 | 3:
            offset, width = PLACES_IN_ENTRY[int(rng.integers(len(PLACES_IN_ENTRY)))]
            put(data, entry + offset, width, value)
        case 4:
            put(data, min(at, FIXED_BYTES + layout_bytes), 1, int(rng.integers(256)))
        case 5:
            data[entry : entry + ENTRY_BYTES] = b""
        case 6:
            data[entry:entry] = data[entry : entry + ENTRY_BYTES]
        case 7:
            del data[at:]
        case 8:
            data[at:at] = rng.bytes(int(rng.integers(1, 40)))


def reseal(data: bytearray) -> bytes:
    """Bypass the checksums: make counts consistent, then every checksum that still has a place right."""
    if len(data) < FIXED_BYTES + CHECKSUM_BYTES:
        return bytes(data)
    layout_bytes, count = struct.unpack_from("<II", data, 24)
    table = FIXED_BYTES + layout_bytes
    header_bytes = table + count * ENTRY_BYTES + CHECKSUM_BYTES
    if header_bytes <= len(data):
        put(data, 8, 4, header_bytes)
        offset = header_bytes
        for entry in range(table, table + count * ENTRY_BYTES, ENTRY_BYTES):
            length = struct.unpack_from("<I", data, entry + 4)[0]
            digest = blake3(data[offset : offset + length]).digest(length=CHECKSUM_BYTES)
            data[entry + 8 : entry + ENTRY_BYTES] = digest
            offset += length
        checksum = blake3(data[: header_bytes - CHECKSUM_BYTES]).digest(length=CHECKSUM_BYTES)
        data[header_bytes - CHECKSUM_BYTES : header_bytes] = checksum
    return bytes(data)


def accepted(read: Callable[[], ContainerHeader]) -> ContainerHeader | None:
    """What was read, or ``None`` after a typed error in one short line; anything else fails the test."""
    try:
        return read()
    except TYPED as error:
        line = str(error)
    assert len(line) < 400
    assert "\n" not in line
    return None


def check(data: bytes) -> bool:
    """Whether ``data`` is a container; fails where the invariant does not hold."""
    accepted(lambda: parse_header(data))
    header = accepted(lambda: verify(data))
    if header is None:
        return False
    assert header.tokens <= limits.CHUNK_TOKENS_MAX
    assert 1 <= len(header.layers) <= len(header.layout.layers)
    assert header.total_bytes == len(data)
    selection = select(header)
    gathered = b"".join([selection.header, *(data[part.start : part.stop] for part in selection.ranges)])
    assert join_layers([data]) == gathered
    assert verify(gathered).levels == header.levels
    return True


def test_mutated_containers_with_checksums_put_right(corpus: list[bytes], rng: np.random.Generator) -> None:
    verdicts = []
    for case in range(8000 * FACTOR):
        data = bytearray(corpus[case % (len(corpus) - 1)])
        for _ in range(int(rng.integers(1, 4))):
            mutate(data, rng)
        verdicts.append(check(reseal(data)))
    assert any(verdicts), "no mutant was accepted: the checksums were not bypassed"
    assert not all(verdicts)


def test_mutated_containers_with_checksums_intact(corpus: list[bytes], rng: np.random.Generator) -> None:
    for case in range(2000 * FACTOR):
        data = bytearray(corpus[case % (len(corpus) - 1)])
        mutate(data, rng)
        if bytes(data) != corpus[case % (len(corpus) - 1)]:
            prefix_of_a_level = corpus[case % (len(corpus) - 1)].startswith(bytes(data))
            assert check(bytes(data)) <= prefix_of_a_level


def test_memory_is_bounded_by_the_bytes_given(corpus: list[bytes], rng: np.random.Generator) -> None:
    """A table entry of 16 bytes becomes an object of some 300; nothing a header *declares* may cost anything."""
    tracemalloc.start()
    try:
        for case in range(600 * FACTOR):
            data = bytearray(corpus[case % len(corpus)])
            for _ in range(int(rng.integers(4))):
                mutate(data, rng)
            mutant = reseal(data)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            accepted(lambda mutant=mutant: verify(mutant))  # type: ignore[misc]
            assert tracemalloc.get_traced_memory()[1] - before < 512 * 1024 + 64 * len(mutant)
    finally:
        tracemalloc.stop()


@settings(max_examples=1500 * FACTOR)
@given(st.binary(max_size=400), st.sampled_from([b"", b"KVLC", b"KVLC\x02\x00\x00\x00"]))
def test_noise_is_refused(noise: bytes, start: bytes) -> None:
    assert not check(reseal(bytearray(start + noise)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(INTERESTING),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)
RUN = {"attention": "full", "count": 1, "head_dim": 8, "kv_heads": 2, "rope": 0, "window": 0}
near_layouts = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["float32", "float16", "bfloat16"]) | json_values,
        "layers": st.lists(
            st.fixed_dictionaries({name: st.just(value) | json_values for name, value in RUN.items()}) | json_values,
            max_size=3,
        )
        | json_values,
        "ropes": st.just([{"f": [1.0, 0.5], "interleaved": False}]) | json_values,
        "shard": st.just([0, 1]) | json_values,
    },
    optional={"extra": json_values},
)


@settings(max_examples=1500 * FACTOR)
@given(near_layouts | json_values)
def test_a_hostile_layout_inside_a_sealed_header(container_bytes: Callable[..., bytes], document: object) -> None:
    plain = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    layout = zstandard.ZstdCompressor().compress(plain)
    data = bytearray(container_bytes((EXACT,), layers=1))
    old_bytes = struct.unpack_from("<I", data, 24)[0]
    data[FIXED_BYTES : FIXED_BYTES + old_bytes] = layout
    put(data, 24, 4, len(layout))
    assert check(reseal(data)) == is_layout_of_one_layer(plain)


def is_layout_of_one_layer(data: bytes) -> bool:
    try:
        return len(Layout.from_bytes(data).layers) == 1
    except MalformedContainer:
        return False


@pytest.mark.parametrize("field", ["dtype", "attention"])
def test_a_long_hostile_value_does_not_become_a_long_line(field: str) -> None:
    run = {**RUN, "rope": None}
    document: dict[str, object] = {"dtype": "float32", "layers": [run], "ropes": [], "shard": [0, 1]}
    (document if field == "dtype" else run)[field] = "x" * 50_000
    with pytest.raises(MalformedContainer) as caught:
        Layout.from_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    assert len(str(caught.value)) < 250
