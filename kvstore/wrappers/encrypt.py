"""A tier that encrypts every payload under a key of its owner before the inner tier sees it (AES-256-GCM).

What the inner tier keeps of a record, in place of its payload:

====== ===== ======== =================================================================================
offset bytes field    contents
====== ===== ======== =================================================================================
0      4     magic    ``KVLE``
4      4     format   1, little-endian
8      8     length   bytes of the plain payload, little-endian
16     24    salt     random, drawn anew for every put
40     16    tag      of the header: AES-GCM over nothing, all of the above authenticated, block number 2**32 - 1
56     …     blocks   each 64 KiB of payload (the last one less) and its 16-byte tag
====== ===== ======== =================================================================================

Every put has a key of its own: keyed BLAKE3 of the salt under the owner's key, in a context of its own. The nonce of a
block is its number, so no nonce is used twice under a key unless two 24-byte random salts are the same: 2**-96 after
2**48 puts. Authenticated with each block are the header, both keys of the record, its owner, times and attributes, so a
block that was moved, cut off, exchanged or taken from another record or an older put does not open. A range needs only
the blocks it touches. Decision: ``docs/adr/0009-encryption-at-rest.md``.

Whoever can write to the disk can still put a whole older record back, or remove one. Not hidden: lengths, times,
owners, which chunk stands before which, and the content keys, which are hashes of the tokens that only who knows the
text can make.
"""

import asyncio
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from ... import limits
from ...codec.container import ByteRange
from ...errors import InvalidData, MissingDependency
from ..attributes import pack_attributes
from ..key import OwnerId, StorageKey
from ..keyring import Keyring, OwnerKey
from ..outcome import Corrupt, Hit, Miss, Outcome
from ..tier import Buffer, Record, RecordInfo, Slice, Tier
from .passing import PassingTier

__all__ = ["BLOCK_BYTES", "OVERHEAD_BYTES_MAX", "EncryptTier", "plain_bytes", "sealed_bytes"]

