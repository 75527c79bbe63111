"""How a prompt's KV is come by: the planner is asked, chunks are loaded as it says, and the rest is computed."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from ... import limits
from ...blend.cache import KvCache
from ...blend.request import BlendReport
from ...codec.level import EXACT, Level
from ...kvstore.key import ModelIdentity
from ..arrivals import ChunkPlace, Chunks, Halfway, Loaded, LoadOrder, LoadResult, Revise
from ..chunk_traffic import ChunkTraffic
from ..client import KvloomClient
from ..layered import LayeredDecoding
from ..plan_wire import BlendQuestion, QualitySample
from .advice import Adviser, engine_name
from .advised import Advice

__all__ = ["Brought", "Filled", "PlanSettings", "PromptLoader"]


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """How a pipeline asks the planner: as ``engine`` (by default named after model and machine), for ``seconds_max``.

    With ``enabled`` off, whatever is stored is loaded, and waited for. ``prefix_level`` is the coarsest level at which
    a prefix may be loaded; one that is not exact is remembered beside the exact one.
    """

    enabled: bool = True
    engine: str | None = None
    seconds_max: float = limits.PLAN_SECONDS_DEFAULT
    prefix_level: Level = EXACT


@dataclass(frozen=True, slots=True)
class Filled:
    """A prompt's last logits ``[vocabulary]``, what was loaded for it, and on what advice."""

    logits: torch.Tensor
    load: LoadResult | None = None
    advice: Advice | None = None


@dataclass(frozen=True, slots=True)
class Brought:
    """What was loaded to be blended, on what advice, and how it is being decoded, where that goes on."""

    result: LoadResult
    advice: Advice | None = None
    decoding: LayeredDecoding | None = None


