"""When a load that is under way is looked at again, and what it says of its link by then. Pure.

Whoever carries out a plan waits for a chunk until it is overdue, and then has the planner decide anew, by what has come
of it: the engines' plugins and the simulated executor alike. Waiting a little longer costs a part of what was waited
already, so a chunk that is never seen again costs a few times what it was expected to take, at the most.
"""

import math
from typing import Final

__all__ = ["look_again_seconds", "overdue_seconds", "seen_byte_seconds"]

_OVERDUE: Final = 2.0
"""Times what it was expected to take."""
_AGAIN: Final = 0.5
"""Of the time that has passed, until it is looked at again."""
_SECONDS_MIN: Final = 1e-6


def overdue_seconds(expected_seconds: float, compute_seconds: float = math.inf) -> float:
    """After how long a load is looked at that was expected to take so long, and could be computed in so long."""
    return max(min(_OVERDUE * expected_seconds, expected_seconds + compute_seconds), _SECONDS_MIN)


def look_again_seconds(passed_seconds: float) -> float:
    """How much longer to wait for one that was not given up so long after it began."""
    return max(_AGAIN * passed_seconds, _SECONDS_MIN)


def seen_byte_seconds(size_bytes: float, received_bytes: float, passed_seconds: float) -> float:
    """The seconds per byte of a transfer under way.

    Where nobody knows what has come of it (``received_bytes`` of 0), it has not come whole: it takes that long at
    least, and as long again is expected of it.
    """
    return passed_seconds / max(received_bytes if received_bytes > 0.0 else size_bytes, 1.0)
