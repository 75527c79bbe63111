"""The pages of a pool: allocated once, handed out by number, and how a chunk's KV gets into them and out.

A page holds the KV of a fixed number of tokens in all layers. Its tensors are vLLM's: one per layer and kind,
``[pages, page_tokens, kv_heads, head_dim]`` (NHD), all cut from a single allocation, so that an engine can attend to
them in place through a block table. A chunk takes whole pages, one behind the other where there are such.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...codec.cuda.paged import PagedKv
from ...codec.layout import Kind, Layout
from ...codec.rope import cos_sin, rotate_into
from ...errors import ConfigError, InvalidTensor, LayoutMismatch
from .arrays import HostArrays, PoolArrays

__all__ = ["FreePages", "KvViews", "PageArena", "PageTable"]

PageTable = NDArray[np.int32]
"""The pages of a chunk, in the order of its tokens; the last one may be filled in part."""
KvViews = Sequence[Any]
"""One array ``[kv_heads, tokens, head_dim]`` per layer."""


class FreePages:
    """Which pages nobody has. Not thread-safe."""

    def __init__(self, pages: int) -> None:
        self._free = np.ones(pages, np.bool_)
        self.count = pages

    def take(self, count: int) -> PageTable:
        """Take ``count`` pages, which must be free: the first that stand together, or the first of all."""
        free = np.flatnonzero(self._free)
        first = 0
        if count > 1:
            together = free[count - 1 :] - free[: len(free) - count + 1] == count - 1
            first = int(together.argmax())
        taken = free[first : first + count].astype(np.int32)
        self._free[taken] = False
        self.count -= count
        return taken

    def give_back(self, pages: PageTable) -> None:
        """Pages that were taken are free again."""
        self._free[pages] = True
        self.count += len(pages)


class PageArena:
    """The memory, of ``limit_bytes`` at most. Reads and writes of different pages may go on in many threads at once.

    Raises :class:`ConfigError` where not even one page fits, or the device has not that much memory free; nothing is
    allocated then. Callers are within ``arrays.active()``.
    """

    def __init__(self, layout: Layout, arrays: PoolArrays, *, limit_bytes: int, page_tokens: int) -> None:
        if not 1 <= page_tokens <= limits.POOL_PAGE_TOKENS_MAX:
            raise ConfigError(f"page of {page_tokens} tokens, must have 1 to {limits.POOL_PAGE_TOKENS_MAX}")
        self.layout, self.arrays, self.page_tokens = layout, arrays, page_tokens
        self.page_bytes = page_tokens * layout.bytes_per_token
        self.pages = min(limit_bytes // self.page_bytes, limits.POOL_PAGES_MAX)
        if self.pages < 1:
            raise ConfigError(f"pool of {limit_bytes} bytes has no room for one page of {self.page_bytes}")
        free_bytes = arrays.free_bytes()
        if self.pages * self.page_bytes > free_bytes:
            raise ConfigError(
                f"pool of {self.pages * self.page_bytes} bytes asked for, {arrays.name} has {free_bytes} free"
            )
        whole = arrays.empty(self.pages * page_tokens * layout.values_per_token, layout.dtype)
        self.movable = all(layer.rope is not None for layer in layout.layers)
        """Whether a rotation takes a chunk from one position to another."""
        self._near: PoolArrays = HostArrays() if arrays.on_host else arrays
        """What the pool itself works with: NumPy wherever it can reach the memory."""
        self._paged = PagedKv(*self._cut(whole))
        self._tensors = self._cut(arrays.host(whole) if arrays.on_host else whole)

    def _cut(self, whole: Any) -> tuple[list[Any], list[Any]]:
        tensors: tuple[list[Any], list[Any]] = ([], [])
        start = 0
        for spec in self.layout.layers:
            for kind in Kind:
                shape = (self.pages, self.page_tokens, spec.kv_heads, spec.head_dim_of(kind))
                stop = start + self.pages * self.page_tokens * spec.width_of(kind)
                tensors[kind].append(whole[start:stop].reshape(shape))
                start = stop
        return tensors

    def paged(self) -> PagedKv:
        """All pages, as tensors of the pool's library: what attention kernels and the codec's take."""
        return self._paged

    def pages_of(self, tokens: int) -> int:
        """How many pages a chunk of ``tokens`` takes."""
        return -(-tokens // self.page_tokens)

    def rooms(self, pages: PageTable, tokens: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]] | None:
        """The pages themselves as ``[kv_heads, tokens, head_dim]`` per layer, to decode into.

        None where they are not on the host or do not stand together.
        """
        if not self.arrays.on_host or not _together(pages):
            return None
        return self._gather(Kind.KEYS, pages, tokens), self._gather(Kind.VALUES, pages, tokens)

    def staging(self, tokens: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Host arrays like a chunk of ``tokens``, for what cannot be decoded in place."""
        dtype = self.layout.dtype.numpy
        keys, values = (
            [np.empty((spec.kv_heads, tokens, spec.head_dim_of(kind)), dtype) for spec in self.layout.layers]
            for kind in Kind
        )
        return keys, values

    def write(self, pages: PageTable, keys: KvViews, values: KvViews) -> None:
        """Copy a chunk in; its arrays are NumPy's or of the pool's library. :class:`InvalidTensor` for other shapes."""
        tokens = int(keys[0].shape[1])
        for kind, given in zip(Kind, (keys, values), strict=True):
            self._check(given, kind, tokens, pages)
            for layer, array in enumerate(given):
                if self.layout.layers[layer].width_of(kind):
                    self._scatter(self._tensors[kind][layer], pages, tokens, self._near_view(array))

    def read(self, pages: PageTable, tokens: int, keys: KvViews, values: KvViews, *, moved_by: int = 0) -> None:
        """Copy a chunk out to arrays of NumPy or of the pool's library, keys rotated on by ``moved_by`` positions."""
        self._require_movable(moved_by)
        for kind, outs in zip(Kind, (keys, values), strict=True):
            self._check(outs, kind, tokens, pages)
            for layer, stored in enumerate(self._gather(kind, pages, tokens)):
                out = outs[layer]
                if self.arrays.on_host:
                    self._move(layer, kind, self._near_view(out), stored, moved_by)
                elif isinstance(out, np.ndarray):
                    out[...] = self.arrays.host(self._moved(layer, kind, stored, moved_by))
                else:
                    self._move(layer, kind, out, stored, moved_by)

    def move(self, source: PageTable, target: PageTable, tokens: int, moved_by: int) -> None:
        """Copy a chunk from pages to pages, keys rotated on by ``moved_by`` positions; nothing leaves the device."""
        self._require_movable(moved_by)
        for kind in Kind:
            for layer, stored in enumerate(self._gather(kind, source, tokens)):
                if self.layout.layers[layer].width_of(kind):
                    moved = self._moved(layer, kind, stored, moved_by)
                    self._scatter(self._tensors[kind][layer], target, tokens, moved)

    def fetch(self, pages: PageTable, tokens: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """The chunk for NumPy, a copy where it does not lie together on the host: to encode it."""
        keys, values = ([self._near.host(item) for item in self._gather(kind, pages, tokens)] for kind in Kind)
        return keys, values

    def _near_view(self, array: Any) -> Any:
        """An array of NumPy's or of the pool's library as one that the pool works with."""
        if isinstance(array, np.ndarray):
            return self._near.upload(array)
        return self.arrays.host(array) if self.arrays.on_host else array

    def _gather(self, kind: Kind, pages: PageTable, tokens: int) -> list[Any]:
        """``[kv_heads, tokens, head_dim]`` of each layer: a view where the pages stand together."""
        found = []
        first, count = int(pages[0]), len(pages)
        index = None if _together(pages) else self._near.upload(pages)
        for spec, tensor in zip(self.layout.layers, self._tensors[kind], strict=True):
            taken = tensor[first : first + count] if index is None else tensor[index]
            flat = taken.reshape((count * self.page_tokens, spec.kv_heads, spec.head_dim_of(kind)))
            found.append(self._near.heads_first(flat[:tokens]))
        return found

    def _scatter(self, tensor: Any, pages: PageTable, tokens: int, array: Any) -> None:
        flat = tensor.reshape((self.pages * self.page_tokens, *tensor.shape[2:]))
        if _together(pages):
            start = int(pages[0]) * self.page_tokens
            self._near.heads_first(flat[start : start + tokens])[...] = array
            return
        slots = (pages[:, None].astype(np.int64) * self.page_tokens + np.arange(self.page_tokens)).reshape(-1)[:tokens]
        # Tokens first again: the same exchange of two axes.
        flat[self._near.upload(slots)] = self._near.heads_first(array)

    def _moved(self, layer: int, kind: Kind, stored: Any, moved_by: int) -> Any:
        """``stored``, or a float32 copy of it that is rotated on."""
        rope = self.layout.layers[layer].rope_of(kind)
        if rope is None or not moved_by:
            return stored
        turned = self._near.blank(self._near.wide(stored))
        self._rotate(turned, stored, layer, kind, moved_by)
        return turned

    def _move(self, layer: int, kind: Kind, out: Any, stored: Any, moved_by: int) -> None:
        if self.layout.layers[layer].rope_of(kind) is None or not moved_by:
            out[...] = stored
        else:
            self._rotate(out, stored, layer, kind, moved_by)

    def _rotate(self, out: Any, stored: Any, layer: int, kind: Kind, moved_by: int) -> None:
        rope = self.layout.layers[layer].rope_of(kind)
        if rope is None:
            return
        cos, sin = (self._near.upload(part) for part in cos_sin(rope, np.full(1, moved_by, np.int64)))
        if not self.arrays.on_host:
            rotate_into(out, self._near.wide(stored), rope, cos, sin)
            return
        for head in range(len(stored)):  # so much at a time stays in the cache
            rotate_into(out[head], self._near.wide(stored[head]), rope, cos, sin)

    def _require_movable(self, moved_by: int) -> None:
        if moved_by and not self.movable:
            raise LayoutMismatch("keys without a known RoPE cannot be moved to another position")

    def _check(self, arrays: KvViews, kind: Kind, tokens: int, pages: PageTable) -> None:
        name = kind.name.lower()
        if len(arrays) != len(self.layout.layers):
            raise InvalidTensor(f"{name} have {len(arrays)} layers, the layout has {len(self.layout.layers)}")
        if not 1 <= tokens <= len(pages) * self.page_tokens:
            raise InvalidTensor(f"{len(pages)} pages of {self.page_tokens} tokens are no room for {tokens}")
        dtype = self.layout.dtype.value
        for layer, (array, spec) in enumerate(zip(arrays, self.layout.layers, strict=True)):
            expected = (spec.kv_heads, tokens, spec.head_dim_of(kind))
            found = str(array.dtype).removeprefix("torch.")
            if tuple(array.shape) != expected or found != dtype:
                raise InvalidTensor(
                    f"{name} of layer {layer}: {found} {tuple(array.shape)}, the layout needs {dtype} {expected}"
                )


def _together(pages: PageTable) -> bool:
    return int(pages[-1]) - int(pages[0]) == len(pages) - 1 and bool((np.diff(pages) == 1).all())
