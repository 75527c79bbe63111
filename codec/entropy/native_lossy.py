"""The lossy levels' loops in C++, reached through ctypes without the GIL.

``codec/quantise.py``, ``codec/segment.py``, ``codec/profile.py`` and ``codec/channels.py`` say in NumPy what each does.
Symbols and the sums of the synthesis are the same, number for number; what is then scaled and rotated is float32 and
may differ in its last bits.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidData
from . import native
from .native import THREADS, loaded
from .native import address_of as _address

__all__ = [
    "PartTable",
    "RestoreJob",
    "TensorJob",
    "can_reach",
    "can_write",
    "gather",
    "pack_basis",
    "quantise",
    "restore",
    "tensor_row",
    "tensor_rows",
]

LEVELS_MAX = 4
_ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 2}  # `Element`

ByteArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]


_PART = np.dtype(
    [
        ("symbols", np.uint64, LEVELS_MAX),
        ("escapes", np.uint64),
        ("basis", np.uint64),
        ("factors", np.uint64),
        ("scale", np.uint64),
        ("mean", np.uint64),
        ("first_mean", np.uint64),
        ("escape_count", np.uint64),
        ("rows", np.uint32, LEVELS_MAX),
        ("levels", np.uint32),
        ("left", np.uint32),
        ("start", np.uint32),
        ("width", np.uint32),
    ]
)  # `Part`


_TENSOR = np.dtype(
    [
        ("cosines", np.uint64),
        ("sines", np.uint64),
        ("data", np.uint64),
        ("head_stride", np.int64),
        ("token_stride", np.int64),
        ("start", np.uint32),
        ("heads", np.uint32),
        ("dim", np.uint32),
        ("pairs", np.uint32),
        ("first_dim", np.uint32),
        ("interleaved", np.uint32),
        ("element", np.uint32),
        ("reserved", np.uint32),
    ]
)  # `Tensor`


class _Restore(ctypes.Structure):
    _fields_ = [
        ("parts", ctypes.c_void_p),
        ("tensors", ctypes.c_void_p),
        ("channels", ctypes.c_void_p),
        ("part_count", ctypes.c_uint32),
        ("tensor_count", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("path", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


class _Gather(ctypes.Structure):
    _fields_ = [
        ("tensors", ctypes.c_void_p),
        ("channels", ctypes.c_void_p),
        ("tensor_count", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


class _Quantise(ctypes.Structure):
    _fields_ = [
        ("coefficients", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("levels", ctypes.c_void_p * LEVELS_MAX),
        ("peaks", ctypes.c_void_p),
        ("width", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("refinements", ctypes.c_uint32),
        ("status", ctypes.c_int32),
    ]


@dataclass(frozen=True, slots=True)
class PartTable:
    """The parts of a block, which cover its channels in order.

    ``widths`` uint64; ``bases`` as :func:`pack_basis` made them, or None.
    """

    widths: NDArray[np.uint64]
    bases: tuple[ByteArray | None, ...]
    starts: NDArray[np.uint64] = field(init=False)
    addresses: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        if self.widths.dtype != np.uint64 or self.widths.shape != (len(self.bases),):
            raise ValueError(f"widths {self.widths.dtype} {self.widths.shape} of {len(self.bases)} parts")
        addresses = np.array([0 if basis is None else _address(basis) for basis in self.bases], np.uint64)
        object.__setattr__(self, "starts", np.cumsum(self.widths) - self.widths)
        object.__setattr__(self, "addresses", addresses)


@dataclass(frozen=True, slots=True)
class TensorJob:
    """Where channels from ``start`` on go: ``out`` ``[heads, tokens, dim]`` that :func:`can_write` takes.

    ``cosines`` and ``sines`` float32 ``[tokens, pairs]`` where it is rotated; ``first_dim`` and ``interleaved`` as in
    :class:`kvloom.codec.layout.Rope`.
    """

    out: NDArray[np.generic]
    start: int
    cosines: FloatArray | None = None
    sines: FloatArray | None = None
    first_dim: int = 0
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class RestoreJob:
    """One block of layers; ``channels`` float32 ``[tokens, width]`` is written where it is wanted.

    ``symbols`` uint8 ``[rows, tokens]`` of each level read and the ``rows`` of each part, ``escapes`` int32 and how
    many are each part's, as in :class:`kvloom.codec.segment.DecodedBlock`; ``left`` levels were not read. ``factors``
    float32 ``[parts, tokens]``; ``scale``, ``mean`` and ``first_mean``, that of the first token, float32 ``[width]``.
    """

    parts: PartTable
    symbols: Sequence[ByteArray]
    rows: Sequence[Sequence[int]]
    escapes: NDArray[np.int32]
    escape_counts: Sequence[int]
    left: int
    factors: FloatArray
    scale: FloatArray
    mean: FloatArray
    first_mean: FloatArray
    tensors: Sequence[TensorJob]
    channels: FloatArray | None = None


def can_write(array: NDArray[np.generic]) -> bool:
    """Whether the core writes into ``array`` itself: three float types, aligned, the last axis without gaps."""
    return can_reach(array) and array.flags.writeable


def can_reach(array: NDArray[np.generic]) -> bool:
    """As :func:`can_write`, of an array that may be read-only."""
    dense = array.shape[-1] == 1 or array.strides[-1] == array.itemsize
    return array.dtype in _ELEMENTS and dense and array.flags.aligned


def pack_basis(basis: NDArray[np.int8], *, path: str = "auto") -> ByteArray:
    """A basis ``[width, width]`` in the order that the product of ``path`` reads it."""
    number, width = native.path_number(path), len(basis)
    packed = np.empty(loaded().kvl_packed_bytes(ctypes.c_uint32(width), ctypes.c_uint32(number)), np.uint8)
    source = np.ascontiguousarray(basis)
    loaded().kvl_pack_basis(_address(source), ctypes.c_uint32(width), ctypes.c_uint32(number), _address(packed))
    return packed


def restore(jobs: Sequence[RestoreJob], *, threads: int = THREADS, path: str = "auto") -> None:
    """Symbols to channels, as :meth:`kvloom.codec.profile.Part.inverse`, and these to tensors, rotated."""
    number = native.path_number(path)
    raw = (_Restore * len(jobs))()
    held: list[object] = []
    for item, job in zip(raw, jobs, strict=True):
        tokens, width = job.factors.shape[1], len(job.scale)
        parts = _described(job, tokens, width)
        tensors = tensor_rows([tensor_row(wanted, tokens) for wanted in job.tensors])
        held += [parts, tensors]
        item.parts, item.tensors = parts.ctypes.data, tensors.ctypes.data
        item.part_count, item.tensor_count = len(parts), len(tensors)
        item.tokens, item.width, item.path = tokens, width, number
        if job.channels is not None:
            if job.channels.shape != (tokens, width) or not job.channels.flags.c_contiguous:
                raise ValueError(f"channels {job.channels.shape} for {tokens} tokens of {width}")
            item.channels = _address(job.channels)
    loaded().kvl_restore(ctypes.byref(raw), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    if any(item.status for item in raw):
        raise InvalidData("lossy block does not fit its description")


def gather(tensors: Sequence[TensorJob], tokens: int, width: int) -> FloatArray | None:
    """Channels float32 ``[tokens, width]`` of float32 tensors, rotated; None where a number is not finite.

    The tensors, which are only read, cover all channels.
    """
    described = tensor_rows([tensor_row(wanted, tokens) for wanted in tensors])
    for wanted in tensors:
        if wanted.out.dtype != np.float32:
            raise ValueError(f"tensor {wanted.out.dtype}, must be float32")
    channels = np.empty((tokens, width), np.float32)
    job = _Gather(described.ctypes.data, _address(channels), len(tensors), tokens, width, 0)
    loaded().kvl_gather(ctypes.byref(job), ctypes.c_uint32(1), ctypes.c_uint32(1))
    return None if job.status else channels


def quantise(
    coefficients: Sequence[FloatArray], factors: FloatArray, refinements: int, *, threads: int = THREADS
) -> list[tuple[tuple[ByteArray, ...], NDArray[np.int32]]] | None:
    """As :func:`kvloom.codec.quantise.split` of each part's coefficients: symbols of all levels, and peaks.

    None where a coefficient is too large.
    """
    raw = (_Quantise * len(coefficients))()
    multiplied = np.ascontiguousarray(factors, np.float32)
    held = [np.ascontiguousarray(item, np.float32) for item in coefficients]
    results: list[tuple[tuple[ByteArray, ...], NDArray[np.int32]]] = []
    for job, item in zip(raw, held, strict=True):
        if item.shape[1:] != multiplied.shape or not 0 <= refinements < LEVELS_MAX:
            raise ValueError(f"coefficients {item.shape} for {multiplied.shape} tokens, {refinements} refinements")
        levels = np.empty((refinements + 1, *item.shape), np.uint8)
        peaks = np.empty(len(item), np.int32)
        results.append((tuple(levels), peaks))
        job.coefficients, job.factors, job.peaks = _address(item), _address(multiplied), _address(peaks)
        address = _address(levels)
        for level in range(refinements + 1):
            job.levels[level] = address + level * item.size
        (job.width, job.tokens), job.refinements = item.shape, refinements
    loaded().kvl_quantise(ctypes.byref(raw), ctypes.c_uint32(len(raw)), ctypes.c_uint32(threads))
    return None if any(job.status for job in raw) else results


def _described(job: RestoreJob, tokens: int, width: int) -> NDArray[np.void]:
    """The parts of a block, with the addresses of what the job holds."""
    table, levels = job.parts, len(job.symbols)
    parts = np.zeros(len(table.bases), _PART)
    if not 1 <= levels <= LEVELS_MAX - job.left:
        raise ValueError(f"{levels} levels of symbols, {job.left} left of {LEVELS_MAX}")
    rows = np.array(job.rows, np.uint64)
    ends = rows.cumsum(axis=1)
    for level, symbols in enumerate(job.symbols):
        if symbols.shape != (int(ends[level, -1]), tokens) or not _dense(symbols, np.uint8):
            raise ValueError(f"symbols {symbols.shape} for {ends[level, -1]} rows of {tokens} tokens")
        parts["symbols"][:, level] = _address(symbols) + tokens * (ends[level] - rows[level])
    parts["rows"][:, :levels] = rows.T
    counts = np.array(job.escape_counts, np.uint64)
    if int(counts.sum()) != len(job.escapes) or not _dense(job.escapes, np.int32):
        raise ValueError(f"{len(job.escapes)} escapes, the parts have {counts.sum()}")
    parts["escapes"], parts["escape_count"] = _address(job.escapes) + 4 * (counts.cumsum() - counts), counts
    if job.factors.shape != (len(parts), tokens) or not _dense(job.factors, np.float32):
        raise ValueError(f"factors {job.factors.shape} for {tokens} tokens of {len(parts)} parts")
    parts["factors"] = _address(job.factors) + 4 * tokens * np.arange(len(parts), dtype=np.uint64)
    for name, array in (("scale", job.scale), ("mean", job.mean), ("first_mean", job.first_mean)):
        if array.shape != (width,) or not _dense(array, np.float32):
            raise ValueError(f"{name} {array.dtype} {array.shape} of {width} channels")
        parts[name] = _address(array) + 4 * table.starts
    parts["basis"], parts["start"], parts["width"] = table.addresses, table.starts, table.widths
    parts["levels"], parts["left"] = levels, job.left
    return parts


def _dense(array: NDArray[np.generic], dtype: type[np.generic]) -> bool:
    return array.dtype == dtype and array.flags.c_contiguous


def tensor_rows(rows: Sequence[tuple[int, ...]]) -> NDArray[np.void]:
    """The tensors ``[n]`` as the core is told of them, of what :func:`tensor_row` says."""
    return np.array(rows, _TENSOR)


def tensor_row(job: TensorJob, tokens: int) -> tuple[int, ...]:
    """What the core is told of a tensor; it holds nothing of ``job``."""
    out = job.out
    if out.ndim != 3 or out.shape[1] != tokens or not can_reach(out):
        raise ValueError(f"room {out.dtype} {out.shape} for {tokens} tokens")
    cosines = sines = pairs = 0
    if job.cosines is not None and job.sines is not None:
        pairs = job.cosines.shape[1]
        if not job.cosines.shape == job.sines.shape == (tokens, pairs):
            raise ValueError(f"cosines {job.cosines.shape} and sines {job.sines.shape} for {tokens} tokens")
        cosines, sines = _address(job.cosines), _address(job.sines)
    heads, _, dim = out.shape
    head_stride, token_stride, _ = out.strides
    place = (cosines, sines, _address(out), head_stride, token_stride)
    return (*place, job.start, heads, dim, pairs, job.first_dim, job.interleaved, _ELEMENTS[out.dtype], 0)
