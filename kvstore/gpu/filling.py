"""What comes into a pool's pages and what goes out of them: containers decoded, chunks encoded. Blocking work only.

On a GPU with CuPy the lossy levels are decoded there, many chunks per launch; ``exact``, CacheGen's levels, and
everything on the host, by the codec on the CPU, straight into the pages where they stand together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ... import codec
from ...codec.codec import decode_into
from ...codec.container import Container
from ...codec.gpu import decode_into_pages, encode_from_pages
from ...codec.layout import KvDtype
from ...codec.level import EXACT, LossyCodec
from ...codec.profile import Profile
from ...codec.profiles import AnyProfile
from ...errors import InvalidData, KvloomError
from ..outcome import Corrupt, Miss, Unavailable
from .pages import KvViews, PageArena
from .residency import Chunk
from .source import ChunkWanted, Encoding

__all__ = ["TIER", "Arrival", "Filler", "Refused", "outcome_of"]

TIER = "gpu"
_KERNEL_DTYPES = (KvDtype.FLOAT32, KvDtype.FLOAT16, KvDtype.BFLOAT16)
Refused = Miss | Corrupt | Unavailable


@dataclass(frozen=True, slots=True)
class Arrival:
    """A container that is what was asked for, and where its first token goes."""

    wanted: ChunkWanted
    container: Container
    profile: AnyProfile | None
    first_position: int

    @property
    def is_turned(self) -> bool:
        """Whether decoding rotates keys that were rounded before: then they are not to be rotated once more.

        Our lossy levels are free of positions until they are decoded; ``exact`` and CacheGen's hold rotated keys.
        """
        header = self.container.header
        free = self.wanted.level != EXACT and header.codec is LossyCodec.KVLOOM
        return self.first_position != header.first_position and not free


class Filler:
    """Moves KV between containers and an arena's pages. Thread-safe for different chunks."""

    def __init__(self, arena: PageArena) -> None:
        self._arena = arena
        self._layout = arena.layout

    @property
    def takes_batches(self) -> bool:
        """Whether many chunks are better filled by one call: where each launch of the device takes several."""
        return self._arena.arrays.kernels is not None

    def judge(
        self, wanted: ChunkWanted, container: Container, profile_of: Callable[[bytes], AnyProfile | None]
    ) -> Arrival | Refused:
        """Look whether a verified container is the chunk wanted, whole and of this model, and find its profile."""
        header = container.header
        key, level = wanted.content_key, wanted.level
        if header.content_key != key:
            return Corrupt(TIER, f"asked for chunk {key.hex()[:16]}…, got {header.content_key.hex()[:16]}…")
        if header.layout != self._layout or len(header.layers) != len(self._layout.layers):
            return Corrupt(TIER, f"chunk {key.hex()[:16]}… has another layout than the pool, or not all layers")
        if level not in header.levels:
            return Miss()
        position = header.first_position if wanted.first_position is None else wanted.first_position
        if position != header.first_position and not self._arena.movable:
            return Unavailable(TIER, "keys without a known RoPE cannot be moved to another position")
        profile = None if level == EXACT else profile_of(header.profile_digest)
        return Arrival(wanted, container, profile, position)

    def fill(self, arrivals: Sequence[Arrival], chunks: Sequence[Chunk]) -> list[KvloomError | None]:
        """Decode into the pages reserved; for each, None or why it failed, and then its pages hold nothing of use."""
        with self._arena.arrays.active():
            by_kernels = [index for index, item in enumerate(arrivals) if self._is_for_kernels(item)]
            errors: list[KvloomError | None] = [None] * len(arrivals)
            groups: dict[bytes, list[int]] = {}
            for index in by_kernels:
                groups.setdefault(arrivals[index].container.header.profile_digest, []).append(index)
            for group in groups.values():
                found = self._decode_there([arrivals[i] for i in group], [chunks[i] for i in group])
                for index, error in zip(group, found, strict=True):
                    errors[index] = error
            for index in sorted(set(range(len(arrivals))) - set(by_kernels)):
                errors[index] = self._decode_here(arrivals[index], chunks[index])
            self._arena.arrays.synchronise()
            return errors

    def write(self, chunk: Chunk, keys: KvViews, values: KvViews) -> None:
        """Copy what an engine has computed; :class:`InvalidTensor` where it is not of the layout."""
        with self._arena.arrays.active():
            self._arena.write(chunk.pages, keys, values)
            self._arena.arrays.synchronise()

    def move(self, source: Chunk, target: Chunk) -> None:
        """Make one position's chunk of another's: keys rotated on, on the device."""
        with self._arena.arrays.active():
            moved_by = target.first_position - source.first_position
            self._arena.move(source.pages, target.pages, source.tokens, moved_by)
            self._arena.arrays.synchronise()

    def encode(self, chunk: Chunk, encoding: Encoding) -> bytes:
        """The chunk as a container; raises what :func:`kvloom.codec.encode` raises."""
        kernels, profile = self._arena.arrays.kernels, encoding.profile
        with self._arena.arrays.active():
            if kernels is not None and isinstance(profile, Profile) and EXACT not in encoding.levels:
                return encode_from_pages(
                    self._arena.paged(),
                    chunk.pages,
                    profile=profile,
                    lengths=[chunk.tokens],
                    first_position=chunk.first_position,
                    level=max(encoding.levels),
                    content_keys=[chunk.content_key],
                    device=kernels,
                )[0]
            keys, values = self._arena.fetch(chunk.pages, chunk.tokens)
        return codec.encode(
            keys,
            values,
            layout=self._layout,
            profile=profile,
            first_position=chunk.first_position,
            levels=encoding.levels,
            content_key=chunk.content_key,
        )

    def _is_for_kernels(self, arrival: Arrival) -> bool:
        if arrival.wanted.level == EXACT or arrival.container.header.codec is not LossyCodec.KVLOOM:
            return False
        return self._arena.arrays.kernels is not None and self._layout.dtype in _KERNEL_DTYPES

    def _decode_here(self, arrival: Arrival, chunk: Chunk) -> KvloomError | None:
        rooms = self._arena.rooms(chunk.pages, chunk.tokens)
        keys, values = rooms or self._arena.staging(chunk.tokens)
        try:
            decode_into(
                arrival.container,
                keys,
                values,
                profile=arrival.profile,
                level=arrival.wanted.level,
                first_position=arrival.first_position,
            )
        except KvloomError as error:
            return error
        if rooms is None:
            self._arena.write(chunk.pages, keys, values)
        return None

    def _decode_there(self, arrivals: Sequence[Arrival], chunks: Sequence[Chunk]) -> list[KvloomError | None]:
        """Decode chunks of one profile with the kernels; where one is damaged, each by itself to find out which."""
        by_level: dict[Any, list[int]] = {}
        for index, arrival in enumerate(arrivals):
            by_level.setdefault(arrival.wanted.level, []).append(index)
        errors: list[KvloomError | None] = [None] * len(arrivals)
        for level, group in by_level.items():
            own = [chunks[index] for index in group]
            starts = [*accumulate((len(chunk.pages) * self._arena.page_tokens for chunk in own), initial=0)][:-1]
            try:
                decode_into_pages(
                    [arrivals[index].container for index in group],
                    _ours(arrivals[group[0]].profile),
                    self._arena.paged(),
                    np.concatenate([chunk.pages for chunk in own]),
                    level=level,
                    slots=starts,
                    positions=[arrivals[index].first_position for index in group],
                    device=self._arena.arrays.kernels,
                )
            except KvloomError as error:
                if len(group) == 1:
                    errors[group[0]] = error
                else:
                    for index in group:
                        errors[index] = self._decode_there([arrivals[index]], [chunks[index]])[0]
        return errors


def outcome_of(error: KvloomError) -> Refused:
    """What a failed decode is to whoever asked: damage, or something that is missing here."""
    if isinstance(error, InvalidData):
        return Corrupt(TIER, str(error))
    return Unavailable(TIER, str(error))


def _ours(profile: AnyProfile | None) -> Profile | None:
    return profile if isinstance(profile, Profile) else None
