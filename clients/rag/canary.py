"""Check some answers against full prefill behind their backs: how far from it, and whether they begin alike.

A gate is measured once, on other text. So one in so many answers that went through a lossy level or a blend is
computed again, in full, by one thread of the lowest priority, in slices, and only while no answer is being made.
"""

import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...blend.cache import KvCache
from ...blend.gate import QualityTarget
from ...codec.layout import Layout
from ...errors import InvalidRequest, KvloomError
from ..plan_wire import QualitySample
from ..quality import CHECKS_KEPT, misses_target
from ..transformers.running import divergence, next_logits, said

__all__ = ["Canary", "CanaryMetrics", "Watch"]

EVERY_DEFAULT: Final = 100
"""One in so many blended answers is checked."""
TOKENS_MAX: Final = 8
"""First tokens of an answer that are compared."""
WAITING_MAX: Final = 2
"""Answers that wait to be checked: their first logits are kept meanwhile."""
SLICE_TOKENS: Final = 256
"""What a check computes between two looks at whether an answer is being made."""
_LOWEST_PRIORITY: Final = 19


@dataclass(frozen=True, slots=True)
class CanaryMetrics:
    """What checks have found. ``agreed`` answers began as full prefill's does, ``kl`` is the mean of all, in nats.

    ``skipped`` were to be checked while too many others waited, ``failed`` could not be. ``recent_kl`` and
    ``recent_agreement`` are means over the last ones; ``alert`` says that these miss the target.
    """

    checked: int
    agreed: int
    kl: float
    skipped: int
    failed: int
    recent_kl: float
    recent_agreement: float
    alert: bool


@dataclass(frozen=True, slots=True)
class _Case:
    """An answer to check: its prompt, its first tokens, and the logits ``[n, vocabulary]`` that these are from."""

    prompt: NDArray[np.int64]
    answer: tuple[int, ...]
    logits: Tensor
    target: QualityTarget


@dataclass(frozen=True, slots=True)
class Watch:
    """Chooses tokens as ``chooses`` does, and keeps the first logits ``[vocabulary]`` that it was shown."""

    chooses: Callable[[Tensor], int]
    logits: list[Tensor] = field(default_factory=list)

    def choose(self, logits: Tensor) -> int:
        """The token after ``logits``."""
        if len(self.logits) < TOKENS_MAX:
            self.logits.append(logits)
        return self.chooses(logits)


class Canary:
    """Checks every ``every``-th answer that it is given, none where that is 0. Ends with :meth:`close`.

    It is used by one thread. ``report`` is told of each check, from the canary's thread; what it raises of ours is
    ignored.
    """

    def __init__(
        self, model: Any, layout: Layout, *, every: int, report: Callable[[QualitySample], object] | None = None
    ) -> None:
        if every < 0:
            raise InvalidRequest(f"one in {every} answers is to be checked, must be 0 (none) or more")
        self._model, self._layout, self._every, self._report = model, layout, every, report
        self._answers = 0
        self._idle = threading.Event()
        self._idle.set()
        self._cases: queue.Queue[_Case | None] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._samples: deque[QualitySample] = deque(maxlen=CHECKS_KEPT)
        self._checked = self._agreed = self._skipped = self._failed = 0
        self._kl_sum = 0.0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Hold checks back while an answer is made."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    def check(
        self, prompt: NDArray[np.int64], answer: Sequence[int], logits: Sequence[Tensor], target: QualityTarget
    ) -> bool:
        """Have an answer that may differ from full prefill's checked when there is time, if it is its turn.

        Returns at once: False where it is not, or too many wait already. ``logits`` ``[vocabulary]`` are those that the
        first tokens of ``answer`` were taken from.
        """
        self._answers += 1
        if not self._every or self._answers % self._every:
            return False
        if self._closing or self._cases.qsize() >= WAITING_MAX:
            self._skipped += 1
            return False
        kept = min(len(answer), len(logits), TOKENS_MAX)
        case = _Case(prompt, tuple(answer[:kept]), torch.stack(list(logits[:kept])), target)
        self._cases.put_nowait(case)
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="kvloom-canary", daemon=True)
            self._worker.start()
        return True

    def metrics(self) -> CanaryMetrics:
        """What was found so far; any thread may ask."""
        with self._lock:
            samples = list(self._samples)
            count = max(1, len(samples))
            recent_kl = sum(item.kl for item in samples) / count
            recent_agreement = sum(item.agrees for item in samples) / count
            return CanaryMetrics(
                checked=self._checked,
                agreed=self._agreed,
                kl=self._kl_sum / max(1, self._checked),
                skipped=self._skipped,
                failed=self._failed,
                recent_kl=recent_kl,
                recent_agreement=recent_agreement,
                alert=misses_target(samples),
            )

    def wait(self) -> None:
        """Return when nothing waits to be checked."""
        self._cases.join()

    def close(self) -> None:
        """Check nothing more; a check that is under way is given up at its next slice."""
        self._closing = True
        if self._worker is not None:
            self._idle.set()
            self._cases.put(None)
            self._worker.join()
            self._worker = None

    def _work(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while True:
            case = self._cases.get()
            try:
                if case is None:
                    return
                self._check(case)
            except (KvloomError, RuntimeError):  # no memory on the device, or a model that two threads cannot share
                with self._lock:
                    self._failed += 1
            finally:
                self._cases.task_done()

    def _check(self, case: _Case) -> None:
        kept = len(case.answer)
        cache = KvCache(self._layout, len(case.prompt) + kept, self._model.device)
        logits = case.logits[0]
        for start in range(0, len(case.prompt), SLICE_TOKENS):
            self._idle.wait()
            if self._closing:
                return
            logits = next_logits(self._model, cache, case.prompt[start : start + SLICE_TOKENS])
        expected = said(self._model, cache, logits, case.answer)
        found = case.logits.to(expected.device).double().log_softmax(-1)
        sample = QualitySample(
            kl=max(0.0, float(divergence(expected, found).mean())),
            agrees=int(expected[0].argmax()) == int(found[0].argmax()),
            kl_max=case.target.kl,
            agreement_min=case.target.agreement,
        )
        with self._lock:
            self._checked += 1
            self._agreed += sample.agrees
            self._kl_sum += sample.kl
            self._samples.append(sample)
        if self._report is not None:
            self._report(sample)
