"""The loops of the exact level in C++ (``planes.cpp``, ``clusters.cpp``), reached through ctypes without the GIL.

``codec/planes.py`` and ``codec/clusters.py`` say in NumPy what each does; results are the same, number for number.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model import SLOTS
from .native import AVAILABLE, THREADS, library

__all__ = ["AVAILABLE", "ClusterResult", "JoinJob", "SplitResult", "cluster", "decoder_tables", "join", "split"]


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
        ("span_log2", ctypes.c_uint32),
        ("base", ctypes.c_uint32),
        ("status", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    ]


class _Cluster(ctypes.Structure):
    _fields_ = [
        ("counts", ctypes.c_void_p),
        ("log2", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("channels", ctypes.c_uint32),
        ("tables_used", ctypes.c_uint32),
        ("status", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    ]


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Symbols ``[channels, tokens]``, stored bits, how often each group occurs ``[channels, 256]``, window base."""

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
class ClusterResult:
    """Which table each channel uses (``labels`` ``[channels]``), and the counts of each table ``[tables, 256]``."""

    labels: NDArray[np.uint8]
    tables: NDArray[np.int64]


def split(
    tensors: Sequence[NDArray[Any]], *, form: int, span_log2: int, rest_bytes: Sequence[int], threads: int = THREADS
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
        job.form, job.span_log2 = form, span_log2
    library().kvl_split(ctypes.byref(jobs), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
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
    library().kvl_join(ctypes.byref(raw), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    _check(raw)


def cluster(
    counts: Sequence[NDArray[np.uint16]], log2: NDArray[np.uint16], *, clusters_max: int, threads: int = THREADS
) -> list[ClusterResult]:
    """As :func:`kvloom.codec.clusters.choose`."""
    jobs = (_Cluster * len(counts))()
    arrays = []
    for job, count in zip(jobs, counts, strict=True):
        labels = np.empty(len(count), dtype=np.uint8)
        tables = np.empty((clusters_max, 256), dtype=np.int64)
        arrays.append((labels, tables))
        job.counts, job.log2, job.channels = count.ctypes.data, log2.ctypes.data, len(count)
        job.labels, job.tables = labels.ctypes.data, tables.ctypes.data
    library().kvl_cluster(ctypes.byref(jobs), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    _check(jobs)
    return [
        ClusterResult(labels, tables[: job.tables_used]) for job, (labels, tables) in zip(jobs, arrays, strict=True)
    ]


def decoder_tables(frequencies: NDArray[np.uint16], *, threads: int = THREADS) -> NDArray[np.uint32]:
    """The look-ups ``[tables, 4096]`` of ``frequencies`` ``[tables, 256]``, whose rows the caller knows add up."""
    source = np.ascontiguousarray(frequencies)
    slots = np.empty((len(source), SLOTS), dtype=np.uint32)
    library().kvl_decoder_tables(
        ctypes.c_void_p(source.ctypes.data),
        ctypes.c_void_p(slots.ctypes.data),
        ctypes.c_uint32(len(slots)),
        ctypes.c_uint32(threads),
    )
    return slots


def _check(jobs: "ctypes.Array[Any]") -> None:
    for index, job in enumerate(jobs):
        if job.status:
            raise MemoryError(f"job {index} of the exact level could not get its working memory")
