"""Chunk identity: the one function that names a chunk, and the one that turns the name into a place in a store.

A **content key** is BLAKE3-256 over length-prefixed fields: whatever could change the KV is a field, so two chunks
share a key only if they share every byte of KV. Clients compute it. A **storage key** is the owner and keyed BLAKE3 of
the content key, both under the namespace's secret: the server derives it and never sends it, so one tenant's keys say
nothing about another's (peers drop the salt and share hits between tenants; LMCache builds identity in several places).
The owner comes first, so that a store shared by several daemons can list, count and delete what is one owner's by the
keys alone (docs/adr/0010).
"""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NewType, cast

from blake3 import blake3

from .. import limits
from ..errors import ChunkTooLong, EmptyChunk, InvalidKey, InvalidRequest, TooManyItems

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "OWNER_BYTES",
    "ChunkRef",
    "ContentKey",
    "ContextMarker",
    "ModelIdentity",
    "OwnerId",
    "StorageKey",
    "check_count",
    "chunk_refs",
    "content_key",
    "key_from_hex",
    "owner_id",
    "owner_of",
    "storage_key",
    "storage_keys",
]

ContentKey = NewType("ContentKey", bytes)
StorageKey = NewType("StorageKey", bytes)
OwnerId = NewType("OwnerId", bytes)
"""Whose a record is, in :data:`OWNER_BYTES` bytes: quotas and isolated eviction go by it. Neither name nor secret."""

KEY_BYTES = 32
OWNER_BYTES: Final = 16
_FORMAT = b"kvloom chunk 1"


class ContextMarker(Enum):
    """What a chunk without a parent chunk was computed after."""

    START = b"start"
    """Nothing: the first chunk of a sequence; a prefix chunk."""
    STANDALONE = b"standalone"
    """Nothing, on purpose: computed alone, to be blended at any place later."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Everything but the tokens that shapes a KV.

    ``fingerprint`` is 32 bytes: a digest of weights, config, RoPE scaling, quantisation and KV scales.
    ``layout_digest`` is :meth:`kvloom.codec.layout.Layout.digest` (it covers dtype, layers and tensor-parallel
    shard). ``adapter`` names a LoRA, ``salt`` separates whoever must not share, ``multimodal`` are the digests of
    the images or sounds that placeholder tokens stand for.
    """

    fingerprint: bytes
    layout_digest: bytes
    adapter: str = ""
    salt: bytes = b""
    multimodal: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("fingerprint", self.fingerprint), ("layout digest", self.layout_digest)):
            if len(value) != KEY_BYTES:
                raise InvalidRequest(f"{name} has {len(value)} bytes, must have {KEY_BYTES}")
        try:
            adapter_bytes = len(self.adapter.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"adapter {self.adapter[:40]!r} is not Unicode text: {error.reason}") from error
        for name, size, limit in (
            ("adapter", adapter_bytes, limits.ADAPTER_BYTES_MAX),
            ("salt", len(self.salt), limits.SALT_BYTES_MAX),
            ("multimodal digests", len(self.multimodal), limits.MULTIMODAL_DIGESTS_MAX),
        ):
            if size > limit:
                raise TooManyItems(f"{name}: {size}, the limit is {limit}")
        for digest in self.multimodal:
            if len(digest) != KEY_BYTES:
                raise InvalidRequest(f"a multimodal digest has {len(digest)} bytes, must have {KEY_BYTES}")

    def fields(self) -> Iterator[bytes]:
        """The identity's fields in the order in which they are hashed."""
        yield self.fingerprint
        yield self.layout_digest
        yield self.adapter.encode()
        yield self.salt
        yield len(self.multimodal).to_bytes(4, "little")
        yield from self.multimodal


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """One chunk of a token sequence: tokens ``[start, stop)``, its content key, and that of the chunk before it."""

    key: ContentKey
    start: int
    stop: int
    parent: ContentKey | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


def content_key(
    identity: ModelIdentity, tokens: "Sequence[int] | NDArray[np.integer]", context: ContentKey | ContextMarker
) -> ContentKey:
    """Name the chunk of ``tokens`` computed after ``context`` by the model that ``identity`` describes.

    ``context`` is the parent's key for a prefix chunk that has one. Raises :class:`EmptyChunk`,
    :class:`ChunkTooLong`, or :class:`InvalidRequest` for a token id outside ``[0, 2**32)``.
    """
    if len(tokens) == 0:
        raise EmptyChunk("chunk has 0 tokens, at least 1 is needed")
    if len(tokens) > limits.CHUNK_TOKENS_MAX:
        raise ChunkTooLong(f"chunk has {len(tokens)} tokens, the limit is {limits.CHUNK_TOKENS_MAX}")
    hasher = blake3()
    for field in (_FORMAT, *identity.fields()):
        _update(hasher, field)
    if isinstance(context, ContextMarker):
        _update(hasher, context.value)
    else:
        _update(hasher, b"parent")
        _update(hasher, context)
    _update(hasher, _token_bytes(tokens))
    return ContentKey(hasher.digest())


