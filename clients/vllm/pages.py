"""The engine's KV blocks as keys and values of tokens, whatever order its attention backend keeps them in.

vLLM registers one tensor ``[blocks, heads, block_tokens, content]`` per layer; what stands where inside a block is the
backend's own affair (the CPU backend keeps keys transposed). So it is found out: numbered keys and values are written
to a spare block with the backend's own function, and where each number lands says where that token's number is kept.
What is no plain order of heads, tokens and dimensions, or no plain copy (quantised caches), is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...blend.cache import TORCH_DTYPES, numpy_view
from ...codec.layout import Kind, LayerLayout, Layout
from ...errors import UnsupportedModel
from .plan import PlacedChunk

__all__ = ["ChunkArrays", "KvPages", "LayerPages", "WriteTokens", "find_pages"]

_DIGIT: Final = 100
"""Numbers are written in digits of this base: every dtype of KV holds integers up to 256 exactly."""

WriteTokens = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Writes keys and values ``[tokens, heads, head_dim]`` to a cache at slots: block * block_tokens + offset, int64."""


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's blocks, as views of the engine's memory ``[blocks, heads, block_tokens, head_dim]``.

    ``group``: of the layers whose tokens are in the same blocks.
    """

    keys: Tensor
    values: Tensor
    group: int = 0


@dataclass(frozen=True, slots=True)
class ChunkArrays:
    """Keys and values of some tokens, per layer ``[heads, tokens, head_dim]``, in memory of their own on the CPU."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def empty(cls, layout: Layout, tokens: int) -> "ChunkArrays":
        """Room for ``tokens`` tokens."""
        dtype = TORCH_DTYPES[layout.dtype]
        keys, values = (
            tuple(
                torch.empty((layer.kv_heads, tokens, layer.head_dim_of(kind)), dtype=dtype) for layer in layout.layers
            )
            for kind in Kind
        )
        return cls(keys, values)

    def first(self, tokens: int) -> "ChunkArrays":
        """The first ``tokens`` of them, in the same memory."""
        return ChunkArrays(
            tuple(item[:, :tokens] for item in self.keys), tuple(item[:, :tokens] for item in self.values)
        )

    @property
    def numpy(self) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """The same memory for the codec."""
        return [numpy_view(item) for item in self.keys], [numpy_view(item) for item in self.values]


class KvPages:
    """All layers' blocks. Copies may run in several threads at once, as long as their blocks differ."""

    def __init__(self, layers: Sequence[LayerPages]) -> None:
        self._layers = tuple(layers)
        tensors = [(layer.keys, layer.values) for layer in layers]
        # NumPy copies between strides in half of torch's time.
        self._on_host = all(item.device.type == "cpu" for pair in tensors for item in pair)
        self._copied: list[tuple[Any, ...]] = list(tensors)
        if self._on_host:
            self._copied = [tuple(map(_words, pair)) for pair in tensors]

    def __len__(self) -> int:
        return len(self._layers)

    @torch.inference_mode()
    def copy_out(self, chunk: PlacedChunk, arrays: ChunkArrays, layers: range | None = None) -> None:
        """Copy a chunk's tokens to ``arrays``, which hold ``layers`` (all by default)."""
        for in_block, in_array in self._pairs(chunk, arrays, layers):
            in_array[...] = in_block

    @torch.inference_mode()
    def copy_in(self, chunk: PlacedChunk, arrays: ChunkArrays, layers: range | None = None) -> None:
        """Copy a chunk's tokens from ``arrays``, which hold ``layers`` (all by default)."""
        for in_block, in_array in self._pairs(chunk, arrays, layers):
            in_block[...] = in_array

    def _pairs(self, chunk: PlacedChunk, arrays: ChunkArrays, layers: range | None) -> Iterator[tuple[Any, Any]]:
        """Each span's numbers in its block and in the arrays."""
        chosen = slice(None) if layers is None else slice(layers.start, layers.stop)
        held = zip(self._layers[chosen], self._copied[chosen], arrays.keys, arrays.values, strict=True)
        for layer, pages, keys, values in held:
            for page, tensor in zip(pages, (keys, values), strict=True):
                array = _words(tensor) if self._on_host else tensor
                for span in chunk.spans[layer.group]:
                    in_block = page[span.block, :, span.offset : span.offset + span.tokens]
                    yield in_block, array[:, span.at : span.at + span.tokens]


