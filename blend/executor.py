"""Blend: run a model's own forward pass over a prompt, computing only the tokens that need it, layer by layer.

How it works: the model is called as for any prefill of the tokens after the exact prefix, with a
:class:`~kvloom.blend.cache.BlendCache`. A hook in front of each decoder layer fills that layer of the cache with the
stored chunks and, from the deciding layer on, keeps only the chosen rows of whatever the layer is given: hidden
states, positions, rotary tables, mask. The layer computes those rows, the cache scatters their keys and values among
the stored ones, and the layer attends to the merged KV. Embeddings, masks, windows, norms and the head are all the
model's own, so no architecture is known by name here.

The hooks act only on forwards that carry this prompt's cache, so other threads may use the same model meanwhile.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..codec.layout import Layout
from ..errors import InvalidRequest, LayoutMismatch, UnsupportedModel
from .cache import BlendCache, ProbeInterrupt
from .decoder import decoder_layers
from .narrow import Narrower
from .realign import Realigner
from .request import BlendReport, BlendRequest, BlendTimings, PlacedChunk
from .select.base import Candidates, SelectionRule, StoredAndFresh

__all__ = ["Blended", "Blender"]

Clock = Callable[[], float]
_MASKED_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True, slots=True)
class Blended:
    """The cache holding the whole prompt, ready to decode from, and the last token's ``logits`` ``[vocabulary]``."""

    cache: BlendCache
    logits: Tensor
    report: BlendReport


@dataclass(slots=True)
class _Stopwatch:
    clock: Clock
    realign: float = 0.0
    select: float = 0.0


class Blender:
    """Blends prompts on one model.

    ``layout`` is the model's (:func:`kvloom.clients.transformers.model_layout`). Raises :class:`UnsupportedModel` when
    the decoder layers cannot be found or the attention implementation takes no mask.
    """

    def __init__(self, model: Any, layout: Layout, *, clock: Clock = time.perf_counter) -> None:
        self.model = model
        self.layout = layout
        self._clock = clock
        self._layers = decoder_layers(model)
        if len(self._layers) != len(layout.layers):
            raise LayoutMismatch(f"model has {len(self._layers)} decoder layers, the layout {len(layout.layers)}")
        implementation = getattr(model.config, "_attn_implementation", None)
        if implementation not in _MASKED_ATTENTION:
            raise UnsupportedModel(
                f"attention {implementation!r} takes no mask of scattered rows; use {' or '.join(_MASKED_ATTENTION)}"
            )

    def blend(
        self, request: BlendRequest, rule: SelectionRule, *, cache: BlendCache | None = None, room_tokens: int = 256
    ) -> Blended:
        """Compute the prompt's KV and its last token's logits, recomputing the stored tokens that ``rule`` chooses.

        A new cache has room for ``room_tokens`` more than the prompt; a ``cache`` given is overwritten from position
        0 (chunks may already lie in it, see :class:`PlacedChunk`). Both belong to the caller afterwards. If it
        raises, the model is as before and the cache's content is undefined.
        """
        total = request.token_ids.size
        if cache is None:
            cache = BlendCache(self.layout, total + room_tokens, self.model.device)
        elif cache.capacity < total:
            raise InvalidRequest(f"cache has room for {cache.capacity} tokens, the prompt has {total}")
        run = _Run(self.model, self._layers, cache, request, rule, Realigner(self.layout), _Stopwatch(self._clock))
        started = self._clock()
        logits = run.forward()
        elapsed = self._clock() - started
        watch = run.watch
        seconds = BlendTimings(watch.realign, watch.select, elapsed - watch.realign - watch.select)
        stored = int((run.owner >= 0).sum())
        report = BlendReport(
            prefix_tokens=request.prefix_tokens,
            stored_tokens=stored,
            fresh_tokens=run.owner.size - stored,
            probed_tokens=run.probed_tokens,
            layer_tokens=tuple(run.layer_tokens),
            seconds=seconds,
        )
        return Blended(cache, logits, report)