def chunk_refs(
    identity: ModelIdentity,
    tokens: "Sequence[int] | NDArray[np.integer]",
    *,
    chunk_tokens: int = limits.CHUNK_TOKENS_DEFAULT,
    context: ContentKey | ContextMarker = ContextMarker.START,
) -> list[ChunkRef]:
    """Cut a sequence into full chunks and at most one final tail, each keyed by the chunk before it."""
    if len(tokens) > limits.PREFIX_TOKENS_MAX:
        raise TooManyItems(f"sequence has {len(tokens)} tokens, the limit is {limits.PREFIX_TOKENS_MAX}")
    if not 1 <= chunk_tokens <= limits.CHUNK_TOKENS_MAX:
        raise ChunkTooLong(f"chunk length is {chunk_tokens} tokens, must be 1 to {limits.CHUNK_TOKENS_MAX}")
    refs: list[ChunkRef] = []
    for start in range(0, len(tokens), chunk_tokens):
        stop = min(start + chunk_tokens, len(tokens))
        parent = None if isinstance(context, ContextMarker) else context
        context = content_key(identity, tokens[start:stop], context)
        refs.append(ChunkRef(context, start, stop, parent))
    return refs


def check_count(keys: Sized) -> None:
    """Raise :class:`TooManyItems` for more keys, or things under a key each, than one call may name."""
    if len(keys) > limits.KEYS_PER_REQUEST_MAX:
        raise TooManyItems(f"{len(keys)} keys at once, the limit is {limits.KEYS_PER_REQUEST_MAX}")


def storage_key(namespace_secret: bytes, key: ContentKey) -> StorageKey:
    """Where a namespace keeps the chunk ``key``; ``namespace_secret`` has 32 bytes and never leaves the server.

    The owner's 16 bytes, then 16 of keyed BLAKE3: records carry the content key in full and it is compared.
    """
    place = blake3(key, key=namespace_secret).digest(KEY_BYTES - OWNER_BYTES)
    return StorageKey(owner_id(namespace_secret) + place)


def storage_keys(namespace_secret: bytes, keys: Sequence[ContentKey]) -> list[StorageKey]:
    """:func:`storage_key` of each: much of what a question about a thousand keys costs.

    One hasher for all of them: making one takes twice as long as hashing with it.
    """
    owner, place_bytes = owner_id(namespace_secret), KEY_BYTES - OWNER_BYTES
    hasher = blake3(key=namespace_secret)
    update, digest, reset = hasher.update, hasher.digest, hasher.reset
    places: list[bytes] = []
    for key in keys:
        update(key)
        places.append(owner + digest(place_bytes))
        reset()
    return cast("list[StorageKey]", places)


@lru_cache(maxsize=1024)
def owner_id(namespace_secret: bytes) -> OwnerId:
    """Whose the records of a namespace are: derived from its secret, so it tells neither the name nor the secret."""
    return OwnerId(blake3(b"kvloom owner", key=namespace_secret).digest(OWNER_BYTES))


def owner_of(key: StorageKey) -> OwnerId:
    """Whose the record under ``key`` is."""
    return OwnerId(key[:OWNER_BYTES])


def key_from_hex(text: str) -> ContentKey:
    """Parse a key as it stands in URLs: 64 lower-case hexadecimal digits, nothing else."""
    if len(text) != 2 * KEY_BYTES or not set(text) <= set("0123456789abcdef"):
        raise InvalidKey(f"key {text[:80]!r} is not {2 * KEY_BYTES} lower-case hexadecimal digits")
    return ContentKey(bytes.fromhex(text))


def _update(hasher: blake3, field: bytes) -> None:
    hasher.update(len(field).to_bytes(8, "little"))
    hasher.update(field)


def _token_bytes(tokens: "Sequence[int] | NDArray[np.integer]") -> bytes:
    import numpy as np  # here, so that a client that is given keys loads no NumPy

    try:
        array = np.asarray(tokens)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InvalidRequest(f"token ids have dtype {array.dtype} and shape {array.shape}, need a list of integers")
        low, high = int(array.min()), int(array.max())
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"token ids are not a list of integers: {error}") from error
    if low < 0 or high > limits.VOCABULARY_MAX:
        raise InvalidRequest(f"token ids reach from {low} to {high}, must be 0 to {limits.VOCABULARY_MAX}")
    return array.astype("<u4").tobytes()
