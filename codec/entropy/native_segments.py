"""Blocks of layers from segments to tensors in C++ (``segments.cpp``), reached through ctypes without the GIL.

``codec/segment_reader.py`` and ``codec/lossy.py`` say in NumPy what it does, and what is wrong with a segment that it
refuses.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import native
from .model import base_tables, refinement_tables
from .native import THREADS, loaded
from .native import address_of as _address
from .native_lossy import TENSOR

__all__ = ["BlockJob", "BlockTable", "Chunk", "KnownPart", "decode"]

_TABLES = np.dtype([("slots", np.uint64), ("search", np.uint64), ("count", np.uint32), ("form", np.uint32)])
_PART = np.dtype(
    [
        ("basis", np.uint64),
        ("classes", np.uint64),
        ("scale", np.uint64),
        ("mean", np.uint64),
        ("origin_mean", np.uint64),
        ("width", np.uint32),
        ("adaptive", np.uint32),
    ]
)  # `ProfilePart`
_PAYLOAD = np.dtype([("data", np.uint64), ("bytes", np.uint64)])
_BLOCK = np.dtype(
    [
        ("parts", np.uint64),
        ("payloads", np.uint64),
        ("tensors", np.uint64),
        ("part_count", np.uint32),
        ("tensor_count", np.uint32),
        ("width", np.uint32),
        ("status", np.int32),
    ]
)  # `BlockJob`

_ARRAYS = {"classes": np.uint8, "scale": np.float32, "mean": np.float32, "origin_mean": np.float32}
_NO_ROOM = 5  # `Status` in jobs.h


class _Chunk(ctypes.Structure):
    _fields_ = [
        ("tables", ctypes.c_void_p),
        ("gain_factors", ctypes.c_void_p),
        ("levels", ctypes.c_uint32),
        ("refinements", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("at_origin", ctypes.c_uint32),
        ("stream_path", ctypes.c_uint32),
        ("product_path", ctypes.c_uint32),
    ]


@dataclass(frozen=True, slots=True)
class KnownPart:
    """What a profile knows of a part: ``basis`` as :func:`.native_lossy.pack_basis` made it, or None.

    ``classes`` uint8, ``scale``, ``mean`` and ``origin_mean`` float32, all ``[width]``, are of a part of a profile.
    """

    basis: NDArray[np.uint8] | None
    classes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    mean: NDArray[np.float32]
    origin_mean: NDArray[np.float32]
    adaptive: bool


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The parts of a block, which cover its ``width`` channels in order, as the compiled core wants them."""

    parts: Sequence[KnownPart]
    width: int = field(init=False)
    address: int = field(init=False)
    rows: NDArray[np.void] = field(init=False)
    _held: list[NDArray[np.generic]] = field(init=False)

    def __post_init__(self) -> None:
        rows = np.zeros(len(self.parts), _PART)
        held: list[NDArray[np.generic]] = []
        dense: dict[tuple[object, ...], NDArray[np.generic]] = {}
        for row, part in zip(rows, self.parts, strict=True):
            width = len(part.scale)
            arrays: dict[str, NDArray[np.generic]] = {name: getattr(part, name) for name in _ARRAYS}
            for name, array in arrays.items():
                if array.shape != (width,) or array.dtype != _ARRAYS[name]:
                    raise ValueError(f"{name} {array.dtype} {array.shape} of {width} channels")
                # What is one number over and over, as in the generic profile, is written out once for all parts.
                key = (array.dtype, width, array[0].item()) if array.strides == (0,) else (id(array),)
                row[name] = _address(dense.setdefault(key, np.ascontiguousarray(array)))
            held += [] if part.basis is None else [part.basis]
            row["basis"] = 0 if part.basis is None else _address(part.basis)
            row["width"], row["adaptive"] = width, part.adaptive
        object.__setattr__(self, "width", int(rows["width"].sum()))
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "address", rows.ctypes.data)
        object.__setattr__(self, "_held", held + list(dense.values()))


