"""Stored chunks as keys and values, at the level that the engine keeps."""

from collections.abc import Callable, Iterable

from ... import codec
from ...blend.cache import tensor_view
from ...codec.container import Container, generic_digest
from ...codec.layout import Layout
from ...codec.level import EXACT, Level
from ...codec.profiles import AnyProfile
from .pages import ChunkArrays

__all__ = ["ChunkDecoder", "FindProfile"]

FindProfile = Callable[[bytes], AnyProfile | None]


class ChunkDecoder:
    """Decodes chunks of ``layouts`` at ``level``. Safe to use from several threads."""

    def __init__(self, layouts: Iterable[Layout], level: Level, find_profile: FindProfile) -> None:
        self._level, self._find_profile = level, find_profile
        self._generic = {generic_digest(layout) for layout in layouts}  # of profiles that everybody has

    def stored(self, container: Container, layout: Layout) -> ChunkArrays | None:
        """What ``container`` keeps as it is, in its memory, not to be written to; None where that is :meth:`decode`'s.

        Of another layout everything is, which says what is wrong with it. Raises :class:`LevelNotStored`.
        """
        if self._level != EXACT or container.header.layout != layout:
            return None
        views = codec.exact_views(container)
        return None if views is None else ChunkArrays(*(tuple(map(tensor_view, arrays)) for arrays in views))

    def decode(self, container: Container, arrays: ChunkArrays, layout: Layout) -> None:
        """Into ``arrays``; raises what :func:`kvloom.codec.decode_into` does."""
        digest = container.header.profile_digest
        generic = self._level == EXACT or digest in self._generic
        profile = None if generic else self._find_profile(digest)
        keys, values = arrays.numpy
        codec.decode_into(container, keys, values, profile=profile, level=self._level, layout=layout)
