"""Links by what a person writes: ``constant:10Gb``, ``step:10Gb,1Gb,5``, ``lte``. Pure."""

import math
from typing import Final

from ....errors import ConfigError, InvalidData
from .bandwidth import Bandwidth, congested, constant, lte, saw, step

__all__ = ["LINK_FORMS", "parse_link", "parse_rate"]

LINK_FORMS: Final = "constant:RATE, step:HIGH,LOW,SECONDS, saw:LOW,HIGH,SECONDS, lte[:SCALE], congested:RATE"
_UNITS: Final = (("Gb", 1e9 / 8), ("Mb", 1e6 / 8), ("kb", 1e3 / 8))


def parse_rate(text: str) -> float:
    """Bytes per second of ``25Gb``, ``2.5Mb``, ``300kb`` (bits, per second); :class:`ConfigError` for others."""
    for unit, bytes_per_s in _UNITS:
        if text.endswith(unit):
            return _number(text.removesuffix(unit), text) * bytes_per_s
    raise ConfigError(f"rate {text[:40]!r} is not a number of Gb, Mb or kb (bits per second)")


def parse_link(text: str, seed: int) -> Bandwidth:
    """The bandwidth that ``text`` names (:data:`LINK_FORMS`); ``seed`` is for those with chance in them."""
    kind, _, rest = text.partition(":")
    fields = rest.split(",") if rest else []
    try:
        if kind == "constant" and len(fields) == 1:
            return constant(parse_rate(fields[0]))
        if kind in ("step", "saw") and len(fields) == 3:
            make = step if kind == "step" else saw
            return make(parse_rate(fields[0]), parse_rate(fields[1]), _number(fields[2], text))
        if kind == "lte" and len(fields) <= 1:
            return lte(seed, scale=_number(fields[0], text) if fields else 1.0)
        if kind == "congested" and len(fields) == 1:
            return congested(parse_rate(fields[0]), seed)
    except InvalidData as error:
        raise ConfigError(f"link {text[:60]!r}: {error}") from error
    raise ConfigError(f"link {text[:60]!r} is none of {LINK_FORMS}")


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise ConfigError(f"{text[:40]!r} in {whole[:60]!r} is not a number") from error
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{text[:40]!r} in {whole[:60]!r} is not above 0")
    return number
