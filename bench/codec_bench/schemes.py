"""Every scheme of the comparison: what it restores of a context's KV at each of its levels, and the bits that takes.

A context is coded in chunks of ``CHUNK`` tokens, each by itself, as a store does. Bits are all that a reader needs
besides what was learnt once per model: payload, header, tables, scales, indices.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from quantisers import CacheGen, Gear, Kivi, MiKv, Quantiser, Raw, TurboQuant, ZipCache

from kvloom import codec
from kvloom.codec import KvDtype, Layout, Profile
from kvloom.codec.cachegen import CacheGenUnit

from .profiles import CACHEGEN_BIN_SCALES, Profiles
from .subject import CHUNK, Kv

SINGLE_RATE_SCALES = (5.6, 4.0, 2.0, 1.0, 0.5)
"""Steps of the single-rate profiles, in units of the one of ``standard``."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A context's KV after the round trip. ``variant`` tells the readings of one scheme apart, where it has several.

    ``side_bits`` are those of ``bits`` that are not entropy-coded or quantised payload; None where not known.
    """

    variant: str
    level: str
    kv: Kv
    bits: int
    side_bits: int | None


class Scheme(ABC):
    """A way to code KV, at one or more levels."""

    @abstractmethod
    def restore(self, kv: Kv, layout: Layout) -> Iterator[Restored]:
        """Every level of a context's KV, one at a time, coarsest first."""


@dataclass(frozen=True)
class Quantisers(Scheme):
    """A comparison quantiser at several settings."""

    variant: str
    settings: Sequence[Quantiser]

    def restore(self, kv: Kv, layout: Layout) -> Iterator[Restored]:
        """One level per setting."""
        for quantiser in self.settings:
            parts = [
                quantiser.roundtrip(chunk.kv.keys, chunk.kv.values, layout, chunk.start) for chunk in chunks_of(kv)
            ]
            side = sum(part.side_bits for part in parts)
            restored = joined([Kv(part.keys, part.values) for part in parts])
            yield Restored(
                self.variant, quantiser.level, restored, side + sum(part.payload_bits for part in parts), side
            )


@dataclass(frozen=True)
class Kvloom(Scheme):
    """Our levelled stream: encoded once, every level decoded from the stream truncated to it."""

    profile: Profile
    single_level: str = ""
    """What to call the level of a profile that has one."""

    def restore(self, kv: Kv, layout: Layout) -> Iterator[Restored]:
        """Every lossy level of the stream."""
        blobs = [
            codec.encode(
                chunk.kv.keys, chunk.kv.values, layout=layout, profile=self.profile, first_position=chunk.start
            )
            for chunk in chunks_of(kv)
        ]
        infos = [codec.info(blob) for blob in blobs]
        for level in infos[0].level_bytes:
            cut = [codec.truncate(blob, level) for blob in blobs]
            decoded = [_decoded(blob, self.profile, level) for blob in cut]
            yield Restored(
                "",
                self.single_level or level,
                joined(decoded),
                8 * sum(map(len, cut)),
                8 * sum(info.side_bytes[level] for info in infos),
            )


@dataclass(frozen=True)
class Exact(Scheme):
    """Our lossless stream, of the KV as an engine of each dtype would hold it; ends the program where a bit differs."""

    def restore(self, kv: Kv, layout: Layout) -> Iterator[Restored]:
        """One level per dtype."""
        for dtype in (KvDtype.BFLOAT16, KvDtype.FLOAT16, KvDtype.FLOAT32):
            narrow = replace(layout, dtype=dtype)
            bits, parts = 0, []
            for chunk in chunks_of(kv):
                held = [[np.ascontiguousarray(item.astype(dtype.numpy)) for item in kind] for kind in chunk.kinds]
                blob = codec.encode(held[0], held[1], layout=narrow, first_position=chunk.start, exact_packed=True)
                found = codec.decode(blob)
                for kind, originals in zip(found, held, strict=True):
                    if any(a.tobytes() != b.tobytes() for a, b in zip(kind, originals, strict=True)):
                        raise SystemExit(f"exact did not give back what it was given, in {dtype}")
                bits += 8 * len(blob)
                parts.append(Kv(*([np.asarray(item, np.float32) for item in kind] for kind in found)))
            yield Restored("", f"exact {dtype.name.lower()}", joined(parts), bits, None)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive tokens of a context, the first at ``start``."""

    start: int
    kv: Kv

    @property
    def kinds(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Keys, then values."""
        return self.kv.keys, self.kv.values


def _decoded(blob: bytes, profile: Profile, level: str) -> Kv:
    keys, values = codec.decode(blob, profile=profile, level=level)
    return Kv([np.asarray(item, np.float32) for item in keys], [np.asarray(item, np.float32) for item in values])


def chunks_of(kv: Kv) -> Iterator[Chunk]:
    """A context in chunks of ``CHUNK`` tokens; contiguous copies."""
    for start in range(0, kv.keys[0].shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        yield Chunk(
            start, Kv(*([np.ascontiguousarray(item[:, part]) for item in kind] for kind in (kv.keys, kv.values)))
        )


def joined(parts: Sequence[Kv]) -> Kv:
    """The chunks of a context put together."""
    layers = range(len(parts[0].keys))
    return Kv(
        [np.concatenate([part.keys[n] for part in parts], axis=1) for n in layers],
        [np.concatenate([part.values[n] for part in parts], axis=1) for n in layers],
    )


def cachegen_units(model: str) -> tuple[CacheGenUnit, ...]:
    """Readings of what CacheGen's bins are multiples of; raw values say nothing where KV has another scale."""
    return (CacheGenUnit.LAYER,) if model == "gemma3" else (CacheGenUnit.RAW, CacheGenUnit.LAYER)


def scheme_makers(model: str) -> dict[str, Callable[[Profiles], list[Scheme]]]:
    """By name, what makes a scheme; all are to be read as one curve per variant.

    KIVI is given chunks that are whole groups and no full-precision residual, which is its best case.
    """
    return {
        "kvloom": lambda profiles: [Kvloom(profiles.kvloom())],
        "kvloom-generic": lambda profiles: [Kvloom(profiles.kvloom_generic())],
        "kvloom-single-rate": lambda profiles: [
            Kvloom(profiles.kvloom_single_rate(scale), f"step x{scale:g}") for scale in SINGLE_RATE_SCALES
        ],
        "kvloom-exact": lambda profiles: [Exact()],
        "cachegen": lambda profiles: [
            Quantisers(unit.value, [CacheGen(profiles.cachegen(unit), n) for n in range(len(CACHEGEN_BIN_SCALES))])
            for unit in cachegen_units(model)
        ],
        "kivi": lambda profiles: [Quantisers("", [Kivi(bits) for bits in (2, 3, 4)])],
        "kvquant": lambda profiles: [Quantisers("", [profiles.kvquant(bits) for bits in (2, 3, 4)])],
        "gear": lambda profiles: [Quantisers("", [Gear(bits) for bits in (2, 4)])],
        "zipcache": lambda profiles: [Quantisers("", [ZipCache(share) for share in (0.2, 0.6)])],
        "mikv": lambda profiles: [Quantisers("", [MiKv(bits) for bits in (2, 3, 4)])],
        "turboquant": lambda profiles: [Quantisers("", [TurboQuant(bits) for bits in (2, 3, 4, 5)])],
        "raw": lambda profiles: [Quantisers("", [Raw()])],
    }
