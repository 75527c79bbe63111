"""How long a call may take and how often it is tried, without I/O: deadlines, retries, and the budget they share.

Theory of operation. A client that tries again makes an overload worse, so retries and hedges are paid for out of one
bucket of tokens per client: every call brings a tenth of a token, every further try takes one. A daemon that is gone
costs a few retries and then none; one that stumbles now and then is asked again every time. (The retry budget of
Finagle, the retry throttling of gRPC, gRFC A6.)
"""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .. import limits
from ..errors import ConfigError, DaemonSilent, DaemonUnavailable, KvloomError, Overloaded, StorageUnavailable
from .protocol import Operation

__all__ = [
    "LOOKUP_SECONDS_VARIABLE",
    "UNBOUNDED",
    "Attempts",
    "Deadline",
    "RetryBudget",
    "RetryPolicy",
    "deadline_in",
    "find_lookup_seconds",
    "lookup_deadline",
]

LOOKUP_SECONDS_VARIABLE: Final = "KVLOOM_LOOKUP_SECONDS"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must have ended, by ``clock``; infinity for calls that only have to go on."""

    ends: float
    clock: Callable[[], float] = time.monotonic

    @property
    def bounded(self) -> bool:
        """Whether there is one."""
        return self.ends < math.inf

    def left(self, seconds_max: float) -> float:
        """How long to wait for the next thing, at most ``seconds_max``; :class:`TimeoutError` where time is up."""
        left = min(seconds_max, self.ends - self.clock())
        if left <= 0:
            raise TimeoutError("the time for the whole call is up")
        return left


UNBOUNDED: Final = Deadline(math.inf)


def deadline_in(seconds: float | None) -> Deadline:
    """The end of a call that begins now and may take ``seconds``; ``None``: as long as it goes on."""
    return UNBOUNDED if seconds is None else Deadline(time.monotonic() + seconds)


def lookup_deadline(keys: int, lookup_seconds: float) -> Deadline:
    """The end of a lookup of so many keys that begins now."""
    return Deadline(time.monotonic() + lookup_seconds * max(1, -(-keys // limits.LOOKUP_SHARE_KEYS_MAX)))


def find_lookup_seconds(given: float | None = None, *, environ: Mapping[str, str] | None = None) -> float:
    """What a lookup may take: ``given``, ``KVLOOM_LOOKUP_SECONDS``, or the default; else :class:`ConfigError`."""
    text = (os.environ if environ is None else environ).get(LOOKUP_SECONDS_VARIABLE)
    try:
        seconds = given if given is not None else float(text) if text else limits.LOOKUP_SECONDS_DEFAULT
    except ValueError:
        seconds = math.nan
    if not 0.001 <= seconds <= limits.LOOKUP_SECONDS_MAX:
        said = text if given is None else given
        raise ConfigError(f"lookup_seconds is {said!r}, must be 0.001 to {limits.LOOKUP_SECONDS_MAX}")
    return seconds


class RetryBudget:
    """The tokens of one client. Safe to use from several threads at once."""

    def __init__(self, tokens_max: float = limits.RETRY_TOKENS_MAX) -> None:
        self._tokens = self._tokens_max = tokens_max
        self._lock = threading.Lock()

    def note_call(self) -> None:
        """A call was made."""
        with self._lock:
            self._tokens = min(self._tokens_max, self._tokens + limits.RETRY_TOKENS_PER_CALL)

    def take(self) -> bool:
        """Whether one further try may be made; if so, it is paid for."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most ``tries_max`` tries of a call (1: no retries), none later than ``seconds_max`` after the first."""

    tries_max: int = limits.RETRY_TRIES_MAX
    seconds_max: float = limits.RETRY_SECONDS_MAX

    def __post_init__(self) -> None:
        if not 1 <= self.tries_max <= 100 or not 0 <= self.seconds_max <= 3600:
            raise ConfigError(f"retries of {self.tries_max} tries in {self.seconds_max} s: must be 1 to 100 in an hour")


class Attempts:
    """The tries of one call, from its first; ``clock`` and ``chance`` (0 to 1) are given in tests."""

    def __init__(
        self,
        operation: Operation[Any],
        policy: RetryPolicy,
        budget: RetryBudget,
        deadline: Deadline = UNBOUNDED,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        budget.note_call()
        self._tries_max = policy.tries_max if operation.repeatable else 1
        self._budget, self._clock, self._chance = budget, clock, chance
        self._ends = min(clock() + min(policy.seconds_max, operation.retry_seconds_max), deadline.ends)
        self._tries = 1

    def wait_after(self, error: KvloomError) -> float | None:
        """How long to wait before the next try; ``None`` where ``error`` is the answer.

        Tried again is what says that it may pass: nobody answers, too much to do, a tier is away. Not what took all
        the time it was given, nor what the caller did wrong.
        """
        if isinstance(error, DaemonSilent) or self._tries >= self._tries_max:
            return None
        if not isinstance(error, DaemonUnavailable | Overloaded | StorageUnavailable):
            return None
        if error.retry_seconds is None:
            wait = limits.RETRY_BACKOFF_SECONDS * float(2 ** (self._tries - 1)) * self._chance()
        else:
            wait = error.retry_seconds * (1 + self._chance() / 2)
        if self._clock() + wait >= self._ends or not self._budget.take():
            return None
        self._tries += 1
        return wait
