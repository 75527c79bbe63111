"""The codec: KV tensors of one chunk to a container and back. The stages composed; each has a file of its own.

Lossy, forward: the layers of a block become channels that know no position (``channels``), these are centred and
transformed by the profile (``profile``), quantised (``quantise``) and entropy-coded (``segment``, with its reader and
writer; ``lossy`` joins the four). CacheGen (``cachegen``) is another codec for the lossy levels, chosen by the profile.
``exact`` is independent of all that (``lossless``) and may stand in one container with either.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import (
    ChunkTooLong,
    EmptyChunk,
    InvalidData,
    InvalidTensor,
    KvloomError,
    LayoutMismatch,
    ProfileMismatch,
)
from ..tracing import traced
from .cachegen import CacheGenProfile, cachegen_overhead_bytes, decode_cachegen, encode_cachegen
from .channels import Angles, KvArrays, empty_tensors, gather_channels
from .container import NO_PROFILE, UNKEYED, Buffer, Container, ContainerHeader, ContainerWriter, Kind, select
from .entropy import native_lossy
from .fallback import CodedChunk, encode_channels
from .generic import generic_profile
from .layout import KeyCoding, KvDtype, LayerLayout, Layout, Rope
from .level import EXACT, LOSSY_LEVELS, Level, LossyCodec, parse_level, parse_lossy_codec, require_level
from .lossless import decode_exact, encode_exact
from .lossy import decode_lossy
from .profile import Profile, block_ranges
from .profiles import AnyProfile
from .rope import cos_sin, rotate_into
from .segment import overhead_bytes

__all__ = ["ContainerInfo", "KvArrays", "decode", "decode_into", "encode", "info", "truncate"]


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """What a container holds; ``level_bytes`` is what reading each level costs, the header included.

    ``codec`` is that of the lossy levels, None where there are none.
    ``side_bytes`` is how much of that, for each lossy level, is not escapes and words of the main entropy streams:
    headers, scale classes, gains, means, and the states that streams start from; of CacheGen headers and scales.
    ``key_coding`` says for each layer held whether its lossy levels can be decoded to another position.
    """

    header: ContainerHeader
    codec: LossyCodec | None
    level_bytes: dict[str, int]
    bits_per_value: dict[str, float]
    side_bytes: dict[str, int]
    key_coding: tuple[KeyCoding, ...]


@traced("codec.encode")
def encode(
    keys: KvArrays,
    values: KvArrays,
    *,
    layout: Layout,
    profile: AnyProfile | None = None,
    codec: LossyCodec | str | None = None,
    first_position: int = 0,
    levels: Collection[Level] | None = None,
    content_key: bytes = UNKEYED,
    exact_packed: bool | None = None,
) -> bytes:
    """Encode one chunk: per layer ``[kv_heads, tokens, head_dim]``, keys rotated as engines keep them.

    ``codec`` (``"kvloom"`` or ``"cachegen"``) defaults to the profile's and must be it. A chunk for which the profile
    given is no better than the generic one is coded with that (:mod:`.fallback`). ``levels`` defaults to all lossy
    levels of the profile, else ``exact``; lossy ones without a profile are coded with the generic one (CacheGen has
    none). Lossy levels stand on each other: those asked for and all coarser ones are coded; CacheGen's stand alone.
    ``exact_packed`` says whether ``exact`` is entropy-coded (:mod:`.lossless`) or holds the values as they are; by
    default float32 is not, whose sixth less takes longer to decode than any link above 1.4 Gb/s takes to bring it.
    Raises :class:`InvalidTensor` (shape, dtype), :class:`EmptyChunk`, :class:`ChunkTooLong`, :class:`NonFiniteTensor`
    (lossy only), :class:`ProfileMismatch`, :class:`ConfigError` for a codec there is not, :class:`MissingDependency`
    (CacheGen).
    """
    tokens = _check_tensors(keys, values, layout)
    _check_decoded_bytes(layout, tokens, ChunkTooLong)
    if profile is None and codec != LossyCodec.CACHEGEN and levels is not None and set(levels) - {EXACT}:
        profile = generic_profile(layout)
    chosen = _levels_to_code(levels, layout, profile, codec)
    lossy = sorted(level for level in chosen if level != EXACT)
    coded = None
    if lossy and isinstance(profile, Profile):
        coded = _encode_lossy(keys, values, layout, profile, first_position, len(lossy))
    used = coded.profile if coded else profile
    writer = ContainerWriter(
        layout,
        tokens=tokens,
        first_position=first_position,
        block_layers=coded.profile.block_layers if coded else 0,
        content_key=content_key,
        profile_digest=used.digest if lossy and used else NO_PROFILE,
        codec=used.codec if lossy and used else LossyCodec.KVLOOM,
    )
    if coded:
        for index, payloads in enumerate(coded.payloads):
            for level, payload in zip(lossy, payloads, strict=True):
                writer.put(level, index * coded.profile.block_layers, None, payload)
    elif lossy and isinstance(profile, CacheGenProfile):
        for level in lossy:
            pieces = encode_cachegen(keys, values, layout=layout, profile=profile, level=level.code)
            for index, payload in enumerate(pieces):
                writer.put(level, index // len(Kind), Kind(index % len(Kind)), payload)
    if EXACT in chosen:
        places = [(layer, kind) for layer in range(len(layout.layers)) for kind in Kind]
        held = [(layer, kind) for layer, kind in places if layout.layers[layer].width_of(kind)]
        for layer, kind in set(places) - set(held):
            writer.put(EXACT, layer, kind, b"")
        tensors = [(keys, values)[kind][layer] for layer, kind in held]
        packed = layout.dtype is not KvDtype.FLOAT32 if exact_packed is None else exact_packed
        for (layer, kind), payload in zip(held, encode_exact(tensors, layout.dtype, packed=packed), strict=True):
            writer.put(EXACT, layer, kind, payload)
    return writer.commit()


def decode(
    blob: Buffer,
    *,
    profile: AnyProfile | None = None,
    level: Level | str | None = None,
    layout: Layout | None = None,
    first_position: int | None = None,
    content_key: bytes | None = None,
) -> tuple[KvArrays, KvArrays]:
    """Decode the layers that ``blob`` holds to ``(keys, values)`` in the layout's dtype, keys rotated.

    The header says which codec it is. ``level`` defaults to the best there is. ``first_position`` moves the keys to
    another place in the context (default: where they were computed). ``layout`` and ``content_key``, where given, must
    be the container's. The result is one array ``[layers, kv_heads, tokens, head_dim]`` where all layers are alike,
    else a list. Raises :class:`InvalidData` and its kin, :class:`LevelNotStored`, :class:`ProfileMismatch`,
    :class:`LayoutMismatch`, :class:`KeyMismatch`, :class:`MissingDependency` (CacheGen).
    """
    container = Container.parse(blob, content_key=content_key)
    header = container.header
    _check_decoded_bytes(header.layout, header.tokens, InvalidData)
    keys, values = empty_tensors(header.layout, header.layers, header.tokens)
    decode_into(container, keys, values, profile=profile, level=level, layout=layout, first_position=first_position)
    return keys, values


@traced("codec.decode")
def decode_into(
    container: Container,
    keys: KvArrays,
    values: KvArrays,
    *,
    profile: AnyProfile | None = None,
    level: Level | str | None = None,
    layout: Layout | None = None,
    first_position: int | None = None,
    layers: range | None = None,
) -> None:
    """As :func:`decode`, into arrays of the caller's (slices of a longer cache are fine), one per layer held.

    With ``layers`` only these are decoded of those held: whole blocks of a lossy level, and all of CacheGen's. Where it
    raises, some of them may have been written to.
    """
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
    if layers is not None:
        some = slice(layers.start - held[0], layers.stop - held[0])
        held, keys, values = held[some], keys[some], values[some]
    position = header.first_position if first_position is None else first_position
    specs = header.layout.layers
    if position != header.first_position and any(specs[layer].rope is None for layer in held):
        raise LayoutMismatch("keys without a known RoPE cannot be moved to another position")
    if chosen == EXACT or header.codec is LossyCodec.CACHEGEN:
        places = [(layer, kind) for layer in held for kind in Kind if specs[layer].width_of(kind)]
        outputs = [(keys, values)[kind][layer - held[0]] for layer, kind in places]
        if chosen == EXACT:
            decode_exact([container.segment(EXACT, *place) for place in places], outputs, header.layout.dtype)
        else:
            _decode_cachegen(container, chosen, profile, keys, values)
        if position != header.first_position:
            ropes = [specs[layer].rope_of(kind) for layer, kind in places]
            _move(outputs, ropes, position - header.first_position)
        return
    profile = profile_for(header, profile)
    if chosen.code > profile.refinements:
        raise InvalidData(f"container has level {chosen}, its profile has {profile.refinements + 1} levels")
    first, last = held[0] // profile.block_layers, held[-1] // profile.block_layers
    read = LOSSY_LEVELS[: chosen.code + 1]
    # What the compiled core cannot write to goes through an array of its own.
    wide_keys, wide_values = native_lossy.writable(keys), native_lossy.writable(values)
    decode_lossy(
        profile,
        range(first, last + 1),
        container.blocks(read, range(held[0], held[-1] + 1, profile.block_layers)),
        wide_keys,
        wide_values,
        Angles(position, header.tokens),
        tokens=header.tokens,
        first_position=header.first_position,
    )
    for wide, narrow in ((wide_keys, keys), (wide_values, values)):
        if wide is not narrow:
            _narrow(wide, narrow, header.layout.dtype)


def _narrow(wide: KvArrays, out: KvArrays, dtype: KvDtype) -> None:
    # Half a step past the largest number of a narrow dtype must not become infinity or NaN.
    largest = np.float32(dtype.largest)
    for array, room in zip(wide, out, strict=True):
        if array is not room:
            room[...] = np.clip(array, -largest, largest)


def _encode_lossy(
    keys: KvArrays, values: KvArrays, layout: Layout, profile: Profile, first_position: int, levels: int
) -> CodedChunk:
    angles = Angles(first_position, int(keys[0].shape[1]))
    blocks = block_ranges(layout, profile.block_layers)
    channels = [gather_channels(keys, values, layout, layers, angles) for layers in blocks]
    return encode_channels(profile, channels, first_position=first_position, levels=levels)


def _decode_cachegen(
    container: Container, level: Level, given: AnyProfile | None, keys: KvArrays, values: KvArrays
) -> None:
    header = container.header
    profile = _cachegen_profile_of(header, given)
    if level not in profile.levels:
        raise InvalidData(f"container has level {level}, its profile has {len(profile.levels)} levels")
    decoded = decode_cachegen(
        [container.segment(level, layer, kind) for layer in header.layers for kind in Kind],
        layout=header.layout,
        profile=profile,
        level=level.code,
        tokens=header.tokens,
        layers=header.layers,
    )
    for outputs, found in zip((keys, values), decoded, strict=True):
        for output, heads in zip(outputs, found, strict=True):
            output[...] = heads


def _levels_to_code(
    levels: Collection[Level] | None, layout: Layout, profile: AnyProfile | None, codec: LossyCodec | str | None
) -> set[Level]:
    """The levels to code: those asked for and the coarser ones they stand on."""
    wanted = parse_lossy_codec(codec) if codec is not None else None
    if profile is not None and wanted not in (None, profile.codec):
        raise ProfileMismatch(f"codec {wanted} asked for, the profile is {profile.codec}'s")
    if levels is not None and not levels:
        raise InvalidTensor("0 levels asked for, at least 1 is needed")
    if levels is not None:
        chosen = set(levels)
    elif profile is not None:
        chosen = set(profile.levels)
    else:
        chosen = {EXACT} if wanted is not LossyCodec.CACHEGEN else set(LOSSY_LEVELS)
    lossy = chosen - {EXACT}
    if not lossy:
        return chosen
    if profile is None or profile.layout != layout:
        have = "none" if profile is None else "another"
        raise ProfileMismatch(f"a lossy level needs a profile of the same layout, got {have}")
    finest = max(lossy)
    if finest not in profile.levels:
        raise InvalidTensor(f"level {finest} asked for, the profile has {len(profile.levels)} levels")
    return chosen | {needed for level in lossy for needed in profile.codec.needed_for(level)}


def profile_for(header: ContainerHeader, profile: AnyProfile | None) -> Profile:
    """The profile the container was coded with: the one given, or the layout's generic one."""
    if isinstance(profile, Profile) and profile.digest == header.profile_digest:
        found = profile
    else:
        found = generic_profile(header.layout)
        if found.digest != header.profile_digest:
            have = "none" if profile is None else profile.digest.hex()[:16] + "…"
            raise ProfileMismatch(f"container was coded with profile {header.profile_digest.hex()[:16]}…, got {have}")
    if found.layout != header.layout or found.block_layers != header.block_layers:
        raise ProfileMismatch(f"container has blocks of {header.block_layers} layers, its profile {found.block_layers}")
    return found


