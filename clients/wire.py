"""What the HTTP interface looks like on the wire: header names, and records as JSON. Daemon and clients share it.

A record's JSON is an object of its fields: bytes as lower-case hexadecimal, levels and other names as strings, tuples
as lists. :func:`load` follows the field types of the dataclass, so there is no second description to keep in step.
"""

import json
import re
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from .. import limits
from ..codec.level import Level, LossyCodec, parse_level
from ..errors import InvalidKey, InvalidRequest, KvloomError, TooManyItems
from ..kvstore.key import ContentKey, ModelIdentity, key_from_hex
from ..kvstore.tier import Ack
from .json_bounds import check_json_counts
from .plan_wire import NO_CHECKS, NO_PLANS, PlannerStats, QualityStats
from .pool_wire import PoolReport
from .tenancy import StageStats, TenantStats

__all__ = [
    "CONTAINER_TYPE",
    "HEADER_LEVELS",
    "HEADER_PARENT",
    "HEADER_REQUEST_ID",
    "HEADER_TIER",
    "HEADER_TOKENS",
    "JSON_TYPE",
    "PROFILE_TYPE",
    "ChunkDetail",
    "ChunkEntry",
    "ChunkList",
    "DaemonStats",
    "DeleteReply",
    "ErrorBody",
    "ExistsReply",
    "Health",
    "Json",
    "KeysQuestion",
    "LevelBytes",
    "PrefixCount",
    "PrefixQuestion",
    "ProfileReply",
    "PutReply",
    "TierStats",
    "decode",
    "dump",
    "encode",
    "format_layers",
    "load",
    "parse_ack",
    "parse_keys",
    "parse_layers",
    "parse_ttl",
]

Json = Any
"""What :func:`json.loads` returns; it becomes a typed record in :func:`load` and nowhere else."""

HEADER_TIER: Final = "Kvloom-Tier"
HEADER_LEVELS: Final = "Kvloom-Levels"
HEADER_TOKENS: Final = "Kvloom-Tokens"
HEADER_PARENT: Final = "Kvloom-Parent"
"""On a put: the key of the chunk before this one."""
HEADER_REQUEST_ID: Final = "X-Request-Id"
CONTAINER_TYPE: Final = "application/vnd.kvloom.container"
PROFILE_TYPE: Final = "application/vnd.kvloom.profile"
JSON_TYPE: Final = "application/json"

T = TypeVar("T")
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,6})?", re.ASCII)
_LAYERS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The body of every reply that is not a success."""

    error: str
    message: str


@dataclass(frozen=True, slots=True)
class PutReply:
    """What a put has reached."""

    ack: Ack


@dataclass(frozen=True, slots=True)
class ProfileReply:
    """The digest under which a profile is now on the shelf."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class KeysQuestion:
    """Which of these keys are stored?"""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExistsReply:
    """For each key asked about, whether it is stored."""

    exists: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class PrefixQuestion:
    """How many leading chunks are stored, of ``keys`` or of ``tokens`` cut and keyed as ``identity`` says?"""

    keys: tuple[str, ...] | None = None
    identity: ModelIdentity | None = None
    tokens: tuple[int, ...] | None = None
    chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT


@dataclass(frozen=True, slots=True)
class PrefixCount:
    """``chunks`` leading chunks are stored; ``tokens`` they cover and their ``keys`` where tokens were given."""

    chunks: int
    tokens: int | None = None
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeleteReply:
    """Whether there was a chunk to forget."""

    deleted: bool


