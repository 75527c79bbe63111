"""Chunks held decoded between the questions of a batch, apart from any prompt's cache."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...blend.cache import KvCache
from ...blend.request import PlacedChunk
from ...codec.layout import Layout
from ...codec.level import Level
from ...kvstore.key import ChunkRef, ContentKey
from ..arrivals import ChunkPlace, LoadResult
from ..chunk_traffic import ChunkTraffic
from .batching import plan_batch

__all__ = ["HeldChunks"]


@dataclass(slots=True)
class HeldChunks:
    """Decodes each chunk once, to position 0; a blend turns it to wherever a prompt wants it.

    Belongs to one thread. Chunks that are not stored are asked for once, too, and not found.
    """

    traffic: ChunkTraffic
    layout: Layout
    level: Level
    _caches: dict[ContentKey, KvCache] = field(default_factory=dict)
    _decoded: int = 0
    _bytes_read: int = 0

    def hold_for(self, questions: Sequence[Mapping[ContentKey, ChunkRef]], bytes_max: int) -> Iterator[int]:
        """The numbers of ``questions`` in the order of :func:`plan_batch`; what each needs is held meanwhile."""
        token_bytes = self.layout.bytes_per_token
        sized = [{key: ref.tokens * token_bytes for key, ref in needs.items()} for needs in questions]
        for step in plan_batch(sized, bytes_max=bytes_max).steps:
            self._release(step.release_before)
            self._fetch([questions[step.index][key] for key in step.decode])
            yield step.index
            self._release(step.release_after)

    def _fetch(self, refs: Sequence[ChunkRef]) -> None:
        self._bytes_read = self._decoded = 0
        caches = [KvCache(self.layout, ref.tokens) for ref in refs]
        results = self.traffic.load_apart(caches, [ChunkPlace(ref, 0) for ref in refs], level=self.level)
        for ref, cache, result in zip(refs, caches, results, strict=True):
            self._bytes_read += result.bytes_read
            if result.loaded:
                self._caches[ref.key] = cache
                self._decoded += 1

    def _release(self, keys: Sequence[ContentKey]) -> None:
        for key in keys:
            self._caches.pop(key, None)

    def placed(self, places: Sequence[ChunkPlace]) -> tuple[tuple[PlacedChunk, ...], LoadResult]:
        """What is held of ``places``, and how much of it came for this question."""
        loaded = tuple(place for place in places if place.ref.key in self._caches)
        missed = tuple(place for place in places if place.ref.key not in self._caches)
        layers = range(len(self.layout.layers))
        chunks = []
        for place in loaded:
            arrays = [self._caches[place.ref.key].layer_arrays(layer) for layer in layers]
            keys, values = [item.keys for item in arrays], [item.values for item in arrays]
            chunks.append(PlacedChunk(place.start, place.ref.tokens, keys, values, first_position=0))
        return tuple(chunks), LoadResult(loaded, missed, self._bytes_read, len(loaded) - self._decoded)
