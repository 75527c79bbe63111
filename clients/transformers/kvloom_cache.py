"""A cache for ``generate`` whose prefix comes from a daemon and whose new chunks go there, for other processes.

    known = ModelKv.of(model)  # once
    cache = KvloomCache(client, model, inputs["input_ids"], known=known)
    output = model.generate(**inputs, past_key_values=cache)

The longest stored prefix is loaded when the cache is made; ``generate`` computes the rest, at least one token. Once
the prompt has been computed its chunks are stored behind the caller's back, under the keys that every client of
Transformers gives them. A daemon that is gone, slow or full costs a bounded wait, and what was generated is the same.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import limits
from ...blend.cache import KvCache, KvLayer
from ...codec.layout import Layout
from ...codec.level import EXACT, Level
from ...codec.profiles import AnyProfile
from ...errors import InvalidRequest, KvloomError
from ...kvstore.key import ChunkRef, ModelIdentity
from ...kvstore.tier import Ack
from ..arrivals import ChunkPlace, LoadOrder
from ..chunk_traffic import ChunkTraffic
from ..client import KvloomClient
from ..sequence import SequenceChunks, ShardedChunk
from .identity import model_identity
from .probing import model_layout

__all__ = ["CacheReport", "KvloomCache", "ModelKv"]

_ROOM_TOKENS = 256
"""Room for an answer that a new cache has; it grows where that is not enough."""


@dataclass(frozen=True, slots=True)
class ModelKv:
    """What a model's KV looks like and whose it is: found out once, good for as long as the weights stay the same."""

    layout: Layout
    identity: ModelIdentity

    @classmethod
    def of(cls, model: Any, *, adapter: str = "", salt: bytes = b"", folder: Path | None = None) -> "ModelKv":
        """Run a few tokens and hash the weights, a second for every 2 GB; see :func:`.identity.model_identity`."""
        layout = model_layout(model)
        return cls(layout, model_identity(model, layout=layout, adapter=adapter, salt=salt, folder=folder))


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What a cache has loaded and stored so far; ``failure`` says why nothing more is stored, empty where it is."""

    prompt_tokens: int
    loaded_tokens: int = 0
    loaded_bytes: int = 0
    stored_chunks: int = 0
    stored_tokens: int = 0
    stored_bytes: int = 0
    failure: str = ""


class KvloomCache(KvCache):
    """The KV of one sequence, for ``past_key_values`` of ``generate`` or of a forward over ``input_ids``.

    ``input_ids`` (``[n]`` or ``[1, n]``, without padding) must be those that the model is then given: they name what is
    loaded and stored. ``level`` is what is loaded, and what is stored: ``exact``, which changes no bit, or a lossy one,
    with ``profile`` or the generic one. ``known`` saves the time of :meth:`ModelKv.of`, ``store=False`` stores nothing.

    One sequence at a time: batches and beams are refused (:class:`LayoutMismatch`). Models on a GPU are fed through
    memory of the host. Where it is used in a ``with`` block, all is stored when that ends; else when the process does.
    """

    def __init__(
        self,
        client: KvloomClient,
        model: Any,
        input_ids: Tensor | NDArray[np.integer[Any]] | Sequence[int],
        *,
        known: ModelKv | None = None,
        chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT,
        level: Level = EXACT,
        profile: AnyProfile | None = None,
        ack: Ack = Ack.MEMORY,
        store: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._prompt = _token_ids(input_ids)
        known = known or ModelKv.of(model)
        super().__init__(known.layout, len(self._prompt) + _ROOM_TOKENS, model.device)
        if not 1 <= chunk_tokens <= limits.CHUNK_TOKENS_MAX:
            raise InvalidRequest(f"chunk_tokens is {chunk_tokens}, must be 1 to {limits.CHUNK_TOKENS_MAX}")
        self._chunk_tokens, self._level, self._profile, self._ack = chunk_tokens, level, profile, ack
        self._chunks = SequenceChunks([known.identity], chunk_tokens)
        self._traffic = ChunkTraffic(client, known.layout, clock=clock)
        self._clock = clock
        self._storing: list[Future[None]] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kvloom-store")
        self._report = CacheReport(len(self._prompt))
        self._stored: set[int] = set()
        """Where the chunks stop that are stored or on their way."""
        self._to_store = store
        self._load(client)

    @property
    def report(self) -> CacheReport:
        """What was loaded and stored so far."""
        return self._report

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one layer's tokens, making room; after the prompt's last, its chunks begin to be stored."""
        kv = self.kv_layers[layer_idx]
        before, after = kv.length, kv.length + key_states.shape[2]
        if after > kv.capacity:
            self._grow(max(after, 2 * self.capacity))
        merged = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self._to_store and layer_idx == len(self.kv_layers) - 1 and before < len(self._prompt) <= after:
            self._store(self._prompt)
        return merged

    def save(self, token_ids: Tensor | NDArray[np.integer[Any]] | Sequence[int]) -> CacheReport:
        """Store the KV of the answer, too, and wait until all is stored: for a next turn that goes on from here.

        ``token_ids`` are what ``generate`` returned, prompt and answer. Raises :class:`InvalidRequest` where they do
        not begin with the prompt.
        """
        ids = _token_ids(token_ids)
        if not np.array_equal(ids[: len(self._prompt)], self._prompt):
            raise InvalidRequest("the token ids to save do not begin with the prompt that this cache was made for")
        self._store(ids[: self.length])
        return self.finish()

    def finish(self, seconds_max: float = limits.ENGINE_CLOSE_SECONDS_MAX) -> CacheReport:
        """Wait until what has begun to be stored is stored, or could not be; what takes longer is given up."""
        ended, late = wait(self._storing, seconds_max)
        for stored in ended:
            stored.result()
        if late and not self._report.failure:
            self._report = replace(self._report, failure=f"not stored within {seconds_max} s")
        return self._report

    def close(self) -> None:
        """:meth:`finish`, and end the threads; the client stays the caller's. Idempotent."""
        self.finish()
        self._worker.shutdown(wait=False)
        self._traffic.close()

    def __enter__(self) -> "KvloomCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def truncate(self, length: int) -> None:
        """As :meth:`KvCache.truncate`, after what is being stored has been read."""
        wait(self._storing)
        super().truncate(length)

    def crop(self, max_length: int) -> None:
        """As Transformers' own, after what is being stored has been read."""
        wait(self._storing)
        super().crop(max_length)

    def reset(self) -> None:
        """As Transformers' own, after what is being stored has been read."""
        wait(self._storing)
        super().reset()  # type: ignore[no-untyped-call]

    def _load(self, client: KvloomClient) -> None:
        """Have the longest stored prefix in the cache, all but the last token of the prompt at most."""
        full, own_tail = self._chunks.full(self._prompt), self._tail(self._prompt)
        found = self._exist(client, [*full, *own_tail])
        self._stored = {chunk.stop for chunk, is_stored in zip([*full, *own_tail], found, strict=True) if is_stored}
        leading = next((index for index, is_stored in enumerate(found[: len(full)]) if not is_stored), len(full))
        start = full[leading - 1].stop if leading else 0
        stops = range(start + limits.ENGINE_TAIL_TOKENS_MIN, min(start + self._chunk_tokens, len(self._prompt) + 1))
        tails = self._chunks.tails(self._prompt, start, stops) if stops else []
        kept = [tail for tail, is_stored in zip(tails, self._exist(client, tails), strict=True) if is_stored]
        places = [_place(chunk) for chunk in (*full[:leading], *kept[-1:])]
        if not places:
            return
        room = self if self.device_is_host else KvCache(self.layout, places[-1].stop)
        orders = [LoadOrder(place, self._level) for place in places]
        ends = self._clock() + limits.ENGINE_LOAD_SECONDS_DEFAULT
        result = self._traffic.begin(room, orders, ends=ends).settle()
        reached = 0
        for place in result.loaded:
            if place.start != reached:
                break
            reached = place.stop
        self._stored -= {place.stop for place in result.missed}
        reached = min(reached, len(self._prompt) - 1)
        if room is not self:
            self._copy(room, self, 0, reached)
        super().truncate(reached)
        self._report = replace(self._report, loaded_tokens=reached, loaded_bytes=result.bytes_read)

    def _tail(self, token_ids: NDArray[np.int64]) -> list[ShardedChunk]:
        """The unfinished chunk at the end of ``token_ids``, where it is worth a record."""
        tail = self._chunks.tail(token_ids, len(token_ids))
        return [tail] if tail is not None and tail.tokens >= limits.ENGINE_TAIL_TOKENS_MIN else []

    @staticmethod
    def _exist(client: KvloomClient, chunks: Sequence[ShardedChunk]) -> list[bool]:
        return client.exists([chunk.keys[0] for chunk in chunks]) if chunks else []

    @property
    def device_is_host(self) -> bool:
        """Whether the codec can read and write the cache's own memory."""
        return self.kv_layers[0].device.type == "cpu"

    def _store(self, token_ids: NDArray[np.int64]) -> None:
        """Begin to store the chunks of ``token_ids`` that are not: all full ones and the tail."""
        chunks = [*self._chunks.full(token_ids), *self._tail(token_ids)]
        wanted = [_place(chunk) for chunk in chunks if chunk.stop not in self._stored]
        self._stored |= {place.stop for place in wanted}
        self._storing.extend(self._worker.submit(self._store_one, place) for place in wanted)

    def _store_one(self, place: ChunkPlace) -> None:
        if self._report.failure:
            return
        room: KvCache = self
        if not self.device_is_host:
            room = KvCache(self.layout, place.stop)
            self._copy(self, room, place.start, place.stop)
        try:
            stored_bytes = self._traffic.store(room, place, levels=(self._level,), profile=self._profile, ack=self._ack)
        except KvloomError as error:
            self._report = replace(self._report, failure=str(error) or error.code)
            return
        self._report = replace(
            self._report,
            stored_chunks=self._report.stored_chunks + 1,
            stored_tokens=self._report.stored_tokens + place.ref.tokens,
            stored_bytes=self._report.stored_bytes + stored_bytes,
        )

    @staticmethod
    def _copy(source: KvCache, target: KvCache, start: int, stop: int) -> None:
        """Tokens ``[start, stop)`` from one cache to the same place in another, on another device."""
        for theirs, ours in zip(source.kv_layers, target.kv_layers, strict=True):
            ours.keys[:, :, start:stop].copy_(theirs.keys[:, :, start:stop])
            ours.values[:, :, start:stop].copy_(theirs.values[:, :, start:stop])

    def _grow(self, capacity: int) -> None:
        """Move all layers to larger memory; what still reads the old one keeps it."""
        for layout, kv in zip(self.layout.layers, self.kv_layers, strict=True):
            larger = KvLayer(layout, capacity, kv.dtype, kv.device)
            larger.keys[:, :, : kv.length].copy_(kv.keys[:, :, : kv.length])
            larger.values[:, :, : kv.length].copy_(kv.values[:, :, : kv.length])
            kv.keys, kv.values, kv.capacity = larger.keys, larger.values, capacity
        self.capacity = capacity


def _place(chunk: ShardedChunk) -> ChunkPlace:
    parent = None if chunk.parents is None else chunk.parents[0]
    return ChunkPlace(ChunkRef(chunk.keys[0], chunk.start, chunk.stop, parent), chunk.start)


def _token_ids(given: Tensor | NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.int64]:
    """One sequence of token ids ``[n]``, ``n`` from 1 to :data:`limits.PREFIX_TOKENS_MAX`."""
    found = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    if found.ndim == 2 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 1 or not 1 <= found.size <= limits.PREFIX_TOKENS_MAX or found.dtype.kind not in "iu":
        raise InvalidRequest(
            f"token ids have dtype {found.dtype} and shape {found.shape}; "
            f"needed is one sequence of 1 to {limits.PREFIX_TOKENS_MAX}"
        )
    return found.astype(np.int64)