def _cachegen_profile_of(header: ContainerHeader, profile: AnyProfile | None) -> CacheGenProfile:
    if not isinstance(profile, CacheGenProfile) or profile.digest != header.profile_digest:
        have = "none" if profile is None else f"{profile.codec}'s {profile.digest.hex()[:16]}…"
        raise ProfileMismatch(
            f"container was coded with CacheGen's profile {header.profile_digest.hex()[:16]}…, got {have}"
        )
    return profile


def truncate(blob: Buffer, level: Level | str) -> bytes:
    """The container cut down to ``level``: with all coarser ones, but ``exact`` and CacheGen's levels alone."""
    return Container.parse(blob).truncate(parse_level(level) if isinstance(level, str) else level)


def info(blob: Buffer) -> ContainerInfo:
    """What a container holds and what each level costs, all overhead counted."""
    container = Container.parse(blob)
    header = container.header
    level_bytes = {str(level): len(container.truncate(level)) for level in header.levels}
    layers = [header.layout.layers[layer] for layer in header.layers]
    held = sum(layer.key_width + layer.value_width for layer in layers) * header.tokens
    bits_per_value = {name: 8 * size / held for name, size in level_bytes.items()}
    codec = header.codec if any(level != EXACT for level in header.levels) else None
    key_coding = tuple(layer.key_coding for layer in layers)
    return ContainerInfo(header, codec, level_bytes, bits_per_value, _side_bytes(container), key_coding)