@dataclass(frozen=True, slots=True)
class BlockJob:
    """A block's segments, base first, and the tensors that are wanted of it (rows of :data:`.native_lossy.TENSOR`)."""

    table: BlockTable
    payloads: Sequence[memoryview]
    tensors: NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the blocks of a chunk have in common.

    ``levels`` are read of ``refinements + 1``; ``gain_factors`` float32 ``[GAIN_MAX + 1]`` are what a unit of a token
    of that gain is worth; ``at_origin``: the first token was computed at position 0.
    """

    levels: int
    refinements: int
    tokens: int
    at_origin: bool
    gain_factors: NDArray[np.float32]


def decode(chunk: Chunk, blocks: Sequence[BlockJob], *, threads: int = THREADS, path: str = "auto") -> list[int]:
    """Write the tensors of ``blocks``; the places of those whose segments are refused, whose tensors are undefined.

    :class:`MemoryError` where the symbols find no room. ``path`` is of the entropy streams; the synthesis takes the
    fastest, for which bases are packed.
    """
    rows = np.zeros(len(blocks), _BLOCK)
    payloads = [item for block in blocks for item in block.payloads]
    if len(payloads) != chunk.levels * len(blocks):
        raise ValueError(f"{len(payloads)} segments of {len(blocks)} blocks of {chunk.levels} levels")
    described = np.zeros(len(payloads), _PAYLOAD)
    described["data"] = [_address(np.frombuffer(item, np.uint8)) for item in payloads]
    described["bytes"] = [len(item) for item in payloads]
    for block in blocks:
        if block.tensors.dtype != TENSOR or not block.tensors.flags.c_contiguous:
            raise ValueError(f"tensors {block.tensors.dtype}, must be rows of tensors")
    rows["parts"] = [block.table.address for block in blocks]
    rows["part_count"] = [len(block.table.rows) for block in blocks]
    rows["width"] = [block.table.width for block in blocks]
    per_block = np.uint64(chunk.levels * _PAYLOAD.itemsize)
    rows["payloads"] = _address(described.view(np.uint8)) + per_block * np.arange(len(blocks), dtype=np.uint64)
    rows["tensors"] = [_address(block.tensors.view(np.uint8)) for block in blocks]
    rows["tensor_count"] = [len(block.tensors) for block in blocks]
    sets = _table_sets(chunk.levels, chunk.refinements)
    if chunk.gain_factors.dtype != np.float32 or not chunk.gain_factors.flags.c_contiguous:
        raise ValueError(f"gain factors {chunk.gain_factors.dtype}, must be float32")
    common = _Chunk(
        sets.address,
        _address(chunk.gain_factors),
        chunk.levels,
        chunk.refinements,
        chunk.tokens,
        chunk.at_origin,
        native.path_number(path),
        native.path_number("auto"),
    )
    loaded().kvl_decode_blocks(
        ctypes.c_void_p(_address(rows.view(np.uint8))),
        ctypes.c_uint32(len(blocks)),
        ctypes.byref(common),
        ctypes.c_uint32(threads),
    )
    if (rows["status"] == _NO_ROOM).any():
        raise MemoryError(f"no room for the symbols of {chunk.tokens} tokens")
    refused: list[int] = np.flatnonzero(rows["status"]).tolist()
    return refused


@dataclass(frozen=True, slots=True)
class _TableSets:
    rows: NDArray[np.void]
    address: int
    held: list[NDArray[np.generic]]


@lru_cache(maxsize=16)
def _table_sets(levels: int, refinements: int) -> _TableSets:
    """Those of the main streams of ``levels``, and of side streams, which nothing refines."""
    sets = [base_tables(refinements)]
    sets += [refinement_tables(refinements - level) for level in range(1, levels)]
    rows = np.zeros(levels + 1, _TABLES)
    held: list[NDArray[np.generic]] = []
    for row, item in zip(rows, [*sets, base_tables(0)], strict=True):
        slots, search = np.ascontiguousarray(item.decoder), item.search
        held += [slots] if search is None else [slots, search]
        row["slots"], row["count"], row["form"] = _address(slots), len(slots), item.form
        row["search"] = 0 if search is None else _address(search)
    return _TableSets(rows, rows.ctypes.data, held)
