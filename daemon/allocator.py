"""How much memory the C library keeps of what the daemon has freed.

glibc gives every thread that allocates beside another an arena of its own, eight for each processor, and keeps at the
top of each what was freed there. A daemon whose threads take turns with large bodies fills one after the other up to
its own high-water mark: over half an hour of steady load that looked like a leak of 30 MB (docs/RELIABILITY.md). And
whole pages in the middle of a heap stay with the process until somebody asks for them to be given back. What is larger
than a threshold is mapped instead and goes back once it is freed; but glibc raises that threshold to the largest size
that it has seen freed, up to 32 MiB, and keeps from then on what it mapped before.
"""

import asyncio
import ctypes
import os
from collections.abc import Mapping
from typing import Final

from .. import limits

__all__ = ["ARENAS_MAX", "MAPPED_BYTES_MIN", "bound_heap", "give_back", "giving_back"]

ARENAS_MAX: Final = 2
MAPPED_BYTES_MIN: Final = 8 * 1024 * 1024
"""A chunk of a usual size is smaller: to map one anew for every request would take as long as copying it."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_SETTINGS: Final = {
    "MALLOC_ARENA_MAX": {_M_ARENA_MAX: ARENAS_MAX},
    "MALLOC_MMAP_THRESHOLD_": {_M_MMAP_THRESHOLD: MAPPED_BYTES_MIN, _M_TRIM_THRESHOLD: 2 * MAPPED_BYTES_MIN},
}
"""By the variable that stands above each: glibc's parameters, numbered as in its malloc.h, and their values."""


def bound_heap(environ: Mapping[str, str] = os.environ) -> bool:
    """Have at most :data:`ARENAS_MAX` arenas from now on, and map what is large; whether any of that was done.

    Not where the variables of the C library say something else, nor where that is not glibc. Call it before there are
    threads: arenas that exist stay.
    """
    library = _glibc()
    if library is None:
        return False
    wanted = [values for variable, values in _SETTINGS.items() if variable not in environ]
    done = [bool(library.mallopt(name, value)) for values in wanted for name, value in values.items()]
    return any(done)


def give_back() -> bool:
    """Give what is free back to the system, and say whether there was any; other threads go on but for allocating."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


async def giving_back() -> None:
    """:func:`give_back` every :data:`limits.MEMORY_GIVEN_BACK_SECONDS`, until cancelled."""
    while True:
        await asyncio.sleep(limits.MEMORY_GIVEN_BACK_SECONDS)
        await asyncio.to_thread(give_back)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is that one: elsewhere there is nothing of all this, or it means something else."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - asked for to see whether it is there
    except (OSError, AttributeError):
        return None
    return library
