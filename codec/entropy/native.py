"""The entropy coder in C++ (the ``.cpp`` files here), reached through ctypes, which lets go of the GIL during a call.

Where the package was installed without a compiler, ``AVAILABLE`` is false and the reference does the work.
"""

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidData
from .stream import DecodeJob, EncodeJob

__all__ = [
    "AVAILABLE",
    "DESCRIPTION",
    "PATHS",
    "THREADS",
    "address_of",
    "decode_streams",
    "encode_streams",
    "loaded",
    "path_number",
]

_STATUS = {
    1: "ends too early",
    2: "has words left over",
    3: "does not end in its starting state",
    4: "does not fit its description",
    5: "does not fit its buffer",
    6: "has another number of escapes than are listed",
}

THREADS = max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)))
"""Threads that one call spreads its jobs over."""


class _Stream(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("data_bytes", ctypes.c_uint64),
        ("tables", ctypes.c_void_p),
        ("run_tables", ctypes.c_void_p),
        ("run_lengths", ctypes.c_void_p),
        ("contexts", ctypes.c_void_p),
        ("shifts", ctypes.c_void_p),
        ("search", ctypes.c_void_p),
        ("symbols", ctypes.c_void_p),
        ("opened", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("symbol_count", ctypes.c_uint64),
        ("runs", ctypes.c_uint32),
        ("lanes", ctypes.c_uint32),
        ("table_count", ctypes.c_uint32),
        ("context_count", ctypes.c_uint32),
        ("period", ctypes.c_uint32),
        ("form", ctypes.c_uint32),
        ("zero", ctypes.c_uint32),
        ("place_count", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


class _Batch:
    """What both directions say of ``jobs`` in ``streams``, and the arrays these point into.

    An address costs more to ask of NumPy than a short stream to decode, so what can share an array does.
    """

    def __init__(self, jobs: Sequence[DecodeJob | EncodeJob], tables: Sequence[NDArray[np.uint32]]) -> None:
        self.streams = (_Stream * len(jobs))()
        self._held: list[NDArray[np.generic]] = []
        self._addresses: dict[int, int] = {}
        empty = [np.empty(0, dtype=np.uint32)]
        run_tables = self.hold(np.concatenate(empty + [job.runs.tables for job in jobs], dtype=np.uint32))
        run_lengths = self.hold(np.concatenate(empty + [job.runs.lengths for job in jobs], dtype=np.uint32))
        for stream, job, table in zip(self.streams, jobs, tables, strict=True):
            runs = len(job.runs.tables)
            stream.tables, stream.table_count, stream.lanes = self.share(table), len(table), job.lanes
            stream.run_tables, stream.run_lengths = run_tables, run_lengths
            stream.runs, stream.symbol_count, stream.context_count = runs, job.runs.symbol_count, 1
            run_tables, run_lengths = run_tables + 4 * runs, run_lengths + 4 * runs
            if job.contexts is not None:
                stream.contexts = self.hold(np.ascontiguousarray(job.contexts))
                stream.context_count = job.context_count

    def describe(self, stream: _Stream, job: DecodeJob) -> None:
        """What only a decoder is told."""
        data = np.frombuffer(job.data, dtype=np.uint8)
        stream.data, stream.data_bytes = self.hold(data), len(data)
        if job.shifts is not None:
            stream.shifts, stream.period = self.hold(np.ascontiguousarray(job.shifts)), len(job.shifts)
            stream.context_count = job.context_count
        if job.opened is not None:
            stream.opened, stream.zero = self.hold(job.opened), job.zero
        if job.places is not None:
            stream.places, stream.place_count = self.hold(job.places), len(job.places)
        search = job.tables.search
        if search is not None:
            stream.search, stream.form = self.share(search), job.tables.form

    def share(self, array: NDArray[np.generic]) -> int:
        """As :meth:`hold`, of an array that many jobs have."""
        found = self._addresses.get(id(array))
        if found is None:
            found = self._addresses[id(array)] = self.hold(np.ascontiguousarray(array))
            self._held.append(array)
        return found

    def hold(self, array: NDArray[np.generic]) -> int:
        """The address of a contiguous ``array``, which is kept as long as the batch."""
        self._held.append(array)
        return address_of(array)


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("._native", __package__)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    library = ctypes.CDLL(spec.origin)
    library.kvl_paths.argtypes = []
    library.kvl_paths.restype = ctypes.c_uint32
    library.kvl_decode.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32]
    library.kvl_decode.restype = None
    library.kvl_encode.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32]
    library.kvl_encode.restype = None
    library.kvl_packed_bytes.argtypes = [ctypes.c_uint32, ctypes.c_uint32]
    library.kvl_packed_bytes.restype = ctypes.c_uint64
    library.kvl_pack_basis.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]
    library.kvl_pack_basis.restype = None
    for name in ("kvl_quantise", "kvl_gather"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
        getattr(library, name).restype = None
    library.kvl_decode_blocks.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32]
    library.kvl_decode_blocks.restype = None
    return library


