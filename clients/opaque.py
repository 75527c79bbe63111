"""Rows of an engine's own cache as containers: numbers whose order nobody here needs to know.

An offloading engine keeps a block of all layers as one row of bytes, or as a few pieces. Coded exactly, whatever order
its numbers stand in, a row comes back bit for bit; as an array of numbers it is smaller than as bytes. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import codec, limits
from ..codec.container import Container
from ..codec.layout import KvDtype, Layout
from ..codec.level import EXACT
from ..errors import ConfigError
from ..kvstore.key import ContentKey

__all__ = ["OpaqueRows", "opaque_dtype"]


_HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class OpaqueRows:
    """Rows of one size, as keys and values of ``tokens`` tokens of ``layout``, which may have room for a few more.

    A row is given as the pieces of memory that it stands in, one after the other. Two halves that fit the shape, as the
    keys and the values of a page are, are read and written where they stand; anything else is gathered first.
    """

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

    def encode(self, pieces: Sequence[NDArray[np.uint8]], key: ContentKey) -> bytes:
        """A row as a container named ``key``."""
        if self._are_halves(pieces):
            halves = list(pieces)
        else:
            row = self._room()
            np.concatenate(pieces, out=row[: self.row_bytes])
            halves = np.split(row, 2)
        keys, values = (self._shaped(half) for half in halves)
        return codec.encode(
            [keys], [values], layout=self.layout, first_position=0, levels=frozenset({EXACT}), content_key=key
        )

    def decode_into(self, container: Container, pieces: Sequence[NDArray[np.uint8]]) -> None:
        """Write the row that a container holds.

        After a :class:`KvloomError` the bytes of ``pieces`` are whatever they are: nobody may use them.
        """
        if self._are_halves(pieces):
            self._decode(container, pieces)
            return
        row, start = self._room(), 0
        self._decode(container, np.split(row, 2))
        for piece in pieces:
            piece[:] = row[start : start + piece.size]
            start += piece.size

    def _are_halves(self, pieces: Sequence[NDArray[np.uint8]]) -> bool:
        half_bytes = self.tokens * self.layout.bytes_per_token // 2
        return [piece.size for piece in pieces] == [half_bytes, half_bytes]

    def _decode(self, container: Container, halves: Sequence[NDArray[np.uint8]]) -> None:
        keys, values = (self._shaped(half) for half in halves)
        codec.decode_into(container, [keys], [values], profile=None, level=EXACT, layout=self.layout)

    def _room(self) -> NDArray[np.uint8]:
        return np.zeros(self.tokens * self.layout.bytes_per_token, dtype=np.uint8)

    def _shaped(self, half: NDArray[np.uint8]) -> NDArray[Any]:
        """That memory as ``[heads, tokens, head_dim]``."""
        return half.view(self.layout.dtype.numpy).reshape(self.layout.layers[0].kv_heads, self.tokens, _HEAD_DIM)


def opaque_dtype(name: str) -> KvDtype:
    """The engine's; where it is none of ours, one of the same bits: rows are coded exactly either way."""
    plain = name.removeprefix("torch.")
    return KvDtype(plain) if plain in {item.value for item in KvDtype} else KvDtype.FLOAT8_E4M3FN
