"""The worker's blends: stored documents at other places of a prompt, mended with the engine's own weights.

Chunks are fetched and decoded by a few threads, within a time limit. Then the blender runs in the engine's own thread,
in front of the step that computes the prompt's last token: it is this step's work, and holds it up for less than
computing the prompt would. What does not come is computed like any token of the prompt; where nothing comes, the
engine computes everything.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ... import limits
from ...blend.executor import Blended, Blender
from ...blend.gate import unmovable_reason
from ...blend.request import BlendReport, BlendRequest
from ...blend.request import PlacedChunk as PlacedKv
from ...blend.select.base import SelectionRule
from ...blend.select.none import NoTokens
from ...blend.select.query import QueryAttention
from ...codec.container import Container
from ...codec.layout import Layout
from ...errors import KvloomError, UnsupportedModel
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Hit, Outcome, Unavailable
from .decoding import ChunkDecoder
from .load_job import FinishedLoad
from .pages import ChunkArrays, KvPages
from .plan import BlendChunk, BlendLoad

__all__ = ["EngineBlender", "FinishedBlend", "blend_rule"]

Get = Callable[[ContentKey], Outcome[Container]]


@dataclass(frozen=True, slots=True)
class FinishedBlend:
    """What a blend came to: as a load, and as a blend where there was one."""

    load: FinishedLoad
    report: BlendReport | None


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A chunk in the place that the prompt gives it, read from so many bytes."""

    kv: PlacedKv
    size_bytes: int


def blend_rule(ratio: float | None) -> SelectionRule:
    """The rule by which an engine blends, at its own ratio unless one is given; with 0 nothing is computed again."""
    rule = QueryAttention(tokens_min=limits.RECOMPUTED_TOKENS_MIN)
    if ratio is None:
        return rule
    return replace(rule, ratio=ratio) if ratio else NoTokens()


class EngineBlender:
    """Blends prompts on ``model``, which computes with the engine's weights, into the engine's ``pages``.

    Raises :class:`UnsupportedModel` for a model that cannot be blended. The threads are its own; :meth:`close` it.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        pages: KvPages,
        get: Get,
        decoder: ChunkDecoder,
        *,
        ratio: float | None = None,
        threads: int = 1,
        seconds_max: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stuck = unmovable_reason(layout)
        if stuck:
            raise UnsupportedModel(stuck)
        self._blender = Blender(model, layout)
        self._layout, self._pages, self._get, self._decoder = layout, pages, get, decoder
        self._ratio, self._seconds_max, self._clock = ratio, seconds_max, clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvloom-blend")

    def run(self, load: BlendLoad) -> FinishedBlend:
        """Blend a prompt, or say that nothing of it is there."""
        began = self._clock()
        arrived, silent = self._fetch(load)
        blended = self._blend(load, arrived) if arrived else None
        blocks = frozenset() if blended is not None else load.target.blocks
        finished = FinishedLoad(
            load.request_id,
            sum(item.kv.tokens for item in arrived) if blended is not None else 0,
            sum(item.size_bytes for item in arrived),
            self._clock() - began,
            None if blended is not None else 0,
            blocks,
            silent,
            by_layer=True,
        )
        return FinishedBlend(finished, None if blended is None else blended.report)

    def close(self) -> None:
        """End; threads that wait for the daemon end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, load: BlendLoad) -> tuple[list[_Arrived], bool]:
        """The chunks that came in time, in their order, and whether the daemon kept silent."""
        asked = [self._pool.submit(self._one, item) for item in load.chunks]
        done, late = wait(asked, self._seconds_max)
        for future in late:
            future.cancel()
        results = [future.result() for future in asked if future in done]
        arrived = [item for item in results if isinstance(item, _Arrived)]
        return arrived, bool(late) or any(isinstance(item, Unavailable) for item in results)

    def _one(self, wanted: BlendChunk) -> "_Arrived | Unavailable | None":
        outcome = self._get(wanted.key)
        if not isinstance(outcome, Hit):
            return outcome if isinstance(outcome, Unavailable) else None
        container = outcome.value
        if container.header.tokens != wanted.tokens or container.header.first_position != wanted.first_position:
            return None
        arrays = ChunkArrays.empty(self._layout, wanted.tokens)
        try:
            self._decoder.decode(container, arrays, self._layout)
        except KvloomError:
            return None
        keys, values = arrays.numpy
        placed = PlacedKv(
            wanted.start,
            wanted.tokens - wanted.skip,
            [item[:, wanted.skip :] for item in keys],
            [item[:, wanted.skip :] for item in values],
            first_position=wanted.first_position + wanted.skip,
        )
        return _Arrived(placed, len(container.data))

    @torch.inference_mode()
    def _blend(self, load: BlendLoad, arrived: list[_Arrived]) -> Blended | None:
        chunks = tuple(item.kv for item in arrived)
        exact = 0
        short = sum(chunk.tokens for chunk in chunks) <= limits.RECOMPUTED_TOKENS_MIN  # all is computed again anyway
        for chunk in () if short else chunks:
            if chunk.start != exact or chunk.first_position != chunk.start:
                break
            exact = chunk.stop
        request = BlendRequest(np.asarray(load.token_ids, dtype=np.int64), exact, chunks)
        try:
            rule = blend_rule(self._ratio if load.ratio is None else load.ratio)
            blended = self._blender.blend(request, rule, room_tokens=0)
        except UnsupportedModel:
            return None
        layers = blended.cache.kv_layers
        tokens = load.target.tokens
        arrays = ChunkArrays(
            tuple(layer.keys[0, :, :tokens] for layer in layers), tuple(layer.values[0, :, :tokens] for layer in layers)
        )
        self._pages.copy_in(load.target, arrays)
        return blended
