"""Rows of an engine's own cache as containers: numbers whose order nobody here needs to know.

vLLM's offloading keeps a block of all layers as one row of bytes. Coded exactly, whatever order its numbers stand in,
a row comes back bit for bit; as an array of numbers it is smaller than as bytes. Pure.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import codec, limits
from ...codec.container import Container
from ...codec.layout import KvDtype, Layout
from ...codec.level import EXACT
from ...errors import ConfigError
from ...kvstore.key import ContentKey

__all__ = ["OpaqueRows"]


_HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class OpaqueRows:
    """Rows of one size, as keys and values of ``tokens`` tokens of ``layout``, which may have room for a few more."""

    row_bytes: int
    layout: Layout
    tokens: int

    @classmethod
    def of(cls, row_bytes: int, dtype: KvDtype) -> "OpaqueRows":
        """For rows of ``row_bytes`` bytes of ``dtype``. Raises :class:`ConfigError` for a size that no shape has."""
        unit = 2 * _HEAD_DIM * dtype.numpy.itemsize
        vectors = -(-row_bytes // unit)
        heads = -(-vectors // limits.CHUNK_TOKENS_MAX)
        if not 1 <= heads <= limits.KV_HEADS_MAX:
            longest = limits.KV_HEADS_MAX * limits.CHUNK_TOKENS_MAX * unit
            raise ConfigError(f"a row has {row_bytes} bytes, must have 1 to {longest} as {dtype}")
        layout = Layout.uniform(layers=1, kv_heads=heads, head_dim=_HEAD_DIM, dtype=dtype)
        return cls(row_bytes, layout, -(-vectors // heads))

    def encode(self, row: NDArray[np.uint8], key: ContentKey) -> bytes:
        """A row as a container named ``key``."""
        room = self._room()
        room[: self.row_bytes] = row
        keys, values = self._views(room)
        return codec.encode(
            keys, values, layout=self.layout, first_position=0, levels=frozenset({EXACT}), content_key=key
        )

    def decode_into(self, container: Container, row: NDArray[np.uint8]) -> None:
        """Write the row that a container holds; after a :class:`KvloomError` ``row`` is as it was."""
        room = self._room()
        keys, values = self._views(room)
        codec.decode_into(container, keys, values, profile=None, level=EXACT, layout=self.layout)
        row[:] = room[: self.row_bytes]

    def _room(self) -> NDArray[np.uint8]:
        return np.zeros(self.tokens * self.layout.bytes_per_token, dtype=np.uint8)

    def _views(self, room: NDArray[np.uint8]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """That memory as keys and values ``[heads, tokens, head_dim]`` of the one layer."""
        shape = (2, self.layout.layers[0].kv_heads, self.tokens, _HEAD_DIM)
        keys, values = room.view(self.layout.dtype.numpy).reshape(shape)
        return [keys], [values]
