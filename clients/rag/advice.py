"""Advice of the daemon's planner on one engine's prompts, and what the engine tells it of what things took.

No answer hangs on it: a plan that does not come in time is none, and what was measured is sent in the background.
"""

import math
import platform
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...codec.container import Container
from ...codec.level import Level
from ...errors import KvloomError
from ...kvstore.key import ModelIdentity
from ...kvstore.outcome import Hit, Outcome
from ..arrivals import Arrivals, ChunkPlace, Work
from ..client import KvloomClient
from ..plan_wire import (
    BlendQuestion,
    DecodeSample,
    EngineReport,
    LoadSample,
    PlanOutcome,
    PlanQuestion,
    PlanReply,
    PrefillSample,
    QualitySample,
)
from .advised import Advice

__all__ = ["Adviser", "engine_name"]

_PROBE_SHARE: Final = 10.0
"""Where plans load nothing, the link is looked at again after so many times what the last load took."""
_PROBE_SECONDS_MAX: Final = 5.0
_PREFILLS_KEPT: Final = 31
_FORGOTTEN: Final = 3.0
"""A daemon that is off by more than this factor about computing has been started anew and knows nothing."""

Floats = NDArray[np.float64]
_Noted = PrefillSample | LoadSample | DecodeSample | PlanOutcome | QualitySample


class Adviser:
    """The planner of ``client``'s daemon, asked for ``engine``. Safe to use from several threads.

    ``seconds_max`` is what asking may cost. ``decoding_competes``: decoding takes the cores that the model computes on.
    """

    def __init__(
        self,
        client: KvloomClient,
        engine: str,
        *,
        seconds_max: float,
        decoding_competes: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client, self._clock = client, clock
        self.engine, self._seconds_max, self._competes = engine, seconds_max, decoding_competes
        self._lock = threading.Lock()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="kvloom-report")
        self._noted: deque[_Noted] = deque(maxlen=limits.PLAN_SAMPLES_MAX)
        self._prefills: deque[PrefillSample] = deque(maxlen=_PREFILLS_KEPT)
        self._probe_at = 0.0

    def use_client(self, client: KvloomClient) -> None:
        """Ask another daemon from now on."""
        self._client = client

    def close(self) -> None:
        """Send what is left."""
        self._sender.shutdown()

    def ask(
        self,
        places: Sequence[ChunkPlace],
        prompt_tokens: int,
        *,
        floor: Level,
        blend: BlendQuestion | None = None,
        prefetch: bool = False,
    ) -> Advice | None:
        """A plan for chunks that follow each other; ``None`` where no daemon gives one in time.

        Blended chunks are loaded before anything is computed, others while what stands before them is.
        """
        if not places:
            return None
        question = PlanQuestion(
            self.engine,
            keys=tuple(place.ref.key.hex() for place in places),
            chunk_lengths=tuple(place.ref.tokens for place in places),
            first_position=places[0].start,
            prompt_tokens=prompt_tokens,
            floor=floor,
            decoding_competes=self._competes,
            side_by_side=blend is None,
            stops=blend is None,
            prefetch=prefetch,
            blend=blend,
        )
        tokens = max(1, prompt_tokens - places[0].start)
        reply = self._planned(question)
        try:
            if reply is not None and self._forgotten(reply, tokens):
                reply = self._planned(question)
        except KvloomError:
            return None
        return None if reply is None else Advice(tuple(places), tokens, reply, question)

    def _planned(self, question: PlanQuestion) -> PlanReply | None:
        count = len(question.keys or ())
        try:
            reply = self._client.plan(question, seconds_max=self._seconds_max)
        except KvloomError:
            return None
        if reply is None or len(reply.decisions) != count or not set(reply.load_order) <= set(range(count)):
            return None
        return reply

    def compute_seconds(self, tokens: int) -> float | None:
        """What computing so many tokens took lately; ``None`` where nothing was computed yet."""
        with self._lock:
            return median(item.seconds / item.tokens for item in self._prefills) * tokens if self._prefills else None

    def note_prefill(self, tokens: int, start: int, seconds: float) -> None:
        """A prefill of ``tokens`` after ``start`` others."""
        sample = PrefillSample(tokens, start, seconds)
        with self._lock:
            self._noted.append(sample)
            self._prefills.append(sample)

    def note_outcome(self, advice: Advice | None, ttft_seconds: float) -> None:
        """What came of a plan."""
        if advice is not None:
            with self._lock:
                self._noted.append(PlanOutcome(advice.reply.plan, ttft_seconds))

    def note_quality(self, sample: QualitySample) -> None:
        """An answer was checked against full prefill."""
        with self._lock:
            self._noted.append(sample)

    def note_arrivals(self, arrivals: Arrivals) -> None:
        """What loading and decoding took."""
        transfers, decodings = arrivals.measured()
        with self._lock:
            for item, concurrent in zip(transfers, _concurrent(transfers), strict=True):
                if item.link is not None and item.size_bytes:
                    self._note_load(item.link, item.size_bytes, item.ended - item.began, concurrent)
        self.note_decodings([item for item in decodings if item.size_bytes])

    def note_decodings(self, works: Sequence[Work]) -> None:
        """What decoding took."""
        with self._lock:
            for item, concurrent in zip(works, _concurrent(works), strict=True):
                self._noted.append(DecodeSample(item.level, item.size_bytes, (item.ended - item.began) / concurrent))

    def send(self, advice: Advice | None = None, *, floor: Level | None = None) -> None:
        """Send what was noted, in the background.

        If ``advice`` loads nothing, a part of one of its chunks may be read at level ``floor``, for nobody but the
        planner: it would never hear that a link is better than it was.
        """
        self._sender.submit(self._send)
        if advice is not None and floor is not None and advice.loads_nothing:
            with self._lock:
                due = self._clock() >= self._probe_at
                if due:
                    self._probe_at = math.inf  # until this one has ended: a slow link is not read over and over
            if due:
                self._sender.submit(self._probe, advice.places[0], floor)

    def _forgotten(self, reply: PlanReply, tokens: int) -> bool:
        """Whether the daemon knew nothing of this engine; if so, it has been told again."""
        known = self.compute_seconds(tokens)
        if known is None or 1 / _FORGOTTEN < reply.recompute_seconds / known < _FORGOTTEN:
            return False
        with self._lock:
            prefills = tuple(self._prefills)
        report = EngineReport(self.engine, prefills=prefills)
        return self._client.report(report, seconds_max=self._seconds_max) > 0

    def _note_load(self, link: str, size_bytes: int, seconds: float, concurrent: float) -> None:
        self._noted.append(LoadSample(link, size_bytes, seconds, concurrent))
        self._probe_at = self._clock() + _PROBE_SHARE * seconds

    def _probe(self, place: ChunkPlace, floor: Level) -> None:
        began = self._clock()
        found: Outcome[Container] | None
        try:
            found = self._client.get(place.ref.key, level=floor, layers=range(1), seconds_max=_PROBE_SECONDS_MAX)
        except KvloomError:
            found = None
        seconds = self._clock() - began
        with self._lock:
            if isinstance(found, Hit):
                self._note_load(found.tier, len(found.value.data), seconds, 1.0)
            else:
                self._probe_at = self._clock() + _PROBE_SHARE * seconds
        self._send()

    def _send(self) -> None:
        with self._lock:
            noted = tuple(self._noted)
            self._noted.clear()
        if not noted:
            return
        report = EngineReport(
            self.engine,
            tuple(item for item in noted if isinstance(item, PrefillSample)),
            tuple(item for item in noted if isinstance(item, LoadSample)),
            tuple(item for item in noted if isinstance(item, DecodeSample)),
            tuple(item for item in noted if isinstance(item, PlanOutcome)),
            tuple(item for item in noted if isinstance(item, QualitySample)),
        )
        with suppress(KvloomError):  # what is not heard of is learnt from the next report
            self._client.report(report, seconds_max=limits.PLAN_REPORT_SECONDS_MAX)


