"""What a user may set for the connector: ``kv_connector_extra_config`` of ``--kv-transfer-config``, checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import limits
from ...codec.level import EXACT, Level
from ...errors import ConfigError
from ...kvstore.tier import Ack
from ..engine_settings import check_within, read_settings
from ..weights import parse_fingerprint

__all__ = ["ConnectorSettings"]

_NAME = re.compile(f"[!-~]{{1,{limits.ENGINE_NAME_CHARACTERS_MAX}}}")
_PREFIX = "kvloom_"
"""Settings may be written with it, beside those of other connectors."""


@dataclass(frozen=True, slots=True)
class ConnectorSettings:
    """The connector's settings; :meth:`parse` reads them from what vLLM was given.

    ``address``, ``api_key`` and ``lookup_seconds_max`` are found as :class:`~kvloom.clients.KvloomClient` finds them
    where they are not given.
    ``level`` is what is stored and loaded. ``profile`` is the file of a codec profile or the digest of one on the
    daemon's shelf, for lossy levels. ``fingerprint`` (64 hexadecimal digits) stands for the weights where hashing their
    files is not wanted. ``lookup_seconds_max`` bounds what the scheduler waits for an answer, ``load_seconds_max``
    what a request waits for its KV before that is recomputed. ``load_tokens_min`` is the shortest hit worth loading.
    ``load`` and ``save`` are false where there is nothing to do for an engine whose ``kv_role`` says so, too.
    ``save_queue_bytes`` bounds the KV that waits to be encoded and sent; what comes when it is full is not stored.
    ``plan`` has the daemon's planner asked how much of a hit to load; ``engine`` is the name under which it knows what
    this engine costs. ``layers_per_part`` has so many layers at a time stored and loaded on their own (0: all of them);
    ``load_by_layer`` has a step wait for one layer after the other instead of the request for all.
    ``await_seconds_max`` bounds what a request waits for KV that another engine is computing.
    ``blend`` has requests that mark documents blended (``--load-format kvloom``); ``blend_ratio`` of their tokens is
    computed again, by default what the blender's own default is.
    ``save_tails`` has the last, unfinished chunk of a prompt stored too, ``save_answers`` that of a finished request.
    """

    address: str | None = None
    api_key: str | None = None
    level: Level = EXACT
    profile: str | None = None
    fingerprint: bytes | None = None
    chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT
    lookup_seconds_max: float | None = None
    load_seconds_max: float = limits.ENGINE_LOAD_SECONDS_DEFAULT
    load_tokens_min: int = limits.ENGINE_LOAD_TOKENS_MIN
    plan: bool = True
    engine: str | None = None
    layers_per_part: int = 0
    load_by_layer: bool = False
    await_seconds_max: float = limits.ENGINE_AWAIT_SECONDS_DEFAULT
    blend: bool = False
    blend_ratio: float | None = None
    load: bool = True
    save: bool = True
    save_tails: bool = True
    save_answers: bool = True
    save_queue_bytes: int = limits.ENGINE_SAVE_QUEUE_BYTES_DEFAULT
    ack: Ack = Ack.MEMORY

    def __post_init__(self) -> None:
        check_within("chunk_tokens", self.chunk_tokens, 1, limits.CHUNK_TOKENS_MAX)
        if self.lookup_seconds_max is not None:
            check_within("lookup_seconds_max", self.lookup_seconds_max, 0.001, limits.LOOKUP_SECONDS_MAX)
        check_within("load_seconds_max", self.load_seconds_max, 0.001, limits.ENGINE_LOAD_SECONDS_MAX)
        check_within("load_tokens_min", self.load_tokens_min, 1, limits.PREFIX_TOKENS_MAX)
        check_within("await_seconds_max", self.await_seconds_max, 0.001, limits.ENGINE_LOAD_SECONDS_MAX)
        check_within("layers_per_part", self.layers_per_part, 0, limits.LAYERS_MAX)
        if self.load_by_layer and not self.layers_per_part:
            raise ConfigError("load_by_layer needs layers_per_part: whole chunks come with all their layers at once")
        if self.blend_ratio is not None:
            check_within("blend_ratio", self.blend_ratio, 0.0, 1.0)
        if self.blend and self.layers_per_part:
            raise ConfigError("blend needs whole chunks: layers_per_part and blend exclude each other")
        if self.layers_per_part and self.profile is not None:
            raise ConfigError("a profile is of all layers together: layers_per_part and profile exclude each other")
        if self.engine is not None and not _NAME.fullmatch(self.engine):
            most = limits.ENGINE_NAME_CHARACTERS_MAX
            raise ConfigError(
                f"engine is {self.engine[:40]!r}, must be 1 to {most} printable ASCII characters, no space"
            )
        check_within("save_queue_bytes", self.save_queue_bytes, 0, limits.ENGINE_SAVE_QUEUE_BYTES_MAX)
        if self.fingerprint is not None:
            parse_fingerprint(self.fingerprint.hex())

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "ConnectorSettings":
        """The settings in ``given``; :class:`ConfigError` for a name there is not, and a value that it cannot have."""
        return cls(**read_settings(cls, {name.removeprefix(_PREFIX): value for name, value in given.items()}))
