"""SGLang: a storage backend of HiCache that keeps the pages of its host pools in a kvloom daemon (docs/ENGINES.md).

``--hicache-storage-backend dynamic`` with ``"module_path": "kvloom.clients.sglang", "class_name": "KvloomHiCache"`` in
``--hicache-storage-backend-extra-config`` has SGLang load it. What needs no SGLang (names, hits, settings) can be
imported without it; this class cannot.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from ...errors import MissingDependency

if TYPE_CHECKING:
    from .hicache import KvloomHiCache

__all__ = ["KvloomHiCache"]

_HOME: Final = ".hicache"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("sglang") is None:
        raise MissingDependency(f"{name} runs inside SGLang, which is not installed here: pip install 'kvloom[sglang]'")
    return getattr(import_module(_HOME, __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
