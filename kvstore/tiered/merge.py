"""What becomes of two containers of one chunk that hold different levels: pure, bytes in, bytes out.

A chunk has at most two streams, the lossy one (its levels in order) and ``exact``. A put never takes away what is
stored: where the new container holds all that the old one holds it replaces it; otherwise the result has both streams.
Where both have a lossy stream, the longer of one profile stays, and of two profiles the newer. CacheGen's levels do not
stand on each other: of one profile, each level of either is kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ...codec.container import ContainerHeader, ContainerWriter, Segment, verify
from ...codec.level import EXACT, Level, LossyCodec
from ...errors import LayoutMismatch
from ..tier import Buffer

__all__ = ["covers", "merge_containers"]


def covers(new: ContainerHeader, old: ContainerHeader) -> bool:
    """Whether every level and layer of ``old`` is in ``new``, so that nothing is lost when ``new`` replaces it."""
    return (
        set(old.levels) <= set(new.levels)
        and new.layers.start <= old.layers.start
        and old.layers.stop <= new.layers.stop
    )


def merge_containers(old: Buffer, new: Buffer) -> Buffer:
    """One container with what both hold; ``old`` or ``new`` itself where that already is it.

    Both must be whole containers of one chunk. Raises :class:`LayoutMismatch` where they cannot become one: another
    layout, length or first position, or layers of which neither holds the other's.
    """
    old_header, new_header = verify(old), verify(new)
    if covers(new_header, old_header):
        return new
    if new_header.tokens != old_header.tokens:
        raise LayoutMismatch(f"chunk is stored with {old_header.tokens} tokens, the container has {new_header.tokens}")
    if new_header.first_position != old_header.first_position:
        # A header has one position for all that is in it, and ``exact`` keys are rotated to theirs.
        raise LayoutMismatch(
            f"chunk is stored as computed at position {old_header.first_position}, "
            f"the container at {new_header.first_position}"
        )
    if new_header.layout != old_header.layout:
        raise LayoutMismatch(
            f"chunk is stored with layout {old_header.layout.digest().hex()[:16]}…, "
            f"the container has {new_header.layout.digest().hex()[:16]}…"
        )
    if old_header.profile_digest == new_header.profile_digest and covers(old_header, new_header):
        return old
    if old_header.layers != new_header.layers:
        raise LayoutMismatch(
            f"chunk is stored with layers {_span(old_header)} at {_names(old_header)}, the container put has layers "
            f"{_span(new_header)} at {_names(new_header)}: neither holds the other"
        )
    sides = (_Side(new_header, memoryview(new)), _Side(old_header, memoryview(old)))
    lossy = _lossy_sides(*sides)
    exact = next((side for side in sides if EXACT in side.header.levels), None)
    writer = ContainerWriter.like((next(iter(lossy.values())) if lossy else sides[0]).header)
    for level, side in lossy.items():
        _put_all(writer, side, (item for item in side.header.segments if item.level == level))
    if exact is not None:
        _put_all(writer, exact, (item for item in exact.header.segments if item.level == EXACT))
    return writer.commit()


@dataclass(frozen=True, slots=True)
class _Side:
    header: ContainerHeader
    data: memoryview

    @property
    def lossy_levels(self) -> tuple[Level, ...]:
        return tuple(level for level in self.header.levels if level != EXACT)


def _lossy_sides(new: _Side, old: _Side) -> dict[Level, _Side]:
    """For each lossy level of the result, the container that it is taken from."""
    if not new.lossy_levels:
        return dict.fromkeys(old.lossy_levels, old)
    same_profile = new.header.profile_digest == old.header.profile_digest
    if same_profile and new.header.codec is LossyCodec.CACHEGEN:
        return dict.fromkeys(old.lossy_levels, old) | dict.fromkeys(new.lossy_levels, new)
    kept = old if same_profile and len(old.lossy_levels) > len(new.lossy_levels) else new
    return dict.fromkeys(kept.lossy_levels, kept)


def _put_all(writer: ContainerWriter, side: _Side, segments: Iterable[Segment]) -> None:
    for item in segments:
        writer.put(item.level, item.layer, item.kind, bytes(side.data[item.offset : item.byte_range.stop]))


def _span(header: ContainerHeader) -> str:
    return f"{header.layers.start}-{header.layers.stop - 1}"


def _names(header: ContainerHeader) -> str:
    return ", ".join(str(level) for level in header.levels)
