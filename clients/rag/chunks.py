"""Chunks between a model and a daemon: KV out of a cache into containers, and containers back into a cache.

The codec runs here, in the process that owns the tensors. A chunk that is missing, damaged or coded with a profile
that cannot be had is simply not loaded: the caller computes its tokens.
"""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ... import codec
from ...blend.cache import KvCache
from ...codec.container import NO_PROFILE, Container
from ...codec.entropy.native import THREADS
from ...codec.layout import Layout
from ...codec.level import EXACT, Level, LossyCodec
from ...codec.profiles import AnyProfile, parse_profile
from ...errors import InvalidData, LayoutMismatch, ProfileMismatch
from ...kvstore.key import ChunkRef, ContentKey
from ...kvstore.outcome import Hit
from ...kvstore.tier import Ack
from ..client import KvloomClient

__all__ = ["ChunkPlace", "ChunkTraffic", "LoadResult"]


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """A chunk and the position in the prompt that its first token takes."""

    ref: ChunkRef
    start: int

    @property
    def stop(self) -> int:
        """The position after the last token."""
        return self.start + self.ref.tokens


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Which places were filled, in order, and how many bytes came for them."""

    loaded: tuple[ChunkPlace, ...]
    missed: tuple[ChunkPlace, ...]
    bytes_read: int


class ChunkTraffic:
    """Encodes, puts, gets and decodes chunks of one layout. Safe to use from one thread at a time."""

    def __init__(self, client: KvloomClient, layout: Layout) -> None:
        self._client = client
        self._layout = layout
        self._profiles: dict[bytes, AnyProfile] = {}
        self._workers = ThreadPoolExecutor(THREADS, thread_name_prefix="kvloom-codec")

    def close(self) -> None:
        """End the worker threads."""
        self._workers.shutdown()

    def codec(self) -> LossyCodec:
        """What the daemon's namespace takes lossy levels of; raises :class:`DaemonUnavailable`."""
        return self._client.stats().codec

    def publish_profile(self, profile: AnyProfile) -> None:
        """Put ``profile`` where every reader of the chunks coded with it finds it."""
        self._client.put_profile(profile.data)
        self._profiles[profile.digest] = profile

    def profile(self, digest: bytes) -> AnyProfile | None:
        """The profile of that digest, from this process or the daemon; None where neither has it intact."""
        found = self._profiles.get(digest)
        if found is None:
            outcome = self._client.get_profile(digest)
            if isinstance(outcome, Hit):
                try:
                    found = self._profiles[digest] = parse_profile(outcome.value)
                except InvalidData:
                    return None
        return found

    def profile_of(self, key: ContentKey) -> AnyProfile | None:
        """The profile that the stored chunk ``key`` was coded with, None where there is no such chunk or profile."""
        outcome = self._client.get(key)
        if not isinstance(outcome, Hit) or outcome.value.header.profile_digest == NO_PROFILE:
            return None
        return self.profile(outcome.value.header.profile_digest)

    def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        """For each key, whether the daemon has the chunk."""
        return self._client.exists(keys)

    def store(
        self, cache: KvCache, place: ChunkPlace, *, levels: Collection[Level], profile: AnyProfile | None, ack: Ack
    ) -> int:
        """Encode the KV that stands at ``place`` in ``cache`` and put it; the bytes of the container are returned."""
        arrays = [cache.layer_arrays(layer) for layer in range(len(self._layout.layers))]
        blob = codec.encode(
            [item.keys[:, place.start : place.stop] for item in arrays],
            [item.values[:, place.start : place.stop] for item in arrays],
            layout=self._layout,
            profile=profile,
            first_position=place.start,
            levels=levels,
            content_key=place.ref.key,
        )
        self._client.put(place.ref.key, blob, ack=ack)
        return len(blob)

    def load(self, cache: KvCache, places: Sequence[ChunkPlace], *, level: Level) -> LoadResult:
        """Get every place's chunk at ``level`` and decode it into ``cache``, keys rotated to where they now stand."""

        def fetch(place: ChunkPlace) -> int | None:
            outcome = self._client.get(place.ref.key, level=level)
            return self._decode(cache, place, outcome.value, level) if isinstance(outcome, Hit) else None

        sizes = list(self._workers.map(fetch, places))
        loaded = tuple(place for place, size in zip(places, sizes, strict=True) if size is not None)
        missed = tuple(place for place, size in zip(places, sizes, strict=True) if size is None)
        return LoadResult(loaded, missed, sum(size for size in sizes if size is not None))

    def _decode(self, cache: KvCache, place: ChunkPlace, container: Container, level: Level) -> int | None:
        profile = None if level == EXACT else self.profile(container.header.profile_digest)
        if container.header.tokens != place.ref.tokens:
            return None
        arrays = [cache.layer_arrays(layer) for layer in range(len(self._layout.layers))]
        try:
            codec.decode_into(
                container,
                [item.keys[:, place.start : place.stop] for item in arrays],
                [item.values[:, place.start : place.stop] for item in arrays],
                profile=profile,
                level=level,
                layout=self._layout,
                first_position=place.start,
            )
        except (InvalidData, LayoutMismatch, ProfileMismatch):
            return None
        return len(container.data)