_library = _load()
AVAILABLE = _library is not None
_PATHS = {"scalar": 0, "avx2": 1, "avx512": 2, "avx512vbmi2": 3}  # `Path` in coder.h
PATHS = tuple(name for name, bit in _PATHS.items() if _library is not None and _library.kvl_paths() >> bit & 1)
"""The executions of the entropy coder that this CPU has, the fastest last; empty without the compiled core."""

DESCRIPTION = (
    f"C++, {PATHS[-1]}, {THREADS} threads"
    if PATHS
    else "NumPy reference (no compiled core: install a C++ compiler and reinstall kvloom)"
)


def decode_streams(jobs: Sequence[DecodeJob], *, threads: int = THREADS, path: str = "auto") -> list[NDArray[np.uint8]]:
    """As :func:`reference.decode_streams`, by the fastest of :data:`PATHS` or the one named ``path``.

    The arrays returned share one block of memory, which lives as long as any of them.
    """
    library = loaded()
    # Streams of one lane count are decoded several at a time; the longest go first, so that threads end together.
    order = sorted(range(len(jobs)), key=lambda index: (jobs[index].lanes, jobs[index].symbol_count), reverse=True)
    sorted_jobs = [jobs[index] for index in order]
    batch = _Batch(sorted_jobs, [job.tables.decoder for job in sorted_jobs])
    ends = list(accumulate(job.symbol_count for job in sorted_jobs))
    block = np.empty(ends[-1] if ends else 0, dtype=np.uint8)
    outputs = dict(zip(order, np.split(block, ends[:-1]), strict=True)) if ends else {}
    address = address_of(block)
    for stream, job, end in zip(batch.streams, sorted_jobs, ends, strict=True):
        batch.describe(stream, job)
        stream.symbols = address + end - stream.symbol_count
    library.kvl_decode(ctypes.byref(batch.streams), len(jobs), threads, path_number(path))
    failed = [(index, stream.status) for stream, index in zip(batch.streams, order, strict=True) if stream.status]
    if failed:
        index, status = min(failed)
        raise InvalidData(f"entropy stream {index} {_STATUS[status]}")
    return [outputs[index] for index in range(len(jobs))]


def encode_streams(jobs: Sequence[EncodeJob], *, threads: int = THREADS, path: str = "auto") -> list[bytes]:
    """As :func:`reference.encode_streams`, by the fastest of :data:`PATHS` or the one named ``path``."""
    library = loaded()
    batch = _Batch(jobs, [job.tables.encoder for job in jobs])
    # A symbol costs at most 12 bits, a lane its state and one word.
    ends = list(accumulate(2 * len(job.symbols) + 8 * job.lanes for job in jobs))
    block = np.empty(ends[-1] if ends else 0, dtype=np.uint8)
    address = address_of(block)
    for stream, job, start, end in zip(batch.streams, jobs, [0, *ends], ends, strict=False):
        stream.data, stream.data_bytes = address + start, end - start
        stream.symbols = batch.hold(np.ascontiguousarray(job.symbols, dtype=np.uint8))
    library.kvl_encode(ctypes.byref(batch.streams), len(jobs), threads, path_number(path))
    for index, stream in enumerate(batch.streams):
        if stream.status:
            raise ValueError(f"entropy job {index} {_STATUS[stream.status]}, or a symbol has no code in its table")
    return [block[end - stream.data_bytes : end].tobytes() for stream, end in zip(batch.streams, ends, strict=True)]


def address_of(array: NDArray[np.generic]) -> int:
    """Where the first item of ``array`` lies."""
    # Far cheaper than `array.ctypes.data`, of which a chunk asks hundreds; records are viewed as bytes first.
    address: int = array.__array_interface__["data"][0]
    return address


def loaded() -> ctypes.CDLL:
    """The core; :class:`InvalidData` where there is none."""
    if _library is None:
        raise InvalidData("the compiled coder is not installed")
    return _library


def path_number(name: str) -> int:
    """`Path` of :data:`PATHS` or ``auto``, the fastest; :class:`ValueError` for one that this CPU has not."""
    if name != "auto" and name not in PATHS:
        raise ValueError(f"no path {name!r}, this CPU has {', '.join(PATHS)}")
    return _PATHS[PATHS[-1] if name == "auto" else name]