class PromptLoader:
    """Brings stored chunks into the caches of one model. Safe to use from one thread at a time.

    The planner is asked before anything is loaded; where it does not answer in time, everything is asked for, and
    waited for no longer than computing it takes, if that is known by then. What a pool holds is taken without asking.
    """

    def __init__(
        self,
        model: Any,
        identity: ModelIdentity,
        client: KvloomClient,
        traffic: ChunkTraffic,
        settings: PlanSettings,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model, self._traffic, self._clock = model, traffic, clock
        self._enabled = settings.enabled
        on_all_cores = model.device.type == "cpu" and torch.get_num_threads() >= (os.cpu_count() or 1)
        self._adviser = Adviser(
            client,
            settings.engine or engine_name(identity),
            seconds_max=settings.seconds_max,
            decoding_competes=on_all_cores,
            clock=clock,
        )

    def use_client(self, client: KvloomClient, traffic: ChunkTraffic) -> None:
        """Talk to another daemon from now on; what was learnt of the model stays."""
        self._traffic = traffic
        self._adviser.use_client(client)

    @property
    def _asks(self) -> bool:
        return self._enabled and self._traffic.resident is None

    def close(self) -> None:
        """Send the last reports."""
        self._adviser.close()

    def ask(
        self,
        places: Sequence[ChunkPlace],
        prompt_tokens: int,
        *,
        floor: Level,
        blend: BlendQuestion | None = None,
        prefetch: bool = False,
    ) -> Advice | None:
        """As :meth:`Adviser.ask`; ``None`` at once where nobody is to be asked."""
        if not self._asks:
            return None
        return self._adviser.ask(places, prompt_tokens, floor=floor, blend=blend, prefetch=prefetch)

    def load(
        self, cache: KvCache, places: Sequence[ChunkPlace], prompt_tokens: int, *, level: Level, blend: BlendQuestion
    ) -> Brought:
        """Load chunks that are to be blended, all that the planner wants loaded; they are decoded behind the caller."""
        if self._traffic.resident is not None:
            return Brought(self._traffic.load(cache, places, level=level))
        began = self._clock()
        advice = self.ask(places, prompt_tokens, floor=level, blend=blend)
        orders, ends = self._orders(places, advice, level, began, prompt_tokens)
        decoding = self._traffic.layered(cache)
        arrivals = self._traffic.begin(cache, orders, ends=ends, decoding=decoding)
        result = arrivals.settle()
        decoding.start()
        self._adviser.note_arrivals(arrivals)
        return Brought(result, advice, decoding)

    def fill(self, cache: KvCache, token_ids: NDArray[Any], places: Sequence[ChunkPlace], *, floor: Level) -> Filled:
        """Fill an empty ``cache`` with ``token_ids`` ``[n]``, of which ``places`` may be stored.

        What is loaded comes in behind what is computed meanwhile.
        """
        began, total = self._clock(), len(token_ids)
        if self._traffic.resident is not None:
            load = self._traffic.load(cache, places, level=EXACT)
            return Filled(self._compute(cache, token_ids, places, Loaded(frozenset(load.loaded))), load)
        advice = self.ask(places, total, floor=floor)
        orders, ends = self._orders(places, advice, floor, began, total)
        arrivals = self._traffic.begin(cache, orders, ends=ends, revise=self._revising(advice, began))
        if advice is not None and advice.reply.hold_seconds > 0.0:
            arrivals.hold(began + min(advice.reply.hold_seconds, advice.reply.recompute_seconds))
        logits = self._compute(cache, token_ids, places, arrivals)
        self._adviser.note_arrivals(arrivals)
        return Filled(logits, arrivals.result(), advice)

    def compute(self, cache: KvCache, token_ids: NDArray[Any]) -> Filled:
        """Compute whatever of ``token_ids`` ``[n]`` is not in ``cache``."""
        return Filled(self._compute(cache, token_ids, (), Loaded(frozenset())))

    def note_blend(self, report: BlendReport, decoding: LayeredDecoding | None) -> None:
        """A prompt was blended: where nothing of it was stored, that was a prefill like any other."""
        if decoding is not None:
            self._adviser.note_decodings(decoding.measured())
        if not report.stored_tokens:
            self._adviser.note_prefill(report.fresh_tokens, report.prefix_tokens, report.seconds.total)

    def note_quality(self, sample: QualitySample) -> None:
        """Tell the daemon of an answer that was checked, in the background."""
        self._adviser.note_quality(sample)
        self._adviser.send()

    def report(self) -> None:
        """Tell the planner what was measured so far, in the background."""
        if self._asks:
            self._adviser.send()

    def finish(self, advice: Advice | None, ttft_seconds: float, *, floor: Level) -> None:
        """Tell the planner what came of its advice, in the background."""
        if self._asks:
            self._adviser.note_outcome(advice, ttft_seconds)
            self._adviser.send(advice, floor=floor)

    def _orders(
        self,
        places: Sequence[ChunkPlace],
        advice: Advice | None,
        level: Level,
        began: float,
        prompt_tokens: int,
    ) -> tuple[list[LoadOrder], float | None]:
        """What to load, in order, and when to stop."""
        if advice is not None:
            return advice.orders(began), advice.ends(began)
        seconds = self._adviser.compute_seconds(prompt_tokens) if self._asks else None
        if seconds is None:
            return [LoadOrder(place, level) for place in places], None
        until = began + 2 * seconds
        return [LoadOrder(place, level, until=until) for place in places], until

    def _revising(self, advice: Advice | None, began: float) -> Revise | None:
        """Decides anew for a request that ``began`` then, by what has come so far."""
        if advice is None or not advice.revisable:
            return None

        def revise(halfway: Halfway) -> Mapping[ChunkPlace, float]:
            now = self._clock()
            return {place: now + seconds for place, seconds in advice.decided_anew(halfway, now - began).items()}

        return revise

    @torch.inference_mode()
    def _compute(
        self, cache: KvCache, token_ids: NDArray[Any], places: Sequence[ChunkPlace], chunks: Chunks
    ) -> torch.Tensor:
        """The last of ``token_ids``' logits; ``cache`` holds what stands before the first of ``places``.

        Chunks that follow each other and do not come are computed in one run; what is behind the last of them, and the
        last token, in any case.
        """
        index = 0
        while index < len(places):
            if chunks.came(places[index]):
                cache.truncate(places[index].stop)
                index += 1
                continue
            index += 1
            while index < len(places) and not chunks.coming(places[index]):
                index += 1
            if index < len(places):
                self._run(cache, token_ids[: places[index].start])
        cache.truncate(min(cache.length, len(token_ids) - 1))
        return self._run(cache, token_ids)

    def _run(self, cache: KvCache, token_ids: NDArray[Any]) -> torch.Tensor:
        start, began = cache.length, self._clock()
        rest = torch.from_numpy(token_ids[start:])[None].to(self._model.device)
        output = self._model(input_ids=rest, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits[0, -1]
        self._adviser.note_prefill(len(token_ids) - start, start, self._clock() - began)
        return logits
