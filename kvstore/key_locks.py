"""One lock per key, made when it is needed and gone when nobody holds or awaits it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .key import StorageKey

__all__ = ["KeyLocks"]


@dataclass(slots=True)
class _Held:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class KeyLocks:
    """Serialises changes of one key across tiers; first come, first served."""

    def __init__(self) -> None:
        self._held: dict[StorageKey, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @asynccontextmanager
    async def hold(self, key: StorageKey) -> AsyncIterator[None]:
        """Hold the lock of ``key`` for the length of the block. Safe to cancel while waiting."""
        held = self._held.setdefault(key, _Held())
        held.users += 1
        try:
            async with held.lock:
                yield
        finally:
            held.users -= 1
            if held.users == 0:
                del self._held[key]