def _side_bytes(container: Container) -> dict[str, int]:
    header = container.header
    own: dict[Level, int] = {}
    for item in header.segments:
        if item.level != EXACT:
            payload = container.segment(item.level, item.layer, item.kind)
            cachegen = header.codec is LossyCodec.CACHEGEN
            size = cachegen_overhead_bytes(payload, header.tokens) if cachegen else overhead_bytes(payload)
            own[item.level] = own.get(item.level, 0) + size
    return {
        str(level): sum(own[needed] for needed in header.codec.needed_for(level))
        + len(select(header, level=level).header)
        for level in own
    }


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


def _check_decoded_bytes(layout: Layout, tokens: int, error: type[KvloomError]) -> None:
    if tokens * layout.bytes_per_token > limits.DECODED_BYTES_MAX:
        raise error(
            f"chunk of {tokens} tokens has {tokens * layout.bytes_per_token} bytes of KV, "
            f"the limit is {limits.DECODED_BYTES_MAX}"
        )


def _check_outputs(arrays: KvArrays, layers: Sequence[LayerLayout], header: ContainerHeader, kind: Kind) -> None:
    name = kind.name.lower()
    if len(arrays) != len(layers):
        raise InvalidTensor(f"{len(arrays)} layers of room for {name}, the container holds {len(layers)}")
    first = 0
    for index, spec in enumerate(layers):
        # One array's layers are alike: it is enough to look at those whose layouts differ.
        if not isinstance(arrays, np.ndarray) or index == 0 or spec is not layers[first]:
            first = index
            _check_array(arrays[index], spec, kind, header.tokens, header.layout, f"room for {name} of layer {index}")


def _check_array(
    array: NDArray[np.generic], spec: LayerLayout, kind: Kind, tokens: int, layout: Layout, what: str
) -> None:
    expected = (spec.kv_heads, tokens, spec.head_dim_of(kind))
    if np.shape(array) != expected or array.dtype != layout.dtype.numpy:
        raise InvalidTensor(
            f"{what}: {array.dtype} {np.shape(array)}, the layout needs {layout.dtype.value} {expected}"
        )
