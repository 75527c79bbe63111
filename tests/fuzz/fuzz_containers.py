"""Whole containers on hostile bytes, with checksums as they fall and put right, so that the decoders see the damage.

    python tests/fuzz/fuzz_containers.py --cases 1000000 --seed 1 --processes 2

The invariant: reading either raises :class:`InvalidData` (or one of its kin that says what does not fit) in one short
line, or gives tensors of exactly the shapes that the header declares and writes to no place beside them; and it never
holds much more memory than tensors of that size take. Reading is everything that is done with bytes from outside: a
profile parsed, a container verified, decoded into fresh or the caller's arrays, where it was computed or elsewhere,
read as streams for a GPU, cut, and merged with what a store holds; some of it by the NumPy reference as well, which
must take the same containers. A failing case names the seed that makes it again.
"""

import argparse
import multiprocessing
import resource
import struct
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from blake3 import blake3
from container_corpus import Seed, corpus

from kvloom import codec, limits
from kvloom.codec import EXACT, Kind, LossyCodec
from kvloom.codec.channels import KvArrays
from kvloom.codec.codec import profile_for
from kvloom.codec.container import Container, ContainerHeader, parse_header, select, verify
from kvloom.codec.entropy import native
from kvloom.codec.frame import unpack_frame
from kvloom.codec.profiles import AnyProfile, parse_profile
from kvloom.codec.segment_reader import read_streams
from kvloom.errors import BodyTooLarge, InvalidData, InvalidTensor, KvloomError, LayoutMismatch, ProfileMismatch
from kvloom.kvstore.tiered.merge import merge_containers

TYPED = (InvalidData, InvalidTensor, BodyTooLarge, LayoutMismatch, ProfileMismatch)
FIXED_BYTES, ENTRY_BYTES, CHECKSUM_BYTES, PROFILE_HEAD_BYTES = 96, 16, 8, 12
PROFILE_DIGEST_AT = 64
LAYOUT_BYTES = struct.Struct("<I")
PROFILE_COUNTS_BYTES = 24
ADDRESSES_MAX = 3 * 2**30
"""Address space beyond what a worker starts with: a decoder that trusts a count runs into it."""
RESIDENT_KIB_MAX = 384 * 2**10
"""Memory really touched beyond what a worker starts with; decoding the most values below takes a third of it."""
LINE_CHARACTERS_MAX = 400
PROGRESS_CASES = 50_000
VALUES_DECODED_MAX = 2_000_000
"""Values of a mutant that is decoded; larger ones are legal, and slow."""
TWIN_ONE_IN = 8
"""Every how many plain decodes are done by the NumPy reference too, which is slow."""
GUARD_TOKENS = 2
"""Rows before and after a chunk in a longer cache, which decoding into it must leave alone."""
INTERESTING = (0, 1, 2, 3, 6, 12, 31, 32, 63, 64, 127, 128, 254, 255, 256, 4095, 4096, 65535, 65536)
INTERESTING += (2**27 - 1, 2**27, 2**30, 2**31 - 1, 2**31, 2**32 - 1)


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


def mutated_profile(seed: Seed, rng: np.random.Generator) -> tuple[bytes, bytes]:
    """A profile like the seed's with damage in its content, and the seed's container renamed to be coded with it."""
    assert seed.profile is not None
    whole = seed.profile.data
    content = bytearray(unpack_frame(whole[PROFILE_HEAD_BYTES:], bytes_max=limits.PROFILE_BYTES_MAX, what="profile"))
    if rng.integers(2):  # the counts, levels and flags that follow the layout
        (layout_bytes,) = LAYOUT_BYTES.unpack_from(whole, PROFILE_HEAD_BYTES - LAYOUT_BYTES.size)
        place = layout_bytes + int(rng.integers(PROFILE_COUNTS_BYTES))
        put(content, place, int(rng.choice([1, 2, 4])), int(rng.choice(INTERESTING)))
    else:
        for _ in range(int(rng.integers(1, 4))):
            damage(content, rng)
    data = whole[:PROFILE_HEAD_BYTES] + zstandard.ZstdCompressor(level=1).compress(bytes(content))
    header = parse_header(seed.blob)
    head = bytearray(seed.blob[: header.header_bytes])
    head[PROFILE_DIGEST_AT:FIXED_BYTES] = blake3(data).digest()
    segments = [bytearray(seed.blob[item.offset : item.byte_range.stop]) for item in header.segments]
    return data, seal(head, segments, header.header_bytes)


