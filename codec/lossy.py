"""The segments of the lossy levels: what a layer's quantised keys or values look like as bytes.

``draft`` segment: lanes log2 u8, zero u8, zero u16, escapes u32, then

* sinks: scale f32 and int16 ``[width, sink_tokens]`` (only where the container has sink tokens): the first tokens of
  a context draw so much attention that they are kept nearly whole (KVSink; CacheGen keeps none and pays for it),
* classes: 6 bits per channel, packed little-endian, which of the 64 scale classes codes it,
* escapes: int32 each, the symbols that are too large for their class, in symbol order,
* the entropy stream of the base symbols ``[width, tokens - sink_tokens]``.

``standard`` segment: lanes log2 u8, zero u8, zero u16, the entropy stream of the refinements. A segment without symbols
has no stream. All little-endian.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .entropy import DecodeJob, EncodeJob, Runs, decode_streams, encode_streams, lanes_for, native
from .entropy.model import CLASSES, ESCAPE, SYMBOL_MAX, SYMBOL_ZERO, base_tables, refinement_tables
from .entropy.stream import LANES_MAX
from .quantise import NestedQuantiser, Quantised, dequantise

__all__ = ["LossySegment", "decode_lossy", "encode_lossy"]

_DRAFT = struct.Struct("<BBHI")
_STANDARD = struct.Struct("<BBH")
_CLASS_BITS = 6
_ESCAPE_BITS = 32
_SINK_LEVELS = 32767

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LossySegment:
    """One layer's keys or values ready to code: ``sinks`` float32 ``[width, sink_tokens]`` and the quantised rest."""

    sinks: FloatArray
    quantised: Quantised


@dataclass(frozen=True, slots=True)
class _Draft:
    """A parsed ``draft`` segment."""

    sinks: FloatArray
    classes: NDArray[np.uint8]
    escapes: NDArray[np.int32]
    lanes: int
    stream: memoryview


def encode_lossy(segments: Sequence[LossySegment]) -> list[tuple[bytes, bytes]]:
    """The ``draft`` and ``standard`` payloads of each segment."""
    drafts: list[bytes] = []
    base_jobs: list[EncodeJob] = []
    refinement_jobs: list[EncodeJob] = []
    for segment in segments:
        base, refinement = segment.quantised.base, segment.quantised.refinement
        tokens = base.shape[1]
        classes = _best_classes(base, refinement)
        symbols, escapes = _base_symbols(base, classes)
        lanes = lanes_for(base.size)
        head = _DRAFT.pack(lanes.bit_length() - 1, 0, 0, len(escapes))
        drafts.append(head + _pack_sinks(segment.sinks) + _pack_classes(classes) + escapes.astype("<i4").tobytes())
        base_jobs.append(EncodeJob(symbols, base_tables(), Runs.of_channels(classes, tokens), lanes))
        contexts = (base != 0).astype(np.uint8).reshape(-1)
        refined = (refinement.reshape(-1) + 1).astype(np.uint8)
        runs = Runs.of_channels(2 * classes.astype(np.uint32), tokens)
        refinement_jobs.append(EncodeJob(refined, refinement_tables(), runs, lanes, contexts))
    streams = encode_streams([job for job in (*base_jobs, *refinement_jobs) if len(job.symbols)])
    remaining = iter(streams)
    base_streams = [next(remaining) if len(job.symbols) else b"" for job in base_jobs]
    refinement_streams = [next(remaining) if len(job.symbols) else b"" for job in refinement_jobs]
    return [
        (draft + base_stream, _STANDARD.pack(job.lanes.bit_length() - 1, 0, 0) + refinement_stream)
        for draft, base_stream, refinement_stream, job in zip(
            drafts, base_streams, refinement_streams, base_jobs, strict=True
        )
    ]


