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

import torch
from torch import Tensor, nn

from ..codec.layout import Layout
from ..errors import InvalidRequest, LayoutMismatch, UnsupportedModel
from .cache import BlendCache, ProbeInterrupt
from .decoder import decoder_layers
from .narrow import Narrower
from .realign import Realigner
from .request import BlendReport, BlendRequest, BlendTimings
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
        implementation = getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)
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
        for chunk in request.chunks:
            if len(chunk.keys) != len(self._layers) or len(chunk.values) != len(self._layers):
                raise LayoutMismatch(
                    f"chunk at {chunk.start} has keys of {len(chunk.keys)} and values of {len(chunk.values)} layers, "
                    f"the model has {len(self._layers)}"
                )
        run = _Run(self.model, self._layers, cache, request, rule, Realigner(self.layout), self._clock)
        started = self._clock()
        logits = run.forward()
        elapsed = self._clock() - started
        stored = int((run.owner >= 0).sum())
        report = BlendReport(
            prefix_tokens=request.prefix_tokens,
            stored_tokens=stored,
            fresh_tokens=run.owner.numel() - stored,
            probed_tokens=run.probed_tokens,
            layer_tokens=tuple(run.layer_tokens),
            seconds=BlendTimings(run.realign_seconds, run.select_seconds, elapsed),
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
    clock: Clock
    owner: Tensor = field(init=False)
    layer_tokens: list[int] = field(default_factory=list)
    probed_tokens: int = 0
    realign_seconds: float = 0.0
    select_seconds: float = 0.0
    _ranked: Tensor | None = None
    _narrower: Narrower | None = None

    def __post_init__(self) -> None:
        self.owner = torch.from_numpy(self.request.owners()).to(self.model.device)

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
        if len(self.layer_tokens) != len(self.layers) or any(kv.length != total for kv in self.cache.kv_layers):
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
        computed = self.owner.numel()
        if index < self.rule.decision_layer:
            self._fill(index, prefix_only=True)
            self.layer_tokens.append(computed)
            return None
        if self._ranked is None and index > 0:
            self._fill(index, prefix_only=False)
            ranked = self._rank(self._probe(index, module, args, kwargs))
            rows = self._rows(index, ranked)
        else:
            ranked = self._rank(None) if self._ranked is None else self._ranked
            rows = self._rows(index, ranked)
            self._fill(index, prefix_only=rows.numel() == computed)
        self._ranked = ranked
        narrower = self._narrower
        if narrower is None or rows.numel() != narrower.count:
            before = None if narrower is None else narrower.rows
            narrower = self._narrower = Narrower(rows, computed, self.request.prefix_tokens, before)
        self.cache.place(index, narrower.places, self.request.token_ids.size)
        self.layer_tokens.append(narrower.count)
        return narrower.narrow(args, kwargs)

    def _fill(self, index: int, *, prefix_only: bool) -> None:
        """Bring the stored chunks of a layer into the cache; those a layer computes in full are not needed there."""
        started = self.clock()
        kv = self.cache.kv_layers[index]
        for chunk in self.request.chunks:
            if not prefix_only or chunk.start < self.request.prefix_tokens:
                self.realigner.fill(kv, index, chunk)
        self.realign_seconds += self.clock() - started

    def _rank(self, kv: StoredAndFresh | None) -> Tensor:
        """Stored tokens (as rows of the tokens after the prefix), the most in need of recompute first."""
        started = self.clock()
        stored = self._stored_rows()
        starts = [chunk.start - self.request.prefix_tokens for chunk in self.request.chunks]
        chunk = self.owner[stored]
        offset = stored - torch.tensor(starts, dtype=torch.int64, device=stored.device)[chunk]
        order = self.rule.scores(Candidates(chunk, offset, kv)).argsort(descending=True, stable=True)
        self.select_seconds += self.clock() - started
        return stored[order]

    def _stored_rows(self) -> Tensor:
        return (self.owner >= 0).nonzero().squeeze(1)

    def _rows(self, index: int, ranked: Tensor) -> Tensor:
        """Rows ``[n]`` (of the tokens after the prefix, ascending) that this layer computes."""
        chosen = round(self.rule.share(index, len(self.layers)) * ranked.numel())
        keep = self.owner < 0
        keep[ranked[:chosen]] = True
        return keep.nonzero().squeeze(1)

    def _probe(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StoredAndFresh:
        """Keys and values of every token at this layer; the fresh ones replace the stored ones in the cache.

        The layer is run only as far as its cache update: projections, not attention or MLP, are paid twice.
        """
        started = self.clock()
        self.cache.begin_probe()
        try:
            module.forward(*args, **kwargs)
        except ProbeInterrupt:
            pass
        finally:
            probed = self.cache.end_probe()
        if probed is None:
            raise UnsupportedModel(f"decoder layer {index} does not write its KV to the cache given")
        self.probed_tokens = self.owner.numel()
        fresh_keys, fresh_values = probed
        kv = self.cache.kv_layers[index]
        stored = self._stored_rows()
        after_prefix = slice(self.request.prefix_tokens, self.request.token_ids.size)
        keys, values = kv.keys[:, :, after_prefix], kv.values[:, :, after_prefix]
        compared = StoredAndFresh(
            stored_keys=keys[0].index_select(1, stored),
            stored_values=values[0].index_select(1, stored),
            fresh_keys=fresh_keys[0].index_select(1, stored),
            fresh_values=fresh_values[0].index_select(1, stored),
        )
        keys.copy_(fresh_keys)
        values.copy_(fresh_values)
        self.select_seconds += self.clock() - started
        return compared
