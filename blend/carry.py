"""Carry over to stored tokens what the recomputed ones around them have learnt of the new context.

Text that a chunk was computed without shifts the keys and values of its tokens in much the same way, and those of alike
tokens most alike. Of the tokens that a layer recomputes, the change from stored to fresh KV is known. Before the layer
attends, the others are moved by what is expected of them given these, as by a Gaussian process: changes of two tokens
go together as far as their stored keys are alike, within a chunk, and near each other there. All moves are scaled by
how well the computed tokens tell one another. Keys are compared and moved without their rotation. It costs no
token-layer (docs/adr/0020).
"""

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from ..codec.layout import Kind, Layout, Rope
from ..codec.rope import cos_sin
from .cache import KvLayer, Replaced
from .realign import rotate_into

__all__ = ["CarryOver"]

SAMPLES_MIN = 20
"""Fewer say too little: on prompts of 300 tokens of a random model carrying over did harm."""
SAMPLES_MAX = 512
PAIRS_MAX: Final = 1 << 23
"""Of a token and a sample: of longer prompts there are fewer samples."""
_LAYERS_ALIKE: Final = 5
"""Which tokens are alike is asked anew every so many layers."""
_ALL, _SAME_CHUNK, _NEAR, _NOISE = 2.0, 2.0, 0.5, 0.5
"""How far changes go together for each reason, and what nothing tells of them, over what the same keys alone do."""
_NEAR_TOKENS: Final = 24.0
_NARROWNESS: Final = 1.5
_ROUNDINGS: Final = 4.0


@dataclass(frozen=True, slots=True)
class _Samples:
    """What a layer learns from: of the tokens computed at ``given``, the ``rows`` that stand at ``places``."""

    given: Tensor
    rows: Tensor
    places: Tensor


@dataclass(frozen=True, slots=True)
class _Covariance:
    """How far changes go together: of stored tokens and samples, and what undoes that among the samples."""

    asked_layer: int
    with_samples: Tensor
    inverse: Tensor


