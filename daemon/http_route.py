"""One route of the HTTP edge: what serves it, what it needs, and all that its description says of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from .. import limits
from ..clients import batches, wire
from ..clients.summed import HEADER_VERIFIES, HEADER_WORD_SUM
from ..codec.level import EXACT, LOSSY_LEVELS
from ..errors import KvloomError
from ..kvstore.tier import Ack
from .call import Call, Door
from .caller import Caller, Scope

__all__ = ["Answer", "Body", "Field", "Route"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CallerHandler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]
Schema = dict[str, object]
KEY_SCHEMA: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$", "minLength": 64, "maxLength": 64}
_TAG: Final[Schema] = {"type": "string"}


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter or a header: its name, its JSON Schema, and what it means."""

    name: str
    schema: Schema = field(hash=False)
    means: str
    always: bool = True
    """Of a header of an answer: whether every such answer has it."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: a record as JSON, or bytes of another kind."""

    media: str = wire.JSON_TYPE
    record: type | None = None
    limit_bytes: int = limits.KEYS_BODY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Answer:
    """A success: its status, its body (none where there is no ``media``; ``media_too``: or of those), its headers."""

    status: int
    record: type | None = None
    media: str | None = wire.JSON_TYPE
    headers: tuple[Field, ...] = ()
    media_too: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path. ``refusals`` are errors of its own; those that every route may answer go without."""

    method: str
    path: str
    call: Call
    handler: CallerHandler | Handler
    answers: tuple[Answer, ...]
    query: tuple[Field, ...] = ()
    headers: tuple[Field, ...] = ()
    body: Body | None = None
    refusals: tuple[type[KvloomError], ...] = ()

    @property
    def needs(self) -> Scope | Door:
        """The scope that its caller needs, or which door is open to him; ``OPEN`` needs no caller."""
        return self.call.needs

    @property
    def admitted(self) -> bool:
        """Whether it is served only while the daemon is ready, and counted as inside."""
        return self.call.admitted


ACK: Final = Field("ack", {"type": "string", "enum": list(Ack), "default": "memory"}, "What to wait for.")
TTL: Final = Field(
    "ttl_seconds",
    {"type": "number", "minimum": 0.001, "maximum": limits.TTL_SECONDS_MAX},
    "How long to keep it; the namespace's own time by default.",
)
LEVEL: Final = Field(
    "level",
    {"type": "string", "enum": [level.name for level in (*LOSSY_LEVELS, EXACT)]},
    "Only what this level takes; everything by default.",
)
LAYERS: Final = Field(
    "layers",
    {"type": "string", "pattern": "^[0-9]{1,3}(-[0-9]{1,3})?$"},
    "Only these layers, A or A-B; lossy levels come in whole blocks of layers.",
)
LIMIT: Final = Field(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": limits.LIST_CHUNKS_MAX, "default": limits.LIST_CHUNKS_DEFAULT},
    "How many at most.",
)
PREFIX: Final = Field("prefix", {"type": "string", "pattern": "^[0-9a-f]{0,64}$"}, "First digits of their keys.")
PARENT: Final = Field(wire.HEADER_PARENT, KEY_SCHEMA, "The key of the chunk before this one.")
VERIFIES: Final = Field(
    HEADER_VERIFIES,
    {"type": "string"},
    f"The caller verifies what comes: where {HEADER_WORD_SUM} is told, the daemon does not.",
)
IF_MATCH: Final = Field("If-Match", _TAG, "Only if this is stored.")
IF_NONE_MATCH: Final = Field("If-None-Match", _TAG, "Only if this is not stored.")
RANGE: Final = Field("Range", {"type": "string"}, "One range of bytes.")
IF_RANGE: Final = Field("If-Range", _TAG, "A range only if this is stored, else everything.")
SINCE: Final = Field(
    "since",
    {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0},
    "The number of the first sample that is wanted.",
)
LAST_EVENT_ID: Final = Field("Last-Event-ID", {"type": "string"}, "The stream was broken off, and begins with a loss.")
TIER: Final = Field(wire.HEADER_TIER, {"type": "string"}, "Where it was.")
LEVELS: Final = Field(wire.HEADER_LEVELS, {"type": "string"}, "The levels that are sent.")
TOKENS: Final = Field(wire.HEADER_TOKENS, {"type": "integer"}, "Tokens of the chunk.")
TAG: Final = Field("ETag", _TAG, "Names these very bytes.")
CONTENT_RANGE: Final = Field("Content-Range", {"type": "string"}, "Which bytes of how many.")
WORD_SUM: Final = Field(
    HEADER_WORD_SUM,
    {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    "The little-endian 64-bit words of the whole chunk added up modulo 2^64, where that is known.",
    always=False,
)
CHUNK_HEADERS: Final = (TAG, TIER, LEVELS, TOKENS, WORD_SUM)
CHUNK_ANSWERS: Final = (
    Answer(200, media=wire.CONTAINER_TYPE, headers=CHUNK_HEADERS),
    Answer(206, media=wire.CONTAINER_TYPE, headers=(*CHUNK_HEADERS, CONTENT_RANGE)),
    Answer(304, media=None, headers=(TAG,)),
)
PROFILE_ANSWERS: Final = (
    Answer(200, media=wire.PROFILE_TYPE, headers=(TAG,)),
    Answer(206, media=wire.PROFILE_TYPE, headers=(TAG, CONTENT_RANGE)),
    Answer(304, media=None, headers=(TAG,)),
)
CONTAINER: Final = Body(wire.CONTAINER_TYPE, limit_bytes=limits.CONTAINER_BYTES_MAX)
PROFILE: Final = Body(wire.PROFILE_TYPE, limit_bytes=limits.PROFILE_BYTES_MAX)
BATCH: Final = Body(batches.BATCH_TYPE, limit_bytes=limits.BATCH_BYTES_MAX)