def _words(tensor: Tensor) -> NDArray[Any]:
    """The same memory for NumPy; bfloat16, whose copies would be slow, as integers."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@torch.inference_mode()
def find_pages(
    name: str, cache: Tensor, layer: LayerLayout, block_tokens: int, write: WriteTokens, *, group: int = 0
) -> LayerPages:
    """Where ``cache`` ``[blocks, heads, block_tokens, content]`` keeps keys and values; ``write`` is the backend's.

    Nothing is written to ``cache``. Raises :class:`UnsupportedModel`, naming the layer and what is in the way.
    """
    shape = (layer.kv_heads, block_tokens, layer.head_dim + layer.value_head_dim)
    if cache.ndim != 4 or tuple(cache.shape[1:]) != shape or layer.head_dim != layer.value_head_dim:
        raise UnsupportedModel(
            f"{name} has a KV cache of shape {tuple(cache.shape)}, [blocks, {', '.join(map(str, shape))}] is supported"
        )
    places = _places(name, cache, layer, block_tokens, write)
    found = [_view(name, cache, places[kind]) for kind in Kind]
    _verify(name, cache, layer, block_tokens, write, places)
    return LayerPages(found[0], found[1], group)


def _scratch(cache: Tensor) -> Tensor:
    """Two blocks like those of ``cache``."""
    return torch.empty_strided((2, *cache.shape[1:]), cache.stride(), dtype=cache.dtype, device=cache.device).zero_()


def _block(cache: Tensor, index: int) -> Tensor:
    """The memory of one block as it lies."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape[1:], cache.stride()[1:], strict=True))
    return torch.as_strided(cache, (extent,), (1,), cache.storage_offset() + index * cache.stride(0))


def _written(cache: Tensor, numbers: Tensor, block_tokens: int, write: WriteTokens) -> Tensor:
    """The memory of a spare block after ``numbers`` ``[2, heads, tokens, head_dim]`` were written to it."""
    scratch = _scratch(cache)
    keys, values = (item.permute(1, 0, 2).to(cache.dtype).contiguous() for item in numbers)
    slots = torch.arange(block_tokens, 2 * block_tokens, dtype=torch.int64, device=cache.device)
    write(keys, values, scratch, slots)
    return _block(scratch, 1)


def _places(name: str, cache: Tensor, layer: LayerLayout, block_tokens: int, write: WriteTokens) -> Tensor:
    """Where in a block each number is kept: ``[2, heads, tokens, head_dim]``."""
    count = 2 * layer.kv_heads * block_tokens * layer.head_dim
    numbers = torch.arange(count, device=cache.device).reshape(2, layer.kv_heads, block_tokens, layer.head_dim)
    seen, weight = torch.zeros_like(_block(_scratch(cache), 1), dtype=torch.int64), 1
    complete = torch.ones_like(seen, dtype=torch.bool)
    while weight < count:
        block = _written(cache, numbers // weight % _DIGIT + 1, block_tokens, write).float()
        complete &= block > 0
        seen += (block.long() - 1) * weight
        weight *= _DIGIT
    places = complete.nonzero()[:, 0]
    order = seen[places]
    if len(order) != count or not torch.equal(order.sort().values, torch.arange(count, device=order.device)):
        raise UnsupportedModel(f"{name} does not keep its keys and values as they are, number by number")
    found = torch.empty(count, dtype=torch.int64)
    found[order.cpu()] = places.cpu()
    return found.reshape(numbers.shape)


def _view(name: str, cache: Tensor, places: Tensor) -> Tensor:
    """The cache's memory in the order ``[blocks, heads, tokens, head_dim]`` that ``places`` of one block tell."""
    first = int(places[0, 0, 0])
    steps = [int(places.select(dim, 1).flatten()[0]) - first if places.shape[dim] > 1 else 0 for dim in range(3)]
    expected = torch.full(places.shape, first, dtype=torch.int64)
    for dim, step in enumerate(steps):
        shape = [1, 1, 1]
        shape[dim] = -1
        expected += step * torch.arange(places.shape[dim]).reshape(shape)
    if not torch.equal(places, expected) or min(steps) < 0:
        raise UnsupportedModel(f"{name} keeps the numbers of a block in an order that no strides describe")
    size, strides = (cache.shape[0], *places.shape), (cache.stride(0), *steps)
    return torch.as_strided(cache, size, strides, cache.storage_offset() + first)


def _verify(
    name: str, cache: Tensor, layer: LayerLayout, block_tokens: int, write: WriteTokens, places: Tensor
) -> None:
    """Write numbers with all their bits, and find them where they should be."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn((2, layer.kv_heads, block_tokens, layer.head_dim), generator=generator).to(cache.dtype)
    block = _written(cache, numbers.to(cache.device), block_tokens, write).cpu()
    if not torch.equal(block[places], numbers):
        raise UnsupportedModel(f"{name} changes what it stores (a quantised cache?), so its KV cannot be kept exactly")