@dataclass(slots=True)
class CarryOver:
    """Moves the stored tokens of one prompt, layer by layer.

    ``chunk`` ``[total]`` says whose token stands at a place, -1 where none is blended; ``teaches`` ``[total]`` (bool)
    which of them are samples where they are computed.
    """

    layout: Layout
    chunk: Tensor
    teaches: Tensor
    _samples: _Samples | None = None
    _covariance: _Covariance | None = None
    _angles: dict[tuple[Rope, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _span: slice = field(init=False)
    """From the first stored token to the last."""

    def __post_init__(self) -> None:
        owned = (self.chunk >= 0).nonzero()
        self._span = slice(int(owned[0]), int(owned[-1]) + 1) if owned.numel() else slice(0, 0)

    def apply(self, layer: int, kv: KvLayer, places: Tensor, replaced: Replaced) -> None:
        """Move the stored tokens of ``layer`` by what those computed at ``places`` ``[n]`` say; these come there later.

        ``replaced`` is what stands at the places and what will. Between the first chunk's first token and the last
        one's last, what stands at the places is moved with the rest.
        """
        samples = self._samples
        if samples is None or samples.given is not places:
            samples = self._samples = self._samples_of(places)
            self._covariance = None
            self._angles.clear()
        if samples.rows.numel() < SAMPLES_MIN:
            return
        spec = self.layout.layers[layer]
        known = self._covariance
        if known is None or layer >= known.asked_layer + _LAYERS_ALIKE:
            known = self._covariance = self._asked(layer, kv, samples)
        span = self._span
        for kind, room, stored, fresh in (
            (Kind.KEYS, kv.keys, replaced.stored_keys, replaced.fresh_keys),
            (Kind.VALUES, kv.values, replaced.stored_values, replaced.fresh_values),
        ):
            rope = spec.rope_of(kind)
            if rope is None and kind is Kind.KEYS:
                continue  # how they know their position is not known: one of them says nothing of another
            change = (fresh - stored).index_select(1, samples.rows).to(torch.float32).nan_to_num_(0.0, 0.0, 0.0)
            if rope is not None:
                change = self._rotated(change, rope, samples, backwards=True)
            weights = _weights(known.inverse, change)
            moved = known.with_samples @ weights
            if rope is not None:
                moved = self._rotated(moved, rope, None, backwards=False)
            room[0, :, span].add_(moved)

    def _samples_of(self, places: Tensor) -> _Samples:
        rows = self.teaches[places].nonzero().squeeze(1)
        span = self._span
        most = min(SAMPLES_MAX, max(SAMPLES_MIN, PAIRS_MAX // max(1, span.stop - span.start)))
        if rows.numel() > most:
            rows = rows[torch.linspace(0, rows.numel() - 1, most, device=rows.device).long()]
        return _Samples(places, rows, places[rows])

    def _asked(self, layer: int, kv: KvLayer, samples: _Samples) -> _Covariance:
        """By the keys that are stored of ``layer``; by its values, where these keys cannot be compared."""
        spec, span = self.layout.layers[layer], self._span
        kind, room = (Kind.VALUES, kv.values) if spec.rope is None else (Kind.KEYS, kv.keys)
        rope, stored = spec.rope_of(kind), room[0, :, span].to(torch.float32)
        if rope is not None:
            stored = self._rotated(stored, rope, None, backwards=True)
        flat = stored.transpose(0, 1).reshape(stored.shape[1], -1)
        rows = samples.places - span.start
        told = flat.index_select(0, rows)
        # Without their mean: distances are formed from squares, which would drown in what is large and alike.
        mean, spread = told.mean(dim=0), told.std(dim=0)
        # Channels in which tokens hardly differ tell nothing: there is rounding, of the KV as it is stored and rotated.
        rounding = _ROUNDINGS * torch.finfo(room.dtype).eps * float(told.square().mean().sqrt())
        scale = torch.where(spread > max(rounding, 1e-3 * float(spread.max())), 1.0 / spread, 0.0)
        told, flat = (told - mean) * scale, (flat - mean) * scale
        width = _NARROWNESS / _squares_between(told, told).mean().clamp(min=1.0)  # one channel alone has a mean of 2
        positions = torch.arange(span.start, span.stop, device=self.chunk.device)
        same = (self.chunk[span, None] == self.chunk[samples.places]).to(torch.float32)
        near = ((positions[:, None] - samples.places).abs() * (-1.0 / _NEAR_TOKENS)).exp_().mul_(same)
        # Keys that are no finite numbers are like no others.
        alike = _squares_between(flat, told).mul_(-width).exp_().nan_to_num_(0.0)
        together = alike.mul_(near.mul_(_NEAR).add_(1.0)).add_(same, alpha=_SAME_CHUNK).add_(_ALL)
        among = together.index_select(0, rows)
        among.diagonal().add_(_NOISE)
        lower, _ = torch.linalg.cholesky_ex(among)
        return _Covariance(layer, together, torch.cholesky_inverse(lower))

    def _rotated(self, states: Tensor, rope: Rope, samples: _Samples | None, *, backwards: bool) -> Tensor:
        """``states`` ``[heads, tokens, dim]`` of the samples, or else of the span, turned to their places or back."""
        angles = self._angles.get((rope, samples is None))
        if angles is None:
            span = self._span
            places = torch.arange(span.start, span.stop) if samples is None else samples.places.cpu()
            tables = cos_sin(rope, places.numpy())
            angles = torch.from_numpy(tables[0]).to(states.device), torch.from_numpy(tables[1]).to(states.device)
            self._angles[rope, samples is None] = angles
        out = torch.empty_like(states, memory_format=torch.contiguous_format)
        rotate_into(out, states, rope, angles[0], -angles[1] if backwards else angles[1])
        return out


def _squares_between(some: Tensor, others: Tensor) -> Tensor:
    """Squared distances ``[some, others]`` of ``[some, dim]`` and ``[others, dim]``."""
    products = some @ others.T
    return torch.add(some.square().sum(1)[:, None] + others.square().sum(1), products, alpha=-2.0).clamp_(min=0.0)


def _weights(inverse: Tensor, known: Tensor) -> Tensor:
    """What a token's covariance with each sample counts, from what is ``known`` of these: ``[heads, samples, dim]``.

    They are scaled by how well each sample is told by the others (the slope of a regression on what they say of it, 0
    to 1): an error here is much the same for all tokens of a chunk and does not average out in attention.
    """
    weights = inverse @ known
    told = known - weights / inverse.diagonal().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    worth = (known * told).sum() / told.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return weights * worth.clamp(0.0, 1.0)
