"""The cache objects that a Transformers model writes its keys and values into.

:class:`KvCache` is an ordinary cache whose storage is allocated once: appending copies only the new tokens, and a
codec can decode a stored chunk straight into it through NumPy views. :class:`BlendCache` is the same storage while a
prompt is being blended: it can take the rows of a scattered subset of tokens and hands the layer the merged KV.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ..codec.layout import KvDtype, LayerLayout, Layout
from ..errors import InvalidRequest, LayoutMismatch, UnsupportedModel

__all__ = [
    "TORCH_DTYPES",
    "BlendCache",
    "KvCache",
    "KvLayer",
    "LayerArrays",
    "ProbeInterrupt",
    "Replaced",
    "numpy_view",
    "tensor_view",
]

TORCH_DTYPES = {KvDtype.FLOAT32: torch.float32, KvDtype.FLOAT16: torch.float16, KvDtype.BFLOAT16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LayerArrays:
    """One layer's whole storage as NumPy arrays ``[kv_heads, capacity, head_dim]`` that share the cache's memory.

    Keys and values may differ in their last dimension (MLA).
    """

    keys: NDArray[Any]
    values: NDArray[Any]


def numpy_view(tensor: Tensor) -> NDArray[Any]:
    """The same memory as a NumPy array (``ml_dtypes.bfloat16`` for bfloat16); ``tensor`` must be on the CPU."""
    if tensor.dtype == torch.bfloat16:
        raw: NDArray[Any] = tensor.view(torch.int16).numpy()
        return raw.view(ml_dtypes.bfloat16)
    array: NDArray[Any] = tensor.numpy()
    return array


class _WritableView:
    """Read-only memory presented as writable: torch has no read-only tensors and warns about each such array."""

    def __init__(self, array: NDArray[Any]) -> None:
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.owner = array


def tensor_view(array: NDArray[Any] | Tensor) -> Tensor:
    """The same memory as a tensor, inverse of :func:`numpy_view`; the caller must not write to a read-only array's."""
    if isinstance(array, Tensor):
        return array
    brain_float = array.dtype == np.dtype(ml_dtypes.bfloat16)
    numbers: NDArray[Any] = array.view(np.int16) if brain_float else array
    if not numbers.flags.writeable:
        numbers = np.asarray(_WritableView(numbers))
    tensor = torch.from_numpy(numbers)
    return tensor.view(torch.bfloat16) if brain_float else tensor


