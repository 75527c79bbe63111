"""The pages in which an engine keeps KV, as the kernels see them: an address, strides and an element type."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidTensor
from ..layout import Kind, Layout

__all__ = ["PageOrder", "PagedKv", "Tensor"]

_ELEMENTS = {"float32": 0, "float16": 1, "bfloat16": 2}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class PageOrder(StrEnum):
    """How one page is laid out."""

    NHD = "NHD"
    """``[num_blocks, block_size, kv_heads, head_dim]``, vLLM's usual one."""
    HND = "HND"
    """``[num_blocks, kv_heads, block_size, head_dim]``."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One layer's keys or values in pages; strides count elements, the last axis is dense."""

    address: int
    element: int
    blocks: int
    block_size: int
    heads: int
    head_dim: int
    block_stride: int
    slot_stride: int
    head_stride: int

    @classmethod
    def of(cls, array: Any, order: PageOrder) -> "Tensor":
        """Describe a NumPy, CuPy or torch array; any view whose last axis is dense will do."""
        name = str(array.dtype).removeprefix("torch.")
        if name not in _ELEMENTS:
            raise InvalidTensor(f"pages of {name}, must be one of {', '.join(_ELEMENTS)}")
        if len(array.shape) != 4:
            raise InvalidTensor(f"pages have shape {tuple(array.shape)}, must have four axes")
        if hasattr(array, "data_ptr"):
            address, strides = int(array.data_ptr()), [int(stride) for stride in array.stride()]
        else:
            address = int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
            strides = [int(stride) // _BYTES[name] for stride in array.strides]
        if array.shape[3] > 1 and strides[3] != 1:
            raise InvalidTensor(f"pages have stride {strides[3]} within a head, must have 1")
        slot, head = (1, 2) if order is PageOrder.NHD else (2, 1)
        shape = [int(size) for size in array.shape]
        return cls(
            address,
            _ELEMENTS[name],
            shape[0],
            shape[slot],
            shape[head],
            shape[3],
            strides[0],
            strides[slot],
            strides[head],
        )

    def fill(self, jobs: NDArray[np.void]) -> None:
        """Note in jobs of this tensor where it is."""
        for field in ("element", "block_size", "block_stride", "slot_stride", "head_stride", "heads", "head_dim"):
            jobs[field] = getattr(self, field)
        jobs["pages"] = self.address


@dataclass(frozen=True, slots=True)
class PagedKv:
    """An engine's cache: ``keys`` and ``values`` per layer, arrays on the device, borrowed and written to.

    A tensor ``kv`` of vLLM, ``[2, num_blocks, block_size, kv_heads, head_dim]``, is given as ``kv[0]`` and ``kv[1]``.
    Where a layer has no values (MLA), anything may stand in their place.
    """

    keys: Sequence[Any]
    values: Sequence[Any]
    order: PageOrder = PageOrder.NHD

    def tensors(self, layout: Layout, block_table: NDArray[np.int32], slots: int) -> dict[tuple[int, Kind], Tensor]:
        """Each layer's tensors, checked to be of ``layout``; ``block_table`` must name blocks for ``slots`` slots."""
        found: dict[tuple[int, Kind], Tensor] = {}
        for kind, arrays in zip(Kind, (self.keys, self.values), strict=True):
            if len(arrays) != len(layout.layers):
                raise InvalidTensor(f"pages of {len(arrays)} layers, the layout has {len(layout.layers)}")
            for layer, (array, spec) in enumerate(zip(arrays, layout.layers, strict=True)):
                if not spec.width_of(kind):
                    continue
                tensor = Tensor.of(array, self.order)
                if (tensor.heads, tensor.head_dim) != (spec.kv_heads, spec.head_dim_of(kind)):
                    raise InvalidTensor(
                        f"pages of layer {layer} have {tensor.heads} heads of {tensor.head_dim}, "
                        f"the layout has {spec.kv_heads} of {spec.head_dim_of(kind)}"
                    )
                if slots > len(block_table) * tensor.block_size:
                    raise InvalidTensor(
                        f"{len(block_table)} blocks of {tensor.block_size} have no room for {slots} tokens"
                    )
                if len(block_table) and not 0 <= block_table.min() <= block_table.max() < tensor.blocks:
                    raise InvalidTensor(
                        f"block table names blocks {block_table.min()} to {block_table.max()}, "
                        f"layer {layer} has {tensor.blocks}"
                    )
                found[layer, kind] = tensor
        return found
