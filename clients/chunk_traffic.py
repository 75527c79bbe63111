"""Chunks between a model and a daemon: KV out of a cache into containers, and containers back into a cache.

The codec runs here, in the process that owns the tensors. A chunk that is missing, damaged or coded with a profile
that cannot be had is simply not loaded: the caller computes its tokens.
"""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from .. import codec
from ..blend.cache import KvCache
from ..codec.container import NO_PROFILE, Container, generic_digest
from ..codec.entropy.native import THREADS
from ..codec.layout import Layout
from ..codec.level import EXACT, Level, LossyCodec
from ..codec.profiles import AnyProfile
from ..errors import InvalidData, LayoutMismatch, Overloaded, ProfileMismatch, StorageFull
from ..kvstore.gpu.lease import PoolLease
from ..kvstore.gpu.source import ChunkWanted, Encoding
from ..kvstore.key import ContentKey
from ..kvstore.outcome import Hit, Outcome, Throttled
from ..kvstore.tier import Ack
from .arrivals import Arrivals, ChunkPlace, LoadOrder, LoadResult, Revise
from .client import KvloomClient
from .layered import LayeredDecoding
from .resident import DaemonSource, PoolPlace, ResidentChunks

__all__ = ["ChunkTraffic"]


class ChunkTraffic:
    """Encodes, puts, gets and decodes chunks of one layout. Safe to use from one thread at a time.

    With ``pool``, what was decoded once is kept there and copied the next time.
    """

    def __init__(
        self,
        client: KvloomClient,
        layout: Layout,
        pool: PoolPlace | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client = client
        self._clock = clock
        self._layout = layout
        self._generic = generic_digest(layout)  # of the profile that everybody has
        self._source = DaemonSource(client)
        self.resident = None if pool is None else ResidentChunks(pool, layout, client, source=self._source)
        """The pool, where there is one."""
        self._workers = ThreadPoolExecutor(THREADS, thread_name_prefix="kvloom-codec")

    def close(self) -> None:
        """End the worker threads; what a pool holds is stored before it goes."""
        self._workers.shutdown()
        if self.resident is not None:
            self.resident.close()

    def codec(self) -> LossyCodec:
        """What the daemon's namespace takes lossy levels of; raises :class:`DaemonUnavailable`."""
        return self._client.stats().codec

    def publish_profile(self, profile: AnyProfile) -> None:
        """Put ``profile`` where every reader of the chunks coded with it finds it."""
        self._client.put_profile(profile.data)
        self._source.add_profile(profile)

    def profile(self, digest: bytes) -> AnyProfile | None:
        """The profile of that digest, from this process or the daemon; None where neither has it intact."""
        return self._source.profile(digest)

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
        keys, values = self._room(cache, place)
        blob = codec.encode(
            keys,
            values,
            layout=self._layout,
            profile=profile,
            first_position=place.start,
            levels=levels,
            content_key=place.ref.key,
        )
        self._client.put(place.ref.key, blob, ack=ack, parent=place.ref.parent)
        return len(blob)

    def remember(
        self, cache: KvCache, place: ChunkPlace, *, levels: Collection[Level], profile: AnyProfile | None = None
    ) -> None:
        """Keep the exact KV at ``place``; with a pool it is there at once and stored behind the caller's back.

        Other ``levels`` beside it take the ``profile``, and are stored straight.
        """
        if self.resident is not None and levels == (EXACT,):
            wanted = ChunkWanted(place.ref.key, EXACT, place.start)
            try:
                self.resident.put(
                    wanted, *self._room(cache, place), encoding=Encoding((EXACT,), parent=place.ref.parent)
                )
            except (StorageFull, Overloaded):
                pass  # too large for the pool, or too much waits: straight to the daemon
            else:
                return
        self.store(cache, place, levels=levels, profile=profile, ack=Ack.MEMORY)

    def load(self, cache: KvCache, places: Sequence[ChunkPlace], *, level: Level) -> LoadResult:
        """Get every place's chunk at ``level`` and decode it into ``cache``, keys rotated to where they now stand."""
        if self.resident is not None:
            return self._load_through(self.resident, cache, places, level)
        return self._load_straight(cache, places, level)

    def load_apart(self, caches: Sequence[KvCache], places: Sequence[ChunkPlace], *, level: Level) -> list[LoadResult]:
        """As :meth:`load`, each place into a cache of its own, all at the same time."""
        pairs = list(zip(caches, places, strict=True))
        if self.resident is not None:
            return [self.load(cache, [place], level=level) for cache, place in pairs]
        return [item.settle() for item in [self.begin(cache, [LoadOrder(place, level)]) for cache, place in pairs]]

    def begin(
        self,
        cache: KvCache,
        orders: Sequence[LoadOrder],
        *,
        ends: float | None = None,
        revise: Revise | None = None,
        decoding: LayeredDecoding | None = None,
    ) -> Arrivals:
        """Load in the background what is ordered, past the pool; no transfer goes on after ``ends`` (by ``clock``).

        ``cache`` is written to until everything is there or was given up; ``revise`` as for :class:`.Arrivals`. What
        comes is left to ``decoding``, where one is given.
        """

        def get(order: LoadOrder, seconds_max: float | None) -> Outcome[Container]:
            return self._client.get(order.place.ref.key, level=order.level, seconds_max=seconds_max)

        def ready(order: LoadOrder, container: Container) -> bool:
            digest = container.header.profile_digest
            return order.level == EXACT or digest == self._generic or self.profile(digest) is not None

        def decode(order: LoadOrder, container: Container) -> int | None:
            if decoding is not None:
                return 0 if decoding.add(order, container) else None  # what decoding takes is measured there
            decoded = self._decode(cache, order.place, container, order.level)
            return container.header.tokens * self._layout.bytes_per_token if decoded else None

        return Arrivals(orders, self._workers, get, ready, decode, ends=ends, revise=revise, clock=self._clock)

    def layered(self, cache: KvCache) -> LayeredDecoding:
        """Decoding into ``cache`` layer by layer, for :meth:`begin`."""

        def decode(order: LoadOrder, container: Container, layers: range) -> bool:
            return self._decode(cache, order.place, container, order.level, layers)

        layout = self._layout
        return LayeredDecoding(
            self._workers, decode, layers=len(layout.layers), token_bytes=layout.bytes_per_token, clock=self._clock
        )

    def _load_straight(self, cache: KvCache, places: Sequence[ChunkPlace], level: Level) -> LoadResult:
        return self.begin(cache, [LoadOrder(place, level) for place in places]).settle()

    def _load_through(
        self, resident: ResidentChunks, cache: KvCache, places: Sequence[ChunkPlace], level: Level
    ) -> LoadResult:
        """Copy what is resident, have the rest decoded into the pool first; past its room, decode as without it."""
        before = resident.stats()
        outcomes = resident.get_many([ChunkWanted(place.ref.key, level) for place in places])
        copied = list(
            self._workers.map(lambda item: self._copy(resident, cache, *item), zip(places, outcomes, strict=True))
        )
        no_room = [place for place, outcome in zip(places, outcomes, strict=True) if isinstance(outcome, Throttled)]
        straight = self._load_straight(cache, no_room, level)
        filled = {place for place, done in zip(places, copied, strict=True) if done} | set(straight.loaded)
        after = resident.stats()
        return LoadResult(
            tuple(place for place in places if place in filled),
            tuple(place for place in places if place not in filled),
            straight.bytes_read + after.loaded_bytes - before.loaded_bytes,
            after.hits - before.hits,
        )

    def _copy(self, resident: ResidentChunks, cache: KvCache, place: ChunkPlace, outcome: Outcome[PoolLease]) -> bool:
        if not isinstance(outcome, Hit):
            return False
        with outcome.value as lease:
            if lease.tokens != place.ref.tokens:
                return False
            try:
                resident.pool.copy_out(lease, *self._room(cache, place), first_position=place.start)
            except LayoutMismatch:
                return False
        return True

    def _decode(
        self, cache: KvCache, place: ChunkPlace, container: Container, level: Level, layers: range | None = None
    ) -> bool:
        digest = container.header.profile_digest
        profile = None if level == EXACT or digest == self._generic else self.profile(digest)
        if container.header.tokens != place.ref.tokens:
            return False
        keys, values = self._room(cache, place)
        try:
            codec.decode_into(
                container,
                keys,
                values,
                profile=profile,
                level=level,
                layout=self._layout,
                first_position=place.start,
                layers=layers,
            )
        except (InvalidData, LayoutMismatch, ProfileMismatch):
            return False
        return True

    def _room(self, cache: KvCache, place: ChunkPlace) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """The cache's own memory at ``place``, per layer."""
        arrays = [cache.layer_arrays(layer) for layer in range(len(self._layout.layers))]
        span = slice(place.start, place.stop)
        return [item.keys[:, span] for item in arrays], [item.values[:, span] for item in arrays]
