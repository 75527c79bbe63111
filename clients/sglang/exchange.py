"""Rows to and from the daemon within bounded time: whatever goes wrong is a miss, or a row that is not stored."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from ...codec.container import Container
from ...errors import KvloomError
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Hit, Unavailable
from ..client import KvloomClient
from ..patience import RetryPolicy, find_lookup_seconds
from ..silence import SILENT_SHARE, Silence
from .settings import HiCacheSettings

__all__ = ["RowExchange"]

LOGGER: Final = logging.getLogger("sglang.kvloom")


class RowExchange:
    """Looks up, loads and stores rows in order; a first one that fails ends a batch, as SGLang uses none after it.

    A daemon that kept silent is not asked again for a while. Safe to use from several threads at once.
    """

    def __init__(self, settings: HiCacheSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup_seconds = find_lookup_seconds(settings.lookup_seconds_max)
        self._load_seconds, self._ack, self._clock = settings.load_seconds_max, settings.ack, clock
        self._client = KvloomClient(
            settings.address,
            api_key=settings.api_key,
            lookup_seconds=settings.lookup_seconds_max,
            retries=RetryPolicy(tries_max=1),
        )
        self._silence = Silence(clock=clock)
        self._said: set[type] = set()

    def stored(self, names: Sequence[ContentKey]) -> list[bool]:
        """Which rows the daemon has; none where it does not say so in time."""
        if self._silence.lasts or not names:
            return [False] * len(names)
        began = self._clock()
        try:
            found = self._client.exists(names)
        except KvloomError as error:
            self._failed(error, began)
            return [False] * len(names)
        if any(found) or self._clock() - began < SILENT_SHARE * self._lookup_seconds:
            self._silence.end()
        else:
            self._silence.note()
        return found

    def load(self, names: Sequence[ContentKey], decode: Callable[[int, Container], bool]) -> list[bool]:
        """Read rows; ``decode`` gets each with its place in ``names`` and says whether it is one. Which came."""
        came = [False] * len(names)
        ends = self._clock() + self._load_seconds
        for index, name in enumerate(names):
            began = self._clock()
            if self._silence.lasts or began >= ends:
                break
            try:
                outcome = self._client.get(name, seconds_max=ends - began)
                came[index] = isinstance(outcome, Hit) and decode(index, outcome.value)
            except KvloomError as error:
                self._failed(error, began)
                break
            if isinstance(outcome, Unavailable):
                self._note_slow(began)
            if not came[index]:
                break
        return came

    def store(
        self, names: Sequence[ContentKey], encode: Callable[[int], bytes], parent: ContentKey | None
    ) -> list[bool]:
        """Store the rows that are not stored yet, each after the one before it. Which are stored now."""
        done = self.stored(names)
        for index, name in enumerate(names):
            began = self._clock()
            if not done[index]:
                if self._silence.lasts:
                    break
                try:
                    self._client.put(name, encode(index), ack=self._ack, parent=parent)
                except KvloomError as error:
                    self._failed(error, began)
                    break
                done[index] = True
            parent = name
        return done

    def clear(self) -> bool:
        """Forget everything that this client's tenant has stored; whether that was done."""
        began = self._clock()
        try:
            self._client.delete_namespace()
        except KvloomError as error:
            self._failed(error, began)
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _failed(self, error: KvloomError, began: float) -> None:
        """The first error of each kind is worth a line; a daemon that is gone would write one for every request."""
        level = logging.DEBUG if type(error) in self._said else logging.WARNING
        self._said.add(type(error))
        LOGGER.log(level, "kvloom: %s", error)
        self._note_slow(began)

    def _note_slow(self, began: float) -> None:
        if self._clock() - began >= SILENT_SHARE * self._lookup_seconds:
            self._silence.note()
