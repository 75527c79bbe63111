"""Blend: run a model's own forward pass over a prompt, computing only the tokens that need it, layer by layer.

How it works: the model is called as for any prefill of the tokens after the exact prefix, with a
:class:`~kvloom.blend.cache.BlendCache`. A hook in front of each decoder layer fills that layer of the cache with the
stored chunks and, from the deciding layer on, keeps only the chosen rows of whatever the layer is given: hidden
states, positions, rotary tables, mask. The layer computes those rows, the cache scatters their keys and values among
the stored ones, and the layer attends to the merged KV. Embeddings, masks, windows, norms and the head are all the
model's own, so no architecture is known by name here. A rule that reads attention gets a forward of the fresh tokens
alone before that, over the KV as stored.

The hooks act only on forwards that carry this prompt's cache, so other threads may use the same model meanwhile.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..codec.layout import Layout
from ..errors import InvalidRequest, LayoutMismatch, UnsupportedModel
from .attention import AttentionReader, GroupedAttention
from .cache import BlendCache, ProbeInterrupt, Replaced
from .carry import CarryOver
from .choose import Chooser
from .decoder import decoder_layers
from .narrow import Narrower
from .realign import Realigner
from .request import BlendReport, BlendRequest, BlendTimings
from .select.base import Candidates, SelectionRule, StoredAndFresh
from .select.none import NoTokens

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
        started = self._clock()
        seconds = _Seconds()
        attention, scored = None, 0
        if rule.reads_attention and (request.owners() >= 0).any():
            look = self._run(cache, request, NoTokens(), seconds)
            attention, scored = look.watch(), look.fresh
        run = self._run(cache, request, rule, seconds, attention)
        with GroupedAttention():
            logits = run.forward()
        elapsed = self._clock() - started
        report = BlendReport(
            prefix_tokens=request.prefix_tokens,
            stored_tokens=run.chooser.candidates.count,
            fresh_tokens=run.fresh,
            probed_tokens=run.probed_tokens,
            scored_tokens=scored,
            layer_tokens=tuple(run.layer_tokens),
            seconds=BlendTimings(seconds.realign, seconds.select, elapsed),
        )
        return Blended(cache, logits, report)

    def _run(
        self,
        cache: BlendCache,
        request: BlendRequest,
        rule: SelectionRule,
        seconds: "_Seconds",
        attention: Tensor | None = None,
    ) -> "_Run":
        device = self.model.device
        owner = torch.from_numpy(request.owners()).to(device)
        stored = (owner >= 0).nonzero().squeeze(1)
        starts = torch.tensor(
            [chunk.start - request.prefix_tokens for chunk in request.chunks], dtype=torch.int64, device=device
        )
        chunk = owner[stored]
        needs = request.needs()
        recorded = None if needs is None else torch.from_numpy(needs).to(device)
        candidates = Candidates(chunk, stored - starts[chunk], attention=attention, recorded=recorded)
        chooser = Chooser(rule, len(self._layers), owner, candidates)
        return _Run(
            self.model,
            self._layers,
            cache,
            request,
            chooser,
            Realigner(self.layout),
            self._clock,
            seconds,
            self._carry(request, rule, candidates),
            filled=attention is not None,
        )

    def _carry(self, request: BlendRequest, rule: SelectionRule, candidates: Candidates) -> CarryOver | None:
        samples = rule.samples(candidates)
        if samples is None:
            return None
        chunk = torch.from_numpy(request.owners()).to(samples.device)
        teaches = torch.zeros_like(chunk, dtype=torch.bool)
        teaches[chunk >= 0] = samples
        before = (request.prefix_tokens, 0)
        return CarryOver(self.layout, nn.functional.pad(chunk, before, value=-1), nn.functional.pad(teaches, before))


@dataclass(slots=True)
class _Seconds:
    """Time that the stages of one blend took, over all its forwards."""

    realign: float = 0.0
    select: float = 0.0


class _SeenAll(Exception):
    """Raised once the last layer's attention was read: not an error, the forward may end."""


