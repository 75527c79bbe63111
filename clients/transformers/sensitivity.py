"""KV of calibration text, and how much the model minds an error in each number of it.

What a codec should keep is what changes the model's next tokens. To second order, an error ``e`` in the KV of a
context moves the distributions of the tokens that follow by a KL divergence of ``e F e / 2``, where ``F`` is the Fisher
information of those tokens with respect to that KV (Kullback 1959, 2.6; Amari 1998): the mean of ``g g^T`` over tokens
drawn from the model's own distributions, ``g`` being the gradient of their log-probability. So the context is run
without a graph, its KV becomes the leaves of one, the tokens that follow are run on top of it, and each draw of what
might have come after every one of them is one backward pass. Nothing here knows an architecture: the KV passes through
our own cache, which hands the model its leaves joined with the new tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from ...blend.cache import KvCache, KvLayer, numpy_view
from ...codec.calibration import KvGradient, KvSample
from ...codec.layout import LayerLayout, Layout
from ...errors import InvalidRequest, NonFiniteTensor, UnsupportedModel
from .probing import model_layout
from .running import prefill

__all__ = ["ContextGraph", "SequencePlan", "calibration_samples"]

_WITHOUT: Final = "calibration without gradients is possible (gradients=False, or kvloom calibrate --no-gradients)"


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """How a sequence of calibration text is used: gradients with respect to the KV of its first ``context_tokens``.

    They are of the tokens drawn at the ``following_tokens`` after them, ``draws`` times: a backward pass each.
    """

    context_tokens: int = 640
    following_tokens: int = 256
    draws: int = 2

    def __post_init__(self) -> None:
        for name in ("context_tokens", "following_tokens", "draws"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}, must be at least 1")

    @property
    def tokens(self) -> int:
        """Tokens of one sequence."""
        return self.context_tokens + self.following_tokens

    def within(self, tokens: int) -> "SequencePlan":
        """The same in sequences of at most ``tokens`` (at least 2), context and what follows in the same proportion."""
        if tokens >= self.tokens:
            return self
        if tokens < 2:
            raise InvalidRequest(f"a sequence of {tokens} tokens has no context and token after it, at least 2 do")
        context = min(tokens - 1, max(1, tokens * self.context_tokens // self.tokens))
        return SequencePlan(context, tokens - context, self.draws)

    def for_model(self, model: Any) -> "SequencePlan":
        """The same in sequences no longer than ``model`` was made for, where its configuration says how long."""
        positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return self.within(positions or self.tokens)


def calibration_samples(
    model: Any,
    sequences: Iterable[NDArray[np.int64]],
    *,
    plan: SequencePlan | None = None,
    layout: Layout | None = None,
    gradients: bool = True,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Iterator[KvSample]:
    """KV of the first ``plan.tokens`` of every sequence of token ids ``[n]``, with its gradients, one by one.

    Computed as the samples are asked for, so that memory holds one of them and its graph. Each has its arrays on the
    CPU, to itself, and ``plan.draws`` gradients, or none where ``gradients`` is False. The same ``seed``, model and
    sequences give the same draws. ``progress`` is called after each sequence. ``model`` should be in evaluation mode;
    its parameters get no gradients and keep their ``requires_grad``.

    Raises :class:`InvalidRequest` for a sequence shorter than the plan, :class:`UnsupportedModel` for a model that
    cannot be differentiated and :class:`NonFiniteTensor` where a gradient is not finite.
    """
    plan = plan or SequencePlan()
    layout = layout or model_layout(model)
    generator = torch.Generator(model.device).manual_seed(seed)
    for number, sequence in enumerate(sequences):
        ids = np.ascontiguousarray(sequence, dtype=np.int64)
        if ids.ndim != 1 or len(ids) < plan.tokens:
            shape = ids.shape if ids.ndim != 1 else len(ids)
            raise InvalidRequest(f"sequence {number} has {shape} tokens, {plan.tokens} are needed")
        ids = ids[: plan.tokens]
        if gradients:
            graph = ContextGraph(model, layout, ids, plan.context_tokens)
            sample = graph.sample(graph.draw(generator) for _ in range(plan.draws))
            del graph  # before the next one is built
        else:
            cache = _prefilled(model, layout, ids)
            sample = KvSample(*_arrays([(item.keys, item.values) for item in cache.kv_layers]))
        yield sample
        if progress is not None:
            progress()


class ContextGraph:
    """The tokens that follow a context, run on its KV as leaves of a graph that can be gone through many times.

    ``token_ids`` ``[n]`` are the ``context_tokens`` and what follows them. Holds the graph as long as it lives.
    ``probabilities`` float32 ``[following, vocabulary]`` are what the model expects after each following token.
    """

    def __init__(self, model: Any, layout: Layout, token_ids: NDArray[np.int64], context_tokens: int) -> None:
        cache = _prefilled(model, layout, token_ids[:context_tokens])
        following = torch.from_numpy(token_ids[context_tokens:]).to(model.device)
        # Also for a caller in inference mode, whose tensors could not be differentiated.
        with torch.inference_mode(False), torch.enable_grad(), _frozen(model), _explained():
            self._layers = [
                _LeafLayer(spec, source) for spec, source in zip(layout.layers, cache.kv_layers, strict=True)
            ]
            joined = Cache(layers=list(self._layers))
            self._logits: Tensor = model(input_ids=following[None], past_key_values=joined, use_cache=True).logits[0]
        if not self._logits.requires_grad:
            raise UnsupportedModel(f"the model's logits do not depend on its cache in a way torch knows; {_WITHOUT}")
        with torch.inference_mode(False):
            self.probabilities = self._logits.detach().float().softmax(-1)
        if not bool(torch.isfinite(self.probabilities).all()):
            raise NonFiniteTensor(f"what the model expects of the next token is not finite; {_WITHOUT}")

    def draw(self, generator: torch.Generator) -> KvGradient:
        """The gradient for tokens drawn from :attr:`probabilities`."""
        return self.gradient(torch.multinomial(self.probabilities, 1, generator=generator)[:, 0])

    def gradient(self, labels: Tensor) -> KvGradient:
        """The gradient of the log-probability of ``labels`` ``[following]``, one after each of the following tokens."""
        leaves = [leaf for layer in self._layers for leaf in (layer.keys, layer.values)]
        with torch.inference_mode(False), torch.no_grad(), _explained():
            # The derivative of log softmax(z)[y] with respect to z: 1 at y, minus the probabilities.
            score = -self.probabilities
            score[torch.arange(len(labels), device=labels.device), labels] += 1
            found = torch.autograd.grad(
                self._logits, leaves, score.to(self._logits.dtype), retain_graph=True, allow_unused=True
            )
        checked = [_checked(index, leaf, item) for index, (leaf, item) in enumerate(zip(leaves, found, strict=True))]
        keys, values = _arrays(list(zip(checked[0::2], checked[1::2], strict=True)))
        return KvGradient(keys, values, len(labels))

    def sample(self, gradients: Iterable[KvGradient]) -> KvSample:
        """The KV of the context and of what follows it, with ``gradients``."""
        return KvSample(*_arrays([layer.joined for layer in self._layers]), gradients=tuple(gradients))


class _LeafLayer(KvLayer):
    """A layer whose tokens so far are leaves of a graph: new ones are joined to them, and nothing is overwritten."""

    def __init__(self, layout: LayerLayout, source: KvLayer) -> None:
        super().__init__(layout, 0, source.dtype, source.device)
        self.capacity, self.length = source.capacity, source.length
        self.keys = source.keys.detach().requires_grad_()
        self.values = source.values.detach().requires_grad_()
        self.joined = (self.keys, self.values)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """The leaves with ``[1, kv_heads, n, head_dim]`` behind them; more can only be joined to a new layer."""
        self._check(key_states, value_states, self.capacity)
        keys = torch.cat([self.keys, key_states.to(self.dtype)], dim=2)
        values = torch.cat([self.values, value_states.to(self.dtype)], dim=2)
        self.joined, self.length = (keys, values), keys.shape[2]
        return keys, values


def _prefilled(model: Any, layout: Layout, ids: NDArray[np.int64]) -> KvCache:
    """The KV of ``ids`` in a cache that just fits, made of ordinary tensors whatever mode the caller is in."""
    with torch.inference_mode(False):
        cache = KvCache(layout, len(ids), model.device)
    return prefill(model, ids, cache=cache)


def _arrays(tensors: list[tuple[Tensor, Tensor]]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Keys and values ``[1, kv_heads, tokens, head_dim]`` of every layer as arrays without the first dimension."""
    keys, values = ([numpy_view(item[kind][0].detach().cpu()) for item in tensors] for kind in (0, 1))
    return keys, values


def _checked(index: int, leaf: Tensor, gradient: Tensor | None) -> Tensor:
    """The gradient of the ``index``-th leaf (keys before values, layer by layer) as finite float32."""
    layer, kind = index // 2, ("keys", "values")[index % 2]
    if gradient is None:
        if leaf.numel():
            raise UnsupportedModel(f"torch knows no way from the {kind} of layer {layer} to the logits; {_WITHOUT}")
        return leaf.detach().float()
    gradient = gradient.float()
    if not bool(torch.isfinite(gradient).all()):
        raise NonFiniteTensor(f"the gradient with respect to the {kind} of layer {layer} is not finite; {_WITHOUT}")
    return gradient


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No parameter becomes part of a graph that is built here."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _explained() -> Iterator[None]:
    """What torch says of a model that it cannot differentiate (a kernel without a backward pass), as our error."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UnsupportedModel(f"the model cannot be differentiated: {reason}; {_WITHOUT}") from error