@dataclass(slots=True)
class _Run:
    """One blended forward: its state between layers."""

    model: Any
    layers: list[nn.Module]
    cache: BlendCache
    request: BlendRequest
    rule: SelectionRule
    realigner: Realigner
    watch: _Stopwatch
    owner: np.ndarray[Any, np.dtype[np.int64]] = field(init=False)
    layer_tokens: list[int] = field(default_factory=list)
    probed_tokens: int = 0
    _ranked: Tensor | None = None
    _narrower: Narrower | None = None

    def __post_init__(self) -> None:
        self.owner = self.request.stored()

    @torch.inference_mode()
    def forward(self) -> Tensor:
        """Run the model; logits of the last token ``[vocabulary]``."""
        prefix, total = self.request.prefix_tokens, self.request.token_ids.size
        device = self.model.device
        tokens = torch.from_numpy(self.request.token_ids[prefix:]).to(device)
        self.cache.truncate(prefix)
        with ExitStack() as hooks:
            for index, layer in enumerate(self.layers):
                handle = layer.register_forward_pre_hook(self._hook(index), with_kwargs=True)
                hooks.callback(handle.remove)
            output = self.model(
                input_ids=tokens[None],
                position_ids=torch.arange(prefix, total, device=device)[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        if self.cache.length != total or len(self.layer_tokens) != len(self.layers):
            raise UnsupportedModel("the model did not run its decoder layers one after the other with the cache given")
        logits: Tensor = output.logits[0, -1]
        return logits

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
        def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("past_key_values") is not self.cache:
                return None
            return self._before_layer(index, module, args, kwargs)

        return before_layer

    def _before_layer(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if index != len(self.layer_tokens):
            raise UnsupportedModel(f"decoder layer {index} ran after {len(self.layer_tokens)} others, out of order")
        computed = self.owner.size
        if index < self.rule.decision_layer:
            self._fill(index, prefix_only=True)
            self.layer_tokens.append(computed)
            return None
        if self._ranked is None:
            self._fill(index, prefix_only=False)
            self._ranked = self._rank(index, module, args, kwargs)
            rows = self._rows(index)
        else:
            rows = self._rows(index)
            self._fill(index, prefix_only=rows.numel() == computed)
        narrower = self._narrower
        if narrower is None or rows.numel() != narrower.count:
            before = None if narrower is None else narrower.rows
            narrower = self._narrower = Narrower(rows, computed, self.request.prefix_tokens, before)
        self.cache.place(index, narrower.places, self.request.token_ids.size)
        self.layer_tokens.append(narrower.count)
        return narrower.narrow(args, kwargs)

    def _fill(self, index: int, *, prefix_only: bool) -> None:
        started = self.watch.clock()
        kv = self.cache.kv_layers[index]
        for chunk in self.request.chunks:
            if not prefix_only or chunk.start < self.request.prefix_tokens:
                self.realigner.fill(kv, index, chunk)
        self.watch.realign += self.watch.clock() - started

    def _rank(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Stored tokens (as rows of the tokens after the prefix), the most in need of recompute first."""
        started = self.watch.clock()
        owner = torch.from_numpy(self.owner)
        stored = (owner >= 0).nonzero().squeeze(1)
        kv = self._probe(index, module, args, kwargs, stored) if index > 0 else None
        starts = torch.tensor([chunk.start for chunk in self.request.chunks], dtype=torch.int64)
        chunk = owner[stored]
        candidates = Candidates(chunk, stored + self.request.prefix_tokens - starts[chunk], kv)
        ranked = stored[self.rule.scores(candidates).argsort(descending=True, stable=True)]
        self.watch.select += self.watch.clock() - started
        return ranked

    def _rows(self, index: int) -> Tensor:
        """Rows ``[n]`` (of the tokens after the prefix, ascending) that this layer computes."""
        assert self._ranked is not None
        chosen = round(self.rule.share(index, len(self.layers)) * self._ranked.numel())
        keep = torch.from_numpy(self.owner < 0)
        keep[self._ranked[:chosen]] = True
        return keep.nonzero().squeeze(1)

    def _probe(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], stored: Tensor
    ) -> StoredAndFresh:
        """Keys and values of every token at this layer; the fresh ones replace the stored ones in the cache."""
        self.cache.begin_probe()
        try:
            module.forward(*args, **kwargs)
        except ProbeInterrupt:
            pass
        finally:
            probed = self.cache.end_probe()
        if probed is None:
            raise UnsupportedModel(f"decoder layer {index} does not write its KV to the cache given")
        self.probed_tokens = self.owner.size
        fresh_keys, fresh_values = probed
        kv = self.cache.kv_layers[index]
        prefix, total = self.request.prefix_tokens, self.request.token_ids.size
        places = stored + prefix
        compared = StoredAndFresh(
            stored_keys=kv.keys[0].index_select(1, places),
            stored_values=kv.values[0].index_select(1, places),
            fresh_keys=fresh_keys[0].index_select(1, stored),
            fresh_values=fresh_values[0].index_select(1, stored),
        )
        kv.keys[:, :, prefix:total].copy_(fresh_keys)
        kv.values[:, :, prefix:total].copy_(fresh_values)
        return compared
