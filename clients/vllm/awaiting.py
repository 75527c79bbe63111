"""Chunks that another engine is still computing: asked for every few milliseconds until they have come."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ... import limits
from ...errors import KvloomError
from ...kvstore.key import ContentKey

__all__ = ["Awaiting"]


@dataclass(frozen=True, slots=True)
class _Awaited:
    key: ContentKey
    came: Callable[[], None]
    wanted: Callable[[], bool]


class Awaiting:
    """One thread, for as long as something is awaited; ``exists`` says which keys are stored."""

    def __init__(
        self,
        exists: Callable[[Sequence[ContentKey]], list[bool]],
        *,
        pause_seconds: float = limits.ENGINE_AWAIT_PAUSE_SECONDS,
    ) -> None:
        self._exists = exists
        self._pause_seconds = pause_seconds
        self._awaited: list[_Awaited] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def add(self, key: ContentKey, came: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Call ``came`` when ``key`` is stored, or when it is no longer ``wanted``; from another thread."""
        with self._lock:
            self._awaited.append(_Awaited(key, came, wanted))
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._watch, name="kvloom-await", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(self._pause_seconds):
            with self._lock:
                asked = list(self._awaited)
                if not asked:
                    self._thread = None
                    return
            try:
                stored = self._exists([item.key for item in asked])
            except KvloomError:
                stored = [False] * len(asked)  # whoever waits gives up when its time is up
            ready = [item for item, is_stored in zip(asked, stored, strict=True) if is_stored or not item.wanted()]
            with self._lock:
                self._awaited = [item for item in self._awaited if not any(item is other for other in ready)]
            for item in ready:
                item.came()