@dataclass(frozen=True, slots=True)
class Health:
    """Which daemon this is and in which phase of its life: ``starting``, ``ready`` or ``draining``."""

    phase: str
    version: str
    pid: int


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """One stored chunk as a list shows it; ``tiers`` are fastest first, ``expires_at_ms`` is absent for never."""

    key: bytes
    payload_bytes: int
    stored_at_ms: int
    tiers: tuple[str, ...]
    expires_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ChunkList:
    """Some stored chunks in no particular order; ``truncated`` where there are more."""

    chunks: tuple[ChunkEntry, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class LevelBytes:
    """Payload bytes of one level alone; a lossy level of codec ``kvloom`` needs the coarser ones too."""

    level: Level
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class ChunkDetail:
    """One stored chunk in full; ``codec`` and ``profile_digest`` are absent where no level is lossy."""

    chunk: ChunkEntry
    tokens: int
    first_position: int
    layers: int
    dtype: str
    layout_digest: bytes
    raw_bytes: int
    levels: tuple[LevelBytes, ...]
    profile_digest: bytes | None = None
    codec: LossyCodec | None = None


@dataclass(frozen=True, slots=True)
class TierStats:
    """One tier: how full it is, what has happened in it since the start; ``breaker`` is open, closed or none."""

    name: str
    durable: bool
    limit_bytes: int
    used_bytes: int
    records: int
    hits: int
    hit_bytes: int
    corrupt: int
    errors: int
    evictions: int
    promotions: int
    shared: bool = False
    eviction: str = ""
    """The policy that chooses what is given up; empty where the tier leaves that to somebody else."""
    breaker: str = "none"
    breaker_openings: int = 0


@dataclass(frozen=True, slots=True)
class DaemonStats:
    """The daemon and its tiers, fastest first, since it started; ``codec`` is that of its namespace's lossy levels."""

    version: str
    pid: int
    phase: str
    uptime_seconds: float
    namespace: str
    requests_inflight: int
    bytes_inflight: int
    bytes_inflight_max: int
    dirty_bytes: int
    dirty_bytes_max: int
    hits: int
    misses: int
    puts: int
    put_bytes: int
    write_behind_failures: int
    profiles: int
    tiers: tuple[TierStats, ...]
    codec: LossyCodec = LossyCodec.KVLOOM
    stages: tuple[StageStats, ...] = ()
    tenants: tuple[TenantStats, ...] = ()
    expired: int = 0
    pinned_bytes: int = 0
    leases: int = 0
    admitted: int = 0
    deferred: int = 0
    promotions_dropped: int = 0
    pools: tuple[PoolReport, ...] = ()
    planner: PlannerStats = NO_PLANS
    quality: QualityStats = NO_CHECKS


def dump(record: object) -> Json:
    """A record (dataclass, enum, level, bytes, tuple, number, string) as JSON values."""
    if isinstance(record, Level):
        return record.name
    if is_dataclass(record) and not isinstance(record, type):
        return {field.name: dump(getattr(record, field.name)) for field in fields(record)}
    if isinstance(record, bytes):
        return record.hex()
    if isinstance(record, (tuple, list)):
        return [dump(item) for item in record]
    if isinstance(record, StrEnum):
        return record.value
    return record


def encode(record: object) -> bytes:
    """A record as the bytes of a JSON body."""
    return json.dumps(dump(record), separators=(",", ":"), allow_nan=False).encode()


def load(kind: type[T], value: Json, *, strict: bool = True) -> T:
    """Build a ``kind`` from JSON values; :class:`InvalidRequest` names the field that does not fit.

    Fields that are missing take their defaults. Fields that ``kind`` does not have are refused where ``strict`` (a
    request with a typo) and ignored where not (a reply of a newer daemon).
    """
    loaded: T = _load(kind, value, "body", strict)
    return loaded


def decode(kind: type[T], body: bytes | bytearray | memoryview, *, strict: bool = True) -> T:
    """Parse a JSON body and build a ``kind``; see :func:`load`. A request's (``strict``) is counted first."""
    data = bytes(body)
    if strict:
        check_json_counts(data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"body of {len(body)} bytes is not JSON: {error}") from error
    return load(kind, value, strict=strict)


def parse_keys(keys: tuple[str, ...]) -> list[ContentKey]:
    """The content keys of a question, at most :data:`limits.KEYS_PER_REQUEST_MAX`."""
    if len(keys) > limits.KEYS_PER_REQUEST_MAX:
        raise TooManyItems(f"request names {len(keys)} keys, the limit is {limits.KEYS_PER_REQUEST_MAX}")
    return [key_from_hex(key) for key in keys]


def parse_layers(text: str) -> range:
    """Layers ``A-B`` (both included) or ``A``."""
    match = _LAYERS.fullmatch(text)
    first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
    if not 0 <= first <= last < limits.LAYERS_MAX:
        raise InvalidRequest(f"layers {text[:40]!r} are not A-B with 0 <= A <= B <= {limits.LAYERS_MAX - 1}")
    return range(first, last + 1)


def format_layers(layers: range) -> str:
    """The inverse of :func:`parse_layers`; the range must be contiguous and not empty."""
    if not layers or layers.step != 1:
        raise InvalidRequest(f"layers {layers} are empty or not contiguous")
    return f"{layers[0]}-{layers[-1]}"


def parse_ack(text: str) -> Ack:
    """``memory`` or ``disk``."""
    try:
        return Ack(text)
    except ValueError as error:
        raise InvalidRequest(f"ack {text[:40]!r} is not one of {', '.join(Ack)}") from error


def parse_ttl(text: str) -> float:
    """A time to live in seconds; its limits are the store's."""
    if not _SECONDS.fullmatch(text):
        raise InvalidRequest(f"ttl_seconds {text[:40]!r} is not a number of seconds")
    return float(text)


def _load(kind: Any, value: Json, name: str, strict: bool) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        bare = next(item for item in get_args(kind) if item is not type(None))
        return None if value is None else _load(bare, value, name, strict)
    if origin is tuple:
        return _load_tuple(get_args(kind)[0], value, name, strict)
    if kind is Level:
        return parse_level(_expect(str, value, name))
    if is_dataclass(kind):
        return _load_record(kind, value, name, strict)
    kind = getattr(kind, "__supertype__", kind)
    if kind is bytes:
        return _load_bytes(value, name)
    if kind is float and type(value) is int and abs(value) < 1 << 1000:
        return float(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError as error:
            raise InvalidRequest(f"{name} is {str(value)[:40]!r}, not one of {', '.join(kind)}") from error
    return _expect(kind, value, name)


def _load_record(kind: Any, value: Json, name: str, strict: bool) -> Any:
    given = _expect(dict, value, name)
    hints = _hints(kind)
    unknown = sorted(set(given) - set(hints))
    if unknown and strict:
        raise InvalidRequest(f"{name} has no field {unknown[0][:40]!r}; fields are {', '.join(hints)}")
    for field in fields(kind):
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise InvalidRequest(f"{name} lacks the field {field.name!r}")
    loaded = {key: _load(hints[key], item, f"{name}.{key}", strict) for key, item in given.items() if key in hints}
    try:
        return kind(**loaded)
    except InvalidRequest:
        raise
    except (KvloomError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{name}: {error}") from error


def _load_tuple(kind: Any, value: Json, name: str, strict: bool) -> tuple[Any, ...]:
    items = _expect(list, value, name)
    if kind in (int, str, bool):
        # Millions of tokens: one pass without a call per item.
        wrong = next((index for index, item in enumerate(items) if type(item) is not kind), None)
        if wrong is not None:
            raise InvalidRequest(f"{name}[{wrong}] is {str(items[wrong])[:40]!r}, not of type {kind.__name__}")
        return tuple(items)
    return tuple(_load(kind, item, f"{name}[{index}]", strict) for index, item in enumerate(items))


def _load_bytes(value: Json, name: str) -> bytes:
    text = _expect(str, value, name)
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise InvalidKey(f"{name} is {text[:40]!r}, not hexadecimal") from error


def _expect(kind: Any, value: Json, name: str) -> Any:
    if type(value) is not kind:
        raise InvalidRequest(f"{name} is {json.dumps(value)[:40]}, not of type {kind.__name__}")
    return value


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
