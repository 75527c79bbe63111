"""Put stored keys where a blended prompt wants them (CacheBlend §4.1): one rotation, values as they are.

A rotation by ``p`` followed by one by ``d`` is a rotation by ``p + d``, so keys computed at one place move to another
by the difference alone, the same for every token of the chunk; keys handed out un-rotated are rotated to their new
positions outright. Angles are formed in float64, as in :mod:`kvloom.codec.rope`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..codec.layout import Kind, LayerLayout, Layout, Rope
from ..codec.rope import cos_sin
from ..errors import InvalidTensor, UnsupportedModel
from .cache import KvLayer, tensor_view
from .request import PlacedChunk

__all__ = ["Realigner", "rotate_into"]


@dataclass(frozen=True, slots=True)
class _Turn:
    """Cosine and sine ``[tokens or 1, pairs]`` of one rotation."""

    cos: Tensor
    sin: Tensor


def rotate_into(out: Tensor, keys: Tensor, rope: Rope, cos: Tensor, sin: Tensor) -> None:
    """Write ``keys`` ``[heads, tokens, head_dim]``, rotated, to ``out`` of the same shape; the two may be one memory.

    ``cos`` and ``sin`` are ``[tokens or 1, pairs]`` float32. Half-precision keys are rotated in float32.
    """
    if out.dtype != torch.float32 or keys.dtype != torch.float32:
        wide = keys.to(torch.float32, copy=True)
        rotate_into(wide, wide, rope, cos, sin)
        out.copy_(wide)
        return
    first, second = rope.pair_slices
    real, imaginary = keys[..., first], keys[..., second]
    if out.data_ptr() == keys.data_ptr():
        real = real.clone()
    elif rope.rotary_dim < keys.shape[-1]:
        out[..., : rope.first_dim].copy_(keys[..., : rope.first_dim])
        out[..., rope.end_dim :].copy_(keys[..., rope.end_dim :])
    turned = imaginary * cos
    turned.addcmul_(real, sin)
    torch.mul(real, cos, out=out[..., first]).addcmul_(imaginary, sin, value=-1)
    out[..., second].copy_(turned)


@dataclass(slots=True)
class Realigner:
    """Fills a layer of a cache with chunks at their places; one per blended prompt, so that angles are formed once.

    Raises :class:`UnsupportedModel` when a chunk has to move in a layer whose keys know their position in a way that
    no rotation undoes, and :class:`InvalidTensor` when a chunk's arrays are not what the layout says.
    """

    layout: Layout
    _turns: dict[tuple[Rope, int, int], _Turn] = field(default_factory=dict)

    def fill(self, kv: KvLayer, layer: int, chunk: PlacedChunk) -> None:
        """Write one chunk's keys and values of ``layer`` to ``kv`` at ``[chunk.start, chunk.stop)``."""
        place = slice(chunk.start, chunk.stop)
        spec = self.layout.layers[layer]
        if spec.rope is None and chunk.first_position != chunk.target:
            was = "un-rotated" if chunk.first_position is None else f"computed at {chunk.first_position}"
            raise UnsupportedModel(
                f"layer {layer} has keys whose position cannot be undone; a chunk {was} cannot stand at {chunk.target}"
            )
        rooms = (kv.keys, kv.values)
        for kind, room, stored in zip(Kind, rooms, (chunk.keys, chunk.values), strict=True):
            self._put(room[0, :, place], self._view(chunk, layer, stored[layer], kind, kv.device), spec, kind, chunk)

    def _put(self, out: Tensor, states: Tensor, spec: LayerLayout, kind: Kind, chunk: PlacedChunk) -> None:
        rope = spec.rope_of(kind)
        if rope is not None and chunk.first_position != chunk.target:
            turn = self._turn(rope, chunk, out.device)
            rotate_into(out, states, rope, turn.cos, turn.sin)
        elif out.data_ptr() != states.data_ptr():
            out.copy_(states)

    def _turn(self, rope: Rope, chunk: PlacedChunk, device: torch.device) -> _Turn:
        if chunk.first_position is None:
            first, tokens = chunk.target, chunk.tokens
        else:
            first, tokens = chunk.target - chunk.first_position, 1
        known = self._turns.get((rope, first, tokens))
        if known is None:
            cos, sin = cos_sin(rope, np.arange(first, first + tokens, dtype=np.int64))
            known = _Turn(torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device))
            self._turns[rope, first, tokens] = known
        return known

    def _view(
        self, chunk: PlacedChunk, layer: int, array: NDArray[Any] | Tensor, kind: Kind, device: torch.device
    ) -> Tensor:
        tensor, spec = tensor_view(array), self.layout.layers[layer]
        expected = (spec.kv_heads, chunk.tokens, spec.head_dim_of(kind))
        if tuple(tensor.shape) != expected:
            raise InvalidTensor(
                f"{kind.name.lower()} of layer {layer} have shape {tuple(tensor.shape)}, the layout says {expected}"
            )
        return tensor.to(device)
