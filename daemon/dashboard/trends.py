"""Averages and series over the samples of a daemon, or over what they say of one tenant. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..journal.samples import Sample
from ..rates import TenantRates, TierRates
from .records import Figures, History, NamespaceRow, TierHistory

__all__ = ["TierPulse", "figures_of", "history_of", "namespaces_of", "tier_pulse"]

_RATE_DIGITS = 2
_SHARE_DIGITS = 4


@dataclass(frozen=True, slots=True)
class TierPulse:
    """How a tier went on average; ``hit_share`` is that of the reads that it answered."""

    hit_share: float | None
    read_bytes_per_second: float
    written_bytes_per_second: float
    evictions_per_second: float
    errors_per_second: float


class _Pulse(Protocol):
    """How a daemon or a tenant went."""

    @property
    def gets_per_second(self) -> float: ...
    @property
    def puts_per_second(self) -> float: ...
    @property
    def hit_rate(self) -> float | None: ...
    @property
    def read_bytes_per_second(self) -> float: ...
    @property
    def put_bytes_per_second(self) -> float: ...


def figures_of(
    samples: Sequence[Sample], tenant: str | None, *, since_start: float | None, pinned_bytes: int
) -> Figures:
    """The average over ``samples``; ``since_start`` is the share of hits among all reads since the daemon started."""
    seconds, pulse = _average((sample, _pulse(sample, tenant)) for sample in samples)
    return Figures(
        seconds,
        pulse.gets_per_second,
        pulse.puts_per_second,
        pulse.hit_rate,
        since_start,
        pulse.read_bytes_per_second,
        pulse.put_bytes_per_second,
        pinned_bytes,
    )


def namespaces_of(samples: Sequence[Sample], used_bytes: Mapping[str, int]) -> list[NamespaceRow]:
    """The namespaces that ``used_bytes`` names, the busiest first, then the largest."""
    found: dict[str, list[tuple[Sample, _Pulse]]] = {name: [] for name in used_bytes}
    for sample in samples:
        active = {row.name: row for row in sample.rates.tenants}
        for name, pulses in found.items():
            pulses.append((sample, active.get(name) or _idle(name)))
    rows = []
    for name, pulses in found.items():
        _, pulse = _average(pulses)
        rows.append(
            NamespaceRow(
                name,
                pulse.gets_per_second,
                pulse.hit_rate,
                pulse.read_bytes_per_second,
                pulse.puts_per_second,
                pulse.put_bytes_per_second,
                used_bytes[name],
            )
        )
    return sorted(rows, key=lambda row: (-row.gets_per_second - row.puts_per_second, -row.used_bytes, row.name))


def history_of(samples: Sequence[Sample], tenant: str | None, *, next_number: int) -> History:
    """``samples`` as lists; of a tenant without those of the tiers, which are everybody's."""
    pulses = [_pulse(sample, tenant) for sample in samples]
    names = [tier.name for tier in samples[-1].rates.tiers] if samples and tenant is None else []
    tiers = [{tier.name: tier for tier in sample.rates.tiers} for sample in samples]
    return History(
        samples[0].number if samples else next_number,
        next_number,
        tuple(round(sample.rates.uptime_seconds, _RATE_DIGITS) for sample in samples),
        tuple(_rounded(pulse.hit_rate, _SHARE_DIGITS) for pulse in pulses),
        tuple(round(pulse.gets_per_second, _RATE_DIGITS) for pulse in pulses),
        tuple(round(pulse.puts_per_second, _RATE_DIGITS) for pulse in pulses),
        tuple(round(pulse.read_bytes_per_second, _RATE_DIGITS) for pulse in pulses),
        tuple(round(pulse.put_bytes_per_second, _RATE_DIGITS) for pulse in pulses),
        tuple(_tier(name, [tier.get(name) for tier in tiers]) for name in names),
    )


def tier_pulse(samples: Sequence[Sample], name: str) -> TierPulse | None:
    """The average of the tier called ``name`` over the samples that know it, ``None`` where none does."""
    known = [
        (sample.rates, tier, sample.rates.seconds)
        for sample in samples
        for tier in sample.rates.tiers
        if tier.name == name and sample.rates.seconds
    ]
    if not known:
        return None
    total = sum(seconds for _, _, seconds in known)

    def mean(of: Callable[[TierRates], float]) -> float:
        return round(sum(of(tier) * seconds for _, tier, seconds in known) / total, _RATE_DIGITS)

    # By reads of the daemon; a pool that answers all of them is asked when the daemon is not.
    shares = [
        (tier.hit_share, (rates.gets_per_second or 1.0) * seconds)
        for rates, tier, seconds in known
        if tier.hit_share is not None
    ]
    weight = sum(weight for _, weight in shares)
    return TierPulse(
        round(sum(share * weight for share, weight in shares) / weight, _SHARE_DIGITS) if shares else None,
        mean(lambda tier: tier.read_bytes_per_second),
        mean(lambda tier: tier.written_bytes_per_second),
        mean(lambda tier: tier.evictions_per_second),
        mean(lambda tier: tier.errors_per_second),
    )


def _tier(name: str, rates: Sequence[TierRates | None]) -> TierHistory:
    def column(of: Callable[[TierRates], float | None], digits: int) -> tuple[float | None, ...]:
        return tuple(None if item is None else _rounded(of(item), digits) for item in rates)

    return TierHistory(
        name,
        column(lambda tier: tier.fill, _SHARE_DIGITS),
        column(lambda tier: tier.read_bytes_per_second, _RATE_DIGITS),
        column(lambda tier: tier.written_bytes_per_second, _RATE_DIGITS),
    )


def _pulse(sample: Sample, tenant: str | None) -> _Pulse:
    if tenant is None:
        return sample.rates
    return next((row for row in sample.rates.tenants if row.name == tenant), _idle(tenant))


def _average(parts: Iterable[tuple[Sample, _Pulse]]) -> tuple[float, TenantRates]:
    """Over how many seconds, and the pulse in them."""
    seconds = gets = hits = puts = read_bytes = put_bytes = 0.0
    for sample, pulse in parts:
        length = sample.rates.seconds
        seconds += length
        gets += pulse.gets_per_second * length
        hits += (pulse.hit_rate or 0.0) * pulse.gets_per_second * length
        puts += pulse.puts_per_second * length
        read_bytes += pulse.read_bytes_per_second * length
        put_bytes += pulse.put_bytes_per_second * length
    if not seconds:
        return 0.0, _idle("")
    hit_rate = round(hits / gets, _SHARE_DIGITS) if gets else None
    puts, gets = round(puts / seconds, _RATE_DIGITS), round(gets / seconds, _RATE_DIGITS)
    return seconds, TenantRates("", puts, gets, hit_rate, read_bytes / seconds, put_bytes / seconds, 0)


def _idle(name: str) -> TenantRates:
    return TenantRates(name, 0.0, 0.0, None, 0.0, 0.0, 0)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
