"""What a model makes of blended prompts, measured at calibration: how much to recompute, or that blending is refused.

How far a blend is from full prefill depends on the model. So calibration blends some prompts at several ratios and
keeps what came out in the codec's profile, where every process finds it that reads chunks coded with it. The smallest
ratio that meets a target is the one to use; where none does, documents are recomputed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from .. import limits
from ..codec.layout import Layout
from ..errors import InvalidData, InvalidRequest

__all__ = ["RATIOS", "BlendGate", "QualityTarget", "RatioQuality", "fewest_recomputed", "unmovable_reason"]

RATIOS = (0.05, 0.09, 0.13, 0.18, 0.25, 0.35, 0.5)
"""The ratios that are tried; of a model that needs more than half recomputed, little time is saved."""
_FINGERPRINT_BYTES = 32
_REASON_CHARACTERS_MAX = 400


@dataclass(frozen=True, slots=True)
class QualityTarget:
    """What answers over blended documents must keep to.

    ``kl``: mean KL divergence (nats) of their first tokens from full prefill's. ``agreement``: the share of answers
    that begin with the same token.
    """

    kl: float = 0.05
    agreement: float = 0.75

    def __post_init__(self) -> None:
        if not 0.0 < self.kl <= 10.0:
            raise InvalidRequest(f"KL to keep to is {self.kl} nats, must be over 0 and at most 10")
        if not 0.0 <= self.agreement <= 1.0:
            raise InvalidRequest(f"first-token agreement to keep to is {self.agreement}, must be 0 to 1")


@dataclass(frozen=True, slots=True)
class RatioQuality:
    """What recomputing ``ratio`` of the stored tokens gave: the mean ``kl``, its standard error, the agreement."""

    ratio: float
    kl: float
    kl_error: float
    agreement: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.ratio <= 1.0 and 0.0 <= self.agreement <= 1.0 and self.kl >= 0.0 and self.kl_error >= 0.0):
            raise InvalidRequest(f"no blend measures {self}")

    def meets(self, target: QualityTarget) -> bool:
        """Whether the KL is within ``target`` by a standard error, and the agreement reaches it."""
        return self.kl + self.kl_error <= target.kl and self.agreement >= target.agreement


@dataclass(frozen=True, slots=True)
class BlendGate:
    """What was measured of the model with the ``fingerprint`` [32 bytes] over so many ``prompts``.

    ``refusal`` says why nothing could be measured, where that is so; it is empty otherwise.
    """

    fingerprint: bytes
    target: QualityTarget
    prompts: int = 0
    measured: tuple[RatioQuality, ...] = ()
    refusal: str = ""

    def __post_init__(self) -> None:
        if len(self.fingerprint) != _FINGERPRINT_BYTES:
            raise InvalidRequest(f"fingerprint has {len(self.fingerprint)} bytes, must have {_FINGERPRINT_BYTES}")
        if not 0 <= self.prompts <= limits.BLEND_TRIALS_MAX:
            raise InvalidRequest(f"{self.prompts} prompts were blended, the limit is {limits.BLEND_TRIALS_MAX}")
        if bool(self.refusal) == bool(self.measured):
            raise InvalidRequest("a gate says what was measured, or why nothing was")
        if len(self.refusal) > _REASON_CHARACTERS_MAX:
            raise InvalidRequest(f"a refusal has {len(self.refusal)} characters, the limit is {_REASON_CHARACTERS_MAX}")

    @property
    def chosen(self) -> RatioQuality | None:
        """The smallest ratio that met the target; None where none did."""
        return min(
            (item for item in self.measured if item.meets(self.target)), key=lambda item: item.ratio, default=None
        )

    @property
    def reason(self) -> str:
        """Why documents are recomputed, as a sentence for people; empty where they may be blended."""
        if self.refusal:
            return self.refusal
        if self.chosen is not None:
            return ""
        best = min(self.measured, key=lambda item: item.kl)
        return (
            f"blending misses the quality asked for: recomputing {best.ratio:.0%} of the tokens leaves a KL of "
            f"{best.kl:.3f} ± {best.kl_error:.3f} nats and {best.agreement:.0%} of first tokens; "
            f"at most {self.target.kl:g} and at least {self.target.agreement:.0%} are"
        )

    def to_bytes(self) -> bytes:
        """The record as a profile keeps it; inverse of :meth:`from_bytes`."""
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint.hex()}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "BlendGate":
        """Parse what a profile kept; anything else raises :class:`InvalidData`."""
        if len(data) > limits.BLEND_GATE_BYTES_MAX:
            raise InvalidData(f"blend gate has {len(data)} bytes, the limit is {limits.BLEND_GATE_BYTES_MAX}")
        try:
            fields = json.loads(data)
            return cls(
                bytes.fromhex(fields["fingerprint"]),
                QualityTarget(*(float(fields["target"][name]) for name in ("kl", "agreement"))),
                int(fields["prompts"]),
                tuple(
                    RatioQuality(*(float(item[name]) for name in ("ratio", "kl", "kl_error", "agreement")))
                    for item in fields["measured"]
                ),
                str(fields["refusal"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, InvalidRequest) as error:
            raise InvalidData(f"blend gate of a profile cannot be read: {str(error)[:200]}") from error


def fewest_recomputed(
    measure: Callable[[float], RatioQuality], target: QualityTarget, ratios: Sequence[float] = RATIOS
) -> tuple[RatioQuality, ...]:
    """Measure as few of ``ratios`` (ascending) as it takes to find the smallest that meets ``target``, in that order.

    It is taken for granted that more recomputed is nearer to full prefill.
    """
    found: dict[float, RatioQuality] = {}
    low, high = 0, len(ratios)
    while low < high:
        middle = (low + high) // 2
        found[ratios[middle]] = measure(ratios[middle])
        if found[ratios[middle]].meets(target):
            high = middle
        else:
            low = middle + 1
    return tuple(found[ratio] for ratio in sorted(found))


def unmovable_reason(layout: Layout) -> str:
    """Why chunks of ``layout`` cannot be moved to another place, empty where they can."""
    stuck = [index for index, layer in enumerate(layout.layers) if layer.rope is None]
    if not stuck:
        return ""
    return (
        f"{len(stuck)} of {len(layout.layers)} layers, the first {stuck[0]}, have keys whose position cannot be undone"
    )
