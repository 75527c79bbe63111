"""The ``exact`` level: KV bit for bit as the engine holds it, NaN payloads and infinities included.

Sign, exponent and the top of the mantissa of a value are entropy-coded (``planes``) against one of a few tables of the
segment's own (``channel_tables``); the rest of the mantissa is noise and is stored as it is. Symbols are coded channel
by channel, channels with the same table together, so that one table at a time is hot.

=========  ============================================================================================
bytes      field of a coded segment
=========  ============================================================================================
1          mode, 1
1          lanes, log2
1          tables, 1 to 16
1          span, log2, 0 to 3
2          base of the window (bfloat16 and float32, else 0)
2          zero
4          escapes: values outside the window
...        the tables and which channel uses which (``channel_tables``)
...        rests of all values ``[kv_heads, tokens, head_dim]`` (``planes``)
2 each     magnitudes of the escapes, in the order of the symbols
rest       entropy stream: symbols of the channels that use table 0, then of those that use table 1, ...
=========  ============================================================================================

Mode 0 is a segment that would not get smaller, or was not to be packed: four bytes of zero, then the values as they
are.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .channel_tables import PackedTables, WrittenTables, pack, unpack
from .clusters import CLUSTERS_MAX, SPAN_LOG2_MAX
from .entropy import DecodeJob, EncodeJob, Runs, decode_streams, encode_streams, lanes_for
from .entropy.model import table_set
from .entropy.stream import LANES_MAX
from .layout import KvDtype
from .planes import BASE_MAX, FORMS, MAGNITUDE_MAX, Form, JoinJob, SplitResult, join, split

__all__ = ["decode_exact", "encode_exact", "view_exact"]

_HEAD = struct.Struct("<BBBBHxxI")
_RAW_HEAD = bytes(4)
_CODED = 1
BATCH_SEGMENTS = 16
"""Segments coded together: bounds the memory for look-up tables, and keeps it in the cache."""
SYMBOLS_MAX = 2**32 - 1
"""Values of one segment; the coder counts in 32 bits."""


def encode_exact(tensors: Sequence[NDArray[np.generic]], dtype: KvDtype, *, packed: bool = True) -> list[bytes]:
    """Encode each tensor ``[kv_heads, tokens, head_dim]`` of ``dtype`` as the payload of one segment.

    Where not ``packed``, in mode 0.
    """
    form = FORMS[dtype]
    if not packed:
        return [_raw(tensor, form) for tensor in tensors]
    return [payload for start in _batches(len(tensors)) for payload in _encode(tensors[start], form)]


def decode_exact(payloads: Sequence[memoryview], outputs: Sequence[NDArray[np.generic]], dtype: KvDtype) -> None:
    """Decode each payload into its output ``[kv_heads, tokens, head_dim]``, any strides.

    Raises :class:`InvalidData`; outputs then hold anything. Memory beside them is bounded by their sizes.
    """
    if len(payloads) != len(outputs):
        raise ValueError(f"{len(payloads)} payloads for {len(outputs)} outputs")
    form = FORMS[dtype]
    for batch in _batches(len(payloads)):
        _decode(payloads[batch], outputs[batch], form)


def view_exact(payload: memoryview, shape: tuple[int, int, int], dtype: KvDtype) -> NDArray[np.generic] | None:
    """The values ``shape`` of a payload in mode 0 where they lie, read-only; None where they have to be decoded."""
    form = FORMS[dtype]
    size_bytes = len(_RAW_HEAD) + math.prod(shape) * form.word.itemsize
    if payload[: len(_RAW_HEAD)] != _RAW_HEAD or len(payload) != size_bytes or _little(form) != form.word:
        return None
    words = np.frombuffer(payload, form.word, offset=len(_RAW_HEAD))
    words.flags.writeable = False
    return words.view(dtype.numpy).reshape(shape)


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH_SEGMENTS) for start in range(0, count, BATCH_SEGMENTS))


def _encode(tensors: Sequence[NDArray[np.generic]], form: Form) -> list[bytes]:
    planes = split(tensors, form)
    packed = pack([item.symbols for item in planes], [item.counts for item in planes])
    tables = table_set(np.concatenate([item.frequencies for item in packed]))
    jobs = [
        EncodeJob(item.symbols, tables, _runs(item.run_lengths, start), lanes_for(len(item.symbols)))
        for item, start in zip(packed, _starts([len(item.run_lengths) for item in packed]), strict=True)
    ]
    payloads = []
    for tensor, plane, item, job, stream in zip(tensors, planes, packed, jobs, encode_streams(jobs), strict=True):
        escapes = _escapes(tensor, plane, item, form) if form.windowed else b""
        lanes_log2, tables_count = job.lanes.bit_length() - 1, len(item.run_lengths)
        head = _HEAD.pack(_CODED, lanes_log2, tables_count, item.span_log2, plane.base, len(escapes) // 2)
        coded_bytes = len(head) + len(item.data) + len(plane.rest) + len(escapes) + len(stream)
        if coded_bytes < len(_RAW_HEAD) + tensor.nbytes:
            payloads.append(b"".join([head, item.data, plane.rest.data, escapes, stream]))
        else:
            payloads.append(_raw(tensor, form))
    return payloads


def _raw(tensor: NDArray[np.generic], form: Form) -> bytes:
    values = np.ascontiguousarray(tensor).view(form.word).astype(_little(form), copy=False)
    return b"".join((_RAW_HEAD, values.data.cast("B")))


def _escapes(tensor: NDArray[np.generic], plane: SplitResult, packed: PackedTables, form: Form) -> bytes:
    """Magnitudes of the values outside the window, in the order of the symbols."""
    if not plane.counts[:, :2].any():
        return b""
    channels, tokens = plane.symbols.shape
    written = WrittenTables(memoryview(packed.data), channels, tokens, len(packed.run_lengths), packed.span_log2)
    places = unpack([written])[1][0].places
    by_channel = np.ascontiguousarray(tensor).view(form.word).transpose(0, 2, 1).reshape(channels, tokens)
    magnitudes = np.empty((channels, tokens), dtype="<u2")
    magnitudes[places] = by_channel >> form.rest_bits & MAGNITUDE_MAX
    return magnitudes.reshape(-1)[packed.symbols < 2].tobytes()


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a coded payload."""

    lanes: int
    tables: int
    span_log2: int
    base: int
    escapes: int


