"""The loops of the exact level in C++, reached through ctypes without the GIL.

``codec/planes.py``, ``codec/clusters.py`` and ``codec/channel_tables.py`` say in NumPy what each does; results are the
same, number for number.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidData
from .model import SLOTS, TableSet
from .native import THREADS, loaded

__all__ = [
    "JoinJob",
    "PackedTables",
    "SplitResult",
    "UnpackedTables",
    "join",
    "pack_tables",
    "split",
    "unpack_tables",
]


BAD_JOB = 4


class _Join(ctypes.Structure):
    _fields_ = [
        ("symbols", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("rest", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("head_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
        ("heads", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("head_dim", ctypes.c_uint32),
        ("form", ctypes.c_uint32),
        ("base", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


class _Split(ctypes.Structure):
    _fields_ = [
        ("values", ctypes.c_void_p),
        ("symbols", ctypes.c_void_p),
        ("rest", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("head_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("heads", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("head_dim", ctypes.c_uint32),
        ("form", ctypes.c_uint32),
        ("base", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


class _Cluster(ctypes.Structure):
    _fields_ = [
        ("counts", ctypes.c_void_p),
        ("log2", ctypes.c_void_p),
        ("log2_mantissa", ctypes.c_void_p),
        ("symbols", ctypes.c_void_p),
        ("sorted", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("frequencies", ctypes.c_void_p),
        ("run_lengths", ctypes.c_void_p),
        ("channels", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("span_log2", ctypes.c_uint32),
        ("tables_used", ctypes.c_uint32),
        ("packed_bytes", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


class _Unpack(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("data_bytes", ctypes.c_uint64),
        ("places", ctypes.c_void_p),
        ("run_lengths", ctypes.c_void_p),
        ("frequencies", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("bytes_used", ctypes.c_uint64),
        ("channels", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("tables", ctypes.c_uint32),
        ("span_log2", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Symbols ``[channels, tokens]``, stored bits, how often each symbol occurs ``[channels, 256]``, window base."""

    symbols: NDArray[np.uint8]
    rest: NDArray[np.uint8]
    counts: NDArray[np.uint16]
    base: int


@dataclass(frozen=True, slots=True)
class JoinJob:
    """What :class:`SplitResult` holds, ``places`` ``[channels]`` (a channel's row), and where the values go.

    ``out`` is ``[kv_heads, tokens, head_dim]`` with any strides.
    """

    symbols: NDArray[np.uint8]
    places: NDArray[np.uint32]
    rest: NDArray[np.uint8]
    base: int
    out: NDArray[Any]


@dataclass(frozen=True, slots=True)
class PackedTables:
    """Tables as written, their frequencies ``[tables, 256]``, how many symbols each codes, and the symbols by table."""

    data: bytes
    span_log2: int
    frequencies: NDArray[np.uint16]
    run_lengths: NDArray[np.uint32]
    symbols: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class UnpackedTables:
    """Bytes that the tables took, the row of each channel among the symbols, how many symbols each table codes."""

    bytes_used: int
    places: NDArray[np.uint32]
    run_lengths: NDArray[np.uint32]


