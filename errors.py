"""The one tree of errors: each has a stable code, an HTTP and a gRPC status, and a line naming value and limit.

Edges translate by class attribute only; no edge owns a table of its own. A missing chunk is *not* an error: stores
answer :class:`kvloom.kvstore.outcome.Miss`. What is here is what a caller did wrong or what the machine refused.
"""

from typing import ClassVar

__all__ = [
    "BodyTooLarge",
    "ChunkTooLong",
    "CodecMismatch",
    "ConfigError",
    "DaemonSilent",
    "DaemonUnavailable",
    "EmptyChunk",
    "Forbidden",
    "InvalidData",
    "InvalidKey",
    "InvalidRequest",
    "InvalidTensor",
    "KeyMismatch",
    "KvloomError",
    "LayoutMismatch",
    "LevelNotStored",
    "MalformedContainer",
    "MissingDependency",
    "NonFiniteTensor",
    "NotFound",
    "Overloaded",
    "PreconditionFailed",
    "ProfileMismatch",
    "RangeNotSatisfiable",
    "StorageFull",
    "StorageUnavailable",
    "TenantOverloaded",
    "TooManyAttempts",
    "TooManyItems",
    "TruncatedBody",
    "Unauthenticated",
    "UnknownLevel",
    "UnsupportedModel",
    "error_for_code",
]


class KvloomError(Exception):
    """Base of every error kvloom raises on purpose. ``str(error)`` is one line for a person."""

    code: ClassVar[str] = "kvloom_error"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    retry_seconds: float | None = None
    """After how long whoever raised it asks to be tried again, where he says so."""


# What a caller sent is wrong: the same bytes will be wrong again.


class InvalidRequest(KvloomError):
    """The request cannot be understood: a bad parameter, bad JSON, a bad range."""

    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class InvalidKey(InvalidRequest):
    """A key is not 64 lower-case hexadecimal digits."""

    code = "invalid_key"


class UnknownLevel(InvalidRequest):
    """A level name or number that no kvloom encoding has."""

    code = "unknown_level"


class TooManyItems(InvalidRequest):
    """A list in a request is longer than its limit."""

    code = "too_many_items"
    http_status = 413


class BodyTooLarge(InvalidRequest):
    """A body is longer than its limit; it is refused before it is read."""

    code = "body_too_large"
    http_status = 413


class PreconditionFailed(KvloomError):
    """A condition that a request set does not hold: what is stored is not what its sender thought."""

    code = "precondition_failed"
    http_status = 412
    grpc_status = "FAILED_PRECONDITION"


class RangeNotSatisfiable(InvalidRequest):
    """A range of bytes that begins behind the end of what is read."""

    code = "range_not_satisfiable"
    http_status = 416
    grpc_status = "OUT_OF_RANGE"


class Unauthenticated(KvloomError):
    """No credential, or one that does not hold: unknown, expired and revoked are told apart in the log only."""

    code = "unauthenticated"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class TooManyAttempts(KvloomError):
    """Too many keys that do not hold came from one address: what it sends is not looked at for a while."""

    code = "too_many_attempts"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class Forbidden(KvloomError):
    """Whoever asks may not: a key without the scope, a web page, or a name that is not this machine's."""

    code = "forbidden"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class InvalidData(KvloomError):
    """Bytes that do not decode: damaged, hostile, or not what they claim to be."""

    code = "invalid_data"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class MalformedContainer(InvalidData):
    """A container whose header, counts, offsets or checksums do not hold."""

    code = "malformed_container"


class TruncatedBody(InvalidData):
    """Fewer bytes than were declared, and not a whole level."""

    code = "truncated_body"
    http_status = 400


class InvalidTensor(KvloomError):
    """A tensor whose shape or dtype is not what the layout says."""

    code = "invalid_tensor"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class NonFiniteTensor(InvalidTensor):
    """NaN or infinity in a tensor that a lossy level cannot hold (``exact`` can)."""

    code = "non_finite_tensor"


class EmptyChunk(InvalidTensor):
    """A chunk of zero tokens."""

    code = "empty_chunk"


class ChunkTooLong(InvalidTensor):
    """A chunk of more tokens than the limit."""

    code = "chunk_too_long"
    http_status = 413


class KeyMismatch(KvloomError):
    """A container that names another content key than the one it is put under or was asked for by."""

    code = "key_mismatch"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class LayoutMismatch(KvloomError):
    """KV of one layout offered where another is expected."""

    code = "layout_mismatch"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class CodecMismatch(KvloomError):
    """Lossy levels of one codec put into a namespace that keeps those of another."""

    code = "codec_mismatch"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class ProfileMismatch(KvloomError):
    """A lossy stream met with another codec profile than the one it was coded against, or with none."""

    code = "profile_mismatch"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


# What was asked for is not here.


class NotFound(KvloomError):
    """Nothing is stored under that key (or it belongs to somebody else: the two are indistinguishable)."""

    code = "not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class LevelNotStored(NotFound):
    """The chunk is stored, but not at that level."""

    code = "level_not_stored"


# The machine or the service cannot, for now.


class Overloaded(KvloomError):
    """A bounded queue is full; try again after a while."""

    code = "overloaded"
    http_status = 503
    grpc_status = "RESOURCE_EXHAUSTED"


class TenantOverloaded(Overloaded):
    """One tenant has as much in flight as it may; others are served."""

    code = "tenant_overloaded"
    http_status = 429


class StorageUnavailable(KvloomError):
    """A tier that the request needs cannot answer."""

    code = "storage_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"


class DaemonUnavailable(KvloomError):
    """No daemon answered at the address within the time allowed."""

    code = "daemon_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"


class DaemonSilent(DaemonUnavailable):
    """A daemon that was asked and did not go on within the time allowed: asking again would take as long again."""

    code = "daemon_silent"


class StorageFull(KvloomError):
    """The disk or the quota is full and nothing may be evicted."""

    code = "storage_full"
    http_status = 507
    grpc_status = "RESOURCE_EXHAUSTED"


# Set-up.


class ConfigError(KvloomError):
    """A configuration value that cannot be used."""

    code = "config_error"


class MissingDependency(KvloomError):
    """An optional part of kvloom is not installed; the message names the extra."""

    code = "missing_dependency"


class UnsupportedModel(KvloomError):
    """A model that an operation cannot handle; the message says why."""

    code = "unsupported_model"
    http_status = 422


def error_for_code(code: str) -> type[KvloomError]:
    """Return the class whose ``code`` this is, or :class:`KvloomError` for a code of a newer peer."""
    pending = [KvloomError]
    while pending:
        candidate = pending.pop()
        if candidate.code == code:
            return candidate
        pending.extend(candidate.__subclasses__())
    return KvloomError
