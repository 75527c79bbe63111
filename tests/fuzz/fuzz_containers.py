"""Whole containers on hostile bytes: the checksums put right after every change, so that the decoders see the damage.

    python tests/fuzz/fuzz_containers.py --cases 100000 --seed 1 --processes 2

The invariant: decoding either raises :class:`InvalidData` (or one of its kin that says what does not fit) in one short
line, or gives tensors of exactly the shapes that the header declares; and it never holds more memory than a bound that
the header's declared sizes give. A failing case names the seed that makes it again.
"""

import argparse
import multiprocessing
import resource
import struct
import sys
import time
import traceback
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from kvloom import codec
from kvloom.codec import EXACT, LOSSY_LEVELS, KvDtype, LayerLayout, Layout, Profile, Rope
from kvloom.codec.cachegen import CacheGenProfile, calibrate_cachegen
from kvloom.codec.container import Container, parse_header, verify
from kvloom.errors import BodyTooLarge, InvalidData, InvalidTensor, KvloomError, LayoutMismatch, ProfileMismatch

TYPED = (InvalidData, InvalidTensor, BodyTooLarge, LayoutMismatch, ProfileMismatch)
FIXED_BYTES, ENTRY_BYTES, CHECKSUM_BYTES = 96, 16, 8
MEMORY_BYTES_MAX = 3 * 2**30
"""Address space beyond what a worker starts with: a decoder that trusts a count runs into it."""
LINE_CHARACTERS_MAX = 400
TOKENS_DECODED_MAX = 2_000_000
"""Values of a mutant that is decoded; larger ones are legal, and slow."""
INTERESTING = (0, 1, 2, 3, 6, 12, 31, 32, 63, 64, 127, 128, 254, 255, 256, 4095, 4096, 65535, 65536)
INTERESTING += (2**27 - 1, 2**27, 2**30, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Seed:
    """A sound container and what decodes it."""

    blob: bytes
    profile: Profile | CacheGenProfile | None


def corpus() -> list[Seed]:
    """Small chunks of every kind of payload: lossy by two sorts of profile, exact of every dtype, CacheGen."""
    rng = np.random.default_rng(1)
    rope = Rope((1.0, 0.1, 0.01, 0.001))
    layers = (LayerLayout(1, 8, rope), LayerLayout(2, 8, rope), LayerLayout(1, 12, rope, value_head_dim=4))
    seeds: list[Seed] = []
    for dtype in KvDtype:
        layout = Layout(dtype, layers)
        keys, values = (
            [
                rng.laplace(size=(item.kv_heads, 33, (item.head_dim, item.value_head_dim)[kind])).astype(dtype.numpy)
                for item in layers
            ]
            for kind in (0, 1)
        )
        seeds.append(Seed(codec.encode(keys, values, layout=layout, levels=[EXACT]), None))
        if dtype is not KvDtype.FLOAT32:
            continue
        gradients = (codec.KvGradient(keys, values),)
        profiles = [
            codec.calibrate([codec.KvSample(keys, values, 0, gradients)], layout, block_channels=64),
            codec.calibrate([codec.KvSample(keys, values)], layout, refinements=1),
            codec.generic_profile(layout),
        ]
        far = [item.copy() for item in values]
        far[1][0, 3, 2] = 1e6
        for profile in profiles:
            for content in (values, far):
                levels = LOSSY_LEVELS[: profile.refinements + 1]
                for chosen in (levels, [*levels, EXACT]):
                    blob = codec.encode(keys, content, layout=layout, profile=profile, levels=chosen)
                    seeds.append(Seed(blob, profile))
        plain = Layout(dtype, (LayerLayout(1, 8, rope), LayerLayout(2, 8, rope)))
        learnt = calibrate_cachegen([codec.KvSample(keys[:2], values[:2])], plain)
        seeds.append(Seed(codec.encode(keys[:2], values[:2], layout=plain, profile=learnt), learnt))
    return seeds


def put(data: bytearray, offset: int, width: int, value: int) -> None:
    """Write a number where there is room for it."""
    if 0 <= offset <= len(data) - width:
        data[offset : offset + width] = (value % 256**width).to_bytes(width, "little")


def damage(data: bytearray, rng: np.random.Generator) -> None:
    """One change of some bytes, of the kinds that an attacker or a broken writer makes."""
    at = int(rng.integers(len(data) + 1))
    match int(rng.integers(7)):
        case 0:
            put(data, at, 1, int(rng.integers(256)))
        case 1:
            put(data, at, int(rng.choice([1, 2, 4])), int(rng.choice(INTERESTING)))
        case 2:
            put(data, int(rng.integers(28)), int(rng.choice([1, 2, 4])), int(rng.choice(INTERESTING)))
        case 3 if data:
            data[at % len(data)] ^= 1 << int(rng.integers(8))
        case 4:
            del data[at : at + int(rng.integers(1, 9))]
        case 5:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        case 6:
            del data[at:]


def mutate(seed: Seed, other: Seed, rng: np.random.Generator) -> bytes:
    """A container like ``seed`` with damage in its segments or its header, sealed again."""
    header = parse_header(seed.blob)
    segments = [bytearray(seed.blob[item.offset : item.byte_range.stop]) for item in header.segments]
    head = bytearray(seed.blob[: header.header_bytes])
    for _ in range(int(rng.integers(1, 4))):
        index = int(rng.integers(len(segments)))
        match int(rng.integers(10)):
            case 0:
                put(head, int(rng.integers(12, 24)), int(rng.choice([1, 2, 4])), int(rng.choice(INTERESTING)))
            case 1:
                entry = header.header_bytes - CHECKSUM_BYTES - ENTRY_BYTES * (len(segments) - index)
                put(head, entry + int(rng.integers(4)), 1, int(rng.choice(INTERESTING)))
            case 2:
                theirs = parse_header(other.blob).segments
                item = theirs[int(rng.integers(len(theirs)))]
                segments[index] = bytearray(other.blob[item.offset : item.byte_range.stop])
            case 3:
                place = int(rng.integers(len(segments)))
                segments[index], segments[place] = segments[place], segments[index]
            case _:
                damage(segments[index], rng)
    return seal(head, segments, header.header_bytes)


def seal(head: bytearray, segments: list[bytearray], header_bytes: int) -> bytes:
    """Lengths and checksums made right."""
    table = header_bytes - CHECKSUM_BYTES - ENTRY_BYTES * len(segments)
    for index, segment in enumerate(segments):
        entry = table + ENTRY_BYTES * index
        put(head, entry + 4, 4, len(segment))
        head[entry + 8 : entry + ENTRY_BYTES] = blake3(segment).digest(length=CHECKSUM_BYTES)
    body = head[: header_bytes - CHECKSUM_BYTES]
    return bytes(body) + blake3(body).digest(length=CHECKSUM_BYTES) + b"".join(segments)


def attempt(blob: bytes, seed: Seed, rng: np.random.Generator) -> bool:
    """Whether ``blob`` decodes; raises where the invariant does not hold."""
    try:
        header = verify(blob)
        if header.tokens * header.layout.values_per_token > TOKENS_DECODED_MAX:
            return False
        level = header.levels[int(rng.integers(len(header.levels)))]
        with np.errstate(all="ignore"):
            keys, values = codec.decode(blob, profile=seed.profile, level=level)
        codec.info(blob)
        Container.parse(blob).truncate(level)
    except TYPED as error:
        line = str(error)
        if len(line) > LINE_CHARACTERS_MAX or "\n" in line:
            raise AssertionError(f"an error of {len(line)} characters: {line[:200]!r}") from error
        return False
    except KvloomError as error:
        raise AssertionError(f"an error of another kind: {error!r}") from error
    for kind, arrays in enumerate((keys, values)):
        for layer, array in zip(header.layers, arrays, strict=True):
            spec = header.layout.layers[layer]
            shape = (spec.kv_heads, header.tokens, (spec.head_dim, spec.value_head_dim)[kind])
            if np.shape(array) != shape:
                raise AssertionError(f"layer {layer} has shape {np.shape(array)}, declared {shape}")
    return True


def case(number: int, seed: int, seeds: list[Seed]) -> bool:
    """Run one case; the same number and seed make the same bytes."""
    rng = np.random.default_rng([seed, number])
    chosen, other = (seeds[int(rng.integers(len(seeds)))] for _ in range(2))
    if rng.integers(4):
        blob = mutate(chosen, other, rng)
    else:  # as it comes from a broken disk, checksums and all
        data = bytearray(chosen.blob)
        damage(data, rng)
        blob = bytes(data)
    return attempt(blob, chosen, rng)


def shard(first: int, count: int, step: int, seed: int) -> int:
    """Run every ``step``-th case from ``first``; the cases accepted."""
    seeds = corpus()
    for item in seeds:
        if not attempt(item.blob, item, np.random.default_rng(0)):
            raise AssertionError("a sound container is refused")
    soft = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + MEMORY_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
    accepted = 0
    for number in range(first, count, step):
        try:
            accepted += case(number, seed, seeds)
        except BaseException:
            print(f"case {number} of seed {seed} fails:", file=sys.stderr)
            traceback.print_exc()
            raise
    return accepted


def main() -> None:
    """Run ``--cases`` in ``--processes``; exit status 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    started = time.monotonic()
    work = [(first, options.cases, options.processes, options.seed) for first in range(options.processes)]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        accepted = sum(pool.starmap(shard, work))
    if not 0 < accepted < options.cases:
        sys.exit(f"{accepted} of {options.cases} mutants were accepted: the checksums were not bypassed")
    print(f"{options.cases} cases, {accepted} still decode, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
