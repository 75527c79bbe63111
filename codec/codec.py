"""The codec: KV tensors of one chunk to a container and back. The stages composed; each has a file of its own.

Lossy, forward: keys are un-rotated (``rope``), channels centred and rotated onto the profile's basis (``profile``),
coefficients quantised (``quantise``) and entropy-coded (``lossy``). ``exact`` is independent of all that
(``lossless``). Both may stand in one container. Everything is per layer, so any range of layers can be read alone.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import ChunkTooLong, EmptyChunk, InvalidTensor, LayoutMismatch, NonFiniteTensor, ProfileMismatch
from .blas import one_thread
from .container import NO_PROFILE, UNKEYED, Buffer, Container, ContainerHeader, ContainerWriter, Kind
from .entropy import native
from .layout import KeyCoding, LayerLayout, Layout, Rope
from .level import EXACT, LOSSY_LEVELS, STANDARD, Level, parse_level, require_level
from .lossless import decode_exact, encode_exact
from .lossy import LossySegment, decode_lossy, encode_lossy
from .profile import Profile, Transform
from .quantise import NestedQuantiser
from .rope import cos_sin, rotate_into

__all__ = ["ContainerInfo", "KvArrays", "decode", "decode_into", "encode", "info", "truncate"]

KvArrays = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""Per layer ``[kv_heads, tokens, head_dim]``: a list, or one array ``[layers, kv_heads, tokens, head_dim]``."""
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """What a container holds; ``level_bytes`` is what reading each level costs, the header included.

    ``key_coding`` says for each layer held whether its lossy levels can be decoded to another position.
    """

    header: ContainerHeader
    level_bytes: dict[str, int]
    bits_per_value: dict[str, float]
    key_coding: tuple[KeyCoding, ...]


def encode(
    keys: KvArrays,
    values: KvArrays,
    *,
    layout: Layout,
    profile: Profile | None = None,
    first_position: int = 0,
    levels: Collection[Level] | None = None,
    content_key: bytes = UNKEYED,
) -> bytes:
    """Encode one chunk: per layer ``[kv_heads, tokens, head_dim]``, keys rotated as engines keep them.

    ``levels`` defaults to all lossy levels where there is a profile, else ``exact``; it may hold both kinds, and lossy
    levels go together. Raises :class:`InvalidTensor` (shape, dtype), :class:`EmptyChunk`, :class:`ChunkTooLong`,
    :class:`NonFiniteTensor` (lossy only), :class:`ProfileMismatch`.
    """
    chosen = set(levels) if levels is not None else set(LOSSY_LEVELS if profile is not None else (EXACT,))
    tokens = _check_tensors(keys, values, layout)
    lossy = bool(chosen - {EXACT})
    if lossy and not chosen >= set(LOSSY_LEVELS):
        raise InvalidTensor(f"levels {sorted(map(str, chosen))} asked for; lossy levels are coded together")
    if lossy and (profile is None or profile.layout != layout):
        raise ProfileMismatch(
            "a lossy level needs a profile of the same layout, " + ("got none" if profile is None else "got another")
        )
    sinks = max(0, min(tokens, profile.sink_tokens - first_position)) if lossy and profile else 0
    writer = ContainerWriter(
        layout,
        tokens=tokens,
        first_position=first_position,
        sink_tokens=sinks,
        content_key=content_key,
        profile_digest=profile.digest if lossy and profile else NO_PROFILE,
    )
    places = [(layer, kind) for layer in range(len(layout.layers)) for kind in Kind]
    held = [(layer, kind) for layer, kind in places if layout.layers[layer].width_of(kind)]
    for layer, kind in set(places) - set(held):
        for level in chosen:
            writer.put(level, layer, kind, b"")
    if lossy and profile is not None:
        with one_thread():
            coded = encode_lossy(_prepare(keys, values, held, layout, profile, first_position, sinks))
        for (layer, kind), payloads in zip(held, coded, strict=True):
            for level, payload in zip(LOSSY_LEVELS, payloads, strict=True):
                writer.put(level, layer, kind, payload)
    if EXACT in chosen:
        tensors = [(keys, values)[kind][layer] for layer, kind in held]
        for (layer, kind), payload in zip(held, encode_exact(tensors, layout.dtype), strict=True):
            writer.put(EXACT, layer, kind, payload)
    return writer.commit()


