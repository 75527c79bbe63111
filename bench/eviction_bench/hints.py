"""One-bit hints made from the future."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Hints"]


@dataclass(frozen=True, slots=True)
class Hints:
    """For each block use of a trace, in order, whether the block is not worth keeping until its next use."""

    name: str
    discard: Sequence[bool]
