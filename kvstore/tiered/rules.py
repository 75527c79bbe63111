"""What whoever makes a store decides about it. Pure."""

from dataclasses import dataclass, field

from ..quota import Quotas
from .admission import AdmissionRule
from .cascade import CascadeLimits

__all__ = ["StoreRules"]


@dataclass(frozen=True, slots=True)
class StoreRules:
    """What a store does where there is a choice."""

    cascade: CascadeLimits = field(default_factory=CascadeLimits)
    admission: AdmissionRule = AdmissionRule.ALWAYS
    shared_quotas: Quotas = field(default_factory=Quotas)
    """Quotas on each shared tier, in payload bytes. Those on local tiers are their own (:class:`.QuotaPolicy`)."""
