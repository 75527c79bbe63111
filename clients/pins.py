"""A lease on chunks that are not to be evicted, as something to be held by a ``with`` block."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType

from ..errors import DaemonUnavailable, Overloaded
from .leases import PinReply

__all__ = ["AsyncPin", "Pin"]


class _Held:
    """What both kinds say of their lease."""

    def __init__(self, reply: PinReply) -> None:
        self._reply = reply

    @property
    def lease(self) -> bytes:
        """Its name, for :meth:`KvloomClient.release` in another process."""
        return self._reply.lease

    @property
    def until_ms(self) -> int:
        """When it ends by itself, in milliseconds since the epoch by the daemon's clock."""
        return self._reply.until_ms

    @property
    def pinned(self) -> tuple[bool, ...]:
        """For each key, whether its chunk is pinned: what is not stored on this daemon is not."""
        return self._reply.pinned


class Pin(_Held):
    """A running lease; leaving its ``with`` block ends it. Where no daemon answers then, it ends by itself."""

    def __init__(self, reply: PinReply, release: Callable[[bytes], bool]) -> None:
        super().__init__(reply)
        self._release = release

    def release(self) -> bool:
        """End the lease now; whether it was still running."""
        return self._release(self.lease)

    def __enter__(self) -> "Pin":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(DaemonUnavailable, Overloaded):
            self.release()


class AsyncPin(_Held):
    """The same for an event loop: ``async with await client.pin(keys) as pin``."""

    def __init__(self, reply: PinReply, release: Callable[[bytes], Awaitable[bool]]) -> None:
        super().__init__(reply)
        self._release = release

    async def release(self) -> bool:
        """End the lease now; whether it was still running."""
        return await self._release(self.lease)

    async def __aenter__(self) -> "AsyncPin":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(DaemonUnavailable, Overloaded):
            await self.release()
