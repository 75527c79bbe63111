"""What has been learnt of one tenant's engines, links and decoders, and the view of it that a plan is made from. Pure.

Bounded: of engines, links and decoders that are too many, those not heard of for longest are forgotten.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ... import limits
from .costs import PrefillModel, PrefillPrior
from .links import LinkEstimate, LinkModel, LinkPrior, RateModel
from .outlook import LinkCost, Outlook, PrefillCost

__all__ = ["BYTE_SECONDS_MAX", "LINK_PRIORS", "NETWORK_PRIOR", "CostModel", "LearntEstimates", "Situation"]

T = TypeVar("T")

LINK_PRIORS: Final[Mapping[str, LinkPrior]] = {
    "memory": LinkPrior(0.0005, 1e-9),
    "ssd": LinkPrior(0.001, 2e-9),
}
"""Before the first transfer; every other link is taken for a network of 1 Gb/s."""
NETWORK_PRIOR: Final = LinkPrior(0.002, 8e-9)
_DECODE_PRIOR_SECONDS: Final = 1e-9
"""For a byte of KV, decoded."""
BYTE_SECONDS_MAX: Final = 10.0
"""Of a transfer of which nothing has come: no link is slower, and sums of seconds stay numbers."""
_OWN_SAMPLES_MIN: Final = 3
"""Loads that an engine has reported from which on what it saw of a link is believed over what the daemon measures."""


@dataclass(frozen=True, slots=True)
class Situation:
    """The state of engine and daemon at the moment of planning."""

    now_seconds: float
    batch: float = 1.0
    """Requests in the engine."""
    queued_tokens: float = 0.0
    """What the engine has to compute before."""
    ahead_bytes: float = 0.0
    """What the daemon has under way for others."""


@dataclass(frozen=True, slots=True)
class _Linked:
    estimate: LinkEstimate
    ahead_bytes: float
    path: str

    def cost(self, quantile: float | None) -> LinkCost:
        return self.estimate.cost(quantile, ahead_bytes=self.ahead_bytes, path=self.path)

    def seen(self, byte_seconds: float) -> "_Linked":
        """The same, where a transfer under way says how fast it is now."""
        known = self.estimate
        now = LinkEstimate(
            known.latency_seconds,
            min(byte_seconds, BYTE_SECONDS_MAX),
            known.spread,
            known.typical_byte_seconds,
            known.typical_spread,
            known.reversion_seconds,
        )
        return _Linked(now, self.ahead_bytes, self.path)


@dataclass(frozen=True, slots=True)
class LearntEstimates:
    """:class:`.outlook.Estimates` as they were learnt up to one moment."""

    prefill: PrefillCost
    links: Mapping[str, _Linked]

    def mean(self) -> Outlook:
        """Every cost at what is expected of it."""
        return Outlook(self.prefill, {name: link.cost(None) for name, link in self.links.items()})

    def at(self, quantile: float) -> Outlook:
        """Every cost of a link at this quantile of it."""
        return Outlook(self.prefill, {name: link.cost(quantile) for name, link in self.links.items()})

    def seen(self, link: str, byte_seconds: float) -> "LearntEstimates":
        """The same, where a transfer under way says how fast ``link`` is now: of that it knows more than all samples.

        No more than :data:`BYTE_SECONDS_MAX`; what the link does in the long run stays.
        """
        if link not in self.links or not byte_seconds > 0.0:
            return self
        return LearntEstimates(self.prefill, {**self.links, link: self.links[link].seen(byte_seconds)})


class CostModel:
    """What one tenant's engines have reported."""

    def __init__(self) -> None:
        self._engines: OrderedDict[str, PrefillModel] = OrderedDict()
        self._links: OrderedDict[tuple[str, str], LinkModel] = OrderedDict()
        self._decoders: OrderedDict[tuple[str, str], RateModel] = OrderedDict()

    def note_prefill(
        self, engine: str, tokens: float, start: float, seconds: float, *, batch: float, now_seconds: float
    ) -> bool:
        """Take in a prefill; whether it was believable."""
        model = _kept(self._engines, engine, lambda: PrefillModel(PrefillPrior()), limits.PLAN_ENGINES_MAX)
        return model.add(tokens, start, seconds, batch=batch, now_seconds=now_seconds)

    def note_load(
        self, engine: str, link: str, size_bytes: float, seconds: float, *, concurrent: float, now_seconds: float
    ) -> bool:
        """Take in a load as ``engine`` saw it, from asking to the last byte; whether it was believable."""
        model = _kept(self._links, (engine, link), lambda: link_model(link), limits.PLAN_LINKS_MAX)
        return model.add(size_bytes, seconds, concurrent=concurrent, now_seconds=now_seconds)

    def note_decode(self, engine: str, level: str, kv_bytes: float, seconds: float, *, now_seconds: float) -> bool:
        """Take in the decoding of ``kv_bytes`` of KV, as they are when decoded; whether it was believable."""
        model = _kept(
            self._decoders, (engine, level), lambda: RateModel(_DECODE_PRIOR_SECONDS), limits.PLAN_DECODERS_MAX
        )
        return model.add(kv_bytes, seconds, now_seconds=now_seconds)

    def decode_byte_seconds(self, engine: str, level: str) -> float:
        """What decoding takes of an engine's time for every byte of KV, as it is when decoded."""
        model = self._decoders.get((engine, level))
        return _DECODE_PRIOR_SECONDS if model is None else model.unit_seconds()

    def estimates(
        self, engine: str, measured: Mapping[str, LinkEstimate], links: Sequence[str], path: str, now: Situation
    ) -> LearntEstimates:
        """What is expected for a plan of ``engine``.

        ``measured``: what the daemon itself has seen of its tiers, which stands for a link until the engine has
        reported a few loads over it. Links of one ``path`` are used one at a time.
        """
        prefill = self._engines.get(engine) or PrefillModel(PrefillPrior())
        known: dict[str, _Linked] = {}
        for link in links:
            own = self._links.get((engine, link))
            if own is not None and own.samples >= _OWN_SAMPLES_MIN:
                estimate = own.estimate(now_seconds=now.now_seconds)
            else:
                estimate = measured.get(link) or link_model(link).estimate(now_seconds=now.now_seconds)
            known[link] = _Linked(estimate, now.ahead_bytes, path)
        return LearntEstimates(prefill.cost(batch=now.batch, queued_tokens=now.queued_tokens), known)


def link_model(link: str) -> LinkModel:
    """A link of which nothing is known but its name."""
    return LinkModel(LINK_PRIORS.get(link, NETWORK_PRIOR))


K = TypeVar("K")


def _kept(models: "OrderedDict[K, T]", key: K, make: Callable[[], T], count_max: int) -> T:
    """The model of ``key``, made if it is not there, and the newest now."""
    model = models.get(key)
    if model is None:
        model = make()
        models[key] = model
        if len(models) > count_max:
            models.popitem(last=False)
    models.move_to_end(key)
    return model
