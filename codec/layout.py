"""What one token's KV is: the layout of a model's cache, layer by layer.

A layout is part of a chunk's identity (its digest is a field of the content key) and travels inside every container,
so KV of one shape can never be read as KV of another. It is plain data: nothing here knows a model class.
"""

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING

from blake3 import blake3

from .. import limits
from ..errors import LayoutMismatch, MalformedContainer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AttentionKind", "KvDtype", "LayerLayout", "Layout", "Rope"]


class KvDtype(StrEnum):
    """Element type of the KV tensors as the engine holds them."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"

    @property
    def numpy(self) -> "np.dtype[np.generic]":
        """The NumPy dtype; that of ``ml_dtypes`` where NumPy has none of its own."""
        # Here, so that a client that only moves containers loads no NumPy.
        import ml_dtypes
        import numpy as np

        return np.dtype(getattr(ml_dtypes, self.value, self.value))

    @property
    def bits(self) -> int:
        """Bits of one value."""
        if self in (KvDtype.FLOAT8_E4M3FN, KvDtype.FLOAT8_E5M2):
            return 8
        return 32 if self is KvDtype.FLOAT32 else 16


class AttentionKind(StrEnum):
    """How a layer attends."""

    FULL = "full"
    SLIDING = "sliding"


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of a layer's keys (Su et al. 2021), reduced to its angles.

    ``inverse_frequencies`` are radians per position of each rotated pair; ``2 * len`` leading dimensions of the head
    are rotated, the rest pass. Pair ``i`` is dimensions ``(i, i + len)`` (the half-split convention of Llama, Qwen,
    Gemma) or ``(2i, 2i + 1)`` when ``interleaved``. Any static scaling (linear, Llama 3, YaRN) is already in the
    frequencies. A scaling that changes with length cannot be expressed: such layers have no ``Rope`` and their keys
    are coded as they are, rotated.
    """

    inverse_frequencies: tuple[float, ...]
    interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of a head that are rotated."""
        return 2 * len(self.inverse_frequencies)

    @property
    def pair_slices(self) -> tuple[slice, slice]:
        """Where in a head the first and the second members of the rotated pairs stand."""
        pairs = len(self.inverse_frequencies)
        if self.interleaved:
            return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        return slice(0, pairs), slice(pairs, 2 * pairs)


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One layer: ``kv_heads`` heads whose keys and values have ``head_dim`` numbers per token."""

    kv_heads: int
    head_dim: int
    rope: Rope | None = None
    attention: AttentionKind = AttentionKind.FULL
    window_tokens: int = 0

    @property
    def width(self) -> int:
        """Channels of one token's keys (and of its values) in this layer: ``kv_heads * head_dim``."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole cache: an element type, every layer, and which tensor-parallel shard this is."""

    dtype: KvDtype
    layers: tuple[LayerLayout, ...]
    shard_rank: int = 0
    shard_count: int = 1

    def __post_init__(self) -> None:
        _check("layers", len(self.layers), 1, limits.LAYERS_MAX)
        _check("shard count", self.shard_count, 1, 2**16 - 1)
        _check("shard rank", self.shard_rank, 0, self.shard_count - 1)
        for index, layer in enumerate(self.layers):
            _check(f"kv heads of layer {index}", layer.kv_heads, 1, limits.KV_HEADS_MAX)
            _check(f"head dim of layer {index}", layer.head_dim, 1, limits.HEAD_DIM_MAX)
            _check(f"window of layer {index}", layer.window_tokens, 0, limits.POSITION_MAX)
            if layer.rope is not None:
                _check(f"rotary dim of layer {index}", layer.rope.rotary_dim, 2, layer.head_dim)
                if not all(math.isfinite(f) for f in layer.rope.inverse_frequencies):
                    raise LayoutMismatch(f"layer {index} has a RoPE frequency that is not finite")

    @classmethod
    def uniform(
        cls, *, layers: int, kv_heads: int, head_dim: int, dtype: KvDtype = KvDtype.FLOAT32, rope: Rope | None = None
    ) -> "Layout":
        """A layout whose layers are all alike (most models)."""
        _check("layers", layers, 1, limits.LAYERS_MAX)
        return cls(dtype, (LayerLayout(kv_heads, head_dim, rope),) * layers)

    @property
    def values_per_token(self) -> int:
        """Numbers in one token's KV, keys and values of all layers."""
        return sum(2 * layer.width for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's KV as the engine holds it."""
        return self.values_per_token * self.dtype.bits // 8

    def to_bytes(self) -> bytes:
        """The canonical encoding: JSON with sorted keys, equal layers run-length coded, RoPE tables shared.

        Raises :class:`LayoutMismatch` where it would be too long for :meth:`from_bytes` to accept.
        """
        ropes: list[Rope] = []
        runs: list[dict[str, object]] = []
        for layer, group in groupby(self.layers):
            if layer.rope is not None and layer.rope not in ropes:
                ropes.append(layer.rope)
            runs.append(
                {
                    "attention": layer.attention.value,
                    "count": len(list(group)),
                    "head_dim": layer.head_dim,
                    "kv_heads": layer.kv_heads,
                    "rope": None if layer.rope is None else ropes.index(layer.rope),
                    "window": layer.window_tokens,
                }
            )
        document = {
            "dtype": self.dtype.value,
            "layers": runs,
            # ``+ 0.0``: equal layouts have equal bytes, and 0.0 == -0.0.
            "ropes": [
                {"f": [float(f) + 0.0 for f in rope.inverse_frequencies], "interleaved": rope.interleaved}
                for rope in ropes
            ],
            "shard": [self.shard_rank, self.shard_count],
        }
        data = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        if len(data) > limits.LAYOUT_BYTES_MAX:
            raise LayoutMismatch(f"layout takes {len(data)} bytes, the limit is {limits.LAYOUT_BYTES_MAX}")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Layout":
        """Parse :meth:`to_bytes`; anything else, however hostile, raises :class:`MalformedContainer`."""
        if len(data) > limits.LAYOUT_BYTES_MAX:
            raise MalformedContainer(f"layout has {len(data)} bytes, the limit is {limits.LAYOUT_BYTES_MAX}")
        try:
            document = json.loads(data)
            ropes = [Rope(tuple(float(f) for f in item["f"]), bool(item["interleaved"])) for item in document["ropes"]]
            layers: list[LayerLayout] = []
            for run in document["layers"]:
                count = int(run["count"])
                if not 1 <= count <= limits.LAYERS_MAX - len(layers):
                    raise MalformedContainer(f"layout has over {limits.LAYERS_MAX} layers, the limit")
                rope = None if run["rope"] is None else ropes[int(run["rope"])]
                layer = LayerLayout(
                    int(run["kv_heads"]),
                    int(run["head_dim"]),
                    rope,
                    AttentionKind(run["attention"]),
                    int(run["window"]),
                )
                layers.extend([layer] * count)
            rank, shards = document["shard"]
            layout = cls(KvDtype(document["dtype"]), tuple(layers), int(rank), int(shards))
            canonical = layout.to_bytes()
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, LayoutMismatch) as error:
            raise MalformedContainer(f"layout does not parse: {type(error).__name__}: {str(error)[:120]}") from error
        if canonical != data:
            raise MalformedContainer("layout is not in its canonical form")
        return layout

    def digest(self) -> bytes:
        """BLAKE3-256 of the canonical encoding: a field of every content key."""
        return blake3(self.to_bytes()).digest()


def _check(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise LayoutMismatch(f"{what} is {value}, must be {low} to {high}")
