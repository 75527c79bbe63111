"""The lossy levels' loops in C++, reached through ctypes without the GIL.

``codec/quantise.py``, ``codec/segment.py``, ``codec/profile.py`` and ``codec/channels.py`` say in NumPy what each does.
Symbols and the sums of the synthesis are the same, number for number; what is then scaled and rotated is float32 and
may differ in its last bits.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from . import native
from .native import THREADS, loaded
from .native import address_of as _address

__all__ = [
    "TENSOR",
    "TensorJob",
    "can_reach",
    "can_write",
    "gather",
    "pack_basis",
    "place",
    "quantise",
    "tensor_row",
    "tensor_rows",
    "writable",
]

LEVELS_MAX = 4
_ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 2}  # `Element`

ByteArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
Arrays = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""One for each layer, or all in one."""


TENSOR = np.dtype(
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


def can_write(array: NDArray[np.generic]) -> bool:
    """Whether the core writes into ``array`` itself: three float types, aligned, the last axis without gaps."""
    return can_reach(array) and array.flags.writeable


def can_reach(array: NDArray[np.generic]) -> bool:
    """As :func:`can_write`, of an array that may be read-only."""
    dense = array.shape[-1] == 1 or array.strides[-1] == array.itemsize
    return array.dtype in _ELEMENTS and dense and array.flags.aligned


def writable(arrays: Arrays) -> Arrays:
    """``arrays``, with float32 ones of their own shapes in the place of those that the core cannot write to."""
    if isinstance(arrays, np.ndarray):
        return arrays if can_write(arrays) else np.empty(arrays.shape, np.float32)
    return [item if can_write(item) else np.empty(item.shape, np.float32) for item in map(np.asarray, arrays)]


def place(rows: NDArray[np.void], which: NDArray[np.intp], arrays: Arrays, layers: NDArray[np.int64]) -> None:
    """Note in ``rows[which]`` of :data:`TENSOR` where the ``layers`` of ``arrays`` lie, which :func:`writable` gave."""
    if isinstance(arrays, np.ndarray):
        rows["data"][which] = np.uint64(_address(arrays)) + (layers * arrays.strides[0]).view(np.uint64)
        rows["head_stride"][which], rows["token_stride"][which] = arrays.strides[1:3]
        rows["element"][which] = _ELEMENTS[arrays.dtype]
        return
    wanted = [arrays[layer] for layer in layers.tolist()]
    rows["data"][which] = [_address(item) for item in wanted]
    rows["head_stride"][which] = [item.strides[0] for item in wanted]
    rows["token_stride"][which] = [item.strides[1] for item in wanted]
    rows["element"][which] = [_ELEMENTS[item.dtype] for item in wanted]


def pack_basis(basis: NDArray[np.int8], *, path: str = "auto") -> ByteArray:
    """A basis ``[width, width]`` in the order that the product of ``path`` reads it."""
    number, width = native.path_number(path), len(basis)
    packed = np.empty(loaded().kvl_packed_bytes(ctypes.c_uint32(width), ctypes.c_uint32(number)), np.uint8)
    source = np.ascontiguousarray(basis)
    loaded().kvl_pack_basis(_address(source), ctypes.c_uint32(width), ctypes.c_uint32(number), _address(packed))
    return packed


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


def tensor_rows(rows: Sequence[tuple[int, ...]]) -> NDArray[np.void]:
    """The tensors ``[n]`` as the core is told of them, of what :func:`tensor_row` says."""
    return np.array(rows, TENSOR)


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