BLOCK_BYTES: Final = 64 * 1024
_TAG_BYTES: Final = 16
_SALT_BYTES: Final = 24
_MAGIC: Final = b"KVLE"
_FORMAT: Final = 1
_FIELDS = struct.Struct(f"<4sIQ{_SALT_BYTES}s")
_HEADER_BYTES: Final = _FIELDS.size + _TAG_BYTES
_HEADER_BLOCK: Final = 2**32 - 1
_NONCE = struct.Struct("<Q4x")
_CONTEXT: Final = b"kvloom record encryption 1"
_INLINE_BYTES_MAX: Final = 64 * 1024
OVERHEAD_BYTES_MAX: Final = _HEADER_BYTES + _TAG_BYTES * -(-limits.CONTAINER_BYTES_MAX // BLOCK_BYTES)


def sealed_bytes(payload_bytes: int) -> int:
    """What ``payload_bytes`` take in the inner tier."""
    return _HEADER_BYTES + payload_bytes + _TAG_BYTES * -(-payload_bytes // BLOCK_BYTES)


def plain_bytes(stored_bytes: int) -> int:
    """The payload in ``stored_bytes`` of the inner tier; 0 for a length that no payload leads to."""
    body = stored_bytes - _HEADER_BYTES
    blocks = -(-body // (BLOCK_BYTES + _TAG_BYTES))
    return max(0, body - _TAG_BYTES * blocks)


class EncryptTier(PassingTier):
    """Keeps what only ``keyring`` opens.

    The key of a new owner is made on its first put. A record whose owner's key was erased is a miss, one that does not
    open is damaged. Raises :class:`MissingDependency` where ``cryptography`` is not installed.
    """

    def __init__(self, inner: Tier, keyring: Keyring) -> None:
        super().__init__(inner)
        self._keyring = keyring
        self._cipher = _load_cipher()

    async def put(self, record: Record) -> None:
        """Encrypt in a worker thread, then keep."""
        key = await asyncio.to_thread(self._keyring.key_of_new, record.owner)
        if len(record.payload) <= _INLINE_BYTES_MAX:
            await self._inner.put(_sealed(self._cipher, key, record))
        else:
            await self._inner.put(await asyncio.to_thread(_sealed, self._cipher, key, record))

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read the blocks that ``ranges`` touch and decrypt them; every block is authenticated."""
        span_of = _spans(ranges)
        asked = None if ranges is None else [ByteRange(0, _HEADER_BYTES), *(span.stored for span in span_of)]
        found = await self._inner.get(key, asked)
        if not isinstance(found, Hit):
            return found
        owner_key = self._keyring.key_of(found.value.info.owner)
        if owner_key is None:
            return Miss()
        parts = found.value.parts
        if asked is None:
            whole = memoryview(parts[0])
            span_of, parts = _spans([ByteRange(0, 2**62)]), (whole[:_HEADER_BYTES], whole[_HEADER_BYTES:])
        opening = _Opening(self._cipher, owner_key, found.value.info, span_of, parts)
        try:
            if sum(len(part) for part in parts) <= _INLINE_BYTES_MAX:
                return Hit(opening.run(), self.name)
            return Hit(await asyncio.to_thread(opening.run), self.name)
        except InvalidData as error:
            return Corrupt(self.name, str(error))

    async def erase(self, owner: OwnerId) -> int:
        """Destroy the owner's key, then delete what was encrypted under it; how many records.

        Once the key is gone so are the records, whatever becomes of the rest. Raises :class:`StorageUnavailable`.
        """
        await asyncio.to_thread(self._keyring.erase, owner)
        return await self._inner.delete_owner(owner)

    def _seen(self, info: RecordInfo) -> RecordInfo | None:
        """Records whose owners have a key, with the lengths that were put."""
        return None if self._keyring.key_of(info.owner) is None else _outer(info)


@dataclass(frozen=True, slots=True)
class _Span:
    """The range asked for, and the blocks around it as they lie in the inner tier."""

    wanted: ByteRange
    first_block: int
    stored: ByteRange


@dataclass(frozen=True, slots=True)
class _Opening:
    """One read: what came from the inner tier, to be authenticated and cut to what was asked for."""

    cipher: Callable[[bytes], Any]
    owner_key: OwnerKey
    info: RecordInfo
    spans: Sequence[_Span]
    parts: Sequence[Buffer]

    def run(self) -> Slice:
        """The plain ranges; :class:`InvalidData` for anything that was not put so."""
        head = bytes(self.parts[0])
        if len(head) < _HEADER_BYTES:
            raise InvalidData(f"encrypted record has {len(head)} bytes, its header needs {_HEADER_BYTES}")
        magic, form, payload_bytes, salt = _FIELDS.unpack_from(head)
        if magic != _MAGIC or form != _FORMAT or sealed_bytes(payload_bytes) != self.info.payload_bytes:
            raise InvalidData("record is not one that was encrypted")
        outer = replace(self.info, payload_bytes=payload_bytes)
        cipher = self.cipher(_record_key(self.owner_key, salt))
        bound = _bound(outer, head[: _FIELDS.size])
        _opened(cipher, _HEADER_BLOCK, head[_FIELDS.size :], bound)
        pairs = zip(self.spans, self.parts[1:], strict=True)
        return Slice(outer, tuple(self._plain(cipher, bound, payload_bytes, *pair) for pair in pairs))

    def _plain(self, cipher: Any, bound: bytes, payload_bytes: int, span: _Span, part: Buffer) -> Buffer:
        start, stop = (min(edge, payload_bytes) for edge in (span.wanted.start, span.wanted.stop))
        if start >= stop:
            return b""
        last_block = (stop - 1) // BLOCK_BYTES
        plain_stop = min(payload_bytes, (last_block + 1) * BLOCK_BYTES)
        out = np.empty(plain_stop - span.first_block * BLOCK_BYTES, np.uint8)
        view = memoryview(part)
        for block in range(span.first_block, last_block + 1):
            offset = (block - span.first_block) * (BLOCK_BYTES + _TAG_BYTES)
            length = min(BLOCK_BYTES, payload_bytes - block * BLOCK_BYTES) + _TAG_BYTES
            if offset + length > len(view):
                raise InvalidData(f"block {block} of an encrypted record is cut off")
            plain = _opened(cipher, block, view[offset : offset + length], bound)
            target = (block - span.first_block) * BLOCK_BYTES
            out[target : target + len(plain)] = np.frombuffer(plain, np.uint8)
        return _frozen(out[start - span.first_block * BLOCK_BYTES : stop - span.first_block * BLOCK_BYTES])


def _load_cipher() -> Callable[[bytes], Any]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingDependency("encryption at rest needs cryptography: pip install 'kvloom[encryption]'") from error
    return AESGCM


def _sealed(make_cipher: Callable[[bytes], Any], key: OwnerKey, record: Record) -> Record:
    fields = _FIELDS.pack(_MAGIC, _FORMAT, len(record.payload), os.urandom(_SALT_BYTES))
    cipher = make_cipher(_record_key(key, fields[-_SALT_BYTES:]))
    bound = _bound(record.info, fields)
    payload = memoryview(record.payload)
    sealed = [fields, cipher.encrypt(_NONCE.pack(_HEADER_BLOCK), b"", bound)]
    for block, start in enumerate(range(0, len(payload), BLOCK_BYTES)):
        sealed.append(cipher.encrypt(_NONCE.pack(block), payload[start : start + BLOCK_BYTES], bound))
    return replace(record, payload=b"".join(sealed))


def _opened(cipher: Any, block: int, sealed: Buffer, bound: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        plain: bytes = cipher.decrypt(_NONCE.pack(block), sealed, bound)
    except InvalidTag as error:
        what = "header" if block == _HEADER_BLOCK else f"block {block}"
        raise InvalidData(f"{what} of an encrypted record does not open") from error
    return plain


def _record_key(key: OwnerKey, salt: bytes) -> bytes:
    return blake3(_CONTEXT + salt, key=key.secret).digest()


def _bound(info: RecordInfo, fields: bytes) -> bytes:
    """What is authenticated with every block of a record."""
    times = struct.pack("<QQ", info.stored_at_ms, info.expires_at_ms)
    about = pack_attributes(info.storage_key, info.attributes)
    return b"".join((fields, info.storage_key, info.content_key, info.owner, times, about))


def _spans(ranges: Sequence[ByteRange] | None) -> list[_Span]:
    return [_span(item) for item in ranges or ()]


def _span(wanted: ByteRange) -> _Span:
    first = wanted.start // BLOCK_BYTES
    if wanted.stop <= wanted.start:
        return _Span(wanted, first, ByteRange(_HEADER_BYTES, _HEADER_BYTES))
    stop = -(-wanted.stop // BLOCK_BYTES)
    stride = BLOCK_BYTES + _TAG_BYTES
    return _Span(wanted, first, ByteRange(_HEADER_BYTES + first * stride, _HEADER_BYTES + stop * stride))


def _outer(info: RecordInfo) -> RecordInfo:
    return replace(info, payload_bytes=plain_bytes(info.payload_bytes))


def _frozen(array: NDArray[np.uint8]) -> memoryview:
    array.flags.writeable = False
    return array.data
