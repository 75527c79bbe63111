"""The lossy levels on a GPU: containers into the pages of an engine, and pages into containers.

The entropy coding, the transform and the pages are the device's work; the host parses headers and side information with
the codec's own reader, and sends a batch's bytes in one copy. Bytes and symbols are those of :mod:`.codec`; numbers
differ from its by no more than rounding. Needs CuPy (the extra ``gpu``), which is loaded with the first call.
``docs/GPU.md`` says what of this has been measured.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest, InvalidTensor, LayoutMismatch
from .codec import profile_for
from .container import UNKEYED, Buffer, Container
from .cuda.decoder import Batch, Chunk
from .cuda.device import CupyDevice, Device
from .cuda.encoder import Span, encode_spans
from .cuda.paged import PagedKv, PageOrder
from .level import EXACT, LOSSY_LEVELS, Level, parse_level, require_level
from .profile import Profile

__all__ = ["PageOrder", "PagedKv", "decode_into_pages", "encode_from_pages"]


def decode_into_pages(
    containers: Sequence[Container | Buffer],
    profile: Profile | None,
    pages: PagedKv,
    block_table: Sequence[int] | NDArray[np.integer],
    *,
    level: Level | str | None = None,
    slots: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    device: Device | None = None,
) -> None:
    """Decode chunks of one sequence into ``pages``, whose blocks the sequence has in the order of ``block_table``.

    ``slots`` says where in the sequence each chunk goes (default: one after the other from 0), ``positions`` what its
    first token's position is there (default: where it was computed). ``level`` defaults to the best lossy one of each.
    Decode many chunks at once: a warp takes one block of layers, and a GPU has thousands of warps. Raises what
    :func:`.codec.decode` raises, and :class:`MissingDependency` without CuPy. On :class:`InvalidData`, which is noticed
    last, the slots written to hold nothing of use.
    """
    if not containers:
        return
    parsed = [item if isinstance(item, Container) else Container.parse(item) for item in containers]
    lengths = [item.header.tokens for item in parsed]
    starts = list(slots) if slots is not None else [*accumulate(lengths, initial=0)][:-1]
    places = list(positions) if positions is not None else [item.header.first_position for item in parsed]
    if not len(starts) == len(places) == len(parsed) or min(starts) < 0:
        raise InvalidTensor(f"{len(starts)} slots and {len(places)} positions for {len(parsed)} chunks")
    table = np.asarray(block_table, dtype=np.int32)
    layout = parsed[0].header.layout
    groups: dict[tuple[bytes, int, int], list[Chunk]] = {}
    for item, slot, position in zip(parsed, starts, places, strict=True):
        if item.header.layout != layout:
            raise LayoutMismatch("the chunks of a sequence have different layouts")
        depth = _depth(item, level)
        if position != item.header.first_position and any(layout.layers[i].rope is None for i in item.header.layers):
            raise LayoutMismatch("keys without a known RoPE cannot be moved to another position")
        groups.setdefault((item.header.profile_digest, item.header.tokens, depth), []).append(
            Chunk(item, slot, position)
        )
    tensors = pages.tensors(layout, table, max(s + n for s, n in zip(starts, lengths, strict=True)))
    where = device or _gpu()
    batches = []
    for (_, _, depth), chunks in groups.items():
        batch = Batch(where, profile_for(chunks[0].container.header, profile), chunks, depth)
        batch.decode_symbols()
        batch.synthesise()
        batch.scatter(tensors, table)
        batches.append(batch)
    for batch in batches:
        batch.check()


def encode_from_pages(
    pages: PagedKv,
    block_table: Sequence[int] | NDArray[np.integer],
    *,
    profile: Profile,
    lengths: Sequence[int],
    first_slot: int = 0,
    first_position: int = 0,
    level: Level | str | None = None,
    content_keys: Sequence[bytes] | None = None,
    device: Device | None = None,
) -> list[bytes]:
    """Encode consecutive chunks of ``lengths`` tokens from ``first_slot`` on, whose position is ``first_position``.

    ``level`` is the finest to code (default: all that the profile has). Raises :class:`InvalidTensor`,
    :class:`NonFiniteTensor`, and :class:`MissingDependency` without CuPy.
    """
    if not lengths:
        return []
    table = np.asarray(block_table, dtype=np.int32)
    keys = list(content_keys) if content_keys is not None else [UNKEYED] * len(lengths)
    if len(keys) != len(lengths):
        raise InvalidTensor(f"{len(keys)} content keys for {len(lengths)} chunks")
    finest = parse_level(level) if isinstance(level, str) else level
    if finest is not None and (finest == EXACT or finest.code > profile.refinements):
        raise InvalidRequest(f"level {finest} asked for, the profile has {profile.refinements + 1} lossy levels")
    depth = profile.refinements + 1 if finest is None else finest.code + 1
    tensors = pages.tensors(profile.layout, table, first_slot + sum(lengths))
    starts = [*accumulate(lengths, initial=0)][:-1]
    spans = [
        Span(first_slot + start, first_position + start, tokens, key)
        for start, tokens, key in zip(starts, lengths, keys, strict=True)
    ]
    return encode_spans(device or _gpu(), profile, spans, tensors, table, depth)


def _depth(container: Container, level: Level | str | None) -> int:
    """How many levels to read."""
    lossy = tuple(item for item in container.header.levels if item != EXACT)
    wanted = parse_level(level) if isinstance(level, str) else level
    if wanted == EXACT:
        raise InvalidRequest("level exact is decoded on the CPU, a GPU has the lossy ones")
    return require_level(wanted or (lossy[-1] if lossy else LOSSY_LEVELS[-1]), lossy).code + 1


@lru_cache(maxsize=1)
def _gpu() -> CupyDevice:
    return CupyDevice()
