"""Valkey or Redis as a tier: a cache that daemons share, one server or a cluster.

Which keys a record takes is told in :mod:`.valkey_record`, which node they lie on is :mod:`.valkey_nodes`'s business.
A put uploads the parts under a name of their own and with a short life, then one script makes them last, names them in
the head, and removes what the head named before: readers see the old record or the new one, and a daemon that dies in
between leaves nothing behind. The engine itself expires records that expire, and evicts by its own policy when its
memory is full; a record of which it evicted a part is a miss.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from valkey.exceptions import OutOfMemoryError, ResponseError

from ...codec.container import ByteRange
from ...errors import InvalidData, StorageFull, StorageUnavailable
from .. import network_limits as limits
from ..key import OwnerId, StorageKey
from ..outcome import Corrupt, Hit, Miss, Outcome, Unavailable
from ..record import check_payload
from ..tier import NEVER, Buffer, Record, RecordInfo, Slice, is_expired
from ..wrappers.throttle import InflightBytes
from .address import ValkeyAddress
from .shared import SharedTier, require_own_place
from .valkey_nodes import Command, Reply, ValkeyNode, ValkeyNodes
from .valkey_record import (
    GENERATION_BYTES,
    HEAD_BYTES,
    INLINE_BYTES_MAX,
    Head,
    Piece,
    ValkeyKeys,
    encode_head,
    parse_head,
)

__all__ = ["ValkeyTier"]

_log = logging.getLogger(__name__)
_UPLOAD_MS_MAX: Final = 10 * 60 * 1000
"""How long parts live that no head names."""
_CONFLICTS_MAX: Final = 64
"""Each time somebody else's put went through, so puts of one key end after as many rounds as there are of them."""
_REPLACED_MAX: Final = 4
_HEADS_KEPT: Final = 4096
_SCAN_KEYS: Final = 1000
_REPLACE: Final = """
local now = redis.call('GETRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
if now ~= ARGV[2] then return now end
local new = tonumber(ARGV[3])
for i = 2, new + 1 do
  if redis.call('EXISTS', KEYS[i]) == 0 then return 0 end
end
for i = new + 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
if ARGV[5] == '' then return redis.call('UNLINK', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[5])
for i = 1, new + 1 do
  if ARGV[4] == '0' then redis.call('PERSIST', KEYS[i]) else redis.call('PEXPIREAT', KEYS[i], ARGV[4]) end
end
return 1
"""
"""Keys: head, new parts, parts to remove. Arguments: bytes of a head, the head expected, how many new parts, expiry,
the new head with its inline payload (nothing: forget the record). Returns the head found where it is another, 1 when
done, 0 where a new part is gone or there was no record."""


