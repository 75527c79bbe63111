"""The ``exact`` level: KV bit for bit as the engine holds it, NaN payloads and infinities included.

Sign, exponent and the top of the mantissa of a value are entropy-coded (``planes``) against one of a few tables of the
segment's own (``clusters``); the rest of the mantissa is noise and is stored as it is. Symbols are coded channel by
channel, channels with the same table together, so that one table at a time is hot.

=========  ====================================================================================================
bytes      field of a coded segment
=========  ====================================================================================================
1          mode, 1
1          lanes, log2
1          tables, 1 to 16
1          zero
2          base of the window (bfloat16 and float32, else 0)
2          zero
4          escapes: values outside the window
2 each     per table: the first group that occurs, and the number of groups from there to the last one, less one
...        per channel its table, in as few bits as the tables need (none for one table)
...        per table the codes of those groups, six bits each, all tables in one run
...        rests of all values ``[kv_heads, tokens, head_dim]`` (``planes``)
2 each     magnitudes of the escapes, in the order of the symbols
rest       entropy stream: symbols of the channels that use table 0, then of those that use table 1, ...
=========  ====================================================================================================

Bit fields begin on a byte each, lower bits first. Mode 0 is a segment that would not get smaller: four bytes of zero,
then the values as they are.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidData
from .clusters import CLUSTERS_MAX, CODE_BITS, ClusterResult, choose, codes_of, frequencies_of
from .entropy import DecodeJob, EncodeJob, Runs, decode_streams, encode_streams, lanes_for, native, native_planes
from .entropy.model import TableSet, table_set
from .entropy.stream import LANES_MAX
from .layout import KvDtype
from .planes import BASE_MAX, FORMS, MAGNITUDE_MAX, Form, JoinJob, SplitResult, join, split

__all__ = ["decode_exact", "encode_exact"]

_HEAD = struct.Struct("<BBBxHxxI")
_RAW_HEAD = bytes(4)
_CODED = 1
BATCH_SEGMENTS = 64
"""Segments coded together: bounds the memory for look-up tables."""
SYMBOLS_MAX = 2**32 - 1
"""Values of one segment; the coder counts in 32 bits."""
ByteArray = NDArray[np.uint8]


def encode_exact(tensors: Sequence[NDArray[np.generic]], dtype: KvDtype) -> list[bytes]:
    """Encode each tensor ``[kv_heads, tokens, head_dim]`` of ``dtype`` as the payload of one segment."""
    form = FORMS[dtype]
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


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH_SEGMENTS) for start in range(0, count, BATCH_SEGMENTS))


# ---- encoding


def _encode(tensors: Sequence[NDArray[np.generic]], form: Form) -> list[bytes]:
    planes = split(tensors, form)
    clusters = choose([item.counts for item in planes])
    codes = codes_of(np.concatenate([item.tables for item in clusters]))
    tables = _look_ups(frequencies_of(codes, form.span_log2))
    orders = [np.argsort(item.labels, kind="stable") for item in clusters]
    starts = list(accumulate((len(item.tables) for item in clusters), initial=0))
    jobs = [
        EncodeJob(
            plane.symbols[order].reshape(-1),
            tables,
            _runs(cluster.labels, len(cluster.tables), start, plane.symbols.shape[1]),
            lanes_for(plane.symbols.size),
        )
        for plane, cluster, order, start in zip(planes, clusters, orders, starts, strict=False)
    ]
    streams = encode_streams(jobs)
    payloads = []
    for index, (tensor, plane, cluster) in enumerate(zip(tensors, planes, clusters, strict=True)):
        own_codes = codes[starts[index] : starts[index + 1]]
        head = _head(tensor, plane, cluster, own_codes, jobs[index], orders[index], form)
        coded_bytes = sum(map(len, head)) + len(streams[index])
        if coded_bytes < len(_RAW_HEAD) + tensor.nbytes:
            payloads.append(b"".join([*head, streams[index]]))
        else:
            payloads.append(_RAW_HEAD + np.ascontiguousarray(tensor).view(form.word).astype(_little(form)).tobytes())
    return payloads


def _head(
    tensor: NDArray[np.generic],
    plane: SplitResult,
    cluster: ClusterResult,
    codes: ByteArray,
    job: EncodeJob,
    order: NDArray[np.int64],
    form: Form,
) -> list[bytes]:
    """Everything of a coded segment but the stream."""
    escapes = np.empty(0, dtype="<u2")
    if form.windowed and plane.counts[:, :2].any():
        by_channel = np.ascontiguousarray(tensor).view(form.word).transpose(0, 2, 1).reshape(plane.symbols.shape)
        magnitudes = by_channel[order] >> form.rest_bits & MAGNITUDE_MAX
        escapes = magnitudes[plane.symbols[order] < 2].astype("<u2")
    present = codes > 0
    first, last = present.argmax(axis=1), 255 - present[:, ::-1].argmax(axis=1)
    groups = np.arange(256)
    written = codes[(groups >= first[:, None]) & (groups <= last[:, None])]
    ranges = np.stack([first, last - first], axis=1).astype(np.uint8)
    return [
        _HEAD.pack(_CODED, job.lanes.bit_length() - 1, len(codes), plane.base, len(escapes)),
        ranges.tobytes(),
        _pack_bits(cluster.labels, _label_bits(len(codes))),
        _pack_bits(written, CODE_BITS),
        memoryview(plane.rest),
        escapes.tobytes(),
    ]


# ---- decoding


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A coded payload's parts: ``labels`` ``[channels]``, ``codes`` ``[tables, 256]``."""

    lanes: int
    base: int
    labels: ByteArray
    codes: ByteArray
    rest: ByteArray
    escapes: NDArray[np.uint16]
    stream: memoryview


