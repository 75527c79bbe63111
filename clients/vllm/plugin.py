"""What vLLM runs in each of its processes before a model is loaded: the load format ``kvloom``.

A connector is given the engine's KV and not its weights. vLLM's loaders are told the weights, and a loader may come
from outside: the entry point ``vllm.general_plugins`` names :func:`register`, and ``--load-format kvloom`` has vLLM
load a model just as it would by itself, and this module remember it for the connector of the same process.
"""

from dataclasses import replace
from typing import Any, Final

__all__ = ["LOAD_FORMAT", "loaded_model", "register"]

LOAD_FORMAT: Final = "kvloom"
_LOADED: dict[str, Any] = {}
"""The engine's model, in a worker's process, once it is loaded."""


def register() -> None:
    """Tell vLLM of the load format. May be called again."""
    from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

    class KvloomLoader(DefaultModelLoader):  # type: ignore[misc]
        """Loads as ``auto`` does."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="auto"))

        def load_model(self, *args: Any, **kwargs: Any) -> Any:
            """As the default loader's; the first model that a process loads is the engine's."""
            model = super().load_model(*args, **kwargs)
            _LOADED.setdefault("model", model)
            return model

    register_model_loader(LOAD_FORMAT)(KvloomLoader)


def loaded_model() -> Any:
    """The model that this process has loaded with ``--load-format kvloom``, None where there is none."""
    return _LOADED.get("model")
