"""Find a model's decoder layers without knowing the model."""

import inspect
from typing import Any

from torch import nn

from ..errors import UnsupportedModel

__all__ = ["decoder_layers"]


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers a model runs one after the other: its one list of ``num_hidden_layers`` modules that take a cache.

    Raises :class:`UnsupportedModel` when there is none or more than one.
    """
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    found = [
        (name, list(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and all(_takes_cache(layer) for layer in module)
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise UnsupportedModel(
            f"{type(model).__name__}: need one list of {count} decoder layers that take past_key_values, found {names}"
        )
    return found[0][1]


def _takes_cache(layer: nn.Module) -> bool:
    parameters = inspect.signature(layer.forward).parameters
    return "hidden_states" in parameters and "past_key_values" in parameters
