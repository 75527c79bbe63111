"""What a model's KV is, found out by running it.

Nothing here knows an architecture. Which layers keep KV, of which shape, and what of it they rotate how is seen from
single tokens run at several positions: such a token attends to nothing but itself, so between two positions nothing in
any layer differs except the rotation of its keys (of its values, where a model keeps MLA latents and what it rotates
in the place of values). A layer whose keys no known rotation explains gets no ``Rope``: its keys are coded as they are
and cannot be moved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...blend.cache import TORCH_DTYPES
from ...codec.layout import AttentionKind, KvDtype, LayerLayout, Layout, Rope
from ...codec.rope import rotate
from ...errors import UnsupportedModel

__all__ = ["model_layout"]

_PROBE_POSITIONS = (0, 3, 211)
_PROBE_TOKENS = 3
_PROBE_TOLERANCE = 1e-4
"""Mean difference allowed between un-rotated keys, of their mean size: models form angles in float32."""
_NO_ROTATION = Rope((0.0,))
"""Keys that do not know their position at all (ALiBi, NoPE layers) can stand anywhere: they turn by nothing."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The frequencies of a rotary module; ``changing`` when they depend on the length of the sequence."""

    inverse_frequencies: tuple[float, ...]
    changing: bool


def model_layout(model: Any) -> Layout:
    """The layout of ``model``'s KV: shapes, attention and RoPE of every layer, found by running a few tokens.

    It holds for text: a chunk with images under M-RoPE has :meth:`Layout.as_given`. Raises :class:`UnsupportedModel`,
    naming the layer, for caches that are not keys and values of every token (linear attention, state-space layers,
    chunked attention, sparse attention's indexers, KV shared between layers).
    """
    if model.config.is_encoder_decoder:
        raise UnsupportedModel("an encoder-decoder model keeps keys and values of two texts, not of one")
    config = model.config.get_text_config(decoder=True)
    attention = _attention_kinds(config)
    positions = _probe_positions(config)
    # Spread over the vocabulary, as the first and last ids are often padding, whose embedding may be zero.
    tokens = torch.arange(1, _PROBE_TOKENS + 1) * config.vocab_size // (_PROBE_TOKENS + 1)
    keys, values = _probe(model, tokens, positions, len(attention))
    tables = _rope_tables(model)
    layers: list[LayerLayout] = []
    for index, (kind, window) in enumerate(attention):
        if keys[index].shape[:-1] != values[index].shape[:-1]:
            shapes = f"{keys[index].shape[2]} and {values[index].shape[2]}"
            raise UnsupportedModel(f"layer {index} has unlike numbers of key and value heads, {shapes}")
        heads, head_dim = keys[index].shape[2:]
        rope, value_rope = (_find_rope(item[index], positions, tables) for item in (keys, values))
        if value_rope is None:
            rope = None
        elif value_rope == _NO_ROTATION:
            value_rope = None
        layers.append(LayerLayout(heads, head_dim, rope, kind, window, values[index].shape[-1], value_rope))
    layout = Layout(_kv_dtype(keys[0].dtype), tuple(layers))
    # Some models ignore the positions they are told and count for themselves: then nothing was seen of how they turn.
    seen = _is_seen_in_prefill(model, int(tokens[0]), int(positions[1]), keys[0][0, 1], values[0][0, 1])
    return layout if seen else layout.as_given()


def _attention_kinds(config: Any) -> list[tuple[AttentionKind, int]]:
    """Kind and window of every layer, as Transformers itself reads them from the configuration."""
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    if chunked or getattr(config, "attention_chunk_size", None):
        raise UnsupportedModel("chunked attention has no place in a layout: keys depend on where a chunk begins")
    kinds: list[tuple[AttentionKind, int]] = []
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if type(layer) is DynamicSlidingWindowLayer:
            kinds.append((AttentionKind.SLIDING, int(layer.sliding_window)))
        elif type(layer) is DynamicLayer:
            kinds.append((AttentionKind.FULL, 0))
        else:
            raise UnsupportedModel(f"layer {index} keeps a {type(layer).__name__}, not keys and values of every token")
    return kinds


