"""The layers of a model as the parts in which their KV is stored: one, or several that come and go on their own.

A chunk's part is a container of its own under a key of its own, so that an engine stores the first layers while it
computes the next, and another loads them meanwhile. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from ...codec.layout import Layout
from ...kvstore.key import ModelIdentity

__all__ = ["LayerPart", "parts_of", "shard_identities"]


@dataclass(frozen=True, slots=True)
class LayerPart:
    """``layers`` of a rank's model, and their ``layout``; ``index`` counts the parts of the rank."""

    index: int
    layers: range
    layout: Layout


def parts_of(layout: Layout, layers_per_part: int) -> list[LayerPart]:
    """A rank's layers in parts of ``layers_per_part``, the last maybe shorter; 0: all in one."""
    count = len(layout.layers)
    size = layers_per_part or count
    found = []
    for index, start in enumerate(range(0, count, size)):
        layers = range(start, min(start + size, count))
        found.append(LayerPart(index, layers, replace(layout, layers=layout.layers[layers.start : layers.stop])))
    return found


def shard_identities(fingerprint: bytes, layouts: Sequence[Layout], layers_per_part: int) -> list[ModelIdentity]:
    """What names the KV of every rank's parts, rank by rank.

    Parts may have equal layouts, so which layers a part holds becomes part of its model's fingerprint.
    """
    identities = []
    for layout in layouts:
        parts = parts_of(layout, layers_per_part)
        for part in parts:
            described = f" layers {part.layers.start} to {part.layers.stop}".encode()
            named = fingerprint if len(parts) == 1 else blake3(fingerprint + described).digest()
            identities.append(ModelIdentity(named, part.layout.digest()))
    return identities