@dataclass(slots=True)
class _Run:
    """One forward over the prompt: its state between layers; ``filled`` when stored chunks lie in the cache already."""

    model: Any
    layers: list[nn.Module]
    cache: BlendCache
    request: BlendRequest
    chooser: Chooser
    realigner: Realigner
    clock: Clock
    seconds: _Seconds
    carry: CarryOver | None
    filled: bool
    layer_tokens: list[int] = field(default_factory=list)
    probed_tokens: int = 0
    _narrower: Narrower | None = None
    _replaced: Replaced | None = None

    @property
    def computed(self) -> int:
        """Tokens after the exact prefix."""
        return self.chooser.owner.numel()

    @property
    def fresh(self) -> int:
        """Those of them that no chunk covers."""
        return self.computed - self.chooser.candidates.count

    def watch(self) -> Tensor:
        """Run the model; the attention ``[layers, candidates]`` that the tokens after the last chunk pay.

        It is weighted by the length of the values: what is attended to and carries nothing (a sink) adds nothing.
        """
        prefix, total = self.request.prefix_tokens, self.request.token_ids.size
        asking = total - self.request.chunks[-1].stop
        paid = torch.zeros(len(self.layers), self.chooser.stored.numel(), device=self.chooser.stored.device)

        def receive(layer: int, rows: slice, weights: Tensor) -> None:
            heads = weights.shape[0]
            paid[layer] += weights[:, :, prefix:].sum(dim=(0, 1))[self.chooser.stored] / (heads * asking)
            if rows.stop == asking:
                values = self.cache.kv_layers[layer].values[0, :, prefix:].index_select(1, self.chooser.stored)
                paid[layer] *= values.to(torch.float32).norm(dim=-1).mean(dim=0)

            if layer == len(self.layers) - 1 and rows.stop == asking:
                raise _SeenAll

        # What follows the last layer's attention says nothing more.
        with suppress(_SeenAll), AttentionReader(receive, total, asking, alone=self.fresh == 1) as reader:
            self.forward()
            reader.check(len(self.layers))
        return paid

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
        chooser, deciding = self.chooser, self.chooser.rule.decision_layer
        if index < deciding:
            self._fill(index, prefix_only=True)
            self.layer_tokens.append(self.computed)
            return None
        if not chooser.decided and index > 0:
            self._fill(index, prefix_only=False)
            self._choose(self._probe(index, module, args, kwargs))
            rows = chooser.rows(index)
        else:
            if not chooser.decided:
                self._choose(None)
            elif chooser.rule.gradual and index > deciding + 1:
                self._choose_again()
            rows = chooser.rows(index)
            self._fill(index, prefix_only=rows.numel() == self.computed)
        narrower = self._narrower
        if narrower is None or rows.numel() != narrower.count:
            before = None if narrower is None else narrower.rows
            narrower = self._narrower = Narrower(rows, self.computed, self.request.prefix_tokens, before)
        total = self.request.token_ids.size
        self.cache.place(index, narrower.places, total, on_replaced=self._on_replaced(index, narrower.places))
        self.layer_tokens.append(narrower.count)
        return narrower.narrow(args, kwargs)

    def _fill(self, index: int, *, prefix_only: bool) -> None:
        """Bring the stored chunks of a layer into the cache; those a layer computes in full are not needed there."""
        if self.filled:
            return
        started = self.clock()
        kv = self.cache.kv_layers[index]
        for chunk in self.request.chunks:
            if not prefix_only or chunk.start < self.request.prefix_tokens:
                self.realigner.fill(kv, index, chunk)
        self.seconds.realign += self.clock() - started

    def _choose(self, kv: StoredAndFresh | None) -> None:
        started = self.clock()
        self.chooser.decide(kv)
        self.seconds.select += self.clock() - started

    def _on_replaced(self, index: int, places: Tensor) -> Callable[[Replaced], None] | None:
        rule, carry = self.chooser.rule, self.carry
        # The deciding layer's fresh rows are in the cache since the probe: what they replaced is gone.
        if index == rule.decision_layer > 0 or not (rule.gradual or carry):
            return None

        def on_replaced(replaced: Replaced) -> None:
            started = self.clock()
            if rule.gradual:
                self._replaced = replaced
            if carry is not None:
                carry.apply(index, self.cache.kv_layers[index], places, replaced)
            self.seconds.select += self.clock() - started

        return on_replaced

    def _choose_again(self) -> None:
        """Let the rule see what the layer before made of the tokens it computed."""
        replaced, narrower = self._replaced, self._narrower
        if replaced is None or narrower is None:
            return
        started = self.clock()
        rows = torch.searchsorted(narrower.rows, self.chooser.chosen)
        kept = (replaced.stored_keys, replaced.stored_values, replaced.fresh_keys, replaced.fresh_values)
        self.chooser.rescore(StoredAndFresh(*(item.index_select(1, rows) for item in kept)))
        self.seconds.select += self.clock() - started

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
        self.probed_tokens = self.computed
        fresh_keys, fresh_values = probed
        kv = self.cache.kv_layers[index]
        stored = self.chooser.stored
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
        self.seconds.select += self.clock() - started
        return compared
