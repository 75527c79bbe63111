"""What CacheGen learns about a model beforehand: a distribution per channel, layer and level, and one for anchors.

The paper profiles, for every pair of channel and layer, one distribution of the quantised deltas and one of the
quantised anchors, once per model, and uses them for every KV cache (section 5.2). Here they are tables of integer
frequencies, so that both ends of a stream have the same ones to the last bit, in a content-addressed file.

A table is the histogram of the calibration text plus a logistic distribution of the same mean and spread that weighs
as much as 128 more tokens: without it 200 anchors in 255 cells would be badly priced (measured: one bit per anchor
value), and what calibration never saw would cost a fortune.

File: ``KVLG``, format u16, zero u16, layout bytes u32, then one zstandard frame holding the layout's canonical bytes,
levels u32, bin scale f32 of each level, and per layer, keys before values: frequencies of anchors -127…127 u16
``[width, 255]``; then per level, coarsest first: bin size f32, largest symbol *M* u32, frequencies of -*M*…*M* and of
"beyond" u16 ``[width, 2M + 2]``. All little-endian.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from .. import limits
from ..errors import ConfigError, InvalidData, InvalidTensor, UnknownLevel
from .cachegen_quantise import ANCHOR_LIMIT, GROUP_TOKENS, CacheGenSymbols, bin_of_layer, quantise
from .calibration import KvSample
from .frame import FrameReader
from .layout import Kind, Layout
from .level import LOSSY_LEVELS, Level, LossyCodec
from .profile_file import read_profile, write_profile

__all__ = [
    "BIN_SCALES",
    "CacheGenProfile",
    "CacheGenTables",
    "CacheGenUnit",
    "DeltaTable",
    "calibrate_cachegen",
    "channels_of",
]

BIN_SCALES = (1.0, 0.6, 0.3, 0.15)
"""What the paper's bins are multiplied by at ``draft``, ``economy``, ``standard`` and ``fine``.

The first is the paper's default. The others are chosen so that the KL divergence is near what our levels of the same
names aim at, 0.064, 0.016, 0.004 and 0.001: on SmolLM2 (four English contexts of 512 tokens, 64 tokens after each) it
is 0.058, 0.019, 0.0042 and 0.0015, at 2.76, 3.38, 4.26 and 5.16 bits per value.
"""
DELTA_LIMIT = 127
BIN_MAX = 1e20
PRIOR_TOKENS = 128
FREQUENCY_TOTAL = 2**16 - 512

_COUNT = struct.Struct("<I")
_TABLE = struct.Struct("<fI")
_MAGIC = b"KVLG"
_FORMAT = 1

Frequencies = NDArray[np.uint16]


class CacheGenUnit(StrEnum):
    """What a bin of size 1 is."""

    RAW = "raw"
    """A difference of 1 between two values as the engine holds them: the default."""
    LAYER = "layer"
    """The root mean square of a layer's deltas on the calibration text, for models whose KV has another scale."""


@dataclass(frozen=True, slots=True)
class DeltaTable:
    """How the deltas of one layer's keys or values are coded at one level.

    ``frequencies`` uint16 ``[width, 2 * limit + 2]``: of -limit…limit, then of everything beyond.
    """

    bin_size: float
    limit: int
    frequencies: Frequencies


@dataclass(frozen=True, slots=True)
class CacheGenTables:
    """One layer's keys or values: ``anchors`` uint16 ``[width, 255]``, and ``deltas`` by level, coarsest first."""

    anchors: Frequencies
    deltas: tuple[DeltaTable, ...]


