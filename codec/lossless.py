"""The ``exact`` level: KV bit for bit as the engine holds it, NaN payloads and infinities included.

The exponents of KV are nearly the same number again and again, the mantissas are noise: so the byte of each value
that holds the exponent is entropy-coded with a table of the segment's own, and the rest is stored as it is.

=========  ====================================  ===================================  ==================
dtype      coded byte                            middle byte (stored)                 low bytes (stored)
=========  ====================================  ===================================  ==================
float32    exponent                              sign, mantissa bits 22–16            mantissa bits 15–0
bfloat16   exponent                              sign, mantissa                       none
float16    sign, exponent, mantissa bits 9–8     mantissa bits 7–0                    none
=========  ====================================  ===================================  ==================

Segment: lanes log2 u8, zero u8, symbols in the table less one u16, those symbols u8 ascending, their frequencies u16,
middle bytes ``[values]``, low bytes ``[values, 2]`` (float32 only), entropy stream. A table of one symbol has no
stream. Values stand in the order ``[kv_heads, tokens, head_dim]``.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .entropy import DecodeJob, EncodeJob, Runs, decode_streams, encode_streams, lanes_for, native
from .entropy.model import SLOTS, TableSet, normalise, table_set
from .entropy.stream import LANES_MAX
from .layout import KvDtype

__all__ = ["decode_exact", "encode_exact"]

_HEAD = struct.Struct("<BBH")
_FORMS = {
    KvDtype.FLOAT16: native.MergeForm.FLOAT16,
    KvDtype.BFLOAT16: native.MergeForm.BFLOAT16,
    KvDtype.FLOAT32: native.MergeForm.FLOAT32,
}
ByteArray = NDArray[np.uint8]


def encode_exact(tensors: Sequence[NDArray[np.generic]], dtype: KvDtype) -> list[bytes]:
    """Encode each tensor ``[kv_heads, tokens, head_dim]`` of ``dtype`` as the payload of one segment."""
    heads: list[bytes] = []
    planes: list[bytes] = []
    frequencies = np.zeros((len(tensors), 256), dtype=np.uint16)
    symbols: list[ByteArray] = []
    for index, tensor in enumerate(tensors):
        coded, middle, low = _split(tensor, dtype)
        present, counts = np.unique(coded, return_counts=True)
        if len(present) > 1:
            frequencies[index, present] = normalise([int(count) for count in counts])
        else:
            frequencies[index, [present[0], (int(present[0]) + 1) % 256]] = (SLOTS - 1, 1)
        lanes_log2 = lanes_for(len(coded)).bit_length() - 1
        stored = frequencies[index, present] if len(present) > 1 else np.zeros(1, dtype=np.uint16)
        heads.append(_HEAD.pack(lanes_log2, 0, len(present) - 1) + present.tobytes() + stored.astype("<u2").tobytes())
        planes.append(middle.tobytes() + low.tobytes())
        symbols.append(coded)
    tables = table_set(frequencies)
    streams = encode_streams(
        [
            EncodeJob(coded, tables, Runs.of_channels([index], len(coded)), lanes_for(len(coded)))
            for index, coded in enumerate(symbols)
        ]
    )
    return [
        head + plane + (stream if head[2:4] != b"\0\0" else b"")
        for head, plane, stream in zip(heads, planes, streams, strict=True)
    ]


def decode_exact(payloads: Sequence[memoryview], outputs: Sequence[NDArray[np.generic]], dtype: KvDtype) -> None:
    """Decode each payload into its output ``[kv_heads, tokens, head_dim]`` (any strides, but contiguous is fast)."""
    parsed = [_parse(payload, out.size, dtype) for payload, out in zip(payloads, outputs, strict=True)]
    coded_of = [item for item in parsed if item.stream is not None]
    frequencies = np.array([item.frequencies for item in coded_of], dtype=np.uint16).reshape(-1, 256)
    tables = table_set(frequencies)
    jobs = [_decode_job(item, index, tables) for index, item in enumerate(coded_of)]
    decoded = iter(decode_streams(jobs))
    merges = []
    for item, out in zip(parsed, outputs, strict=True):
        coded = next(decoded) if item.stream is not None else np.full(out.size, item.only_symbol, dtype=np.uint8)
        merges.append((coded, item.middle, item.low, out))
    _merge(merges, dtype)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A payload's parts; ``stream`` is None where one symbol is all there is."""

    lanes: int
    values: int
    frequencies: NDArray[np.uint16]
    only_symbol: int
    middle: ByteArray
    low: ByteArray
    stream: memoryview | None


