"""One block of layers through the core's ``kvl_restore``: the step of decoding that tests hold to the reference."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvloom.codec.entropy import native
from kvloom.codec.entropy.native import address_of, loaded
from kvloom.codec.entropy.native_lossy import LEVELS_MAX, TensorJob, tensor_row, tensor_rows
from kvloom.errors import InvalidData

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


@dataclass(frozen=True, slots=True)
class PartTable:
    """The parts of a block, which cover its channels in order.

    ``widths`` uint64; ``bases`` as ``native_lossy.pack_basis`` made them, or None.
    """

    widths: NDArray[np.uint64]
    bases: tuple[ByteArray | None, ...]
    starts: NDArray[np.uint64] = field(init=False)
    addresses: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        if self.widths.dtype != np.uint64 or self.widths.shape != (len(self.bases),):
            raise ValueError(f"widths {self.widths.dtype} {self.widths.shape} of {len(self.bases)} parts")
        addresses = np.array([0 if basis is None else address_of(basis) for basis in self.bases], np.uint64)
        object.__setattr__(self, "starts", np.cumsum(self.widths) - self.widths)
        object.__setattr__(self, "addresses", addresses)


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


def restore_blocks(jobs: Sequence[RestoreJob], *, threads: int = native.THREADS, path: str = "auto") -> None:
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
            item.channels = address_of(job.channels)
    library = loaded()
    library.kvl_restore.argtypes, library.kvl_restore.restype = (
        [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32],
        None,
    )
    library.kvl_restore(ctypes.byref(raw), ctypes.c_uint32(len(jobs)), ctypes.c_uint32(threads))
    if any(item.status for item in raw):
        raise InvalidData("lossy block does not fit its description")


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
        parts["symbols"][:, level] = address_of(symbols) + tokens * (ends[level] - rows[level])
    parts["rows"][:, :levels] = rows.T
    counts = np.array(job.escape_counts, np.uint64)
    if int(counts.sum()) != len(job.escapes) or not _dense(job.escapes, np.int32):
        raise ValueError(f"{len(job.escapes)} escapes, the parts have {counts.sum()}")
    parts["escapes"], parts["escape_count"] = address_of(job.escapes) + 4 * (counts.cumsum() - counts), counts
    if job.factors.shape != (len(parts), tokens) or not _dense(job.factors, np.float32):
        raise ValueError(f"factors {job.factors.shape} for {tokens} tokens of {len(parts)} parts")
    parts["factors"] = address_of(job.factors) + 4 * tokens * np.arange(len(parts), dtype=np.uint64)
    for name, array in (("scale", job.scale), ("mean", job.mean), ("first_mean", job.first_mean)):
        if array.shape != (width,) or not _dense(array, np.float32):
            raise ValueError(f"{name} {array.dtype} {array.shape} of {width} channels")
        parts[name] = address_of(array) + 4 * table.starts
    parts["basis"], parts["start"], parts["width"] = table.addresses, table.starts, table.widths
    parts["levels"], parts["left"] = levels, job.left
    return parts


def _dense(array: NDArray[np.generic], dtype: type[np.generic]) -> bool:
    return array.dtype == dtype and array.flags.c_contiguous
