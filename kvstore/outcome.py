"""What a read of a tier or of the store can come to. Never ``None``, never a bool: the outcome says why."""

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Corrupt", "Hit", "Miss", "Outcome", "Throttled", "Unavailable", "more_telling"]

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, slots=True)
class Hit(Generic[T]):
    """Found and verified as far as the layer that answers verifies; ``tier`` says where."""

    value: T
    tier: str


@dataclass(frozen=True, slots=True)
class Miss:
    """Not stored."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Stored, but damaged. To a client this is a miss; to an operator it is a counter and a log line."""

    tier: str
    detail: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """Refused for now by a limit; try again after ``retry_seconds``."""

    tier: str
    retry_seconds: float

    def __str__(self) -> str:
        return f"{self.tier} tier is busy, to be tried again in {self.retry_seconds} s"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The tier cannot answer (down, failing, timed out)."""

    tier: str
    detail: str

    def __str__(self) -> str:
        return self.detail


Outcome = Hit[T] | Miss | Corrupt | Throttled | Unavailable


def more_telling(one: Outcome[T], other: Outcome[T]) -> Outcome[T]:
    """Of two ways to have no answer, the one that says more."""
    order = (Miss, Throttled, Unavailable, Corrupt)
    return max(one, other, key=lambda outcome: order.index(type(outcome)))