@torch.inference_mode()
def _probe(model: Any, tokens: Tensor, positions: Tensor, layers: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer ``[tokens, positions, heads, head_dim]`` of single tokens at several positions."""
    cache = DynamicCache()
    model(
        input_ids=tokens.repeat_interleave(len(positions))[:, None].to(model.device),
        position_ids=positions.repeat(len(tokens))[:, None].to(model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    written = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    if len(written) != layers:
        raise UnsupportedModel(f"{len(written)} of {layers} layers write keys and values of their own")
    shape = (len(tokens), len(positions))
    keys = [layer.keys[:, :, 0].unflatten(0, shape) for layer in written if layer.keys is not None]
    values = [layer.values[:, :, 0].unflatten(0, shape) for layer in written if layer.values is not None]
    return keys, values


@torch.inference_mode()
def _is_seen_in_prefill(model: Any, token: int, position: int, keys: Tensor, values: Tensor) -> bool:
    """Whether ``token`` at ``position`` of a text has the first layer's ``keys`` and ``values`` ``[heads, head_dim]``.

    What stands before it cannot change them: they are made before the first layer attends.
    """
    cache = DynamicCache()
    ids = torch.full((1, position + 1), token, device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    first = cache.layers[0]
    if not isinstance(first, DynamicLayer) or first.keys is None or first.values is None:
        return False
    for seen, probed in ((first.keys, keys), (first.values, values)):
        difference = (seen[0, :, position].float() - probed.float()).abs().mean()
        if not difference <= _tolerance(probed.dtype) * probed.float().abs().mean():
            return False
    return True


def _probe_positions(config: Any) -> Tensor:
    """The positions probed ``[positions]``, none past what the model was made for."""
    farthest = (getattr(config, "max_position_embeddings", None) or max(_PROBE_POSITIONS) + 1) - 1
    return torch.tensor(_PROBE_POSITIONS).clamp(max=farthest)


def _rope_tables(model: Any) -> list[_Table]:
    """Every frequency table of a rotary module."""
    found: list[_Table] = []
    for module in model.modules():
        for name, table in module.named_buffers(recurse=False):
            if (
                not name.endswith("inv_freq")
                or name.endswith(("original_inv_freq", "long_inv_freq"))
                or table.ndim != 1
            ):
                continue
            kind = getattr(module, "rope_type", "default")
            if isinstance(kind, dict):
                kind = kind.get(name.removesuffix("_inv_freq"), "default")
            found.append(_Table(tuple(table.double().tolist()), "dynamic" in str(kind) or kind == "longrope"))
    return found


def _ropes(table: _Table, head_dim: int) -> Iterator[Rope]:
    """The ways to turn heads by a table: its first or last dimensions, in both pairings."""
    passing = head_dim - 2 * len(table.inverse_frequencies)
    for first_dim in sorted({0, passing}) if passing >= 0 else ():
        yield Rope(table.inverse_frequencies, first_dim=first_dim)
        yield Rope(table.inverse_frequencies, interleaved=True, first_dim=first_dim)


def _find_rope(states: Tensor, positions: Tensor, tables: Sequence[_Table]) -> Rope | None:
    """The rotation after whose undoing ``states`` ``[tokens, positions, heads, head_dim]`` agree at all positions."""
    turned = states.float().cpu().permute(0, 2, 1, 3).flatten(0, 1).numpy()
    size = float(np.abs(turned).mean())
    if size == 0.0:
        return None
    candidates = [(_NO_ROTATION, False)]
    candidates += [(rope, table.changing) for table in tables for rope in _ropes(table, turned.shape[-1])]
    best, smallest, changing = None, _tolerance(states.dtype) * size, False
    for rope, changes in candidates:
        plain = rotate(turned, rope, -positions.numpy())
        difference = float(np.abs(plain - plain[:, :1]).mean())
        if difference < smallest:
            best, smallest, changing = rope, difference, changes
    return None if changing else best


def _tolerance(dtype: torch.dtype) -> float:
    return max(_PROBE_TOLERANCE, 8 * torch.finfo(dtype).eps)


def _kv_dtype(dtype: torch.dtype) -> KvDtype:
    found = next((kv for kv, tensor in TORCH_DTYPES.items() if tensor == dtype), None)
    if found is None:
        raise UnsupportedModel(f"the KV is {dtype}; supported are {', '.join(TORCH_DTYPES)}")
    return found