class ValkeyTier(SharedTier):
    """``value_bytes_max`` bounds what one command moves. Belongs to one event loop; connects when first used.

    ``clock_ms`` is milliseconds since 1970; what is read is held against ``inflight`` while it arrives.
    """

    def __init__(
        self,
        address: ValkeyAddress,
        *,
        inflight: InflightBytes | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        connect_seconds_max: float = 0.5,
        value_bytes_max: int = limits.VALKEY_VALUE_BYTES_MAX,
        name: str = "valkey",
    ) -> None:
        super().__init__(name, durable=False)
        self._nodes = ValkeyNodes(address, connect_seconds_max=connect_seconds_max)
        self._keys = ValkeyKeys(address.prefix)
        self._inflight = inflight or InflightBytes()
        self._clock_ms = clock_ms
        self._value_bytes_max = value_bytes_max
        self._heads: OrderedDict[StorageKey, Head] = OrderedDict()

    async def put(self, record: Record) -> None:
        """Upload the parts, then name them; a put by another daemon meanwhile is replaced, whole."""
        self._require_open()
        require_own_place(record)
        key, generation = record.storage_key, secrets.token_bytes(GENERATION_BYTES)
        head = await asyncio.to_thread(encode_head, record, generation=generation, part_bytes=self._value_bytes_max)
        payload = memoryview(record.payload)
        names = self._keys.parts(key, head, range(head.parts))
        uploads: list[Command] = [("GETRANGE", self._keys.head(key), 0, HEAD_BYTES - 1)]
        for part, name in enumerate(names):
            held = head.part_range(part)
            uploads.append(("SET", name, payload[held.start : held.stop], "PX", _UPLOAD_MS_MAX))
        present, *stored = await self._nodes.run(self._keys.head(key), uploads)
        for reply in stored:
            _refused_where_full(reply)
            if reply != b"OK":
                raise StorageUnavailable(f"{self.name} answered SET with {str(reply)[:120]!r}")
        value = head.data + bytes(payload[: head.inline_bytes])
        if await self._replace(key, present, names, record.expires_at_ms, value) == 0:
            raise StorageUnavailable(f"{self.name} lost a part of the record before all of it was stored")
        self._remember(key, head)

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read the head, and in the same round trip the parts where the head was seen before; else in a second one."""
        self._require_open()
        try:
            for _ in range(_REPLACED_MAX):
                found = await self._read(key, ranges)
                if found is not None:
                    return found
                self._heads.pop(key, None)
        except InvalidData as error:
            self._heads.pop(key, None)
            return Corrupt(self.name, str(error))
        except StorageUnavailable as error:
            self._require_open()
            return Unavailable(self.name, str(error))
        return Miss()

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """Ask for all heads at once; those on a node that is away count as absent, unless all are."""
        self._require_open()
        places = [self._keys.head(key) for key in keys]
        replies = await self._nodes.run_each({place: ("EXISTS", place) for place in places})
        if replies and not any(isinstance(reply, int) for reply in replies):
            raise StorageUnavailable(f"{self.name} answered EXISTS with {str(replies[0])[:120]!r}")
        found = dict(zip(dict.fromkeys(places), replies, strict=True))
        return [found[place] == 1 for place in places]

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Read all heads at once."""
        self._require_open()
        places = {self._keys.head(key): key for key in keys}
        replies = await self._nodes.run_each({place: ("GETRANGE", place, 0, HEAD_BYTES - 1) for place in places})
        infos = {key: self._listed(place, reply) for (place, key), reply in zip(places.items(), replies, strict=True)}
        return [info is not None and not is_expired(info.expires_at_ms, now_ms) for info in map(infos.get, keys)]

    async def delete(self, key: StorageKey) -> bool:
        """Forget head and parts at once."""
        self._require_open()
        (present,) = await self._nodes.run(
            self._keys.head(key), [("GETRANGE", self._keys.head(key), 0, HEAD_BYTES - 1)]
        )
        self._heads.pop(key, None)
        if present == b"":
            return False
        return await self._replace(key, present, [], NEVER, b"") == 1

    async def delete_owner(self, owner: OwnerId) -> int:
        """Forget every key of the owner on every node, parts that no head names included."""
        self._require_open()
        deleted = 0
        for node in await self._nodes.primaries():
            async for names in self._names(node, self._keys.everything_pattern(owner)):
                replies = await node.run([("UNLINK", name) for name in names])
                deleted += sum(
                    1
                    for name, reply in zip(names, replies, strict=True)
                    if reply == 1 and self._keys.storage_key(name) is not None
                )
        self._heads.clear()
        return deleted

    async def ping(self) -> None:
        """Any node that answers is a sign of life: what lies on others is lost, not the tier."""
        self._require_open()
        await self._nodes.ping()

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        await self._nodes.close()

    async def _read(self, key: StorageKey, ranges: Sequence[ByteRange] | None) -> Outcome[Slice] | None:
        """What is stored, or ``None`` where it was replaced while it was read."""
        place, known = self._keys.head(key), self._heads.get(key)
        inline = ("GETRANGE", place, 0, HEAD_BYTES + INLINE_BYTES_MAX - 1)
        guess = [] if known is None else _parts_wanted(known, ranges)
        held_bytes = HEAD_BYTES + INLINE_BYTES_MAX + sum(piece.size_bytes for piece in guess)
        async with self._inflight.hold(held_bytes):
            commands = [] if known is None else self._part_reads(key, known, guess)
            data, *replies = await self._nodes.run(place, [inline, *commands])
            if not isinstance(data, bytes):
                raise StorageUnavailable(f"{self.name} answered GETRANGE with {str(data)[:120]!r}")
            if not data:
                self._heads.pop(key, None)
                return Miss()
            head = self._checked(key, data)
            if known is not None and known.data == head.data:
                return await self._assembled(head, data, guess, replies, ranges)
        self._remember(key, head)
        wanted = _parts_wanted(head, ranges)
        async with self._inflight.hold(sum(piece.size_bytes for piece in wanted)):
            reads = self._part_reads(key, head, wanted)
            replies = await self._nodes.run(place, reads) if reads else []
            return await self._assembled(head, data, wanted, replies, ranges)

    def _checked(self, key: StorageKey, data: bytes) -> Head:
        head = parse_head(data)
        if head.record.info.storage_key != key:
            raise InvalidData("the record is of another chunk than its key says")
        if len(data) != HEAD_BYTES + head.inline_bytes:
            raise InvalidData(f"head comes with {len(data) - HEAD_BYTES} bytes of payload, says {head.inline_bytes}")
        return head

    def _part_reads(self, key: StorageKey, head: Head, pieces: Sequence[Piece]) -> list[Command]:
        names = self._keys.parts(key, head, [piece.part or 0 for piece in pieces])
        return [("GETRANGE", name, piece.start, piece.stop - 1) for name, piece in zip(names, pieces, strict=True)]

    async def _assembled(
        self,
        head: Head,
        data: bytes,
        pieces: Sequence[Piece],
        replies: Sequence[Reply],
        ranges: Sequence[ByteRange] | None,
    ) -> Outcome[Slice] | None:
        """Put the ranges together; ``None`` where a part is gone: replaced meanwhile, or evicted by the engine."""
        read: dict[Piece, bytes] = {}
        for piece, reply in zip(pieces, replies, strict=True):
            if not isinstance(reply, bytes):
                raise StorageUnavailable(f"{self.name} answered GETRANGE with {str(reply)[:120]!r}")
            if not reply:
                return None
            if len(reply) != piece.size_bytes:
                raise InvalidData(f"a part gave {len(reply)} bytes where {piece.size_bytes} were asked for")
            read[piece] = reply
        info = head.record.info
        if is_expired(info.expires_at_ms, self._clock_ms()):
            return Miss()
        inline = memoryview(data)[HEAD_BYTES:]

        def joined(wanted: ByteRange) -> Buffer:
            found: list[Buffer] = [
                inline[piece.start : piece.stop] if piece.part is None else read[piece] for piece in head.pieces(wanted)
            ]
            return found[0] if len(found) == 1 else b"".join(found)

        if ranges is not None:
            return Hit(Slice(info, tuple(joined(wanted) for wanted in ranges)), self.name)
        whole = joined(ByteRange(0, info.payload_bytes))
        await asyncio.to_thread(check_payload, head.record, whole)
        return Hit(Slice(info, (whole,)), self.name)

    async def _replace(
        self, key: StorageKey, present: Reply, names: Sequence[bytes], expires_at_ms: int, value: bytes
    ) -> int:
        """Put ``value`` in place of ``present`` and whatever it turns out to be meanwhile; see :data:`_REPLACE`."""
        place = self._keys.head(key)
        for _ in range(_CONFLICTS_MAX):
            if not isinstance(present, bytes):
                _refused_where_full(present)
                raise StorageUnavailable(f"{self.name} answered with {str(present)[:120]!r}")
            keys = [place, *names, *self._named(key, present)]
            arguments = (HEAD_BYTES, present, len(names), expires_at_ms, value)
            (present,) = await self._nodes.run(place, [("EVAL", _REPLACE, len(keys), *keys, *arguments)])
            if isinstance(present, int):
                return present
            if not value and present == b"":
                return 0
        raise StorageUnavailable(f"{self.name}: the record was replaced {_CONFLICTS_MAX} times meanwhile")

    def _named(self, key: StorageKey, present: bytes) -> list[bytes]:
        """The parts that the head ``present`` names; none where there is no head, or a damaged one."""
        try:
            head = parse_head(present)
        except InvalidData:
            return []
        return self._keys.parts(key, head, range(head.parts))

    async def records(self, owner: OwnerId | None) -> AsyncIterator[RecordInfo]:
        """The heads of all nodes; the engine looks at all its keys for an owner, too, a thousand at a time."""
        self._require_open()
        for node in await self._nodes.primaries():
            seen: set[bytes] = set()
            async for names in self._names(node, self._keys.heads_pattern(owner)):
                fresh = [name for name in dict.fromkeys(names) if name not in seen]
                seen.update(fresh)
                for name, reply in zip(
                    fresh, await node.run([("GETRANGE", name, 0, HEAD_BYTES - 1) for name in fresh]), strict=True
                ):
                    info = self._listed(name, reply)
                    if info is not None:
                        yield info

    def _listed(self, name: bytes, reply: Reply) -> RecordInfo | None:
        """The record by its head, or ``None`` where it is gone, is past its time, or does not hold."""
        key = self._keys.storage_key(name)
        if key is None or not isinstance(reply, bytes) or not reply:
            return None
        try:
            info = parse_head(reply).record.info
        except InvalidData as error:
            _log.warning("%s tier: damaged head left out of a listing: %s", self.name, error)
            return None
        return info if info.storage_key == key else None

    async def _names(self, node: ValkeyNode, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Names of keys on ``node`` that match, a page at a time; the engine may give a name twice."""
        cursor: bytes = b"0"
        while True:
            self._require_open()
            (reply,) = await node.run([("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_KEYS)])
            match reply:
                case [bytes() as cursor, list() as names] if all(isinstance(name, bytes) for name in names):
                    if names:
                        yield names
                case _:
                    raise StorageUnavailable(f"{self.name} answered SCAN with {str(reply)[:120]!r}")
            if cursor == b"0":
                return

    def _remember(self, key: StorageKey, head: Head) -> None:
        self._heads[key] = head
        self._heads.move_to_end(key)
        if len(self._heads) > _HEADS_KEPT:
            self._heads.popitem(last=False)


def _parts_wanted(head: Head, ranges: Sequence[ByteRange] | None) -> list[Piece]:
    """The pieces of parts that ``ranges`` need, each once."""
    wanted = [ByteRange(0, head.record.info.payload_bytes)] if ranges is None else ranges
    pieces = (piece for item in wanted for piece in head.pieces(item) if piece.part is not None)
    return list(dict.fromkeys(pieces))


def _refused_where_full(reply: Reply) -> None:
    if isinstance(reply, OutOfMemoryError):
        raise StorageFull(f"valkey is full: {reply}")
    if isinstance(reply, ResponseError):
        raise StorageUnavailable(f"valkey refused: {str(reply)[:120]}")
