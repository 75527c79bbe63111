"""The daemon's own tiers as links: what reading from each takes, as it is seen from within. Pure."""

from collections.abc import Mapping

from ... import limits
from ...clients.plan_wire import LinkReport
from .links import LinkEstimate, LinkModel
from .model import LINK_PRIORS, link_model

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

        That way is at least what a copy within the machine takes: reading from memory takes no time here.
        """
        way = LINK_PRIORS["memory"]
        found: dict[str, LinkEstimate] = {}
        for tier, model in self._tiers.items():
            estimate = model.estimate(now_seconds=now_seconds)
            found[tier] = estimate.at_least(way.latency_seconds, way.byte_seconds)
        return found

    def reports(self, now_seconds: float) -> tuple[LinkReport, ...]:
        """Each tier as it was measured."""
        reports = []
        for tier, model in self._tiers.items():
            estimate = model.estimate(now_seconds=now_seconds)
            rate = 1.0 / estimate.byte_seconds
            reports.append(LinkReport(tier, estimate.latency_seconds, rate, estimate.spread, model.samples))
        return tuple(reports)
