from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ack(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_UNSPECIFIED: _ClassVar[Ack]
    ACK_MEMORY: _ClassVar[Ack]
    ACK_DISK: _ClassVar[Ack]
ACK_UNSPECIFIED: Ack
ACK_MEMORY: Ack
ACK_DISK: Ack

class NoQuestion(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Layers(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class PutHead(_message.Message):
    __slots__ = ("key", "total_bytes", "ack", "ttl_seconds", "parent")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    total_bytes: int
    ack: Ack
    ttl_seconds: float
    parent: bytes
    def __init__(self, key: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., ack: _Optional[_Union[Ack, str]] = ..., ttl_seconds: _Optional[float] = ..., parent: _Optional[bytes] = ...) -> None: ...

class PutFrame(_message.Message):
    __slots__ = ("head", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: PutHead
    data: bytes
    def __init__(self, head: _Optional[_Union[PutHead, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutReply(_message.Message):
    __slots__ = ("ack",)
    ACK_FIELD_NUMBER: _ClassVar[int]
    ack: Ack
    def __init__(self, ack: _Optional[_Union[Ack, str]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("error", "message")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    error: str
    message: str
    def __init__(self, error: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class PutResult(_message.Message):
    __slots__ = ("ack", "failure")
    ACK_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ack: Ack
    failure: Failure
    def __init__(self, ack: _Optional[_Union[Ack, str]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class GetQuestion(_message.Message):
    __slots__ = ("key", "level", "layers", "verifies")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    VERIFIES_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    level: str
    layers: Layers
    verifies: bool
    def __init__(self, key: _Optional[bytes] = ..., level: _Optional[str] = ..., layers: _Optional[_Union[Layers, _Mapping]] = ..., verifies: _Optional[bool] = ...) -> None: ...

class BatchQuestion(_message.Message):
    __slots__ = ("keys", "level", "layers")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    level: str
    layers: Layers
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ..., level: _Optional[str] = ..., layers: _Optional[_Union[Layers, _Mapping]] = ...) -> None: ...

class ChunkHead(_message.Message):
    __slots__ = ("total_bytes", "tier", "levels", "tokens", "failure", "word_sum")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    WORD_SUM_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    tier: str
    levels: _containers.RepeatedScalarFieldContainer[str]
    tokens: int
    failure: Failure
    word_sum: int
    def __init__(self, total_bytes: _Optional[int] = ..., tier: _Optional[str] = ..., levels: _Optional[_Iterable[str]] = ..., tokens: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., word_sum: _Optional[int] = ...) -> None: ...

class ChunkFrame(_message.Message):
    __slots__ = ("head", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: ChunkHead
    data: bytes
    def __init__(self, head: _Optional[_Union[ChunkHead, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class KeyQuestion(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    def __init__(self, key: _Optional[bytes] = ...) -> None: ...

class KeysQuestion(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DigestQuestion(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class ListQuestion(_message.Message):
    __slots__ = ("limit", "prefix")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    limit: int
    prefix: str
    def __init__(self, limit: _Optional[int] = ..., prefix: _Optional[str] = ...) -> None: ...

class ExistsReply(_message.Message):
    __slots__ = ("exists",)
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    exists: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, exists: _Optional[_Iterable[bool]] = ...) -> None: ...

class ModelIdentity(_message.Message):
    __slots__ = ("fingerprint", "layout_digest", "adapter", "salt", "multimodal")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    MULTIMODAL_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    layout_digest: bytes
    adapter: str
    salt: bytes
    multimodal: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, fingerprint: _Optional[bytes] = ..., layout_digest: _Optional[bytes] = ..., adapter: _Optional[str] = ..., salt: _Optional[bytes] = ..., multimodal: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PrefixQuestion(_message.Message):
    __slots__ = ("keys", "identity", "tokens", "chunk_tokens")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    identity: ModelIdentity
    tokens: _containers.RepeatedScalarFieldContainer[int]
    chunk_tokens: int
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ..., identity: _Optional[_Union[ModelIdentity, _Mapping]] = ..., tokens: _Optional[_Iterable[int]] = ..., chunk_tokens: _Optional[int] = ...) -> None: ...

class PrefixCount(_message.Message):
    __slots__ = ("chunks", "tokens", "keys")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    tokens: int
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, chunks: _Optional[int] = ..., tokens: _Optional[int] = ..., keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DeleteManyReply(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, deleted: _Optional[_Iterable[bool]] = ...) -> None: ...

class ErasedReply(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: int
    def __init__(self, records: _Optional[int] = ...) -> None: ...

class PinQuestion(_message.Message):
    __slots__ = ("keys", "lease_seconds")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    lease_seconds: float
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class PinReply(_message.Message):
    __slots__ = ("lease", "until_ms", "pinned")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    lease: bytes
    until_ms: int
    pinned: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, lease: _Optional[bytes] = ..., until_ms: _Optional[int] = ..., pinned: _Optional[_Iterable[bool]] = ...) -> None: ...

class ReleaseQuestion(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: bytes
    def __init__(self, lease: _Optional[bytes] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: _Optional[bool] = ...) -> None: ...

class HintQuestion(_message.Message):
    __slots__ = ("keys", "finished")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    finished: bool
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ..., finished: _Optional[bool] = ...) -> None: ...

class HintReply(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: int
    def __init__(self, keys: _Optional[int] = ...) -> None: ...

class PrefetchReply(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    def __init__(self, accepted: _Optional[int] = ...) -> None: ...

class ProfileFrame(_message.Message):
    __slots__ = ("digest", "total_bytes", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    total_bytes: int
    data: bytes
    def __init__(self, digest: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ProfileReply(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class ChunkEntry(_message.Message):
    __slots__ = ("key", "payload_bytes", "stored_at_ms", "tiers", "expires_at_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    payload_bytes: int
    stored_at_ms: int
    tiers: _containers.RepeatedScalarFieldContainer[str]
    expires_at_ms: int
    def __init__(self, key: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., stored_at_ms: _Optional[int] = ..., tiers: _Optional[_Iterable[str]] = ..., expires_at_ms: _Optional[int] = ...) -> None: ...

class ChunkList(_message.Message):
    __slots__ = ("chunks", "truncated")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkEntry]
    truncated: bool
    def __init__(self, chunks: _Optional[_Iterable[_Union[ChunkEntry, _Mapping]]] = ..., truncated: _Optional[bool] = ...) -> None: ...

class LevelBytes(_message.Message):
    __slots__ = ("level", "payload_bytes")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    level: str
    payload_bytes: int
    def __init__(self, level: _Optional[str] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class ChunkDetail(_message.Message):
    __slots__ = ("chunk", "tokens", "first_position", "layers", "dtype", "layout_digest", "raw_bytes", "levels", "profile_digest", "codec")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkEntry
    tokens: int
    first_position: int
    layers: int
    dtype: str
    layout_digest: bytes
    raw_bytes: int
    levels: _containers.RepeatedCompositeFieldContainer[LevelBytes]
    profile_digest: bytes
    codec: str
    def __init__(self, chunk: _Optional[_Union[ChunkEntry, _Mapping]] = ..., tokens: _Optional[int] = ..., first_position: _Optional[int] = ..., layers: _Optional[int] = ..., dtype: _Optional[str] = ..., layout_digest: _Optional[bytes] = ..., raw_bytes: _Optional[int] = ..., levels: _Optional[_Iterable[_Union[LevelBytes, _Mapping]]] = ..., profile_digest: _Optional[bytes] = ..., codec: _Optional[str] = ...) -> None: ...

class TierStats(_message.Message):
    __slots__ = ("name", "durable", "limit_bytes", "used_bytes", "records", "hits", "hit_bytes", "corrupt", "errors", "evictions", "promotions", "shared", "eviction", "breaker", "breaker_openings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    HIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    PROMOTIONS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    EVICTION_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    BREAKER_OPENINGS_FIELD_NUMBER: _ClassVar[int]
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
    shared: bool
    eviction: str
    breaker: str
    breaker_openings: int
    def __init__(self, name: _Optional[str] = ..., durable: _Optional[bool] = ..., limit_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., records: _Optional[int] = ..., hits: _Optional[int] = ..., hit_bytes: _Optional[int] = ..., corrupt: _Optional[int] = ..., errors: _Optional[int] = ..., evictions: _Optional[int] = ..., promotions: _Optional[int] = ..., shared: _Optional[bool] = ..., eviction: _Optional[str] = ..., breaker: _Optional[str] = ..., breaker_openings: _Optional[int] = ...) -> None: ...

class StageStats(_message.Message):
    __slots__ = ("tier", "dirty_bytes", "dirty_bytes_max", "dirty_records", "written", "failures", "dropped", "written_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    DIRTY_RECORDS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    dirty_bytes: int
    dirty_bytes_max: int
    dirty_records: int
    written: int
    failures: int
    dropped: int
    written_bytes: int
    def __init__(self, tier: _Optional[str] = ..., dirty_bytes: _Optional[int] = ..., dirty_bytes_max: _Optional[int] = ..., dirty_records: _Optional[int] = ..., written: _Optional[int] = ..., failures: _Optional[int] = ..., dropped: _Optional[int] = ..., written_bytes: _Optional[int] = ...) -> None: ...

class TenantTier(_message.Message):
    __slots__ = ("tier", "used_bytes", "records", "evictions", "limit_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    used_bytes: int
    records: int
    evictions: int
    limit_bytes: int
    def __init__(self, tier: _Optional[str] = ..., used_bytes: _Optional[int] = ..., records: _Optional[int] = ..., evictions: _Optional[int] = ..., limit_bytes: _Optional[int] = ...) -> None: ...

class TenantStats(_message.Message):
    __slots__ = ("namespace", "puts", "put_bytes", "hits", "hit_bytes", "misses", "pinned_bytes", "tiers")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PUTS_FIELD_NUMBER: _ClassVar[int]
    PUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    HIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    puts: int
    put_bytes: int
    hits: int
    hit_bytes: int
    misses: int
    pinned_bytes: int
    tiers: _containers.RepeatedCompositeFieldContainer[TenantTier]
    def __init__(self, namespace: _Optional[str] = ..., puts: _Optional[int] = ..., put_bytes: _Optional[int] = ..., hits: _Optional[int] = ..., hit_bytes: _Optional[int] = ..., misses: _Optional[int] = ..., pinned_bytes: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[TenantTier, _Mapping]]] = ...) -> None: ...

class NamespaceList(_message.Message):
    __slots__ = ("namespaces",)
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedCompositeFieldContainer[TenantStats]
    def __init__(self, namespaces: _Optional[_Iterable[_Union[TenantStats, _Mapping]]] = ...) -> None: ...

class DaemonStats(_message.Message):
    __slots__ = ("version", "pid", "phase", "uptime_seconds", "namespace", "requests_inflight", "bytes_inflight", "bytes_inflight_max", "dirty_bytes", "dirty_bytes_max", "hits", "misses", "puts", "put_bytes", "write_behind_failures", "profiles", "tiers", "codec", "stages", "tenants", "expired", "pinned_bytes", "leases", "admitted", "deferred", "promotions_dropped", "pools", "planner", "quality")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_INFLIGHT_MAX_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    PUTS_FIELD_NUMBER: _ClassVar[int]
    PUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITE_BEHIND_FAILURES_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    DEFERRED_FIELD_NUMBER: _ClassVar[int]
    PROMOTIONS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    PLANNER_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
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
    tiers: _containers.RepeatedCompositeFieldContainer[TierStats]
    codec: str
    stages: _containers.RepeatedCompositeFieldContainer[StageStats]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStats]
    expired: int
    pinned_bytes: int
    leases: int
    admitted: int
    deferred: int
    promotions_dropped: int
    pools: _containers.RepeatedCompositeFieldContainer[PoolReport]
    planner: PlannerStats
    quality: QualityStats
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., phase: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., namespace: _Optional[str] = ..., requests_inflight: _Optional[int] = ..., bytes_inflight: _Optional[int] = ..., bytes_inflight_max: _Optional[int] = ..., dirty_bytes: _Optional[int] = ..., dirty_bytes_max: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., puts: _Optional[int] = ..., put_bytes: _Optional[int] = ..., write_behind_failures: _Optional[int] = ..., profiles: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[TierStats, _Mapping]]] = ..., codec: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageStats, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantStats, _Mapping]]] = ..., expired: _Optional[int] = ..., pinned_bytes: _Optional[int] = ..., leases: _Optional[int] = ..., admitted: _Optional[int] = ..., deferred: _Optional[int] = ..., promotions_dropped: _Optional[int] = ..., pools: _Optional[_Iterable[_Union[PoolReport, _Mapping]]] = ..., planner: _Optional[_Union[PlannerStats, _Mapping]] = ..., quality: _Optional[_Union[QualityStats, _Mapping]] = ...) -> None: ...

class QualityStats(_message.Message):
    __slots__ = ("checked", "agreed", "kl_sum", "recent_kl", "recent_agreement", "alert")
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    KL_SUM_FIELD_NUMBER: _ClassVar[int]
    RECENT_KL_FIELD_NUMBER: _ClassVar[int]
    RECENT_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    checked: int
    agreed: int
    kl_sum: float
    recent_kl: float
    recent_agreement: float
    alert: bool
    def __init__(self, checked: _Optional[int] = ..., agreed: _Optional[int] = ..., kl_sum: _Optional[float] = ..., recent_kl: _Optional[float] = ..., recent_agreement: _Optional[float] = ..., alert: _Optional[bool] = ...) -> None: ...

class LevelLoss(_message.Message):
    __slots__ = ("level", "loss")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    level: str
    loss: float
    def __init__(self, level: _Optional[str] = ..., loss: _Optional[float] = ...) -> None: ...

class PlanQuestion(_message.Message):
    __slots__ = ("engine", "keys", "identity", "tokens", "chunk_tokens", "first_position", "prompt_tokens", "goal", "loss_max", "ttft_seconds", "losses", "ability", "side_by_side", "decoding_competes", "step_tokens", "running", "queued_tokens", "done", "elapsed_seconds", "prefetch", "blend", "chunk_lengths", "floor", "stops", "under_way")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    LOSS_MAX_FIELD_NUMBER: _ClassVar[int]
    TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    ABILITY_FIELD_NUMBER: _ClassVar[int]
    SIDE_BY_SIDE_FIELD_NUMBER: _ClassVar[int]
    DECODING_COMPETES_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    BLEND_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    STOPS_FIELD_NUMBER: _ClassVar[int]
    UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    engine: str
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    identity: ModelIdentity
    tokens: _containers.RepeatedScalarFieldContainer[int]
    chunk_tokens: int
    first_position: int
    prompt_tokens: int
    goal: str
    loss_max: float
    ttft_seconds: float
    losses: _containers.RepeatedCompositeFieldContainer[LevelLoss]
    ability: str
    side_by_side: bool
    decoding_competes: bool
    step_tokens: int
    running: int
    queued_tokens: int
    done: _containers.RepeatedScalarFieldContainer[int]
    elapsed_seconds: float
    prefetch: bool
    blend: BlendQuestion
    chunk_lengths: _containers.RepeatedScalarFieldContainer[int]
    floor: str
    stops: bool
    under_way: _containers.RepeatedCompositeFieldContainer[LoadUnderWay]
    def __init__(self, engine: _Optional[str] = ..., keys: _Optional[_Iterable[bytes]] = ..., identity: _Optional[_Union[ModelIdentity, _Mapping]] = ..., tokens: _Optional[_Iterable[int]] = ..., chunk_tokens: _Optional[int] = ..., first_position: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., goal: _Optional[str] = ..., loss_max: _Optional[float] = ..., ttft_seconds: _Optional[float] = ..., losses: _Optional[_Iterable[_Union[LevelLoss, _Mapping]]] = ..., ability: _Optional[str] = ..., side_by_side: _Optional[bool] = ..., decoding_competes: _Optional[bool] = ..., step_tokens: _Optional[int] = ..., running: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., done: _Optional[_Iterable[int]] = ..., elapsed_seconds: _Optional[float] = ..., prefetch: _Optional[bool] = ..., blend: _Optional[_Union[BlendQuestion, _Mapping]] = ..., chunk_lengths: _Optional[_Iterable[int]] = ..., floor: _Optional[str] = ..., stops: _Optional[bool] = ..., under_way: _Optional[_Iterable[_Union[LoadUnderWay, _Mapping]]] = ...) -> None: ...

class LoadUnderWay(_message.Message):
    __slots__ = ("chunk", "level", "seconds", "received_bytes")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    chunk: int
    level: str
    seconds: float
    received_bytes: int
    def __init__(self, chunk: _Optional[int] = ..., level: _Optional[str] = ..., seconds: _Optional[float] = ..., received_bytes: _Optional[int] = ...) -> None: ...

class BlendQuestion(_message.Message):
    __slots__ = ("layers", "whole_layers", "ratio_min")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    RATIO_MIN_FIELD_NUMBER: _ClassVar[int]
    layers: int
    whole_layers: int
    ratio_min: float
    def __init__(self, layers: _Optional[int] = ..., whole_layers: _Optional[int] = ..., ratio_min: _Optional[float] = ...) -> None: ...

class ChunkDecision(_message.Message):
    __slots__ = ("action", "reason", "seconds", "link", "level", "size_bytes")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    action: str
    reason: str
    seconds: float
    link: str
    level: str
    size_bytes: int
    def __init__(self, action: _Optional[str] = ..., reason: _Optional[str] = ..., seconds: _Optional[float] = ..., link: _Optional[str] = ..., level: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class PlanReply(_message.Message):
    __slots__ = ("plan", "decisions", "load_order", "meeting", "ttft_seconds", "cautious_seconds", "recompute_seconds", "loss", "prefetching", "recompute_ratio", "hold_seconds")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    LOAD_ORDER_FIELD_NUMBER: _ClassVar[int]
    MEETING_FIELD_NUMBER: _ClassVar[int]
    TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CAUTIOUS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PREFETCHING_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_RATIO_FIELD_NUMBER: _ClassVar[int]
    HOLD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    decisions: _containers.RepeatedCompositeFieldContainer[ChunkDecision]
    load_order: _containers.RepeatedScalarFieldContainer[int]
    meeting: int
    ttft_seconds: float
    cautious_seconds: float
    recompute_seconds: float
    loss: float
    prefetching: int
    recompute_ratio: float
    hold_seconds: float
    def __init__(self, plan: _Optional[bytes] = ..., decisions: _Optional[_Iterable[_Union[ChunkDecision, _Mapping]]] = ..., load_order: _Optional[_Iterable[int]] = ..., meeting: _Optional[int] = ..., ttft_seconds: _Optional[float] = ..., cautious_seconds: _Optional[float] = ..., recompute_seconds: _Optional[float] = ..., loss: _Optional[float] = ..., prefetching: _Optional[int] = ..., recompute_ratio: _Optional[float] = ..., hold_seconds: _Optional[float] = ...) -> None: ...

class PrefillSample(_message.Message):
    __slots__ = ("tokens", "start", "seconds", "running")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    start: int
    seconds: float
    running: int
    def __init__(self, tokens: _Optional[int] = ..., start: _Optional[int] = ..., seconds: _Optional[float] = ..., running: _Optional[int] = ...) -> None: ...

class LoadSample(_message.Message):
    __slots__ = ("link", "size_bytes", "seconds", "concurrent")
    LINK_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    link: str
    size_bytes: int
    seconds: float
    concurrent: float
    def __init__(self, link: _Optional[str] = ..., size_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., concurrent: _Optional[float] = ...) -> None: ...

class DecodeSample(_message.Message):
    __slots__ = ("level", "kv_bytes", "seconds")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    level: str
    kv_bytes: int
    seconds: float
    def __init__(self, level: _Optional[str] = ..., kv_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class PlanOutcome(_message.Message):
    __slots__ = ("plan", "ttft_seconds")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    ttft_seconds: float
    def __init__(self, plan: _Optional[bytes] = ..., ttft_seconds: _Optional[float] = ...) -> None: ...

class EngineReport(_message.Message):
    __slots__ = ("engine", "prefills", "loads", "decodes", "outcomes", "qualities")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    DECODES_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    QUALITIES_FIELD_NUMBER: _ClassVar[int]
    engine: str
    prefills: _containers.RepeatedCompositeFieldContainer[PrefillSample]
    loads: _containers.RepeatedCompositeFieldContainer[LoadSample]
    decodes: _containers.RepeatedCompositeFieldContainer[DecodeSample]
    outcomes: _containers.RepeatedCompositeFieldContainer[PlanOutcome]
    qualities: _containers.RepeatedCompositeFieldContainer[QualitySample]
    def __init__(self, engine: _Optional[str] = ..., prefills: _Optional[_Iterable[_Union[PrefillSample, _Mapping]]] = ..., loads: _Optional[_Iterable[_Union[LoadSample, _Mapping]]] = ..., decodes: _Optional[_Iterable[_Union[DecodeSample, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[PlanOutcome, _Mapping]]] = ..., qualities: _Optional[_Iterable[_Union[QualitySample, _Mapping]]] = ...) -> None: ...

class QualitySample(_message.Message):
    __slots__ = ("kl", "agrees", "kl_max", "agreement_min")
    KL_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    KL_MAX_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_MIN_FIELD_NUMBER: _ClassVar[int]
    kl: float
    agrees: bool
    kl_max: float
    agreement_min: float
    def __init__(self, kl: _Optional[float] = ..., agrees: _Optional[bool] = ..., kl_max: _Optional[float] = ..., agreement_min: _Optional[float] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("accepted", "ignored")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    ignored: int
    def __init__(self, accepted: _Optional[int] = ..., ignored: _Optional[int] = ...) -> None: ...

class DecisionCount(_message.Message):
    __slots__ = ("action", "reason", "chunks")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    action: str
    reason: str
    chunks: int
    def __init__(self, action: _Optional[str] = ..., reason: _Optional[str] = ..., chunks: _Optional[int] = ...) -> None: ...

class LinkReport(_message.Message):
    __slots__ = ("tier", "latency_seconds", "bytes_per_second", "spread", "samples")
    TIER_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    latency_seconds: float
    bytes_per_second: float
    spread: float
    samples: int
    def __init__(self, tier: _Optional[str] = ..., latency_seconds: _Optional[float] = ..., bytes_per_second: _Optional[float] = ..., spread: _Optional[float] = ..., samples: _Optional[int] = ...) -> None: ...

class RecentPlan(_message.Message):
    __slots__ = ("age_seconds", "namespace", "engine", "chunks", "loaded", "raced", "recomputed", "reason", "expected_seconds", "recompute_seconds", "loss", "real_seconds")
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    RACED_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    REAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    age_seconds: float
    namespace: str
    engine: str
    chunks: int
    loaded: int
    raced: int
    recomputed: int
    reason: str
    expected_seconds: float
    recompute_seconds: float
    loss: float
    real_seconds: float
    def __init__(self, age_seconds: _Optional[float] = ..., namespace: _Optional[str] = ..., engine: _Optional[str] = ..., chunks: _Optional[int] = ..., loaded: _Optional[int] = ..., raced: _Optional[int] = ..., recomputed: _Optional[int] = ..., reason: _Optional[str] = ..., expected_seconds: _Optional[float] = ..., recompute_seconds: _Optional[float] = ..., loss: _Optional[float] = ..., real_seconds: _Optional[float] = ...) -> None: ...

class PlannerStats(_message.Message):
    __slots__ = ("plans", "deciding_seconds", "prefetched", "samples", "ignored", "outcomes", "slower", "regret_seconds", "decisions", "links", "recent")
    PLANS_FIELD_NUMBER: _ClassVar[int]
    DECIDING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFETCHED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    SLOWER_FIELD_NUMBER: _ClassVar[int]
    REGRET_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    plans: int
    deciding_seconds: float
    prefetched: int
    samples: int
    ignored: int
    outcomes: int
    slower: int
    regret_seconds: float
    decisions: _containers.RepeatedCompositeFieldContainer[DecisionCount]
    links: _containers.RepeatedCompositeFieldContainer[LinkReport]
    recent: _containers.RepeatedCompositeFieldContainer[RecentPlan]
    def __init__(self, plans: _Optional[int] = ..., deciding_seconds: _Optional[float] = ..., prefetched: _Optional[int] = ..., samples: _Optional[int] = ..., ignored: _Optional[int] = ..., outcomes: _Optional[int] = ..., slower: _Optional[int] = ..., regret_seconds: _Optional[float] = ..., decisions: _Optional[_Iterable[_Union[DecisionCount, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkReport, _Mapping]]] = ..., recent: _Optional[_Iterable[_Union[RecentPlan, _Mapping]]] = ...) -> None: ...

class PoolReport(_message.Message):
    __slots__ = ("device", "pid", "limit_bytes", "used_bytes", "chunks", "tracked", "hits", "misses", "evictions", "dirty_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TRACKED_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    pid: int
    limit_bytes: int
    used_bytes: int
    chunks: int
    tracked: int
    hits: int
    misses: int
    evictions: int
    dirty_bytes: int
    def __init__(self, device: _Optional[str] = ..., pid: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., tracked: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., evictions: _Optional[int] = ..., dirty_bytes: _Optional[int] = ...) -> None: ...

class ScrubReport(_message.Message):
    __slots__ = ("number", "running", "records", "size_bytes", "total_bytes", "damaged", "seconds", "failure")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    number: int
    running: bool
    records: int
    size_bytes: int
    total_bytes: int
    damaged: int
    seconds: float
    failure: str
    def __init__(self, number: _Optional[int] = ..., running: _Optional[bool] = ..., records: _Optional[int] = ..., size_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., damaged: _Optional[int] = ..., seconds: _Optional[float] = ..., failure: _Optional[str] = ...) -> None: ...

class EventsQuestion(_message.Message):
    __slots__ = ("last_event_id",)
    LAST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    last_event_id: int
    def __init__(self, last_event_id: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("id", "block_stored", "block_removed", "events_lost")
    ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_STORED_FIELD_NUMBER: _ClassVar[int]
    BLOCK_REMOVED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_LOST_FIELD_NUMBER: _ClassVar[int]
    id: int
    block_stored: BlockStored
    block_removed: BlockRemoved
    events_lost: EventsLost
    def __init__(self, id: _Optional[int] = ..., block_stored: _Optional[_Union[BlockStored, _Mapping]] = ..., block_removed: _Optional[_Union[BlockRemoved, _Mapping]] = ..., events_lost: _Optional[_Union[EventsLost, _Mapping]] = ...) -> None: ...

class BlockStored(_message.Message):
    __slots__ = ("block_hashes", "medium", "tier", "parent_block_hash", "block_size", "start", "size_bytes")
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PARENT_BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    medium: str
    tier: str
    parent_block_hash: bytes
    block_size: int
    start: int
    size_bytes: int
    def __init__(self, block_hashes: _Optional[_Iterable[bytes]] = ..., medium: _Optional[str] = ..., tier: _Optional[str] = ..., parent_block_hash: _Optional[bytes] = ..., block_size: _Optional[int] = ..., start: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class BlockRemoved(_message.Message):
    __slots__ = ("block_hashes", "medium", "tier")
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    medium: str
    tier: str
    def __init__(self, block_hashes: _Optional[_Iterable[bytes]] = ..., medium: _Optional[str] = ..., tier: _Optional[str] = ...) -> None: ...

class EventsLost(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class Health(_message.Message):
    __slots__ = ("phase", "version", "pid")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    phase: str
    version: str
    pid: int
    def __init__(self, phase: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...
