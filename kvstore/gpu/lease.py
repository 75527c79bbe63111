"""Leases of chunks in a pool: while one is held, the chunk's pages are nobody else's."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import finalize

from ...codec.level import Level
from ..key import ContentKey
from .pages import PageTable

if TYPE_CHECKING:
    from .residency import Chunk

__all__ = ["PoolLease"]


class PoolLease:
    """A resident chunk: ``pages`` is its block table, of which the first ``tokens`` slots are filled.

    Release it on the stream that reads the pages, once all reads are queued there: the pages are not used again before
    the device has passed that point. A lease that is dropped unreleased is given back when it is collected, at the
    cost of waiting for the whole device. May be released from any thread, and twice.
    """

    __slots__ = ("__weakref__", "_dropped", "_release", "chunk")

    def __init__(
        self, chunk: "Chunk", release: Callable[["Chunk"], None], forgotten: Callable[["Chunk"], None]
    ) -> None:
        self.chunk = chunk
        self._release = release
        self._dropped = finalize(self, forgotten, chunk)
        self._dropped.atexit = False

    def __enter__(self) -> "PoolLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def content_key(self) -> ContentKey:
        """Which chunk."""
        return self.chunk.content_key

    @property
    def level(self) -> Level:
        """The level that it was decoded at."""
        return self.chunk.level

    @property
    def pages(self) -> PageTable:
        """The pages, in the order of the tokens. Not to be written to."""
        return self.chunk.pages

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return self.chunk.tokens

    @property
    def first_position(self) -> int:
        """The position that the keys are rotated to."""
        return self.chunk.first_position

    def release(self) -> None:
        """Let go of the pages."""
        if self._dropped.detach() is not None:
            self._release(self.chunk)