def _decode(payloads: Sequence[memoryview], outputs: Sequence[NDArray[Any]], form: Form) -> None:
    coded = []
    for payload, out in zip(payloads, outputs, strict=True):
        if len(payload) < len(_RAW_HEAD):
            raise InvalidData(f"exact segment has {len(payload)} bytes, its head needs {len(_RAW_HEAD)}")
        if payload[0] == _CODED:
            coded.append((payload, out, _parse_head(payload, out, form)))
        else:
            _decode_raw(payload, out, form)
    if not coded:
        return
    tables, unpacked = unpack([_written(*item) for item in coded])
    starts = _starts([head.tables for _, _, head in coded])
    rests, escapes, jobs = [], [], []
    for (payload, out, head), item, start in zip(coded, unpacked, starts, strict=True):
        rest_at = _HEAD.size + item.bytes_used
        escapes_at = rest_at + form.rest_bytes(out.size)
        stream_at = escapes_at + 2 * head.escapes
        if len(payload) < stream_at:
            raise InvalidData(f"exact segment has {len(payload)} bytes, {out.size} values need at least {stream_at}")
        rests.append(np.frombuffer(payload, np.uint8, escapes_at - rest_at, rest_at))
        escapes.append(np.frombuffer(payload, "<u2", head.escapes, escapes_at))
        jobs.append(DecodeJob(payload[stream_at:], tables, _runs(item.run_lengths, start), head.lanes))
    joins = [
        JoinJob(symbols, item.places, rest, head.base, out)
        for symbols, item, rest, (_, out, head) in zip(decode_streams(jobs), unpacked, rests, coded, strict=True)
    ]
    join(joins, form)
    if not form.windowed:
        return
    can_escape = (tables.frequencies[:, :2] > 0).sum(axis=1)
    for magnitudes, job, start, (_, _, head) in zip(escapes, joins, starts, coded, strict=True):
        if len(magnitudes) or can_escape[start : start + head.tables].any():
            _put_escapes(magnitudes, job, form)


def _decode_raw(payload: memoryview, out: NDArray[Any], form: Form) -> None:
    if payload[: len(_RAW_HEAD)] != _RAW_HEAD or len(payload) != len(_RAW_HEAD) + out.nbytes:
        raise InvalidData(
            f"exact segment of {len(payload)} bytes is neither coded nor {out.size} values of {form.bits} bits"
        )
    out.view(form.word)[...] = np.frombuffer(payload, _little(form), offset=len(_RAW_HEAD)).reshape(out.shape)


def _parse_head(payload: memoryview, out: NDArray[Any], form: Form) -> _Head:
    if len(payload) < _HEAD.size:
        raise InvalidData(f"exact segment has {len(payload)} bytes, its head needs {_HEAD.size}")
    _, lanes_log2, tables, span_log2, base, escapes = _HEAD.unpack_from(payload)
    if (
        1 << lanes_log2 > LANES_MAX
        or not 1 <= tables <= CLUSTERS_MAX
        or span_log2 > SPAN_LOG2_MAX
        or base > (BASE_MAX if form.windowed else 0)
        or escapes > (out.size if form.windowed else 0)
        or out.size > SYMBOLS_MAX
    ):
        raise InvalidData(
            f"exact segment declares 2^{lanes_log2} lanes, {tables} tables of span 2^{span_log2}, window base "
            f"{base}, {escapes} escapes among {out.size} values"
        )
    return _Head(1 << lanes_log2, tables, span_log2, base, escapes)


def _written(payload: memoryview, out: NDArray[Any], head: _Head) -> WrittenTables:
    heads, tokens, head_dim = out.shape
    return WrittenTables(payload[_HEAD.size :], heads * head_dim, tokens, head.tables, head.span_log2)


def _put_escapes(escapes: NDArray[np.uint16], job: JoinJob, form: Form) -> None:
    if int(escapes.max(initial=0)) > MAGNITUDE_MAX:
        raise InvalidData(f"exact segment has an escape of magnitude {escapes.max()}, the limit is {MAGNITUDE_MAX}")
    found = np.flatnonzero(job.symbols < 2)
    if len(found) != len(escapes):
        raise InvalidData(f"exact segment has {len(escapes)} escapes, its symbols tell of {len(found)}")
    heads, tokens, head_dim = job.out.shape
    channel_at = np.empty(heads * head_dim, dtype=np.int64)
    channel_at[job.places] = np.arange(heads * head_dim)
    rows, token = np.divmod(found, tokens)
    head, dim = np.divmod(channel_at[rows], head_dim)
    job.out.view(form.word)[head, token, dim] |= escapes.astype(form.word) << form.rest_bits


def _starts(counts: Sequence[int]) -> list[int]:
    """The first table of each segment in the set of all."""
    return list(accumulate(counts[:-1], initial=0))


def _runs(lengths: NDArray[np.uint32], start: int) -> Runs:
    return Runs(np.arange(start, start + len(lengths), dtype=np.uint32), lengths)


def _little(form: Form) -> "np.dtype[Any]":
    return form.word.newbyteorder("<")
