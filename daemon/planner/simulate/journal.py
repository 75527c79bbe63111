"""What a simulation leaves behind: when requests had their first tokens, and when what was busy with whom."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EngineStep", "Log", "Result"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EngineStep:
    """An engine was busy with one request."""

    start_s: float
    end_s: float
    request: int


@dataclass(slots=True)
class Log:
    """What :mod:`.bound` needs to know of a simulation."""

    steps: list[list[EngineStep]]
    """By node, in the order of time."""
    transfers: list[list[tuple[float, float]]]
    """By request: when it had a transfer on its link."""
    hits: list[list[int]]
    """By request."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What happened to each request, [requests] each."""

    ttft_s: Floats
    bytes: Floats
    gpu_s: Floats
    loss: Floats
    """Nats per token of the prompt."""
    loaded_tokens: NDArray[np.int64]
    hit_tokens: NDArray[np.int64]
