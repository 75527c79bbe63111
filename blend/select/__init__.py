"""Selection rules by name: which stored tokens of a blended prompt are computed again."""

from collections.abc import Mapping
from types import MappingProxyType

from ...errors import InvalidRequest
from .all_tokens import AllTokens
from .base import Candidates, SelectionRule, StoredAndFresh
from .deviation import KvDeviation
from .first_tokens import FirstTokens
from .none import NoTokens
from .query import QueryAttention
from .recorded import RecordedNeed

__all__ = [
    "RULES",
    "AllTokens",
    "Candidates",
    "FirstTokens",
    "KvDeviation",
    "NoTokens",
    "QueryAttention",
    "RecordedNeed",
    "SelectionRule",
    "StoredAndFresh",
    "selection_rule",
]

RULES: Mapping[str, type[SelectionRule]] = MappingProxyType(
    {
        "default": QueryAttention,
        "cacheblend": KvDeviation,
        "cache-craft": RecordedNeed,
        "epic": FirstTokens,
        "naive": NoTokens,
        "full": AllTokens,
    }
)


def selection_rule(name: str, ratio: float | None = None) -> SelectionRule:
    """The rule called ``name``, with its own default ratio unless one is given; :class:`InvalidRequest` if unknown."""
    rule = RULES.get(name)
    if rule is None:
        raise InvalidRequest(f"selection rule {name[:40]!r} is unknown; rules are {', '.join(RULES)}")
    return rule() if ratio is None else rule(ratio)
