"""What one token's KV is: the layout of a model's cache, layer by layer.

A layout is part of a chunk's identity (its digest is a field of the content key) and travels inside every container,
so KV of one shape can never be read as KV of another. It is plain data: nothing here knows a model class.
"""

import json
import math
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from .. import limits
from ..errors import LayoutMismatch, MalformedContainer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AttentionKind", "KeyCoding", "Kind", "KvDtype", "LayerLayout", "Layout", "Rope"]

SAME_AS_KEYS = -1
"""Values as wide as keys, as nearly everywhere."""


class Kind(IntEnum):
    """Which of the two tensors of a layer."""

    KEYS = 0
    VALUES = 1


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
        return _numpy_dtype(self.value)

    @property
    def largest(self) -> float:
        """The largest finite value."""
        import ml_dtypes

        return float(ml_dtypes.finfo(self.numpy).max)  # type: ignore[no-untyped-call]

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


class KeyCoding(StrEnum):
    """How the lossy levels hold what a layer rotates."""

    UNROTATED = "unrotated"
    """Free of positions: decodes to any place in a context."""
    AS_GIVEN = "as given"
    """As the engine holds it: decodes only to the place where it was computed."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of one tensor of a layer (Su et al. 2021), reduced to its angles.

    ``inverse_frequencies`` are radians per position of each rotated pair; the ``2 * len`` dimensions of a head from
    ``first_dim`` on are rotated, the rest pass (Phi, StableLM and GLM rotate the first part of a head, MLA the last).
    Pair ``i`` is dimensions ``(i, i + len)`` of them (the half-split convention of Llama, Qwen, Gemma) or
    ``(2i, 2i + 1)`` when ``interleaved``. Any static scaling (linear, Llama 3, YaRN) is already in the frequencies.
    YaRN's attention factor multiplies cosine and sine alike: a rotation times a number, so that turning back by the
    angles alone leaves keys that are that much longer and know no position; it is not needed here. Frequencies of
    zero are keys that know no position to begin with. What cannot be expressed (frequencies that change with length,
    positions of several axes) has no ``Rope`` and is coded as it is, rotated.
    """

    inverse_frequencies: tuple[float, ...]
    interleaved: bool = False
    first_dim: int = 0

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated."""
        return 2 * len(self.inverse_frequencies)

    @property
    def end_dim(self) -> int:
        """The dimension after the last rotated one."""
        return self.first_dim + self.rotary_dim

    @property
    def pair_slices(self) -> tuple[slice, slice]:
        """Where in a head the first and the second members of the rotated pairs stand."""
        first, end, pairs = self.first_dim, self.end_dim, len(self.inverse_frequencies)
        if self.interleaved:
            return slice(first, end, 2), slice(first + 1, end, 2)
        return slice(first, first + pairs), slice(first + pairs, end)


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One layer: ``kv_heads`` heads whose keys have ``head_dim`` and whose values ``value_head_dim`` numbers per token.

    Values are mostly as wide as keys. MLA before its projections are absorbed has wider keys; its latents are one head
    and either a single tensor (vLLM: the keys, whose last dimensions are rotated, and ``value_head_dim`` 0) or two
    (Transformers: the latent as keys, which know no position, and what is rotated as values, hence ``value_rope``).
    ``rope`` None says that keys know their position in a way that no rotation undoes. ``value_rope`` None says that
    values know no position, or none that can be undone, and then ``rope`` is None too.
    """

    kv_heads: int
    head_dim: int
    rope: Rope | None = None
    attention: AttentionKind = AttentionKind.FULL
    window_tokens: int = 0
    value_head_dim: int = SAME_AS_KEYS
    value_rope: Rope | None = None

    def __post_init__(self) -> None:
        if self.value_head_dim == SAME_AS_KEYS:
            object.__setattr__(self, "value_head_dim", self.head_dim)

    @property
    def key_width(self) -> int:
        """Channels of one token's keys in this layer."""
        return self.kv_heads * self.head_dim

    @property
    def value_width(self) -> int:
        """Channels of one token's values in this layer; 0 where there are none."""
        return self.kv_heads * self.value_head_dim

    @property
    def key_coding(self) -> KeyCoding:
        """How the lossy levels hold this layer's keys."""
        return KeyCoding.AS_GIVEN if self.rope is None else KeyCoding.UNROTATED

    def head_dim_of(self, kind: Kind) -> int:
        """Numbers per head and token of the keys or values."""
        return self.head_dim if kind is Kind.KEYS else self.value_head_dim

    def width_of(self, kind: Kind) -> int:
        """Channels of one token's keys or values: heads times numbers per head."""
        return self.kv_heads * self.head_dim_of(kind)

    def rope_of(self, kind: Kind) -> Rope | None:
        """What undoes the position of the keys or values; None where nothing does, or needs to."""
        return self.rope if kind is Kind.KEYS else self.value_rope


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
            _check(f"value head dim of layer {index}", layer.value_head_dim, 0, limits.HEAD_DIM_MAX)
            for kind in Kind:
                _check_rope(index, layer.rope_of(kind), layer.head_dim_of(kind))

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
        return sum(layer.key_width + layer.value_width for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's KV as the engine holds it."""
        return self.values_per_token * self.dtype.bits // 8

    def as_given(self) -> "Layout":
        """The same cache when its positions are not what the ropes take them for: everything is coded rotated.

        For chunks with images or video under M-RoPE (Qwen2-VL), whose tokens have a position on three axes. Text
        alone has the same position on all three, which is RoPE: its chunks need the layout as it is.
        """
        return replace(self, layers=tuple(replace(layer, rope=None, value_rope=None) for layer in self.layers))

    def to_bytes(self) -> bytes:
        """The canonical encoding: JSON with sorted keys, equal layers run-length coded, RoPE tables shared.

        Fields that most layouts have no use for are left out where they say nothing, so that the digest of a layout
        does not depend on what others need. Raises :class:`LayoutMismatch` where it would be too long for
        :meth:`from_bytes` to accept.
        """
        ropes: list[Rope] = []
        runs = [_run_document(layer, len(list(group)), ropes) for layer, group in groupby(self.layers)]
        document = {
            "dtype": self.dtype.value,
            "layers": runs,
            "ropes": [_rope_document(rope) for rope in ropes],
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
            ropes = [
                Rope(tuple(float(f) for f in item["f"]), bool(item["interleaved"]), int(item.get("first_dim", 0)))
                for item in document["ropes"]
            ]
            layers: list[LayerLayout] = []
            for run in document["layers"]:
                count = int(run["count"])
                if not 1 <= count <= limits.LAYERS_MAX - len(layers):
                    raise MalformedContainer(f"layout has over {limits.LAYERS_MAX} layers, the limit")
                layers.extend([_read_layer(run, ropes)] * count)
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


def _run_document(layer: LayerLayout, count: int, ropes: list[Rope]) -> dict[str, object]:
    """``count`` layers like ``layer`` as JSON; ropes not seen before are added to ``ropes``."""
    for rope in (layer.rope, layer.value_rope):
        if rope is not None and rope not in ropes:
            ropes.append(rope)
    run: dict[str, object] = {
        "attention": layer.attention.value,
        "count": count,
        "head_dim": layer.head_dim,
        "kv_heads": layer.kv_heads,
        "rope": None if layer.rope is None else ropes.index(layer.rope),
        "window": layer.window_tokens,
    }
    if layer.value_head_dim != layer.head_dim:
        run["value_head_dim"] = layer.value_head_dim
    if layer.value_rope is not None:
        run["value_rope"] = ropes.index(layer.value_rope)
    return run


def _rope_document(rope: Rope) -> dict[str, object]:
    # ``+ 0.0``: equal layouts have equal bytes, and 0.0 == -0.0.
    item: dict[str, object] = {
        "f": [float(f) + 0.0 for f in rope.inverse_frequencies],
        "interleaved": rope.interleaved,
    }
    if rope.first_dim:
        item["first_dim"] = rope.first_dim
    return item


def _read_layer(run: dict[str, Any], ropes: list[Rope]) -> LayerLayout:
    value_rope = run.get("value_rope")
    return LayerLayout(
        int(run["kv_heads"]),
        int(run["head_dim"]),
        None if run["rope"] is None else ropes[int(run["rope"])],
        AttentionKind(run["attention"]),
        int(run["window"]),
        int(run.get("value_head_dim", SAME_AS_KEYS)),
        None if value_rope is None else ropes[int(value_rope)],
    )


def _check_rope(index: int, rope: Rope | None, head_dim: int) -> None:
    if rope is None:
        return
    _check(f"rotary dim of layer {index}", rope.rotary_dim, 2, head_dim)
    _check(f"first rotated dim of layer {index}", rope.first_dim, 0, head_dim - rope.rotary_dim)
    if not all(math.isfinite(f) for f in rope.inverse_frequencies):
        raise LayoutMismatch(f"layer {index} has a RoPE frequency that is not finite")


def _check(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise LayoutMismatch(f"{what} is {value}, must be {low} to {high}")


@cache
def _numpy_dtype(name: str) -> "np.dtype[np.generic]":
    # Here, so that a client that only moves containers loads no NumPy.
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(ml_dtypes, name, name))
