"""When answers that were checked against full prefill are too far from it. Pure."""

from collections.abc import Sequence
from typing import Final

from .plan_wire import QualitySample

__all__ = ["CHECKS_KEPT", "misses_target"]

CHECKS_KEPT: Final = 64
"""The latest checks, that an alert goes by."""
_CHECKS_MIN: Final = 8


def misses_target(samples: Sequence[QualitySample]) -> bool:
    """Whether ``samples``, taken together, miss what was asked of each: in their mean KL, or in how many agree.

    Fewer than 8 say nothing yet.
    """
    count = len(samples)
    if count < _CHECKS_MIN:
        return False
    far = sum(item.kl - item.kl_max for item in samples) > 0.0
    return far or sum(item.agrees - item.agreement_min for item in samples) < 0.0