class KvLayer(CacheLayerMixin):
    """Keys and values of one layer ``[1, kv_heads, capacity, head_dim]``; the first ``length`` tokens are used.

    A sliding-window layer keeps all its tokens too: the model's own mask applies the window.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, layout: LayerLayout, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        room = (1, layout.kv_heads, capacity)
        self.dtype, self.device = dtype, device
        self.keys: Tensor = torch.empty((*room, layout.head_dim), dtype=dtype, device=device)
        self.values: Tensor = torch.empty((*room, layout.value_head_dim), dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage stands since construction."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[1, kv_heads, n, head_dim]`` in place; views of all tokens so far are returned."""
        start, stop = self.length, self.length + key_states.shape[2]
        self._check(key_states, value_states, stop)
        self.keys[:, :, start:stop].copy_(key_states)
        self.values[:, :, start:stop].copy_(value_states)
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def scatter(self, key_states: Tensor, value_states: Tensor, places: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Write tokens at ``places`` ``[n]`` (int64, distinct); views of the first ``total`` tokens are returned."""
        self._check(key_states, value_states, total)
        self.keys.index_copy_(2, places, key_states.to(self.dtype))
        self.values.index_copy_(2, places, value_states.to(self.dtype))
        self.length = total
        return self.keys[:, :, :total], self.values[:, :, :total]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length (all tokens) and offset (none) of the mask for ``query_length`` new tokens."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens there is room for."""
        return self.capacity

    def get_max_cache_shape(self) -> int:
        """The older name of :meth:`get_max_length`."""
        return self.capacity

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens (Transformers passes a negative number)."""
        self.length = max(0, self.length - abs(tokens_to_remove))

    def reset(self) -> None:
        """Forget all tokens; the storage stays."""
        self.length = 0

    def _check(self, key_states: Tensor, value_states: Tensor, stop: int) -> None:
        if stop > self.capacity:
            raise InvalidRequest(f"cache has room for {self.capacity} tokens, {stop} are needed")
        for name, states, room in (("keys", key_states, self.keys), ("values", value_states, self.values)):
            batch, heads, _, dim = states.shape
            if (batch, heads, dim) != (1, room.shape[1], room.shape[3]):
                raise LayoutMismatch(
                    f"model wrote {name} of batch {batch}, {heads} heads of {dim}; "
                    f"the cache holds batch 1, {room.shape[1]} heads of {room.shape[3]}"
                )


class KvCache(Cache):
    """A cache of known capacity for one sequence, allocated once from the model's layout.

    It works wherever Transformers takes ``past_key_values`` (forward, ``generate``) with batch size 1. A forward past
    ``capacity`` raises :class:`InvalidRequest`. Not safe for use by two threads at once.
    """

    def __init__(self, layout: Layout, capacity: int, device: torch.device | str = "cpu") -> None:
        if capacity < 1:
            raise InvalidRequest(f"cache capacity is {capacity} tokens, at least 1 is needed")
        dtype, place = TORCH_DTYPES.get(layout.dtype), torch.device(device)
        if dtype is None:
            raise UnsupportedModel(
                f"a cache of {layout.dtype} cannot be computed in; supported are {', '.join(TORCH_DTYPES)}"
            )
        self.layout = layout
        self.capacity = capacity
        self.kv_layers = [KvLayer(layer, capacity, dtype, place) for layer in layout.layers]
        super().__init__(layers=list(self.kv_layers))

    @property
    def length(self) -> int:
        """Tokens held (by the first layer; all layers agree between two forwards)."""
        return self.kv_layers[0].length

    def truncate(self, length: int) -> None:
        """Forget every token from ``length`` on, or declare the first ``length`` tokens as filled from outside."""
        if not 0 <= length <= self.capacity:
            raise InvalidRequest(f"cache length {length} is outside 0 to {self.capacity}")
        for layer in self.kv_layers:
            layer.length = length

    def copy_from(self, source: "KvCache", length: int) -> None:
        """Hold the first ``length`` tokens of ``source`` and no others. CPU caches only."""
        for layer in range(len(self.layout.layers)):
            ours, theirs = self.layer_arrays(layer), source.layer_arrays(layer)
            ours.keys[:, :length] = theirs.keys[:, :length]
            ours.values[:, :length] = theirs.values[:, :length]
        self.truncate(length)

    def layer_arrays(self, layer: int) -> LayerArrays:
        """NumPy views of one layer's storage: what is written there is in the cache. CPU caches only."""
        kv = self.kv_layers[layer]
        return LayerArrays(numpy_view(kv.keys[0]), numpy_view(kv.values[0]))


class ProbeInterrupt(Exception):
    """Raised by a probing cache once a layer has handed over its keys and values: not an error, the layer may end."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """Keys and values ``[kv_heads, n, head_dim]`` of the tokens that a layer computes: as stored, and as computed."""

    stored_keys: Tensor
    stored_values: Tensor
    fresh_keys: Tensor
    fresh_values: Tensor


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where a layer's next rows go."""

    places: Tensor
    total: int
    on_replaced: Callable[[Replaced], None] | None


class BlendCache(KvCache):
    """A :class:`KvCache` in which the executor may direct what a layer writes to scattered places.

    Between :meth:`place` and the layer's ``update``, rows go to the places given; otherwise they are appended. After
    blending it is an ordinary cache.
    """

    def __init__(self, layout: Layout, capacity: int, device: torch.device | str = "cpu") -> None:
        super().__init__(layout, capacity, device)
        self._places: dict[int, _Placement] = {}
        self._probed: tuple[Tensor, Tensor] | None = None
        self._probing = False

    def place(
        self, layer: int, places: Tensor, total: int, *, on_replaced: Callable[[Replaced], None] | None = None
    ) -> None:
        """Send the next update of ``layer`` to ``places`` ``[n]`` and let it attend to the first ``total`` tokens.

        ``on_replaced`` is told what stands there and what will, before that is written.
        """
        self._places[layer] = _Placement(places, total, on_replaced)

    def begin_probe(self) -> None:
        """Make the next update keep what it is given and raise :class:`ProbeInterrupt`."""
        self._probing, self._probed = True, None

    def end_probe(self) -> tuple[Tensor, Tensor] | None:
        """Stop probing; the keys and values ``[1, kv_heads, n, head_dim]`` seen, None if no layer wrote any."""
        probed, self._probed, self._probing = self._probed, None, False
        return probed

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the rows of one layer where they belong and return its merged keys and values."""
        if self._probing:
            self._probed = (key_states, value_states)
            raise ProbeInterrupt
        directed = self._places.pop(layer_idx, None)
        if directed is None:
            return self.kv_layers[layer_idx].update(key_states, value_states)
        kv = self.kv_layers[layer_idx]
        if directed.on_replaced is None:
            return kv.scatter(key_states, value_states, directed.places, directed.total)
        stored_keys, stored_values = (room[0].index_select(1, directed.places) for room in (kv.keys, kv.values))
        directed.on_replaced(Replaced(stored_keys, stored_values, key_states[0], value_states[0]))
        return kv.scatter(key_states, value_states, directed.places, directed.total)
