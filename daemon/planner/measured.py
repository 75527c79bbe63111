"""The daemon's own tiers as links: what reading from each takes, as it is seen from within. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from ... import limits
from ...clients.plan_wire import LinkReport
from .links import LinkEstimate, LinkModel
from .model import NETWORK_PRIOR, link_model

__all__ = ["MeasuredLinks"]


class MeasuredLinks:
    """Tiers by name, as many as a daemon has."""

    def __init__(self) -> None:
        self._tiers: dict[str, LinkModel] = {}

    def note(self, tier: str, size_bytes: int, seconds: float, *, concurrent: float, now_seconds: float) -> None:
        """A read of ``tier`` was answered."""
        model = self._tiers.get(tier)
        if model is None:
            if len(self._tiers) >= limits.PLAN_LINKS_MAX:
                return
            model = self._tiers[tier] = link_model(tier)
        model.add(float(size_bytes), seconds, concurrent=concurrent, now_seconds=now_seconds)

    def estimates(self, now_seconds: float) -> Mapping[str, LinkEstimate]:
        """What an engine may expect that has not reported loads yet: the tier, and the way from here to there.

        Of the way nothing is known before: it is taken for a network, so that a first plan asks for what is small. How
        the tier changes says nothing of how the way does, so what is seen of a load under way is believed.
        """
        way = NETWORK_PRIOR
        found: dict[str, LinkEstimate] = {}
        for tier, model in self._tiers.items():
            estimate = model.estimate(now_seconds=now_seconds)
            there = estimate.at_least(way.latency_seconds, way.byte_seconds)
            found[tier] = replace(there, typical_byte_seconds=0.0, reversion_seconds=inf)
        return found

    def reports(self, now_seconds: float) -> tuple[LinkReport, ...]:
        """Each tier as it was measured."""
        reports = []
        for tier, model in self._tiers.items():
            estimate = model.estimate(now_seconds=now_seconds)
            rate = 1.0 / estimate.byte_seconds
            reports.append(LinkReport(tier, estimate.latency_seconds, rate, estimate.spread, model.samples))
        return tuple(reports)