def decode_lossy(
    drafts: Sequence[memoryview],
    standards: Sequence[memoryview] | None,
    *,
    widths: Sequence[int],
    tokens: int,
    sink_tokens: int,
) -> list[tuple[FloatArray, FloatArray]]:
    """Undo :func:`encode_lossy`: per segment the sinks and the coefficients in fine steps ``[width, tokens - sinks]``.

    Without ``standards`` the coefficients are those of the draft. Raises :class:`InvalidData` for any damage.
    """
    coded_tokens = tokens - sink_tokens
    parsed = [_parse_draft(d, width, sink_tokens, coded_tokens) for d, width in zip(drafts, widths, strict=True)]
    if coded_tokens == 0:
        return [(item.sinks, np.zeros((width, 0), np.float32)) for item, width in zip(parsed, widths, strict=True)]
    symbols = decode_streams(
        [
            DecodeJob(item.stream, base_tables(), Runs.of_channels(item.classes, coded_tokens), item.lanes)
            for item in parsed
        ]
    )
    refined: list[NDArray[np.uint8]] | None = None
    if standards is not None:
        refined = decode_streams(
            [
                _refinement_job(payload, item, base, coded_tokens)
                for payload, item, base in zip(standards, parsed, symbols, strict=True)
            ]
        )
    return [
        (item.sinks, coefficients.reshape(width, coded_tokens))
        for item, coefficients, width in zip(parsed, _coefficients(parsed, symbols, refined), widths, strict=True)
    ]


def _coefficients(
    parsed: Sequence[_Draft], symbols: Sequence[NDArray[np.uint8]], refined: Sequence[NDArray[np.uint8]] | None
) -> list[FloatArray]:
    if native.AVAILABLE:
        pairs = native.dequantise(symbols, refined)
    else:
        pairs = [dequantise(base, None if refined is None else refined[index]) for index, base in enumerate(symbols)]
    for index, (item, (coefficients, escape_count)) in enumerate(zip(parsed, pairs, strict=True)):
        if escape_count != len(item.escapes):
            raise InvalidData(f"draft segment has {len(item.escapes)} escapes, its stream asks for {escape_count}")
        if escape_count:
            places = np.flatnonzero(symbols[index] == ESCAPE)
            parts = np.zeros(escape_count, np.int8)
            if refined is not None:
                parts = refined[index][places].astype(np.int8) - np.int8(1)
            coefficients[places] = NestedQuantiser.fine_symbols(item.escapes, parts)
    return [coefficients for coefficients, _ in pairs]


def _best_classes(base: NDArray[np.int32], refinement: NDArray[np.int8]) -> NDArray[np.uint8]:
    """For each channel the class that codes its symbols in the fewest bits, both levels together."""
    width = len(base)
    channel = np.arange(width)[:, None]
    clipped = np.clip(base, -SYMBOL_MAX - 1, SYMBOL_MAX)
    clipped = np.where(clipped < -SYMBOL_MAX, ESCAPE - SYMBOL_ZERO, clipped)
    clipped = np.where(base > SYMBOL_MAX, ESCAPE - SYMBOL_ZERO, clipped) + SYMBOL_ZERO
    counts = np.bincount((channel * 256 + clipped).reshape(-1), minlength=width * 256).reshape(width, 256)
    refined = (channel * 6 + 3 * (base != 0) + refinement + 1).reshape(-1)
    refinement_counts = np.bincount(refined, minlength=width * 6).reshape(width, 6)
    cost, refinement_cost = _class_costs()
    total = counts @ cost.T + refinement_counts @ refinement_cost.T
    classes: NDArray[np.uint8] = np.argmin(total, axis=1).astype(np.uint8)
    return classes