def _parse(payload: memoryview, values: int, dtype: KvDtype) -> _Parsed:
    if len(payload) < _HEAD.size:
        raise InvalidData(f"exact segment has {len(payload)} bytes, its head needs {_HEAD.size}")
    lanes_log2, zero, last = _HEAD.unpack_from(payload)
    count = last + 1
    if 1 << lanes_log2 > LANES_MAX or zero or count > 256:
        raise InvalidData(f"exact segment declares 2^{lanes_log2} lanes and {count} symbols")
    low_bytes = 2 * values if dtype is KvDtype.FLOAT32 else 0
    middle_at = _HEAD.size + 3 * count
    stream_at = middle_at + values + low_bytes
    if len(payload) < stream_at:
        raise InvalidData(f"exact segment has {len(payload)} bytes, {values} values need at least {stream_at}")
    symbols = np.frombuffer(payload, np.uint8, count, _HEAD.size)
    shares = np.frombuffer(payload, "<u2", count, _HEAD.size + count)
    frequencies = np.zeros(256, dtype=np.uint16)
    if count > 1:
        if (
            int(shares.min()) < 1
            or int(shares.sum(dtype=np.int64)) != SLOTS
            or not (np.diff(symbols.astype(int)) > 0).all()
        ):
            raise InvalidData("exact segment has a frequency table that does not add up")
        frequencies[symbols] = shares
    elif len(payload) != stream_at:
        raise InvalidData(f"exact segment has {len(payload)} bytes, {stream_at} were expected")
    return _Parsed(
        1 << lanes_log2,
        values,
        frequencies,
        int(symbols[0]),
        np.frombuffer(payload, np.uint8, values, middle_at),
        np.frombuffer(payload, np.uint8, low_bytes, middle_at + values),
        payload[stream_at:] if count > 1 else None,
    )


def _decode_job(item: _Parsed, table: int, tables: TableSet) -> DecodeJob:
    return DecodeJob(item.stream or b"", tables, Runs.of_channels([table], item.values), item.lanes)


def _split(tensor: NDArray[np.generic], dtype: KvDtype) -> tuple[ByteArray, ByteArray, ByteArray]:
    flat = np.ascontiguousarray(tensor).reshape(-1)
    if dtype is KvDtype.FLOAT32:
        bits = flat.view(np.uint32)
        coded = (bits >> 23).astype(np.uint8)
        middle = (bits >> 24 & 0x80 | bits >> 16 & 0x7F).astype(np.uint8)
        return coded, middle, bits.astype("<u2").view(np.uint8)
    half = flat.view(np.uint16)
    if dtype is KvDtype.BFLOAT16:
        coded, middle = (half >> 7).astype(np.uint8), (half >> 8 & 0x80 | half & 0x7F).astype(np.uint8)
    else:
        coded, middle = (half >> 8).astype(np.uint8), half.astype(np.uint8)
    return coded, middle, np.empty(0, dtype=np.uint8)


def _merge(jobs: Sequence[tuple[ByteArray, ByteArray, ByteArray, NDArray[np.generic]]], dtype: KvDtype) -> None:
    direct, copied = [], []
    for coded, middle, low, out in jobs:
        rows = out.reshape(1, -1) if out.flags.c_contiguous else _rows(out)
        if native.AVAILABLE and rows is not None:
            direct.append((coded, middle, low, rows))
        else:
            copied.append((coded, middle, low, out))
    if direct:
        native.merge_planes(direct, _FORMS[dtype])
    for coded, middle, low, out in copied:
        out[...] = _join(coded, middle, low, dtype).view(dtype.numpy).reshape(out.shape)


def _rows(out: NDArray[np.generic]) -> NDArray[np.generic] | None:
    """``out`` as ``[kv_heads, tokens * head_dim]`` where a head's tokens lie together (a slice of a longer cache)."""
    tokens, head_dim = out.shape[1:]
    if out.strides[1:] != (head_dim * out.itemsize, out.itemsize) or out.strides[0] < 0:
        return None
    return np.lib.stride_tricks.as_strided(out, (out.shape[0], tokens * head_dim), (out.strides[0], out.itemsize))


def _join(coded: ByteArray, middle: ByteArray, low: ByteArray, dtype: KvDtype) -> NDArray[np.generic]:
    if dtype is KvDtype.FLOAT32:
        wide, rest = coded.astype(np.uint32), middle.astype(np.uint32)
        return (rest & 0x80) << 24 | wide << 23 | (rest & 0x7F) << 16 | low.view("<u2").astype(np.uint32)
    half, other = coded.astype(np.uint16), middle.astype(np.uint16)
    return (other & 0x80) << 8 | half << 7 | other & 0x7F if dtype is KvDtype.BFLOAT16 else half << 8 | other
