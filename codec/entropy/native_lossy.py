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

from ...errors import InvalidData
from . import native
from .native import THREADS, loaded
from .native import address_of as _address

__all__ = [
    "PartJob",
    "RestoreJob",
    "TensorJob",
    "can_reach",
    "can_write",
    "gather",
    "pack_basis",
    "quantise",
    "restore",
]

LEVELS_MAX = 4
_ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 2}  # `Element`

ByteArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]


class _Part(ctypes.Structure):
    _fields_ = [
        ("symbols", ctypes.c_void_p * LEVELS_MAX),
        ("escapes", ctypes.c_void_p),
        ("basis", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("first_mean", ctypes.c_void_p),
        ("escape_count", ctypes.c_uint64),
        ("rows", ctypes.c_uint32 * LEVELS_MAX),
        ("levels", ctypes.c_uint32),
        ("left", ctypes.c_uint32),
        ("start", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
    ]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("head_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("start", ctypes.c_uint32),
        ("heads", ctypes.c_uint32),
        ("dim", ctypes.c_uint32),
        ("pairs", ctypes.c_uint32),
        ("first_dim", ctypes.c_uint32),
        ("interleaved", ctypes.c_uint32),
        ("element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


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
class PartJob:
    """A part of a block: symbols uint8 ``[active, tokens]`` of each level read, and what they are turned into.

    ``basis`` as :func:`pack_basis` made it, or None; ``factors`` float32 ``[tokens]``; ``scale``, ``mean`` and
    ``first_mean`` float32 ``[width]``, the last of the first token; ``left`` levels were not read.
    """

    symbols: tuple[ByteArray, ...]
    escapes: NDArray[np.int32]
    left: int
    start: int
    basis: ByteArray | None
    factors: FloatArray
    scale: FloatArray
    mean: FloatArray
    first_mean: FloatArray


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
    """One block of layers; ``channels`` float32 ``[tokens, width]`` is written where it is wanted."""

    parts: Sequence[PartJob]
    tensors: Sequence[TensorJob]
    tokens: int
    width: int
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
        parts = (_Part * len(job.parts))()
        tensors = (_Tensor * len(job.tensors))()
        held += [parts, tensors]
        for part, described in zip(parts, job.parts, strict=True):
            _fill_part(part, described, job.tokens, held)
        for tensor, wanted in zip(tensors, job.tensors, strict=True):
            _fill_tensor(tensor, wanted, job.tokens)
        item.parts, item.tensors = ctypes.addressof(parts), ctypes.addressof(tensors)
        item.part_count, item.tensor_count = len(parts), len(tensors)
        item.tokens, item.width, item.path = job.tokens, job.width, number
        if job.channels is not None:
            if job.channels.shape != (job.tokens, job.width) or not job.channels.flags.c_contiguous:
                raise ValueError(f"channels {job.channels.shape} for {job.tokens} tokens of {job.width}")
            item.channels = _address(job.channels)
    loaded().kvl_restore(ctypes.byref(raw), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    if any(item.status for item in raw):
        raise InvalidData("lossy block does not fit its description")


def gather(tensors: Sequence[TensorJob], tokens: int, width: int) -> FloatArray | None:
    """Channels float32 ``[tokens, width]`` of float32 tensors, rotated; None where a number is not finite.

    The tensors, which are only read, cover all channels.
    """
    described = (_Tensor * len(tensors))()
    for tensor, wanted in zip(described, tensors, strict=True):
        _fill_tensor(tensor, wanted, tokens)
        if wanted.out.dtype != np.float32:
            raise ValueError(f"tensor {wanted.out.dtype}, must be float32")
    channels = np.empty((tokens, width), np.float32)
    job = _Gather(ctypes.addressof(described), _address(channels), len(tensors), tokens, width, 0)
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


def _fill_part(part: _Part, job: PartJob, tokens: int, held: list[object]) -> None:
    width = len(job.scale)
    if not 1 <= len(job.symbols) <= LEVELS_MAX - job.left:
        raise ValueError(f"{len(job.symbols)} levels of symbols, {job.left} left of {LEVELS_MAX}")
    for level, symbols in enumerate(job.symbols):
        if symbols.shape[1:] != (tokens,) or not symbols.flags.c_contiguous:
            raise ValueError(f"symbols {symbols.shape} for {tokens} tokens")
        part.symbols[level], part.rows[level] = _address(symbols), len(symbols)
    arrays = [np.ascontiguousarray(a, np.float32) for a in (job.factors, job.scale, job.mean, job.first_mean)]
    escapes = np.ascontiguousarray(job.escapes, np.int32)
    held += [*arrays, escapes]
    if [len(array) for array in arrays] != [tokens, width, width, width]:
        raise ValueError(f"factors and means {[len(array) for array in arrays]} for {tokens} tokens of {width}")
    part.factors, part.scale, part.mean, part.first_mean = (_address(array) for array in arrays)
    part.escapes, part.escape_count = _address(escapes), len(escapes)
    if job.basis is not None:
        part.basis = _address(job.basis)
    part.levels, part.left, part.start, part.width = len(job.symbols), job.left, job.start, width


def _fill_tensor(tensor: _Tensor, job: TensorJob, tokens: int) -> None:
    if job.out.ndim != 3 or job.out.shape[1] != tokens or not can_reach(job.out):
        raise ValueError(f"room {job.out.dtype} {job.out.shape} for {tokens} tokens")
    tensor.data, tensor.element = _address(job.out), _ELEMENTS[job.out.dtype]
    tensor.head_stride, tensor.token_stride = job.out.strides[:2]
    tensor.heads, _, tensor.dim = job.out.shape
    tensor.start, tensor.first_dim, tensor.interleaved = job.start, job.first_dim, job.interleaved
    if job.cosines is not None and job.sines is not None:
        if not job.cosines.shape == job.sines.shape == (tokens, job.cosines.shape[1]):
            raise ValueError(f"cosines {job.cosines.shape} and sines {job.sines.shape} for {tokens} tokens")
        tensor.cosines, tensor.sines, tensor.pairs = _address(job.cosines), _address(job.sines), job.cosines.shape[1]

