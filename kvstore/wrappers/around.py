"""A tier that does the same thing around every operation of another: the base of retry, breaker and throttle."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar

from ... import limits
from ...codec.container import ByteRange
from ...errors import Overloaded, StorageUnavailable
from ..key import OwnerId, StorageKey
from ..outcome import Outcome, Throttled, Unavailable
from ..tier import Record, RecordInfo, Slice, Tier, Usage
from .passing import PassingTier

__all__ = ["AroundTier", "Operation"]

T = TypeVar("T")
_RETRY_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Operation:
    """What is about to be done. ``size_bytes`` bounds what it moves; 0 where that is little, or not known before.

    ``items`` is how many things it asks about. ``brief``: ends within a time that its size bounds; a listing does not.
    ``repeatable``: doing it twice comes to the same as once.
    """

    name: str
    size_bytes: int = 0
    items: int = 1
    brief: bool = True
    repeatable: bool = True


class AroundTier(PassingTier):
    """:meth:`around` says what is added.

    Inside, an inner tier that is away or busy is always a :class:`StorageUnavailable` or an :class:`Overloaded`;
    outside, :meth:`get` answers it as an outcome again.
    """

    def __init__(self, inner: Tier) -> None:
        super().__init__(inner)
        self._closed = False

    @abstractmethod
    async def around(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> T:
        """Make ``call``, which does ``operation`` each time it is called."""

    async def put(self, record: Record) -> None:
        """Put into the inner tier."""
        self._require_open()
        await self.around(Operation("put", len(record.payload)), lambda: self._inner.put(record))

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read from the inner tier."""
        self._require_open()
        try:
            return await self.around(Operation("get", _bytes_of(ranges)), lambda: self._get(key, ranges))
        except StorageUnavailable as error:
            return Unavailable(self.name, str(error))
        except Overloaded:
            return Throttled(self.name, _RETRY_SECONDS)

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Ask the inner tier."""
        self._require_open()
        return await self.around(Operation("contains", items=len(keys)), lambda: self._inner.contains_many(keys))

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Ask the inner tier."""
        self._require_open()
        operation = Operation("contains", items=len(keys))
        return await self.around(operation, lambda: self._inner.contains_live(keys, now_ms))

    async def expired(self, now_ms: int, limit: int) -> list[StorageKey]:
        """Ask the inner tier."""
        self._require_open()
        return await self.around(Operation("expired", brief=False), lambda: self._inner.expired(now_ms, limit))

    async def delete(self, key: StorageKey) -> bool:
        """Delete from the inner tier. Where it was tried twice, ``False`` may mean that the first try did it."""
        self._require_open()
        return await self.around(Operation("delete"), lambda: self._inner.delete(key))

    async def scan(self) -> AsyncIterator[RecordInfo]:
        """All records of the inner tier."""
        async with aclosing(self._inner.scan()) as infos:  # type: ignore[type-var]  # iterators of tiers are generators
            async for info in self._stepwise(infos):
                yield info

    async def scan_owner(self, owner: OwnerId) -> AsyncIterator[RecordInfo]:
        """The owner's records in the inner tier."""
        async with aclosing(self._inner.scan_owner(owner)) as infos:  # type: ignore[type-var]
            async for info in self._stepwise(infos):
                yield info

    async def usage(self, owner: OwnerId) -> Usage:
        """Count in the inner tier."""
        self._require_open()
        return await self.around(Operation("usage", brief=False), lambda: self._inner.usage(owner))

    async def delete_owner(self, owner: OwnerId) -> int:
        """Delete from the inner tier. Not repeated: the number would be wrong."""
        self._require_open()
        operation = Operation("delete_owner", brief=False, repeatable=False)
        return await self.around(operation, lambda: self._inner.delete_owner(owner))

    async def ping(self) -> None:
        """Ask the inner tier, with nothing around."""
        self._require_open()
        await self._inner.ping()

    async def close(self) -> None:
        """Close the inner tier."""
        self._closed = True
        await self._inner.close()

    async def _get(self, key: StorageKey, ranges: Sequence[ByteRange] | None) -> Outcome[Slice]:
        found = await self._inner.get(key, ranges)
        if isinstance(found, Unavailable):
            raise StorageUnavailable(found.detail)
        if isinstance(found, Throttled):
            raise Overloaded(f"{found.tier} is busy, try again in {found.retry_seconds} s")
        return found

    async def _stepwise(self, infos: AsyncIterator[RecordInfo]) -> AsyncIterator[RecordInfo]:
        step = Operation("scan", brief=False, repeatable=False)
        while True:
            self._require_open()
            info = await self.around(step, lambda: anext(infos, None))
            if info is None:
                return
            yield info

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnavailable(f"{self.name} tier is closed")


def _bytes_of(ranges: Sequence[ByteRange] | None) -> int:
    """What a read of ``ranges`` can come to at most; a read of the whole payload says it only when it is there."""
    if ranges is None:
        return 0
    return min(sum(max(0, item.stop - item.start) for item in ranges), limits.RECORD_BYTES_MAX)
