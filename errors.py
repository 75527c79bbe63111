"""The one tree of errors: each has a stable code, an HTTP status, and a line that names the value and the limit.

Edges translate by class attribute only; no edge owns a table of its own. A missing chunk is *not* an error: stores
answer :class:`kvloom.kvstore.outcome.Miss`. What is here is what a caller did wrong or what the machine refused.
"""

from typing import ClassVar

__all__ = [
    "BodyTooLarge",
    "ChunkTooLong",
    "CodecMismatch",
    "ConfigError",
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
    "ProfileMismatch",
    "StorageFull",
    "StorageUnavailable",
    "TenantOverloaded",
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


# What a caller sent is wrong: the same bytes will be wrong again.


class InvalidRequest(KvloomError):
    """The request cannot be understood: a bad parameter, bad JSON, a bad range."""

    code = "invalid_request"
    http_status = 400


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


class Unauthenticated(KvloomError):
    """No credential, or one that does not hold: unknown, expired and revoked are told apart in the log only."""

    code = "unauthenticated"
    http_status = 401


class Forbidden(KvloomError):
    """Whoever asks may not: a key without the scope, a web page, or a name that is not this machine's."""

    code = "forbidden"
    http_status = 403


class InvalidData(KvloomError):
    """Bytes that do not decode: damaged, hostile, or not what they claim to be."""

    code = "invalid_data"
    http_status = 422


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


class LayoutMismatch(KvloomError):
    """KV of one layout offered where another is expected."""

    code = "layout_mismatch"
    http_status = 409


class CodecMismatch(KvloomError):
    """Lossy levels of one codec put into a namespace that keeps those of another."""

    code = "codec_mismatch"
    http_status = 409


class ProfileMismatch(KvloomError):
    """A lossy stream met with another codec profile than the one it was coded against, or with none."""

    code = "profile_mismatch"
    http_status = 409


# What was asked for is not here.


class NotFound(KvloomError):
    """Nothing is stored under that key (or it belongs to somebody else: the two are indistinguishable)."""

    code = "not_found"
    http_status = 404


class LevelNotStored(NotFound):
    """The chunk is stored, but not at that level."""

    code = "level_not_stored"


# The machine or the service cannot, for now.


class Overloaded(KvloomError):
    """A bounded queue is full; try again after a while."""

    code = "overloaded"
    http_status = 503


class TenantOverloaded(Overloaded):
    """One tenant has as much in flight as it may; others are served."""

    code = "tenant_overloaded"
    http_status = 429


class StorageUnavailable(KvloomError):
    """A tier that the request needs cannot answer."""

    code = "storage_unavailable"
    http_status = 503


class DaemonUnavailable(KvloomError):
    """No daemon answered at the address within the time allowed."""

    code = "daemon_unavailable"
    http_status = 503


class StorageFull(KvloomError):
    """The disk or the quota is full and nothing may be evicted."""

    code = "storage_full"
    http_status = 507


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
