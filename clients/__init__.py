"""Clients of the daemon: one sans-I/O core (:mod:`.protocol`), a blocking and an asyncio client around it.

Names are loaded when first used, so importing this package costs nothing and never pulls in an HTTP library, torch,
transformers or cupy. The RAG SDK is :mod:`kvloom.clients.rag` and needs the ``[rag]`` extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .access import Trust
    from .async_client import AsyncKvloomClient
    from .client import KvloomClient
    from .patience import RetryPolicy
    from .put_batch import ChunkPut, ChunkToPut

__all__ = ["AsyncKvloomClient", "ChunkPut", "ChunkToPut", "KvloomClient", "RetryPolicy", "Trust"]

_HOMES = {
    "AsyncKvloomClient": ".async_client",
    "ChunkPut": ".put_batch",
    "ChunkToPut": ".put_batch",
    "KvloomClient": ".client",
    "RetryPolicy": ".patience",
    "Trust": ".access",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
