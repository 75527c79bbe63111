"""One request at one outlook: what every choice for every chunk takes, as arrays to search in. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .outlook import LinkCost, Outlook
from .plan import Progress
from .request import Ability, Executor, PlanRequest

__all__ = ["RECOMPUTE", "Problem", "pose"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RECOMPUTE = -1
"""In an array of choices: computed. Any other choice is a way, by its column."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What is left to do of a request. Arrays end with a column for :data:`RECOMPUTE`, so that -1 finds it."""

    chunks: Ints
    """[left], which chunks of the request these are"""
    compute: Floats
    """[left], seconds to compute each, with its part of the calls that its run is cut into"""
    transfer: Floats
    """[left, ways + 1], seconds on the path; infinite where not offered"""
    decode: Floats
    """[left, ways + 1], seconds"""
    loss: Floats
    """[left, ways + 1], nats, summed over tokens"""
    paths: Ints
    """[ways + 1], the path of each way"""
    path_seconds: Floats
    """[paths], before the first byte comes"""
    call_seconds: float
    """of each run of chunks that are computed one after the other"""
    wait_seconds: float
    executor: Executor
    price: float = 1.0
    """What a second of the engine weighs against one that is only waited for."""

    @property
    def prefix_only(self) -> bool:
        """Whether only a prefix may be loaded."""
        return self.executor.ability is Ability.PREFIX_CUT

    @property
    def serial(self) -> bool:
        """Whether nothing is computed before all that is loaded is there."""
        return self.prefix_only or not self.executor.side_by_side

    def __len__(self) -> int:
        return len(self.compute)


def _steady(request: PlanRequest, outlook: Outlook, progress: Progress | None) -> list[LinkCost | None]:
    """The cost of each way's link, at the speed that it has in the mean while it carries what there is to load."""
    costs = [outlook.links.get(way.link) for way in request.ways]
    if all(cost is None or cost.typical_byte_seconds <= 0.0 for cost in costs):
        return costs
    sizes = request.size_bytes if progress is None else request.size_bytes[~progress.done]
    found: dict[str, LinkCost | None] = {}
    for way, cost in zip(request.ways, costs, strict=True):
        if way.link not in found:
            columns = [at for at, other in enumerate(request.ways) if other.link == way.link]
            least = sizes[:, columns].min(axis=1)
            found[way.link] = cost and cost.over(float(least[np.isfinite(least)].sum()))
    return [found[way.link] for way in request.ways]


def pose(request: PlanRequest, outlook: Outlook, executor: Executor, progress: Progress | None = None) -> Problem:
    """What is left of ``request`` once ``progress`` is taken off it, at the costs of ``outlook``."""
    prefill = outlook.prefill
    costs = _steady(request, outlook, progress)
    path_names = [cost.path or way.link if cost else "" for cost, way in zip(costs, request.ways, strict=True)]
    names = list(dict.fromkeys(path_names)) or [""]
    path_seconds = np.zeros(len(names))
    for cost, name in zip(costs, path_names, strict=True):
        if cost is not None:
            index = names.index(name)
            path_seconds[index] = max(path_seconds[index], cost.wait_seconds + cost.latency_seconds)
    byte_seconds = np.array([cost.byte_seconds if cost else np.inf for cost in costs])
    size_bytes, decode, loss = request.size_bytes, request.decode_seconds, request.loss
    tokens, starts = request.tokens, request.starts
    chunks = np.arange(len(request))
    if progress is not None:
        chunks = np.flatnonzero(~progress.done)
        tokens, starts = tokens[chunks], starts[chunks]
        size_bytes, decode, loss = size_bytes[chunks], decode[chunks], loss[chunks]
        begun = np.flatnonzero(progress.under_way[chunks] >= 0)
        if len(begun):
            size_bytes = size_bytes.copy()
            size_bytes[begun, progress.under_way[chunks[begun]]] = progress.left_bytes[chunks[begun]]
            path_seconds[:] = 0.0  # what was asked for is coming
    count, ways = size_bytes.shape
    transfer = np.zeros((count, ways + 1))
    offered = np.isfinite(size_bytes) & np.isfinite(byte_seconds)
    np.multiply(size_bytes, byte_seconds, out=transfer[:, :ways], where=offered)
    transfer[:, :ways][~offered] = np.inf
    decoding, losing = np.zeros((count, ways + 1)), np.zeros((count, ways + 1))
    decoding[:, :ways] = decode
    losing[:, :ways] = loss * tokens[:, None]
    compute = prefill.seconds(tokens, starts)
    if executor.step_tokens:
        compute = compute + prefill.call_seconds * tokens / executor.step_tokens
    return Problem(
        chunks,
        compute,
        transfer,
        decoding,
        losing,
        np.array([*(names.index(name) for name in path_names), 0]),
        path_seconds,
        prefill.call_seconds,
        max(prefill.wait_seconds, 0.0 if progress is None else progress.computing_seconds),
        executor,
    )