def decode(
    blob: Buffer,
    *,
    profile: Profile | None = None,
    level: Level | str | None = None,
    layout: Layout | None = None,
    first_position: int | None = None,
    content_key: bytes | None = None,
) -> tuple[KvArrays, KvArrays]:
    """Decode the layers that ``blob`` holds to ``(keys, values)`` in the layout's dtype, keys rotated.

    ``level`` defaults to the best there is. ``first_position`` moves the keys to another place in the context (default:
    where they were computed). ``layout`` and ``content_key``, where given, must be the container's. The result is one
    array ``[layers, kv_heads, tokens, head_dim]`` where all layers are alike, else a list. Raises
    :class:`InvalidData` and its kin, :class:`LevelNotStored`, :class:`ProfileMismatch`, :class:`LayoutMismatch`,
    :class:`KeyMismatch`.
    """
    container = Container.parse(blob, content_key=content_key)
    header = container.header
    layers = [header.layout.layers[index] for index in header.layers]
    dtype = header.layout.dtype.numpy
    outputs: list[KvArrays] = []
    for kind in Kind:
        shapes = [(layer.kv_heads, header.tokens, layer.head_dim_of(kind)) for layer in layers]
        if len(set(shapes)) == 1:
            outputs.append(np.empty((len(layers), *shapes[0]), dtype))
        else:
            outputs.append([np.empty(shape, dtype) for shape in shapes])
    decode_into(
        container, outputs[0], outputs[1], profile=profile, level=level, layout=layout, first_position=first_position
    )
    return outputs[0], outputs[1]


def decode_into(
    container: Container,
    keys: KvArrays,
    values: KvArrays,
    *,
    profile: Profile | None = None,
    level: Level | str | None = None,
    layout: Layout | None = None,
    first_position: int | None = None,
) -> None:
    """As :func:`decode`, into arrays of the caller's (slices of a longer cache are fine), one per layer held."""
    header = container.header
    if layout is not None and header.layout != layout:
        raise LayoutMismatch(
            f"container has layout {header.layout.digest().hex()[:16]}…, {layout.digest().hex()[:16]}… was expected"
        )
    wanted = parse_level(level) if isinstance(level, str) else level
    chosen = require_level(wanted or header.levels[-1], header.levels)
    held = list(header.layers)
    for kind, arrays in zip(Kind, (keys, values), strict=True):
        _check_outputs(arrays, [header.layout.layers[index] for index in held], header, kind)
    position = header.first_position if first_position is None else first_position
    layers = header.layout.layers
    places = [(layer, kind) for layer in held for kind in Kind if layers[layer].width_of(kind)]
    outputs = [(keys, values)[kind][layer - held[0]] for layer, kind in places]
    if position != header.first_position and any(layers[layer].rope is None for layer in held):
        raise LayoutMismatch("keys without a known RoPE cannot be moved to another position")
    if chosen == EXACT:
        decode_exact([container.segment(EXACT, *place) for place in places], outputs, header.layout.dtype)
        if position != header.first_position:
            ropes = [layers[layer].rope_of(kind) for layer, kind in places]
            _move(outputs, ropes, position - header.first_position)
        return
    if profile is None or profile.digest != header.profile_digest:
        have = "none" if profile is None else profile.digest.hex()[:16] + "…"
        raise ProfileMismatch(f"container was coded with profile {header.profile_digest.hex()[:16]}…, got {have}")
    drafts = [container.segment(LOSSY_LEVELS[0], *place) for place in places]
    standards = [container.segment(STANDARD, *place) for place in places] if chosen == STANDARD else None
    decoded = decode_lossy(
        drafts,
        standards,
        widths=[layers[layer].width_of(kind) for layer, kind in places],
        tokens=header.tokens,
        sink_tokens=header.sink_tokens,
    )
    angles = _Angles(position, header.tokens)
    coefficients_of = [coefficients for _, coefficients in decoded]
    inverted = _invert([profile.transform(*place) for place in places], coefficients_of)
    for (layer, kind), (sinks, _), channels, out in zip(places, decoded, inverted, outputs, strict=True):
        spec, rope = layers[layer], layers[layer].rope_of(kind)
        whole = np.concatenate([sinks.T, channels]) if header.sink_tokens else channels
        heads = whole.reshape(header.tokens, spec.kv_heads, spec.head_dim_of(kind)).transpose(1, 0, 2)
        if rope is not None:
            rotate_into(out, heads, rope, *angles.of(rope))
        else:
            out[...] = heads


def truncate(blob: Buffer, level: Level | str) -> bytes:
    """The container cut down to ``level``: a lossy level with all coarser ones, or ``exact`` alone."""
    return Container.parse(blob).truncate(parse_level(level) if isinstance(level, str) else level)


def info(blob: Buffer) -> ContainerInfo:
    """What a container holds and what each level costs, all overhead counted."""
    container = Container.parse(blob)
    header = container.header
    level_bytes = {str(level): len(container.truncate(level)) for level in header.levels}
    layers = [header.layout.layers[layer] for layer in header.layers]
    held = sum(layer.key_width + layer.value_width for layer in layers) * header.tokens
    bits_per_value = {name: 8 * size / held for name, size in level_bytes.items()}
    return ContainerInfo(header, level_bytes, bits_per_value, tuple(layer.key_coding for layer in layers))