def _decode(payloads: Sequence[memoryview], outputs: Sequence[NDArray[Any]], form: Form) -> None:
    parsed: list[_Parsed] = []
    outs: list[NDArray[Any]] = []
    for payload, out in zip(payloads, outputs, strict=True):
        if len(payload) < len(_RAW_HEAD):
            raise InvalidData(f"exact segment has {len(payload)} bytes, its head needs {len(_RAW_HEAD)}")
        if payload[0] == _CODED:
            parsed.append(_parse(payload, out, form))
            outs.append(out)
        else:
            _decode_raw(payload, out, form)
    if not parsed:
        return
    tables = _look_ups(frequencies_of(np.concatenate([item.codes for item in parsed]), form.span_log2))
    starts = accumulate((len(item.codes) for item in parsed), initial=0)
    decoded = decode_streams(
        [
            DecodeJob(item.stream, tables, _runs(item.labels, len(item.codes), start, out.shape[1]), item.lanes)
            for item, out, start in zip(parsed, outs, starts, strict=False)
        ]
    )
    jobs = []
    for item, out, symbols in zip(parsed, outs, decoded, strict=True):
        order = np.argsort(item.labels, kind="stable")
        places = np.empty(len(order), dtype=np.uint32)
        places[order] = np.arange(len(order), dtype=np.uint32)
        jobs.append(JoinJob(symbols.reshape(len(order), out.shape[1]), places, item.rest, item.base, out))
    join(jobs, form)
    for item, job in zip(parsed, jobs, strict=True):
        if len(item.escapes):
            _put_escapes(item.escapes, job, form)


def _decode_raw(payload: memoryview, out: NDArray[Any], form: Form) -> None:
    if payload[: len(_RAW_HEAD)] != _RAW_HEAD or len(payload) != len(_RAW_HEAD) + out.nbytes:
        raise InvalidData(
            f"exact segment of {len(payload)} bytes is neither coded nor {out.size} values of {form.bits} bits"
        )
    out.view(form.word)[...] = np.frombuffer(payload, _little(form), offset=len(_RAW_HEAD)).reshape(out.shape)


