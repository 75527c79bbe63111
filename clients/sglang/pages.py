"""The pages of SGLang's host pools as rows of bytes, read and written where they stand if their layout allows it."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ...codec.container import Container
from ...kvstore.key import ContentKey
from ..opaque import OpaqueRows, opaque_dtype

__all__ = ["Bytes", "HostPages", "bytes_of", "host_pages"]

Bytes: TypeAlias = NDArray[np.uint8]

_PAGE_FIRST = frozenset({"page_first", "page_first_direct", "page_head"})
"""Layouts in which the keys of a page, and its values, are one piece of memory each."""


class HostPages(Protocol):
    """A pool's pages. ``indices`` is SGLang's tensor of host slots, one for each token of each page."""

    rows: OpaqueRows
    piece_bytes: Sequence[int]

    def encode(self, indices: Any, key: ContentKey) -> bytes:
        """A page as a container."""

    def decode_into(self, container: Container, indices: Any) -> None:
        """Write a page. After a :class:`KvloomError` its bytes are whatever they are."""


def host_pages(pool: Any, *, in_place: bool) -> HostPages | None:
    """The pages of a host pool; None of one that has none to give. ``in_place``: without a copy, if possible."""
    if not getattr(pool, "size_per_token", 0):
        return None
    kinds: list[Callable[[Any], HostPages]] = [_FlatPages]
    if in_place and getattr(pool, "layout", None) in _PAGE_FIRST and hasattr(pool, "get_page_buffer_meta"):
        kinds.insert(0, _PagesInPlace)
    for kind in kinds:
        try:
            return kind(pool)
        except (NotImplementedError, ValueError):
            continue  # a pool of SGLang's says so where its pages have no address, or no flat form
    return None


def bytes_of(tensor: Any) -> Bytes:
    """A contiguous tensor's own memory."""
    found: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return found


class _PagesInPlace:
    """Pages by their addresses."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        _, sizes = pool.get_page_buffer_meta(torch.arange(pool.page_size))
        self.piece_bytes: Sequence[int] = tuple(sizes)
        self.rows = OpaqueRows.of(sum(sizes), opaque_dtype(str(pool.dtype)))

    def encode(self, indices: Any, key: ContentKey) -> bytes:
        return self.rows.encode(self._pieces(indices), key)

    def decode_into(self, container: Container, indices: Any) -> None:
        self.rows.decode_into(container, self._pieces(indices))

    def _pieces(self, indices: Any) -> list[Bytes]:
        """The memory of a page, which the pool owns and keeps for as long as SGLang runs."""
        places, sizes = self._pool.get_page_buffer_meta(indices)
        return [
            np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(place))
            for place, size in zip(places, sizes, strict=True)
        ]


class _FlatPages:
    """Pages that SGLang gathers and scatters itself, by way of one flat tensor each."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        page = pool.get_dummy_flat_data_page()
        self.piece_bytes: Sequence[int] = (page.numel() * page.element_size(),)
        self.rows = OpaqueRows.of(self.piece_bytes[0], opaque_dtype(str(page.dtype)))

    def encode(self, indices: Any, key: ContentKey) -> bytes:
        page = self._pool.get_data_page(int(indices[0]), flat=True).contiguous()
        return self.rows.encode([bytes_of(page)], key)

    def decode_into(self, container: Container, indices: Any) -> None:
        page = self._pool.get_dummy_flat_data_page()
        self.rows.decode_into(container, [bytes_of(page)])
        self._pool.set_from_flat_data_page(int(indices[0]), page)