class _Angles:
    """Cosines and sines of a run of positions, computed once per distinct RoPE."""

    def __init__(self, first_position: int, tokens: int) -> None:
        self._positions = np.arange(first_position, first_position + tokens, dtype=np.int64)
        self._cache: dict[Rope, tuple[FloatArray, FloatArray]] = {}

    def of(self, rope: Rope) -> tuple[FloatArray, FloatArray]:
        found = self._cache.get(rope)
        if found is None:
            found = self._cache[rope] = cos_sin(rope, self._positions)
        return found


def _prepare(
    keys: KvArrays,
    values: KvArrays,
    places: Sequence[tuple[int, Kind]],
    layout: Layout,
    profile: Profile,
    first_position: int,
    sinks: int,
) -> list[LossySegment]:
    tokens = keys[0].shape[1]
    angles = _Angles(first_position, tokens)
    quantiser = NestedQuantiser(profile.dead_zone)
    prepared: list[LossySegment] = []
    for layer, kind in places:
        heads = np.asarray((keys, values)[kind][layer], dtype=np.float32)
        if not np.isfinite(heads).all():
            bad = int(heads.size - np.isfinite(heads).sum())
            raise NonFiniteTensor(
                f"{kind.name.lower()} of layer {layer} hold {bad} values that are NaN or infinite, "
                "the limit of a lossy level is 0 (exact takes any)"
            )
        rope = layout.layers[layer].rope_of(kind)
        if rope is not None:
            cos, sin = angles.of(rope)
            plain = np.empty_like(heads)
            rotate_into(plain, heads, rope, cos, -sin)
            heads = plain
        channels = heads.transpose(1, 0, 2).reshape(tokens, layout.layers[layer].width_of(kind))
        scaled = profile.transform(layer, kind).forward(channels[sinks:])
        prepared.append(LossySegment(np.ascontiguousarray(channels[:sinks].T), quantiser.quantise(scaled)))
    return prepared


def _invert(transforms: Sequence[Transform], coefficients: Sequence[FloatArray]) -> list[FloatArray]:
    """Channels ``[tokens, width]`` of each transform's coefficients."""
    pairs = zip(transforms, coefficients, strict=True)
    if native.AVAILABLE:
        return native.invert([transform.inverse_job(item) for transform, item in pairs])
    with one_thread():
        return [transform.inverse(item) for transform, item in pairs]


def _move(arrays: Sequence[NDArray[np.generic]], ropes: Sequence[Rope | None], offset: int) -> None:
    for array, rope in zip(arrays, ropes, strict=True):
        if rope is not None:
            heads = np.array(array, dtype=np.float32)
            rotate_into(array, heads, rope, *cos_sin(rope, np.full(1, offset, dtype=np.int64)))


def _check_tensors(keys: KvArrays, values: KvArrays, layout: Layout) -> int:
    for name, arrays in (("keys", keys), ("values", values)):
        if len(arrays) != len(layout.layers):
            raise InvalidTensor(f"{name} have {len(arrays)} layers, the layout has {len(layout.layers)}")
    if np.ndim(keys[0]) != 3:
        raise InvalidTensor(f"keys of layer 0 have shape {np.shape(keys[0])}, must be [kv_heads, tokens, head_dim]")
    tokens = int(np.shape(keys[0])[1])
    if tokens == 0:
        raise EmptyChunk("chunk has 0 tokens, at least 1 is needed")
    if tokens > limits.CHUNK_TOKENS_MAX:
        raise ChunkTooLong(f"chunk has {tokens} tokens, the limit is {limits.CHUNK_TOKENS_MAX}")
    for kind, arrays in zip(Kind, (keys, values), strict=True):
        for index, spec in enumerate(layout.layers):
            _check_array(arrays[index], spec, kind, tokens, layout, f"{kind.name.lower()} of layer {index}")
    return tokens


def _check_outputs(arrays: KvArrays, layers: Sequence[LayerLayout], header: ContainerHeader, kind: Kind) -> None:
    name = kind.name.lower()
    if len(arrays) != len(layers):
        raise InvalidTensor(f"{len(arrays)} layers of room for {name}, the container holds {len(layers)}")
    for index, spec in enumerate(layers):
        _check_array(arrays[index], spec, kind, header.tokens, header.layout, f"room for {name} of layer {index}")


def _check_array(
    array: NDArray[np.generic], spec: LayerLayout, kind: Kind, tokens: int, layout: Layout, what: str
) -> None:
    expected = (spec.kv_heads, tokens, spec.head_dim_of(kind))
    if np.shape(array) != expected or array.dtype != layout.dtype.numpy:
        raise InvalidTensor(
            f"{what}: {array.dtype} {np.shape(array)}, the layout needs {layout.dtype.value} {expected}"
        )