def engine_name(identity: ModelIdentity) -> str:
    """What engines of this model on this machine are called, so that one learns from those before it."""
    name = f"transformers-{identity.fingerprint.hex()[:16]}-{platform.node()}"
    return re.sub(r"[^!-~]", "-", name)[: limits.ENGINE_NAME_CHARACTERS_MAX]


def _concurrent(works: Sequence[Work]) -> list[float]:
    """For each, how many were under way on average while it was, itself included."""
    if not works:
        return []
    began, ended = np.array([(item.began, item.ended) for item in works]).T
    shared = _worked(began, ended, ended) - _worked(began, ended, began)
    seconds = ended - began
    lasting = seconds > 0.0
    found: list[float] = np.maximum(1.0, np.where(lasting, shared, 1.0) / np.where(lasting, seconds, 1.0)).tolist()
    return found


def _worked(began: Floats, ended: Floats, moments: Floats) -> Floats:
    """The seconds that all have worked together, up to each of ``moments``."""
    return _since(began, moments) - _since(ended, moments)


def _since(starts: Floats, moments: Floats) -> Floats:
    """For each of ``moments``, the sum of what has passed since those of ``starts`` that were before it."""
    first = starts.min()
    ordered = np.sort(starts - first)
    before = np.searchsorted(ordered, moments - first)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    found: Floats = before * (moments - first) - sums[before]
    return found
