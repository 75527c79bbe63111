"""A Transformers model that computes with the engine's own weights, for what only Transformers' code can do: blend.

Transformers' modules are made without weights, and every one that would have any is replaced by the engine's module of
the same name: projections (which vLLM packs together), embeddings, norms' weights. Nothing is copied, and weights that
vLLM has quantised or packed for its kernels are used by its kernels. What stays Transformers' own is the order of
things: attention, rotation, residuals.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ...errors import UnsupportedModel

__all__ = ["engine_twin"]

_EMBEDDING: Final = "embed_tokens"


class _Packed:
    """A module of the engine that computes several projections of one input at once."""

    def __init__(self, module: nn.Module, widths: list[int]) -> None:
        self._module, self._widths = module, widths
        self._input: Tensor | None = None
        self._left: dict[int, Tensor] = {}

    def part(self, index: int, states: Tensor) -> Tensor:
        """The ``index``-th projection of ``states``; the others are kept for whoever asks for them next."""
        if self._input is not states or index not in self._left:
            self._input = states
            self._left = dict(enumerate(_apply(self._module, states).split(self._widths, dim=-1)))
        found = self._left.pop(index)
        if not self._left:
            self._input = None
        return found


class _Projection(nn.Module):
    """One projection, by the engine's module."""

    def __init__(self, packed: _Packed, index: int) -> None:
        super().__init__()
        self._packed, self._index = packed, index

    def forward(self, states: Tensor) -> Tensor:
        """``[batch, tokens, in]`` to ``[batch, tokens, out]``."""
        return self._packed.part(self._index, states)


class _Embedding(nn.Module):
    """The engine's embedding."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = [module]  # not a child: its parameters are the engine's

    def forward(self, token_ids: Tensor) -> Tensor:
        """``[batch, tokens]`` to ``[batch, tokens, hidden]``."""
        embedded: Tensor = self._module[0](token_ids.flatten()).unflatten(0, token_ids.shape)
        return embedded


def engine_twin(engine: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A Transformers model of ``config`` over the modules of vLLM's model ``engine``; its head is left out.

    Its ``logits`` are the last hidden states. Raises :class:`UnsupportedModel` where the two are not built alike,
    naming the module.
    """
    try:
        with torch.device("meta"):
            twin = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    except ValueError as error:  # no such model, or none whose attention takes a mask of ours
        raise UnsupportedModel(
            f"Transformers has no model to blend with for {type(config).__name__}: {error}"
        ) from error
    twin.eval().requires_grad_(False)
    twin.lm_head = nn.Identity()
    packing = {
        name: (packed, names)
        for packed, names in getattr(engine, "packed_modules_mapping", {}).items()
        for name in names
    }
    theirs = dict(engine.named_modules())
    shared: dict[str, _Packed] = {}
    for name, module in list(twin.named_modules()):
        before, _, own = name.rpartition(".")
        parent = twin.get_submodule(before)
        if type(module) is nn.Linear:
            packed, names = packing.get(own, (own, [own]))
            found = theirs.get(f"{before}.{packed}")
            if found is None:
                raise UnsupportedModel(f"{name}: vLLM's {type(engine).__name__} has no {before}.{packed}")
            if f"{before}.{packed}" not in shared:
                widths = [parent.get_submodule(item).out_features for item in names]
                shared[f"{before}.{packed}"] = _Packed(found, widths)
            setattr(parent, own, _Projection(shared[f"{before}.{packed}"], names.index(own)))
        elif type(module) is nn.Embedding and own == _EMBEDDING and name in theirs:
            setattr(parent, own, _Embedding(theirs[name]))
        elif "config" in getattr(type(module).__init__, "__annotations__", {}) and hasattr(module, "inv_freq"):
            setattr(parent, own, type(module)(config=config).to(device))
        else:
            _share_parameters(name, module, theirs.get(name))
    left = [name for name, item in [*twin.named_parameters(), *twin.named_buffers()] if item.is_meta]
    if left:
        raise UnsupportedModel(f"{type(engine).__name__} keeps nothing like {', '.join(left[:3])}")
    return twin


def _share_parameters(name: str, module: nn.Module, theirs: nn.Module | None) -> None:
    """Give a module of ours the parameters of the engine's of the same name, as they are."""
    for own, parameter in list(module.named_parameters(recurse=False)):
        found = None if theirs is None else getattr(theirs, own, None)
        if not isinstance(found, Tensor) or found.shape != parameter.shape:
            raise UnsupportedModel(f"{name}.{own} of shape {tuple(parameter.shape)} has no counterpart in the engine")
        setattr(module, own, nn.Parameter(found.detach(), requires_grad=False))


def _apply(module: nn.Module, states: Tensor) -> Tensor:
    """A linear module of vLLM on ``[..., in]``: it may want a matrix, and may return a bias beside the result."""
    result = module(states.reshape(-1, states.shape[-1]))
    found = result[0] if isinstance(result, tuple) else result
    unflattened: Tensor = found.unflatten(0, states.shape[:-1])
    return unflattened
