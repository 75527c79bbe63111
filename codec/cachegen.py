"""CacheGen as its paper describes it, for comparison and as a selectable codec: deltas, layer thirds, range coding.

Liu et al., "CacheGen: KV Cache Compression and Streaming for Fast Large Language Model Serving", SIGCOMM 2024,
section 5.2. For each layer's keys and each layer's values:

* Tokens are parted in groups of 10. The first of a group is the anchor and is coded by itself; each of the other nine
  is coded as its difference from the anchor, not from its neighbour, so that groups and tokens are independent.
* Anchors have 8 bits, vectorwise (Dettmers et al. 2022): one scale per token, the largest magnitude over its channels.
* Deltas have bins of 0.5, 1.0 and 1.5 in the first, middle and last third of the layers. A level multiplies all three.
* Symbols are arithmetic-coded with a distribution per channel and layer for deltas and another for anchors, learnt
  once per model (``cachegen_profile``). Keys are coded as engines keep them, rotated.
* Every level is an encoding of its own; nothing is shared between levels.

Where the paper leaves room, the reading is the one that is best for CacheGen. The unit of the bins: on SmolLM2 (one
context, KL of the text that follows) raw values, the default, and multiples of the layer's deviation need the same bits
at equal KL within 0.1 per value, multiples of each channel's deviation 0.7 more, a max-abs scale per delta token 0.4
more. Differences are from the anchor as decoded (no error is added twice), all channels of a layer share one
range coder stream (no length per channel), and what a table does not hold is escaped, not clipped.

What LMCache ships under this name (``cachegen_encoder.py`` of October 2024; the paper's artifact has the same) is
another scheme: no anchors and no deltas, every token quantised with its own max-abs scale to 31 or 15 values (32 "bins"
for keys of the first third of the layers and values of the first two layers, else 16), and each channel's distribution
is counted in the very chunk and sent with it, 33 numbers of 16 bits: 2 bits per value at 256 tokens.

Payload of one layer and kind: escapes u32; scales f16 ``[groups]``; escaped deltas i32 each, in symbol order; the words
of the range coder u32. It codes the anchors ``[width, groups]``, then the deltas ``[width, tokens - groups]``, channel
by channel. All little-endian; keys or values without channels are no bytes. The range coder is ``constriction``'s
(32-bit words, 24-bit probabilities), which is the extra ``cachegen``.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import ChunkTooLong, EmptyChunk, InvalidData, InvalidTensor, MissingDependency, ProfileMismatch
from .cachegen_profile import (
    BIN_SCALES,
    CacheGenProfile,
    CacheGenTables,
    CacheGenUnit,
    DeltaTable,
    calibrate_cachegen,
    channels_of,
)
from .cachegen_quantise import ANCHOR_LIMIT, CacheGenSymbols, anchors_of, quantise
from .channels import KvArrays
from .container import Buffer
from .layout import Kind, KvDtype, Layout

__all__ = [
    "BIN_SCALES",
    "CacheGenProfile",
    "CacheGenUnit",
    "cachegen_overhead_bytes",
    "calibrate_cachegen",
    "decode_cachegen",
    "encode_cachegen",
]

_HEAD = struct.Struct("<I")
_SCALE_BYTES = 2
_ESCAPE_BYTES = 4
_WORD_BYTES = 4


def encode_cachegen(
    keys: KvArrays, values: KvArrays, *, layout: Layout, profile: CacheGenProfile, level: int
) -> list[bytes]:
    """One payload per layer and kind, keys before values, of one chunk at one level (0 is the coarsest).

    ``keys`` and ``values`` are ``[kv_heads, tokens, head_dim]`` per layer, keys rotated. Raises
    :class:`InvalidTensor` and its kin, :class:`ProfileMismatch`, :class:`UnknownLevel`, :class:`MissingDependency`.
    """
    _check_profile(profile, layout)
    profile.require_level(level)
    if len(keys) != len(layout.layers) or len(values) != len(layout.layers):
        raise InvalidTensor(f"{len(keys)} layers of keys, {len(values)} of values, the layout has {len(layout.layers)}")
    tokens = int(np.shape(keys[0])[1]) if np.ndim(keys[0]) == 3 else 0
    _check_tokens(tokens)
    payloads: list[bytes] = []
    for layer, spec in enumerate(layout.layers):
        for kind in Kind:
            heads = (keys, values)[kind][layer]
            expected = (spec.kv_heads, tokens, spec.head_dim_of(kind))
            if np.shape(heads) != expected:
                name = kind.name.lower()
                raise InvalidTensor(f"{name} of layer {layer}: {np.shape(heads)}, the layout needs {expected}")
            tables = profile.table(layer, kind)
            symbols = quantise(channels_of(heads), tables.deltas[level].bin_size)
            payloads.append(_encode_symbols(symbols, tables, level) if spec.width_of(kind) else b"")
    return payloads


def decode_cachegen(
    payloads: Sequence[Buffer],
    *,
    layout: Layout,
    profile: CacheGenProfile,
    level: int,
    tokens: int,
    layers: Sequence[int] | None = None,
) -> tuple[list[NDArray[np.generic]], list[NDArray[np.generic]]]:
    """Keys and values ``[kv_heads, tokens, head_dim]`` in the layout's dtype of the payloads of ``layers`` (all).

    Memory is bounded by ``tokens`` and the layout, whatever the payloads say. Raises :class:`InvalidData` for bytes
    that do not decode, :class:`ProfileMismatch`, :class:`UnknownLevel`, :class:`MissingDependency`.
    """
    _check_profile(profile, layout)
    profile.require_level(level)
    _check_tokens(tokens)
    chosen = list(range(len(layout.layers))) if layers is None else list(layers)
    if len(payloads) != 2 * len(chosen):
        raise InvalidData(f"{len(payloads)} payloads for {len(chosen)} layers, 2 each are needed")
    outputs: tuple[list[NDArray[np.generic]], list[NDArray[np.generic]]] = ([], [])
    places = [(layer, kind) for layer in chosen for kind in Kind]
    for (layer, kind), payload in zip(places, payloads, strict=True):
        spec, tables = layout.layers[layer], profile.table(layer, kind)
        if not spec.width_of(kind):
            outputs[kind].append(np.empty((spec.kv_heads, tokens, 0), layout.dtype.numpy))
            continue
        symbols = _decode_symbols(payload, tables, level, tokens=tokens, width=spec.width_of(kind))
        channels = symbols.reconstruct(tables.deltas[level].bin_size)
        outputs[kind].append(_heads_of(channels, spec.kv_heads, layout.dtype))
    return outputs


def cachegen_overhead_bytes(payload: Buffer, tokens: int) -> int:
    """How many bytes of a payload are neither escapes nor words of the range coder."""
    return min(len(payload), _HEAD.size + _SCALE_BYTES * anchors_of(tokens))


def _encode_symbols(symbols: CacheGenSymbols, tables: CacheGenTables, level: int) -> bytes:
    table = tables.deltas[level]
    deltas = np.ascontiguousarray(symbols.deltas.T)
    beyond = np.abs(deltas) > table.limit
    escapes = deltas[beyond]
    cells = np.where(beyond, 2 * table.limit + 1, deltas + table.limit).astype(np.int32)
    anchors = np.ascontiguousarray(symbols.anchors.T + ANCHOR_LIMIT)
    coder = _constriction().stream.queue.RangeEncoder()
    for rows, models in ((anchors, _models(tables.anchors)), (cells, _models(table.frequencies))):
        if rows.size:
            for row, model in zip(rows, models, strict=True):
                coder.encode(row, model)
    words = coder.get_compressed().astype("<u4")
    parts = (symbols.scales.astype("<f2"), escapes.astype("<i4"), words)
    return _HEAD.pack(len(escapes)) + b"".join(part.tobytes() for part in parts)


def _decode_symbols(payload: Buffer, tables: CacheGenTables, level: int, *, tokens: int, width: int) -> CacheGenSymbols:
    table, groups = tables.deltas[level], anchors_of(tokens)
    scales, escapes, words = _parse(payload, table, groups=groups, deltas=(tokens - groups) * width)
    decoder = _constriction().stream.queue.RangeDecoder(words)
    try:
        anchors = _decode_rows(decoder, tables.anchors, groups)
        cells = _decode_rows(decoder, table.frequencies, tokens - groups)
        finished = decoder.maybe_exhausted()
    except AssertionError as error:  # constriction's word for words that no message has
        raise InvalidData(f"range coder words do not decode: {str(error)[:120]}") from error
    if not finished:
        raise InvalidData(f"range coder stream has {len(words)} words, its symbols end earlier")
    beyond = cells == 2 * table.limit + 1
    if int(beyond.sum()) != len(escapes):
        raise InvalidData(f"stream has {int(beyond.sum())} escapes, the payload declares {len(escapes)}")
    deltas = cells - np.int32(table.limit)
    deltas[beyond] = escapes
    return CacheGenSymbols(scales, (anchors - np.int32(ANCHOR_LIMIT)).T, deltas.T)


def _parse(
    payload: Buffer, table: DeltaTable, *, groups: int, deltas: int
) -> tuple[NDArray[np.float16], NDArray[np.int32], NDArray[np.uint32]]:
    view = memoryview(payload)
    start = _HEAD.size + _SCALE_BYTES * groups
    if len(view) < start:
        raise InvalidData(f"payload has {len(view)} bytes, its header and scales need {start}")
    (count,) = _HEAD.unpack_from(view)
    room = len(view) - start
    if count > deltas or count * _ESCAPE_BYTES > room:
        raise InvalidData(f"payload declares {count} escapes, it has {deltas} deltas and {room} bytes")
    if room % _WORD_BYTES:
        raise InvalidData(f"payload has {room} bytes of escapes and words, not a multiple of {_WORD_BYTES}")
    scales = np.frombuffer(view, "<f2", groups, _HEAD.size).astype(np.float16)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise InvalidData("payload holds an anchor scale that is negative or not finite")
    escapes = np.frombuffer(view, "<i4", count, start).astype(np.int32)
    if (np.abs(escapes.astype(np.int64)) <= table.limit).any():
        raise InvalidData(f"payload escapes a delta that is within {table.limit}")
    words = np.frombuffer(view, "<u4", room // _WORD_BYTES - count, start + _ESCAPE_BYTES * count).astype(np.uint32)
    return scales, escapes, words


def _decode_rows(decoder: Any, frequencies: NDArray[np.uint16], count: int) -> NDArray[np.int32]:
    """``[width, count]`` symbols, one model per row."""
    rows = np.empty((len(frequencies), count), dtype=np.int32)
    if count:
        for row, model in zip(rows, _models(frequencies), strict=True):
            row[:] = decoder.decode(model, count)
    return rows


def _models(frequencies: NDArray[np.uint16]) -> Iterator[Any]:
    """A model per channel, made when it is its turn; the coder's fixed-point rounding keeps every symbol codable."""
    categorical = _constriction().stream.model.Categorical
    return (categorical(row, perfect=False) for row in frequencies.astype(np.float32))


def _heads_of(channels: NDArray[np.float32], kv_heads: int, dtype: KvDtype) -> NDArray[np.generic]:
    # Half a bin past the largest number of a narrow dtype must not become infinity.
    largest = np.float32(dtype.largest)
    heads = np.clip(channels, -largest, largest).reshape(len(channels), kv_heads, channels.shape[1] // kv_heads)
    return np.ascontiguousarray(heads.transpose(1, 0, 2)).astype(dtype.numpy)


def _check_profile(profile: CacheGenProfile, layout: Layout) -> None:
    if profile.layout != layout:
        raise ProfileMismatch("CacheGen needs a profile of the same layout, got another")


def _check_tokens(tokens: int) -> None:
    if tokens < 1:
        raise EmptyChunk("chunk has 0 tokens, at least 1 is needed, as [kv_heads, tokens, head_dim]")
    if tokens > limits.CHUNK_TOKENS_MAX:
        raise ChunkTooLong(f"chunk has {tokens} tokens, the limit is {limits.CHUNK_TOKENS_MAX}")


def _constriction() -> Any:
    try:
        import constriction  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependency("CacheGen needs constriction: pip install 'kvloom[cachegen]'") from error
    return constriction
