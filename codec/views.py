"""KV that a container keeps as it is, looked at where it lies: no memory of its own, no pass over it."""

from typing import Any

from numpy.typing import NDArray

from .container import Container, Kind
from .level import EXACT
from .lossless import view_exact

__all__ = ["exact_views"]


def exact_views(container: Container) -> tuple[list[NDArray[Any]], list[NDArray[Any]]] | None:
    """Keys and values at level ``exact`` of the layers held, each ``[kv_heads, tokens, head_dim]``, read-only.

    They are the container's memory and are not to outlive it. None where any of them is packed, or has no values of its
    own (MLA): those are :func:`decode_into`'s. Raises :class:`LevelNotStored` where ``exact`` is not held.
    """
    header = container.header
    found: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])
    for layer in header.layers:
        spec = header.layout.layers[layer]
        for kind, arrays in zip(Kind, found, strict=True):
            if not spec.width_of(kind):
                return None
            shape = (spec.kv_heads, header.tokens, spec.head_dim_of(kind))
            view = view_exact(container.segment(EXACT, layer, kind), shape, header.layout.dtype)
            if view is None:
                return None
            arrays.append(view)
    return found
