"""What an outcome of the store is to whoever asked over an edge: a value, or the error to answer with."""

from typing import TypeVar

from ..errors import NotFound, Overloaded, StorageUnavailable
from ..kvstore.outcome import Corrupt, Hit, Miss, Outcome, Throttled, Unavailable

__all__ = ["value_of"]

T = TypeVar("T")


def value_of(outcome: Outcome[T], what: str) -> T:
    """What was read; an outcome that is none is the error an edge answers with. Damage is a miss to whoever asks."""
    match outcome:
        case Hit(value=value):
            return value
        case Miss() | Corrupt():
            raise NotFound(f"{what} is not stored")
        case Throttled():
            raise Overloaded(f"{what}: {outcome.tier} is busy, try again in {outcome.retry_seconds} s")
        case Unavailable():
            raise StorageUnavailable(f"{what}: {outcome.tier} cannot answer: {outcome.detail}")
