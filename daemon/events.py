"""KV events: what the store says of its tiers, handed to the subscribers of the tenant whose chunks they are.

Nobody is waited for. Each subscriber has a bounded queue; what finds it full is counted, and the count is the first
thing that the subscriber gets once it reads again (:class:`.EventsLost`). Tiers know records by their storage keys,
from which nobody gets back to a hash, so the hub remembers the hashes of the last chunks stored; a removal of one that
it has forgotten is a lost event too.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from .. import limits
from ..clients.kv_events import BlockRemoved, BlockStored, EventsLost, KvEvent
from ..errors import Overloaded, TenantOverloaded
from ..kvstore.key import ContentKey, OwnerId, StorageKey, owner_of
from ..kvstore.tier import RecordInfo
from .chunk_names import ChunkNames

__all__ = ["EventHub", "Subscription"]

_MEDIA: Final = {"memory": "cpu", "ssd": "disk"}
_NETWORK: Final = "network"
_CUDA: Final = "cuda"


class Subscription:
    """The events of one tenant from some moment on; belongs to one reader. Ends when the hub is closed."""

    def __init__(self, *, queued_max: int = limits.EVENTS_QUEUED_MAX) -> None:
        self.number = 0
        """How many events :meth:`next` has given: the last one's id in its stream."""
        self._queued_max = queued_max
        self._queue: deque[KvEvent] = deque()
        self._lost = 0
        self._lost_unknown = False
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, event: KvEvent) -> None:
        """Queue ``event``, or count it where the queue is full, or it is itself a loss."""
        if isinstance(event, EventsLost) or len(self._queue) >= self._queued_max:
            self._lost += (event.count or 0) if isinstance(event, EventsLost) else 1
            self._lost_unknown |= isinstance(event, EventsLost) and event.count is None
        else:
            self._queue.append(event)
        self._wake.set()

    def close(self) -> None:
        """No more will come."""
        self._closed = True
        self._wake.set()

    async def next(self, *, seconds_max: float | None = None) -> KvEvent | None:
        """The next event, or ``None`` after ``seconds_max`` without one. Raises :class:`StopAsyncIteration` at the end.

        A loss comes before what was queued: whoever has lost events asks again for what is stored. Safe to cancel.
        """
        if not (self._queue or self._lost or self._lost_unknown or self._closed):
            self._wake.clear()
            try:
                async with asyncio.timeout(seconds_max):
                    await self._wake.wait()
            except TimeoutError:
                return None
        if self._lost or self._lost_unknown:
            count = None if self._lost_unknown else self._lost
            self._lost, self._lost_unknown = 0, False
            self.number += 1
            return EventsLost(count)
        if self._queue:
            self.number += 1
            return self._queue.popleft()
        raise StopAsyncIteration

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> KvEvent:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event


class EventHub:
    """Belongs to one event loop. ``names_max`` bounds the hashes that are remembered, of all tenants together."""

    def __init__(self, *, names_max: int = limits.EVENT_NAMES_MAX) -> None:
        self._names = ChunkNames(names_max)
        self._subscriptions: dict[OwnerId, list[Subscription]] = {}
        self._count = 0
        self._closed = False

    @property
    def subscribers(self) -> int:
        """How many there are."""
        return self._count

    @contextmanager
    def subscribing(self, owner: OwnerId, *, resumed: bool = False) -> Iterator[Subscription]:
        """The events of ``owner`` while the context lasts; ``resumed``: an earlier subscription broke off.

        Raises :class:`Overloaded` where there are too many subscribers, or of the tenant, or the daemon ends.
        """
        if self._closed:
            raise Overloaded("daemon is draining, try again in a moment")
        if self._count >= limits.EVENT_SUBSCRIBERS_MAX:
            raise Overloaded(f"there are {self._count} subscribers, the limit is {limits.EVENT_SUBSCRIBERS_MAX}")
        mine = self._subscriptions.setdefault(owner, [])
        if len(mine) >= limits.EVENT_SUBSCRIBERS_PER_TENANT_MAX:
            most = limits.EVENT_SUBSCRIBERS_PER_TENANT_MAX
            raise TenantOverloaded(f"this tenant has {len(mine)} subscribers, its limit is {most}")
        subscription = Subscription()
        if resumed:
            subscription.offer(EventsLost(None))
        mine.append(subscription)
        self._count += 1
        try:
            yield subscription
        finally:
            self._count -= 1
            mine.remove(subscription)
            if not mine:
                self._subscriptions.pop(owner, None)

    async def events(self, owner: OwnerId, *, resumed: bool = False) -> AsyncGenerator[KvEvent, None]:
        """:meth:`subscribing` as an iterator; close it (``aclosing``) to unsubscribe."""
        with self.subscribing(owner, resumed=resumed) as subscription:
            async for event in subscription:
                yield event

    def close(self) -> None:
        """End all subscriptions once they have read what is queued, and take no more."""
        self._closed = True
        for mine in self._subscriptions.values():
            for subscription in mine:
                subscription.close()

    def note_name(self, key: StorageKey, content_key: ContentKey) -> None:
        """``content_key`` is what is kept under ``key``."""
        self._names.note(key, content_key)

    def note_stored(self, tier: str, info: RecordInfo) -> None:
        """A record is in ``tier`` now."""
        self.note_name(info.storage_key, info.content_key)
        mine = self._subscriptions.get(owner_of(info.storage_key))
        if not mine:
            return
        about = info.attributes
        parent = None if about.parent is None else self._names.get(about.parent)
        medium = _MEDIA.get(tier, _NETWORK)
        event = BlockStored(
            (info.content_key,), medium, tier, parent, about.tokens, about.start, size_bytes=info.payload_bytes
        )
        for subscription in mine:
            subscription.offer(event)

    def note_removed(self, tier: str, key: StorageKey) -> None:
        """A record is not in ``tier`` any more."""
        mine = self._subscriptions.get(owner_of(key))
        if not mine:
            return
        name = self._names.get(key)
        event = EventsLost(1) if name is None else BlockRemoved((name,), _MEDIA.get(tier, _NETWORK), tier)
        for subscription in mine:
            subscription.offer(event)

    def note_pool(self, owner: OwnerId, device: str, added: Sequence[ContentKey], gone: Sequence[ContentKey]) -> None:
        """A pool of decoded chunks on ``device``, in a process of ``owner``, has come to hold and given up these."""
        mine = self._subscriptions.get(owner, ())
        medium = "gpu" if device.startswith(_CUDA) else "cpu"
        for subscription in mine:
            for keys in _batches(gone):
                subscription.offer(BlockRemoved(keys, medium, device))
            for keys in _batches(added):
                subscription.offer(BlockStored(keys, medium, device))


def _batches(keys: Sequence[ContentKey]) -> Iterator[tuple[ContentKey, ...]]:
    for start in range(0, len(keys), limits.POOL_REPORT_KEYS_MAX):
        yield tuple(keys[start : start + limits.POOL_REPORT_KEYS_MAX])
