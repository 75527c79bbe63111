"""What every client process of the store benchmark does; without kvloom, since peers have Pythons of their own."""

import json
import sys
import time
from collections.abc import Callable

__all__ = ["WORKING_SET_BYTES", "content_of", "serve_turns"]

WORKING_SET_BYTES = 192 * 1024 * 1024
"""Larger than the caches."""


def content_of(number: int, value_bytes: int) -> bytes:
    """A value that does not compress, the same whoever makes it."""
    import numpy as np

    return np.random.default_rng(number).bytes(value_bytes)


def serve_turns(run: Callable[[], int], values: int = 1, prepare: Callable[[], None] | None = None) -> None:
    """For each line on standard input, a number of seconds, call ``run`` for so long and print what it came to.

    ``run`` returns the bytes that it moved in ``values`` operations. ``prepare`` is called before each and not timed.
    """
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds: list[float] = []
        moved, preparing, cpu = 0, 0.0, time.process_time()
        end = time.perf_counter() + float(line)
        while (start := time.perf_counter()) < end or not seconds:
            if prepare is not None:
                prepare()
                preparing += time.perf_counter() - start
                start = time.perf_counter()
            moved += run()
            seconds.append((time.perf_counter() - start) / values)
        turn = {"seconds": seconds, "bytes": moved, "cpu": time.process_time() - cpu, "preparing": preparing}
        print(json.dumps(turn), flush=True)
