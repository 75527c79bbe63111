"""What a user of an engine's plugin may set, read from the JSON that the engine hands over, and checked."""

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from ..codec.level import Level, parse_level
from ..errors import ConfigError, UnknownLevel
from ..kvstore.tier import Ack

__all__ = ["check_within", "read_settings"]


def read_settings(settings: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` as the fields of ``settings``, a dataclass; :class:`ConfigError` for any other name or kind."""
    kinds = {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(settings).items()}
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name not in kinds:
            raise ConfigError(f"kvloom has no setting {name!r}; there are {', '.join(kinds)}")
        chosen[name] = _read(name, value, kinds[name])
    return chosen


def check_within(name: str, value: float, low: float, high: float) -> None:
    """:class:`ConfigError` for a number outside of ``[low, high]``."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, must be {low} to {high}")


def _read(name: str, value: Any, kind: type) -> Any:
    if kind is bool or kind is int:
        if type(value) is not kind:
            raise ConfigError(f"{name} is {value!r}, must be {'true or false' if kind is bool else 'a whole number'}")
        return value
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} is {value!r}, must be a number")
        return float(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}, must be text")
    try:
        if kind is Level:
            return parse_level(value)
        if kind is Ack:
            return Ack(value)
        return bytes.fromhex(value) if kind is bytes else value
    except (UnknownLevel, ValueError) as error:
        raise ConfigError(f"{name} is {value[:80]!r}: {error}") from error