def _parse(payload: memoryview, out: NDArray[Any], form: Form) -> _Parsed:
    if len(payload) < _HEAD.size:
        raise InvalidData(f"exact segment has {len(payload)} bytes, its head needs {_HEAD.size}")
    _, lanes_log2, count, base, escape_count = _HEAD.unpack_from(payload)
    channels, values = out.shape[0] * out.shape[2], out.size
    if (
        1 << lanes_log2 > LANES_MAX
        or not 1 <= count <= CLUSTERS_MAX
        or base > (BASE_MAX if form.windowed else 0)
        or escape_count > (values if form.windowed else 0)
        or values > SYMBOLS_MAX
    ):
        raise InvalidData(
            f"exact segment declares 2^{lanes_log2} lanes, {count} tables, window base {base}, "
            f"{escape_count} escapes among {values} values"
        )
    labels_at = _HEAD.size + 2 * count
    label_bits = _label_bits(count)
    codes_at = labels_at + -(-channels * label_bits // 8)
    if len(payload) < codes_at:
        raise InvalidData(f"exact segment has {len(payload)} bytes, its tables begin at {codes_at}")
    ranges = np.frombuffer(payload, np.uint8, 2 * count, _HEAD.size).reshape(-1, 2).astype(np.int64)
    first, widths = ranges[:, 0], ranges[:, 1] + 1
    labels = _unpack_bits(payload[labels_at:codes_at], channels, label_bits)
    code_count = int(widths.sum())
    rest_at = codes_at + -(-code_count * CODE_BITS // 8)
    escapes_at = rest_at + form.rest_bytes(values)
    stream_at = escapes_at + 2 * escape_count
    if len(payload) < stream_at:
        raise InvalidData(f"exact segment has {len(payload)} bytes, {values} values need at least {stream_at}")
    # Without escapes no table may have a code for one: then nobody has to look for them among the symbols.
    low = 2 if form.windowed and not escape_count else 0
    if int((first + widths).max()) > 256 >> form.span_log2 or int(first.min()) < low or int(labels.max()) >= count:
        raise InvalidData("exact segment has tables of groups, or channels of tables, that there are not")
    codes = np.zeros((count, 256), dtype=np.uint8)
    groups = np.arange(256)
    within = (groups >= first[:, None]) & (groups < (first + widths)[:, None])
    codes[within] = _unpack_bits(payload[codes_at:rest_at], code_count, CODE_BITS)
    if not codes.any(axis=1).all():
        raise InvalidData("exact segment has a table without symbols")
    escapes = np.frombuffer(payload, "<u2", escape_count, escapes_at)
    if int(escapes.max(initial=0)) > MAGNITUDE_MAX:
        raise InvalidData(f"exact segment has an escape of magnitude {escapes.max()}, the limit is {MAGNITUDE_MAX}")
    rest = np.frombuffer(payload, np.uint8, escapes_at - rest_at, rest_at)
    return _Parsed(1 << lanes_log2, base, labels, codes, rest, escapes, payload[stream_at:])


def _put_escapes(escapes: NDArray[np.uint16], job: JoinJob, form: Form) -> None:
    found = np.flatnonzero(job.symbols.reshape(-1) < 2)
    if len(found) != len(escapes):
        raise InvalidData(f"exact segment has {len(escapes)} escapes, its symbols tell of {len(found)}")
    heads, tokens, head_dim = job.out.shape
    channel_at = np.empty(heads * head_dim, dtype=np.int64)
    channel_at[job.places] = np.arange(heads * head_dim)
    rows, token = np.divmod(found, tokens)
    head, dim = np.divmod(channel_at[rows], head_dim)
    job.out.view(form.word)[head, token, dim] |= escapes.astype(form.word) << form.rest_bits


# ---- both


def _look_ups(frequencies: NDArray[np.uint16]) -> TableSet:
    return table_set(frequencies, native_planes.decoder_tables if native.AVAILABLE else None)


def _runs(labels: ByteArray, tables: int, start: int, tokens: int) -> Runs:
    channels = np.bincount(labels, minlength=tables)
    return Runs(np.arange(start, start + tables, dtype=np.uint32), (channels * tokens).astype(np.uint32))


def _little(form: Form) -> "np.dtype[Any]":
    return form.word.newbyteorder("<")


def _label_bits(tables: int) -> int:
    return (tables - 1).bit_length()


def _pack_bits(numbers: ByteArray, bits: int) -> bytes:
    """``numbers`` in ``bits`` bits each, lowest bit first, the last byte filled up with zeros."""
    wide = np.unpackbits(np.ascontiguousarray(numbers)[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(wide, bitorder="little").tobytes()


def _unpack_bits(data: memoryview, count: int, bits: int) -> ByteArray:
    if bits == 0:
        return np.zeros(count, dtype=np.uint8)
    flags = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(flags, axis=1, bitorder="little").reshape(-1)
