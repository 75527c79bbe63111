"""What the connector counts between two reports. Pure."""

from dataclasses import asdict, dataclass, fields

__all__ = ["Counts"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Loads and saves of one interval; adds up over intervals and workers. ``load_seconds`` sums over requests."""

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

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Counts)))

    def as_dict(self) -> dict[str, int | float]:
        """By name."""
        return asdict(self)