@dataclass(frozen=True)
class CacheGenProfile:
    """Tables of all layers, keys before values; safe to share between threads. ``blend_gate`` as in a ``Profile``."""

    codec: ClassVar[LossyCodec] = LossyCodec.CACHEGEN
    layout: Layout
    bin_scales: tuple[float, ...]
    tables: tuple[CacheGenTables, ...]
    blend_gate: bytes = b""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The lossy levels that have a name, coarse to fine: the code of each is the index of its bin scale."""
        return LOSSY_LEVELS[: len(self.bin_scales)]

    def table(self, layer: int, kind: Kind) -> CacheGenTables:
        """The tables of one layer's keys or values."""
        return self.tables[2 * layer + kind]

    def require_level(self, level: int) -> int:
        """``level`` where there is such a one, else :class:`UnknownLevel`."""
        if not 0 <= level < len(self.bin_scales):
            raise UnknownLevel(f"CacheGen level {level}, the profile has 0 to {len(self.bin_scales) - 1}")
        return level

    @cached_property
    def data(self) -> bytes:
        """The profile as a file."""
        parts = [_COUNT.pack(len(self.bin_scales)), np.asarray(self.bin_scales, "<f4").tobytes()]
        for tables in self.tables:
            parts.append(tables.anchors.astype("<u2").tobytes())
            for item in tables.deltas:
                parts.append(_TABLE.pack(item.bin_size, item.limit))
                parts.append(item.frequencies.astype("<u2").tobytes())
        return write_profile(_MAGIC, _FORMAT, self.layout, parts, blend_gate=self.blend_gate)

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3-256 of :attr:`data`: the profile's name."""
        return blake3(self.data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "CacheGenProfile":
        """Parse a profile file; anything else raises :class:`InvalidData`."""
        content = read_profile(data, _MAGIC, _FORMAT)
        layout, reader = content.layout, content.reader
        (levels,) = _COUNT.unpack(reader.take(_COUNT.size))
        if not 1 <= levels <= limits.LOSSY_LEVELS_MAX:
            raise InvalidData(f"profile declares {levels} levels, must be 1 to {limits.LOSSY_LEVELS_MAX}")
        scales = tuple(float(item) for item in np.frombuffer(reader.take(4 * levels), "<f4"))
        tables = tuple(_read_tables(reader, spec.width_of(kind), levels) for spec in layout.layers for kind in Kind)
        reader.expect_end()
        profile = cls(layout, scales, tables, content.blend_gate)
        profile.__dict__["data"] = data  # what was parsed names the profile, whatever zstandard would write today
        return profile


def calibrate_cachegen(
    samples: Iterable[KvSample],
    layout: Layout,
    *,
    bin_scales: Sequence[float] = BIN_SCALES,
    unit: CacheGenUnit = CacheGenUnit.RAW,
) -> CacheGenProfile:
    """Make a profile of ``layout`` from ``samples``: one level per bin scale, coarsest first.

    The samples are all held at once. Raises :class:`InvalidTensor` when they hold fewer than two tokens,
    :class:`ConfigError` for bin scales that do not fall, or are too many.
    """
    scales = tuple(float(np.float32(scale)) for scale in bin_scales)
    falling = all(coarse > fine for coarse, fine in pairwise(scales))
    if not (1 <= len(scales) <= limits.LOSSY_LEVELS_MAX and falling and scales[-1] > 0):
        raise ConfigError(f"bin scales {scales}: 1 to {limits.LOSSY_LEVELS_MAX} positive ones, falling, are needed")
    held = list(samples)
    if max((sample.keys[0].shape[1] for sample in held), default=0) < 2:
        raise InvalidTensor("calibration text has no sample of 2 tokens, which is what one delta needs")
    tables: list[CacheGenTables] = []
    for layer in range(len(layout.layers)):
        for kind in Kind:
            texts = [channels_of((sample.keys, sample.values)[kind][layer]) for sample in held]
            size = _unit_size(texts, unit) * bin_of_layer(layer, len(layout.layers))
            tables.append(_fit(texts, [float(np.float32(size * scale)) for scale in scales]))
    return CacheGenProfile(layout, scales, tuple(tables))


def channels_of(heads: NDArray[np.generic]) -> NDArray[np.float32]:
    """Channels float32 ``[tokens, width]`` of ``[kv_heads, tokens, head_dim]``."""
    kv_heads, tokens, head_dim = heads.shape
    return np.asarray(heads, dtype=np.float32).transpose(1, 0, 2).reshape(tokens, kv_heads * head_dim)


def _unit_size(texts: Sequence[NDArray[np.float32]], unit: CacheGenUnit) -> float:
    if unit is CacheGenUnit.RAW:
        return 1.0
    squares = count = 0.0
    for channels in texts:
        deltas = channels - channels[np.arange(len(channels)) // GROUP_TOKENS * GROUP_TOKENS]
        squares += float(np.square(deltas, dtype=np.float64).sum())
        count += channels.shape[1] * np.count_nonzero(np.arange(len(channels)) % GROUP_TOKENS)
    return math.sqrt(max(squares / max(count, 1.0), 1e-12))


def _fit(texts: Sequence[NDArray[np.float32]], bin_sizes: Sequence[float]) -> CacheGenTables:
    deltas: list[DeltaTable] = []
    symbols: list[CacheGenSymbols] = []
    for bin_size in bin_sizes:
        symbols = [quantise(channels, bin_size) for channels in texts]
        seen = np.concatenate([item.deltas for item in symbols])
        limit = int(np.clip(np.abs(seen).max(initial=0), 1, DELTA_LIMIT))
        deltas.append(DeltaTable(bin_size, limit, _frequencies(seen, limit, beyond=True)))
    anchors = np.concatenate([item.anchors for item in symbols])
    return CacheGenTables(_frequencies(anchors, ANCHOR_LIMIT, beyond=False), tuple(deltas))


def _frequencies(seen: NDArray[np.int32], limit: int, *, beyond: bool) -> Frequencies:
    """Integer frequencies ``[width, cells]`` of the symbols ``seen`` ``[n, width]``, smoothed, each at least 1."""
    count, width = seen.shape
    cells = 2 * limit + 1 + beyond
    cell = np.where(np.abs(seen) > limit, cells - 1, seen + limit)
    places = cell + np.arange(width) * cells
    histogram = np.bincount(places.reshape(-1), minlength=width * cells).reshape(width, cells)
    mean = seen.mean(axis=0)[:, None]
    spread = np.maximum(seen.std(axis=0), 0.15)[:, None] * (math.sqrt(3) / math.pi)
    edges = np.arange(-limit, limit + 2) - 0.5
    prior = np.diff((1 + np.tanh((edges - mean) / (2 * spread))) / 2, axis=1)
    if beyond:
        prior = np.concatenate([prior, 1 - prior.sum(axis=1, keepdims=True)], axis=1)
    share = (histogram + PRIOR_TOKENS * prior) / (count + PRIOR_TOKENS)
    frequencies: Frequencies = np.maximum(np.rint(FREQUENCY_TOTAL * share), 1).astype(np.uint16)
    return frequencies


def _read_tables(reader: FrameReader, width: int, levels: int) -> CacheGenTables:
    anchors = _read_frequencies(reader, width, 2 * ANCHOR_LIMIT + 1)
    deltas: list[DeltaTable] = []
    for _ in range(levels):
        bin_size, limit = _TABLE.unpack(reader.take(_TABLE.size))
        if not 0 < bin_size <= BIN_MAX or not 1 <= limit <= DELTA_LIMIT:
            raise InvalidData(f"profile has a bin of {bin_size} and symbols to {limit}, the limit is {DELTA_LIMIT}")
        deltas.append(DeltaTable(bin_size, limit, _read_frequencies(reader, width, 2 * limit + 2)))
    return CacheGenTables(anchors, tuple(deltas))


def _read_frequencies(reader: FrameReader, width: int, cells: int) -> Frequencies:
    found = np.frombuffer(reader.take(2 * width * cells), "<u2").astype(np.uint16).reshape(width, cells)
    if not found.all():
        raise InvalidData("profile holds a frequency of 0; every symbol must be codable")
    return found
