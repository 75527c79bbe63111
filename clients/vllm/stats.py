"""What the connector counts between two reports. Pure."""

from dataclasses import asdict, dataclass, fields
from typing import Final

__all__ = ["DESCRIPTIONS", "Counts"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Loads, saves and decisions of one interval; adds up over intervals and workers.

    ``load_seconds`` sums over requests. ``declined_tokens`` were stored, and faster computed than loaded.
    ``blended_tokens`` were stored, and ``recomputed_tokens`` of them computed again in the last layer.
    """

    loads: int = 0
    failed_loads: int = 0
    loaded_tokens: int = 0
    loaded_bytes: int = 0
    load_seconds: float = 0.0
    saves: int = 0
    failed_saves: int = 0
    dropped_saves: int = 0
    saved_tokens: int = 0
    saved_bytes: int = 0
    lookups: int = 0
    lookup_seconds: float = 0.0
    plans: int = 0
    plan_seconds: float = 0.0
    declined_tokens: int = 0
    blends: int = 0
    blended_tokens: int = 0
    recomputed_tokens: int = 0
    blend_seconds: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Counts)))

    def as_dict(self) -> dict[str, int | float]:
        """By name."""
        return asdict(self)


DESCRIPTIONS: Final = {
    "loads": "Requests whose KV was loaded from kvloom, or was to be.",
    "failed_loads": "Of these, those of which something did not come and was computed.",
    "loaded_tokens": "Tokens whose KV was loaded.",
    "loaded_bytes": "Bytes read for them.",
    "load_seconds": "Seconds that loads took, summed over requests.",
    "saves": "Chunks stored.",
    "failed_saves": "Chunks that could not be encoded or stored.",
    "dropped_saves": "Chunks not stored because too much was waiting to be.",
    "saved_tokens": "Tokens of the chunks stored.",
    "saved_bytes": "Bytes of the chunks stored.",
    "lookups": "Questions which chunks are stored.",
    "lookup_seconds": "Seconds the scheduler waited for the answers.",
    "plans": "Questions how much of a hit to load.",
    "plan_seconds": "Seconds the scheduler waited for the answers.",
    "declined_tokens": "Tokens that were stored and computed all the same, because that was expected to be faster.",
    "blends": "Requests whose documents were blended.",
    "blended_tokens": "Tokens of documents whose stored KV was blended.",
    "recomputed_tokens": "Of these, those that were computed again.",
    "blend_seconds": "Seconds that blending took, loads included.",
}
"""What each count is, for whoever reads it."""
