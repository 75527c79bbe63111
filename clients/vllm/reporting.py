"""What loads, prefills and plans came to, told to the daemon behind the scheduler's back (docs/PLANNER.md).

Computing tells nothing about links. So after a while without a load, a chunk that was not worth one is read here, where
nobody waits for it: a link that has become fast again is noticed.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ... import limits
from ...codec.level import Level
from ...errors import KvloomError
from ...kvstore.key import ContentKey
from ..plan_wire import DecodeSample, EngineReport, LoadSample, PlanOutcome, PrefillSample
from .load_job import ChunkTimes

__all__ = ["Reporter"]

T = TypeVar("T")
Send = Callable[[EngineReport], int]


class Reporter:
    """Sends what things took, from a thread of its own; what comes faster than it can be sent is left out.

    ``probe`` reads a stored chunk and says over which link it came and what that took, or None.
    """

    def __init__(
        self,
        engine: str,
        level: Level,
        send: Send,
        probe: Callable[[ContentKey], LoadSample | None],
        *,
        pause_seconds: float = limits.ENGINE_REPORT_SECONDS,
        probe_seconds: float = limits.ENGINE_PROBE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._level, self._send, self._probe = engine, level, send, probe
        self._pause_seconds, self._probe_seconds, self._clock = pause_seconds, probe_seconds, clock
        self._prefills: list[PrefillSample] = []
        self._loads: list[LoadSample] = []
        self._decodes: list[DecodeSample] = []
        self._outcomes: list[PlanOutcome] = []
        self._declined: ContentKey | None = None
        self._loaded_at = clock()
        self._changed = threading.Condition()
        self._closing = False
        self._sending = False
        self._thread = threading.Thread(target=self._work, name="kvloom-report", daemon=True)
        self._thread.start()

    def note_prefills(self, prefills: Sequence[PrefillSample]) -> None:
        """What was computed."""
        with self._changed:
            _extend(self._prefills, prefills)
            self._changed.notify_all()

    def note_loads(self, times: Sequence[ChunkTimes]) -> None:
        """What was loaded."""
        loads = [
            LoadSample(item.link, item.size_bytes, item.load_seconds, item.concurrent) for item in times if item.link
        ]
        decodes = [DecodeSample(self._level, item.kv_bytes, item.decode_seconds) for item in times]
        with self._changed:
            self._loaded_at = self._clock()
            self._declined = None
            _extend(self._loads, loads)
            _extend(self._decodes, decodes)
            self._changed.notify_all()

    def note_outcome(self, plan: bytes, ttft_seconds: float) -> None:
        """What came of a plan."""
        with self._changed:
            _extend(self._outcomes, [PlanOutcome(plan, ttft_seconds)])
            self._changed.notify_all()

    def note_declined(self, key: ContentKey) -> None:
        """A stored chunk that was not worth loading; read after all, once nothing was loaded for a while."""
        with self._changed:
            self._declined = key
            self._changed.notify_all()

    def flush(self, seconds_max: float) -> bool:
        """Wait until all is sent; whether that is so within ``seconds_max``."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._sending or self._something()), seconds_max)

    def close(self, seconds_max: float = 5 * limits.ENGINE_REPORT_SECONDS) -> None:
        """Send what there is and end; a report is not worth a longer wait."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds_max)

    def _something(self) -> bool:
        return bool(self._prefills or self._loads or self._decodes or self._outcomes)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._something() or self._declined is not None)
                report = self._take()
                key = self._due()
                closing = self._closing
                self._sending = True
            if key is not None:
                self._read(key)
            sent = self._sent(report) if report is not None else True
            with self._changed:
                self._sending = False
                self._changed.notify_all()
                if closing:
                    return
                # Reports are few and far between, so that a step's worth of them is one.
                self._changed.wait_for(lambda: self._closing, self._pause_seconds if sent else 5 * self._pause_seconds)

    def _take(self) -> EngineReport | None:
        if not self._something():
            return None
        report = EngineReport(
            self._engine, tuple(self._prefills), tuple(self._loads), tuple(self._decodes), tuple(self._outcomes)
        )
        self._prefills, self._loads, self._decodes, self._outcomes = [], [], [], []
        return report

    def _due(self) -> ContentKey | None:
        if self._declined is None or self._clock() - self._loaded_at < self._probe_seconds:
            return None
        key, self._declined = self._declined, None
        self._loaded_at = self._clock()
        return key

    def _read(self, key: ContentKey) -> None:
        try:
            sample = self._probe(key)
        except KvloomError:
            return
        if sample is not None:
            with self._changed:
                _extend(self._loads, [sample])

    def _sent(self, report: EngineReport) -> bool:
        try:
            return self._send(report) > 0
        except KvloomError:
            return False


def _extend(kept: list[T], more: Sequence[T]) -> None:
    """Keep the latest; together no more than a report may hold."""
    kept.extend(more)
    del kept[: -(limits.PLAN_SAMPLES_MAX // 4)]