@lru_cache(maxsize=1)
def _class_costs() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits of each base symbol ``[classes, 256]``, escapes paid in full, and of each refinement ``[classes, 6]``."""
    cost = base_tables().cost_bits()
    cost = np.where(np.isinf(cost), cost[:, [ESCAPE]] + _ESCAPE_BITS, cost)
    cost[:, ESCAPE] += _ESCAPE_BITS
    return cost, refinement_tables().cost_bits()[:, :3].reshape(CLASSES, 6)


def _base_symbols(base: NDArray[np.int32], classes: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    symbols = (np.clip(base, -SYMBOL_MAX, SYMBOL_MAX) + SYMBOL_ZERO).astype(np.uint8)
    has_code = base_tables().frequencies[classes[:, None], symbols] > 0
    escaped = ~has_code | (np.abs(base) > SYMBOL_MAX)
    symbols[escaped] = ESCAPE
    return symbols.reshape(-1), base[escaped]


def _refinement_job(payload: memoryview, item: _Draft, base: NDArray[np.uint8], tokens: int) -> DecodeJob:
    if len(payload) < _STANDARD.size:
        raise InvalidData(f"standard segment has {len(payload)} bytes, its head needs {_STANDARD.size}")
    lanes_log2, zero, also_zero = _STANDARD.unpack_from(payload)
    lanes = _lanes(lanes_log2, zero or also_zero)
    runs = Runs.of_channels(2 * item.classes.astype(np.uint32), tokens)
    contexts = (base != SYMBOL_ZERO).view(np.uint8)
    return DecodeJob(payload[_STANDARD.size :], refinement_tables(), runs, lanes, contexts)


def _parse_draft(payload: memoryview, width: int, sink_tokens: int, coded_tokens: int) -> _Draft:
    sink_bytes = 4 + 2 * width * sink_tokens if sink_tokens else 0
    class_bytes = (width * _CLASS_BITS + 7) // 8
    fixed = _DRAFT.size + sink_bytes + class_bytes
    if len(payload) < fixed:
        raise InvalidData(f"draft segment has {len(payload)} bytes, {width} channels need at least {fixed}")
    lanes_log2, zero, also_zero, escape_count = _DRAFT.unpack_from(payload)
    if escape_count > width * coded_tokens or len(payload) < fixed + 4 * escape_count:
        raise InvalidData(f"draft segment declares {escape_count} escapes in {len(payload)} bytes")
    sinks = _unpack_sinks(payload[_DRAFT.size : _DRAFT.size + sink_bytes], width, sink_tokens)
    classes = _unpack_classes(payload[_DRAFT.size + sink_bytes : fixed], width)
    escapes = np.frombuffer(payload, "<i4", escape_count, fixed).astype(np.int32)
    if escape_count and int(np.abs(escapes.astype(np.int64)).max()) > 2**29:
        raise InvalidData("draft segment has an escape beyond 2^29 steps")
    stream = payload[fixed + 4 * escape_count :]
    if coded_tokens == 0 and len(stream):
        raise InvalidData(f"draft segment has {len(stream)} bytes of symbols for no tokens")
    return _Draft(sinks, classes, escapes, _lanes(lanes_log2, zero or also_zero), stream)


def _lanes(lanes_log2: int, reserved: int) -> int:
    if 1 << min(lanes_log2, 31) > LANES_MAX or reserved:
        raise InvalidData(f"lossy segment declares 2^{lanes_log2} lanes, the limit is {LANES_MAX}")
    return 1 << lanes_log2


def _pack_sinks(sinks: FloatArray) -> bytes:
    if sinks.size == 0:
        return b""
    scale = np.float32(float(np.abs(sinks).max()) / _SINK_LEVELS or 1.0)
    return bytes(scale.tobytes() + np.rint(sinks / scale).astype("<i2").tobytes())


def _unpack_sinks(data: memoryview, width: int, sink_tokens: int) -> FloatArray:
    if not sink_tokens:
        return np.zeros((width, 0), dtype=np.float32)
    scale = np.frombuffer(data, "<f4", 1)[0]
    if not np.isfinite(scale):
        raise InvalidData("draft segment has a sink scale that is not finite")
    values = np.frombuffer(data, "<i2", width * sink_tokens, 4).reshape(width, sink_tokens)
    sinks: FloatArray = values.astype(np.float32) * scale
    return sinks


def _pack_classes(classes: NDArray[np.uint8]) -> bytes:
    bits = np.unpackbits(classes[:, None], axis=1, count=_CLASS_BITS, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def _unpack_classes(data: memoryview, width: int) -> NDArray[np.uint8]:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=width * _CLASS_BITS, bitorder="little")
    return np.packbits(bits.reshape(width, _CLASS_BITS), axis=1, bitorder="little")[:, 0]