@dataclass(frozen=True)
class Attempt:
    """One way of reading what may be a container."""

    blob: bytes
    profile: AnyProfile | bytes | None
    stored: bytes
    """A sound container of the chunk that the damaged one was made from."""
    rng: np.random.Generator

    def run(self) -> bool:
        """Whether ``blob`` decodes; raises where the invariant does not hold."""
        try:
            with np.errstate(all="ignore"):
                return self._read()
        except TYPED as error:
            line = str(error)
            if len(line) > LINE_CHARACTERS_MAX or "\n" in line:
                raise AssertionError(f"an error of {len(line)} characters: {line[:200]!r}") from error
            return False
        except KvloomError as error:
            raise AssertionError(f"an error of another kind: {error!r}") from error

    def _read(self) -> bool:
        header = verify(self.blob)
        if header.tokens * header.layout.values_per_token > VALUES_DECODED_MAX:
            return False
        profile = parse_profile(self.profile) if isinstance(self.profile, bytes) else self.profile
        level = header.levels[int(self.rng.integers(len(header.levels)))]
        match int(self.rng.integers(8)):
            case 0 | 1 if native.AVAILABLE and self.rng.integers(TWIN_ONE_IN) == 0:
                self._compare_with_the_reference(profile, level)
            case 0 | 1 | 2:
                check_shapes(header, *codec.decode(self.blob, profile=profile, level=level))
            case 3:
                movable = all(header.layout.layers[layer].rope for layer in header.layers)
                place = int(self.rng.integers(limits.POSITION_MAX)) if movable else None
                check_shapes(header, *codec.decode(self.blob, profile=profile, level=level, first_position=place))
            case 4 | 5:
                self._decode_into_a_cache(header, profile, level)
            case 6:
                self._select_and_merge(header, level)
            case 7:
                self._read_streams(header, profile, level)
        return True

    def _compare_with_the_reference(self, profile: AnyProfile | None, level: codec.Level) -> None:
        """Both executions take or refuse the same containers, and agree in what ``exact`` gives to the last bit."""
        outcomes: list[list[np.ndarray] | KvloomError] = []
        for compiled in (True, False):
            native.AVAILABLE = compiled
            try:
                outcomes.append(
                    [item for kind in codec.decode(self.blob, profile=profile, level=level) for item in kind]
                )
            except TYPED as error:
                outcomes.append(error)
            finally:
                native.AVAILABLE = True
        first, second = outcomes
        if isinstance(first, KvloomError) and isinstance(second, KvloomError):
            raise first
        if isinstance(first, KvloomError) or isinstance(second, KvloomError):
            raise AssertionError(f"one execution decodes what the other does not: {outcomes!r:.300}")
        if level == EXACT and any(a.tobytes() != b.tobytes() for a, b in zip(first, second, strict=True)):
            raise AssertionError("the two executions differ in exact")

    def _decode_into_a_cache(self, header: ContainerHeader, profile: AnyProfile | None, level: codec.Level) -> None:
        caches, rooms = [], []
        for kind in Kind:
            for layer in header.layers:
                spec = header.layout.layers[layer]
                shape = (spec.kv_heads, header.tokens + 2 * GUARD_TOKENS, spec.head_dim_of(kind))
                caches.append(np.ones(shape, header.layout.dtype.numpy))
                rooms.append(caches[-1][:, GUARD_TOKENS:-GUARD_TOKENS])
        half = len(rooms) // 2
        codec.decode_into(Container.parse(self.blob), rooms[:half], rooms[half:], profile=profile, level=level)
        for cache in caches:
            if (cache[:, :GUARD_TOKENS] != 1).any() or (cache[:, -GUARD_TOKENS:] != 1).any():
                raise AssertionError("decoding wrote beside its rows of the cache")

    def _select_and_merge(self, header: ContainerHeader, level: codec.Level) -> None:
        codec.info(self.blob)
        verify(Container.parse(self.blob).truncate(level))
        first = int(self.rng.integers(header.layers.start, header.layers.stop))
        select(header, level=level, layers=range(first, int(self.rng.integers(first, header.layers.stop)) + 1))
        merged = merge_containers(*((self.stored, self.blob) if self.rng.integers(2) else (self.blob, self.stored)))
        verify(merged)

    def _read_streams(self, header: ContainerHeader, profile: AnyProfile | None, level: codec.Level) -> None:
        if level == EXACT or header.codec is not LossyCodec.KVLOOM:
            return
        container, found = Container.parse(self.blob), profile_for(header, profile)
        starts = [layer for layer in header.layers if layer % found.block_layers == 0]
        read_streams(
            [found.blocks[start // found.block_layers] for start in starts],
            [[container.segment(item, start) for item in header.levels if item <= level] for start in starts],
            tokens=header.tokens,
        )


def check_shapes(header: ContainerHeader, keys: KvArrays, values: KvArrays) -> None:
    """Raise unless decoded tensors are of the shapes that a header declares."""
    for kind, arrays in zip(Kind, (keys, values), strict=True):
        for layer, array in zip(header.layers, arrays, strict=True):
            spec = header.layout.layers[layer]
            shape = (spec.kv_heads, header.tokens, spec.head_dim_of(kind))
            if np.shape(array) != shape:
                raise AssertionError(f"layer {layer} has shape {np.shape(array)}, declared {shape}")


def case(number: int, seed: int, seeds: list[Seed]) -> bool:
    """Run one case; the same number and seed make the same bytes."""
    rng = np.random.default_rng([seed, number])
    chosen, other = seeds[int(rng.integers(len(seeds)))], seeds[int(rng.integers(len(seeds)))]
    profile: AnyProfile | bytes | None = chosen.profile
    kind = int(rng.integers(8))
    if kind == 0 and chosen.learnt:
        profile, blob = mutated_profile(chosen, rng)
    elif kind <= 1:  # as it comes from a broken disk, checksums and all
        data = bytearray(chosen.blob)
        damage(data, rng)
        blob = bytes(data)
    else:
        blob = mutate(chosen, other, rng)
    return Attempt(blob, profile, chosen.blob, rng).run()


def shard(first: int, count: int, step: int, seed: int) -> int:
    """Run every ``step``-th case from ``first``; the cases accepted."""
    warnings.simplefilter("ignore", RuntimeWarning)  # which says that the reference is slow
    seeds = corpus()
    rng = np.random.default_rng(0)
    for item in seeds * 4:
        if not Attempt(item.blob, item.profile, item.blob, rng).run():
            raise AssertionError("a sound container is refused")
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for number in range(first, count, step):
        try:
            accepted += case(number, seed, seeds)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
            if grown > RESIDENT_KIB_MAX:
                raise AssertionError(f"{grown} KiB more than at the start, the limit is {RESIDENT_KIB_MAX}")
        except BaseException:
            sys.stderr.write(f"case {number} of seed {seed} fails:\n")
            traceback.print_exc()
            raise
        if number // step % PROGRESS_CASES == PROGRESS_CASES - 1:
            sys.stderr.write(f"case {number}: {accepted} of {number // step + 1} decode, {grown} KiB grown\n")
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
    sys.stdout.write(f"{options.cases} cases, {accepted} still decode, {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
