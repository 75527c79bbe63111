"""What a user may set: the object ``kvloom`` in ``--hicache-storage-backend-extra-config``, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import limits
from ...errors import ConfigError
from ...kvstore.tier import Ack
from ..engine_settings import check_within, read_settings
from ..weights import parse_fingerprint

__all__ = ["HiCacheSettings"]

_HOME = "kvloom"


@dataclass(frozen=True, slots=True)
class HiCacheSettings:
    """The backend's settings; :meth:`parse` reads them from what SGLang was given.

    ``address`` and ``api_key`` as every client takes them. ``fingerprint`` (64 hexadecimal digits) stands for the
    model's weights and configuration; without it these are hashed, where the model is a folder or a file.
    ``lookup_seconds_max`` bounds one look-up, ``load_seconds_max`` one batch of pages that are read (128 at most).
    """

    address: str | None = None
    api_key: str | None = None
    fingerprint: str | None = None
    lookup_seconds_max: float | None = None
    load_seconds_max: float = limits.ENGINE_LOAD_SECONDS_DEFAULT
    ack: Ack = Ack.MEMORY

    def __post_init__(self) -> None:
        if self.lookup_seconds_max is not None:
            check_within("lookup_seconds_max", self.lookup_seconds_max, 0.001, limits.LOOKUP_SECONDS_MAX)
        check_within("load_seconds_max", self.load_seconds_max, 0.001, limits.ENGINE_LOAD_SECONDS_MAX)
        if self.fingerprint is not None:
            parse_fingerprint(self.fingerprint)

    @classmethod
    def parse(cls, extra_config: Mapping[str, Any] | None) -> "HiCacheSettings":
        """Those in SGLang's extra configuration, whose other names are its own; else :class:`ConfigError`."""
        given = (extra_config or {}).get(_HOME, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"{_HOME} is {given!r}, must be an object with settings")
        return cls(**read_settings(cls, given))