class Written(Protocol):
    """See :class:`kvloom.codec.channel_tables.WrittenTables`."""

    @property
    def data(self) -> memoryview: ...
    @property
    def channels(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def tables(self) -> int: ...
    @property
    def span_log2(self) -> int: ...


def split(
    tensors: Sequence[NDArray[Any]], *, form: int, rest_bytes: Sequence[int], threads: int = THREADS
) -> list[SplitResult]:
    """As :func:`kvloom.codec.planes.split` for tensors whose last axis is contiguous."""
    jobs = (_Split * len(tensors))()
    arrays = []
    for job, tensor, rest_size in zip(jobs, tensors, rest_bytes, strict=True):
        heads, tokens, head_dim = tensor.shape
        symbols = np.empty((heads * head_dim, tokens), dtype=np.uint8)
        rest = np.empty(rest_size, dtype=np.uint8)
        counts = np.empty((heads * head_dim, 256), dtype=np.uint16)
        arrays.append((symbols, rest, counts))
        job.values, job.symbols, job.rest = tensor.ctypes.data, symbols.ctypes.data, rest.ctypes.data
        job.counts, job.head_stride, job.token_stride = counts.ctypes.data, tensor.strides[0], tensor.strides[1]
        job.heads, job.tokens, job.head_dim = heads, tokens, head_dim
        job.form = form
    loaded().kvl_split(ctypes.byref(jobs), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    _check(jobs)
    return [
        SplitResult(symbols, rest, counts, int(job.base))
        for job, (symbols, rest, counts) in zip(jobs, arrays, strict=True)
    ]


def join(jobs: Sequence[JoinJob], *, form: int, threads: int = THREADS) -> None:
    """As :func:`kvloom.codec.planes.join`."""
    raw = (_Join * len(jobs))()
    for item, job in zip(raw, jobs, strict=True):
        item.symbols, item.places, item.rest = job.symbols.ctypes.data, job.places.ctypes.data, job.rest.ctypes.data
        item.out, item.base, item.form = job.out.ctypes.data, job.base, form
        item.head_stride, item.token_stride, item.value_stride = job.out.strides
        item.heads, item.tokens, item.head_dim = job.out.shape
    loaded().kvl_join(ctypes.byref(raw), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    _check(raw)


def pack_tables(
    symbols: Sequence[NDArray[np.uint8]],
    counts: Sequence[NDArray[np.uint16]],
    *,
    log2: NDArray[np.uint16],
    log2_mantissa: NDArray[np.uint16],
    tables_max: int,
    threads: int = THREADS,
) -> list[PackedTables]:
    """As :func:`kvloom.codec.channel_tables.pack`."""
    jobs = (_Cluster * len(counts))()
    frequencies = np.empty((len(counts), tables_max, 256), dtype=np.uint16)
    run_lengths = np.empty((len(counts), tables_max), dtype=np.uint32)
    arrays = []
    for index, (job, rows, count) in enumerate(zip(jobs, symbols, counts, strict=True)):
        by_table = np.empty(rows.size, dtype=np.uint8)
        packed = np.empty(len(rows) + tables_max * 256, dtype=np.uint8)  # more than enough
        arrays.append((by_table, packed))
        job.counts, job.symbols = count.ctypes.data, rows.ctypes.data
        job.log2, job.log2_mantissa = log2.ctypes.data, log2_mantissa.ctypes.data
        job.sorted, job.packed = by_table.ctypes.data, packed.ctypes.data
        job.frequencies = frequencies.ctypes.data + index * frequencies.strides[0]
        job.run_lengths = run_lengths.ctypes.data + index * run_lengths.strides[0]
        job.channels, job.tokens = rows.shape
    loaded().kvl_cluster(ctypes.byref(jobs), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    _check(jobs)
    return [
        PackedTables(
            packed[: job.packed_bytes].tobytes(),
            int(job.span_log2),
            own[: job.tables_used],
            runs[: job.tables_used],
            by_table,
        )
        for job, (by_table, packed), own, runs in zip(jobs, arrays, frequencies, run_lengths, strict=True)
    ]


def unpack_tables(written: Sequence[Written], *, threads: int = THREADS) -> tuple[TableSet, list[UnpackedTables]]:
    """As :func:`kvloom.codec.channel_tables.unpack`."""
    total = sum(item.tables for item in written)
    frequencies = np.empty((total, 256), dtype=np.uint16)
    slots = np.empty((total, SLOTS), dtype=np.uint32)
    run_lengths = np.empty(total, dtype=np.uint32)
    places = [np.empty(item.channels, dtype=np.uint32) for item in written]
    inputs = [np.frombuffer(item.data, dtype=np.uint8) for item in written]
    jobs = (_Unpack * len(written))()
    start = 0
    for job, item, data, place in zip(jobs, written, inputs, places, strict=True):
        job.data, job.data_bytes, job.places = data.ctypes.data, len(data), place.ctypes.data
        job.run_lengths = run_lengths.ctypes.data + start * run_lengths.itemsize
        job.frequencies = frequencies.ctypes.data + start * frequencies.strides[0]
        job.slots = slots.ctypes.data + start * slots.strides[0]
        job.channels, job.tokens, job.tables = item.channels, item.tokens, item.tables
        job.span_log2 = item.span_log2
        start += item.tables
    loaded().kvl_unpack(ctypes.byref(jobs), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    unpacked = []
    start = 0
    for index, (job, item, place) in enumerate(zip(jobs, written, places, strict=True)):
        if job.status:
            raise InvalidData(f"exact segment {index} has tables that cannot be read")
        unpacked.append(UnpackedTables(int(job.bytes_used), place, run_lengths[start : start + item.tables]))
        start += item.tables
    return TableSet.with_decoder(frequencies, slots), unpacked


def _check(jobs: "ctypes.Array[Any]") -> None:
    for index, job in enumerate(jobs):
        if job.status == BAD_JOB:
            raise ValueError(f"job {index} of the exact level has more tokens than it counts")
        if job.status:
            raise MemoryError(f"job {index} of the exact level could not get its working memory")
