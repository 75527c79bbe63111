"""Workloads that need no data: conversations and shared prefixes, a million requests in seconds. Pure."""

from dataclasses import dataclass

import numpy as np

from ....errors import InvalidData, TooManyItems
from ....limits import CHUNK_TOKENS_DEFAULT
from . import limits
from .workload import NO_BLOCK, Workload

__all__ = ["Synthetic", "synthetic"]


@dataclass(frozen=True, slots=True)
class Synthetic:
    """What the requests are like; lengths in chunks of ``chunk_tokens`` tokens.

    There are ``prefixes`` shared beginnings of ``prefix_chunks`` chunks, popular as Zipf has it (exponent 1). A request
    goes on from one of them or, with the chance ``again``, from the prompt of an earlier request (1,000 before it in
    the mean), with a geometric number of new chunks, ``new_chunks`` in the mean, the last of which is short.
    """

    requests: int
    per_second: float
    prefixes: int = 100
    prefix_chunks: int = 4
    again: float = 0.4
    new_chunks: float = 3.0
    chunk_tokens: int = CHUNK_TOKENS_DEFAULT
    prompt_chunks_max: int = 64


def synthetic(kind: Synthetic, seed: int, *, name: str = "synthetic") -> Workload:
    """Requests of ``kind``, the same for the same seed; Poisson arrivals."""
    if not 1 <= kind.requests <= limits.SIMULATED_REQUESTS_MAX:
        raise TooManyItems(f"{kind.requests} requests, the limits are 1 and {limits.SIMULATED_REQUESTS_MAX}")
    if not (kind.per_second > 0 and kind.new_chunks >= 1 and kind.prefix_chunks >= 0 and kind.prefixes >= 1):
        raise InvalidData("a synthetic workload has requests per second, prefixes, and at least 1 new chunk a request")
    source = np.random.default_rng(seed)
    count = kind.requests
    arrivals = np.cumsum(source.exponential(1.0 / kind.per_second, count))
    fresh = np.minimum(source.geometric(1.0 / kind.new_chunks, count), kind.prompt_chunks_max).tolist()
    weights = 1.0 / np.arange(1, kind.prefixes + 1)
    chosen = source.choice(kind.prefixes, count, p=weights / weights.sum()).tolist()
    goes_on = (source.random(count) < kind.again).tolist()
    back = source.geometric(1e-3, count).tolist()
    tails = source.integers(1, kind.chunk_tokens + 1, count).tolist()

    roots = kind.prefixes * kind.prefix_chunks
    parents = [NO_BLOCK if at % kind.prefix_chunks == 0 else at - 1 for at in range(roots)]
    depths = [at % kind.prefix_chunks for at in range(roots)]
    tokens = [kind.chunk_tokens] * roots
    paths: list[list[int]] = []
    for request in range(count):
        earlier = request - back[request]
        if goes_on[request] and earlier >= 0 and len(paths[earlier]) - 1 + fresh[request] <= kind.prompt_chunks_max:
            before = paths[earlier][:-1]  # its last chunk is short: a longer prompt has another one there
        else:
            root = chosen[request] * kind.prefix_chunks
            before = list(range(root, root + kind.prefix_chunks))
        new = range(len(parents), len(parents) + fresh[request])
        above = before[-1] if before else NO_BLOCK
        parents += [above, *new[:-1]] if len(new) > 1 else [above]
        depths += range(len(before), len(before) + len(new))
        tokens += [kind.chunk_tokens] * (len(new) - 1) + [tails[request]]
        paths.append([*before, *new])
    first = np.concatenate(([0], np.cumsum([len(path) for path in paths])))
    return Workload(
        name,
        arrivals,
        first,
        np.fromiter((block for path in paths for block in path), dtype=np.int32, count=int(first[-1])),
        np.array(tokens, dtype=np.int32),
        np.array(depths, dtype=np.int32) * kind.chunk_tokens,
        np.array(parents, dtype=np.int32),
    )
