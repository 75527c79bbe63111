"""Mooncake Store as a tier: the memory of many machines as one pool, over TCP, or RDMA by configuration.

An object is the record as it lies on disk, named ``prefix:owner:place``. The client is a C++ extension in this process:
its calls block, so they are made on threads of their own (:mod:`.threads`); what it is told about time-outs comes from
the environment, which is set before it is first imported. Its ``setup`` and ``close`` hold the interpreter's lock
(measured: 4.5 s where no master listens), so it is only set up once the master accepts connections, and at most once
in a while. Mooncake knows no expiry: a record past its time is a miss and is deleted then.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final, TypeVar

import aiohttp

from ... import limits
from ...codec.container import ByteRange
from ...errors import InvalidData, StorageFull, StorageUnavailable
from .. import network_limits
from ..key import KEY_BYTES, OWNER_BYTES, OwnerId, StorageKey, owner_of
from ..outcome import Corrupt, Hit, Miss, Outcome, Unavailable
from ..record import HEADER_BYTES, check_payload, encode_record_header, parse_record_header
from ..tier import Buffer, Record, RecordInfo, Slice, is_expired
from ..wrappers.throttle import InflightBytes
from .address import MooncakeAddress
from .mooncake_client import NOT_FOUND, Client, client_class, read_ranges, set_up_client
from .shared import SharedTier, require_own_place
from .threads import BlockingCalls

__all__ = ["MooncakeTier"]

T = TypeVar("T")
_FULL: Final = -200
_TAKEN_OVER: Final = -601
"""Another client began to replace the same object meanwhile."""
_CONFLICTS_MAX: Final = 16
_SETUP_SECONDS_MIN: Final = 5.0
"""Between two tries to set the client up."""
_LISTED_AT_ONCE: Final = 256
_KEY_BYTES_MAX: Final = 4096
_CLOSE_SECONDS_MAX: Final = 2.0


class MooncakeTier(SharedTier):
    """Sets its client up when first used, unless it is lent ``client``, and closes it then. Belongs to one event loop.

    Cancelled operations go on in their threads, with the bytes they hold, until the client comes back.
    """

    def __init__(
        self,
        address: MooncakeAddress,
        *,
        inflight: InflightBytes | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        connect_seconds_max: float = 0.5,
        client: Client | None = None,
        name: str = "mooncake",
    ) -> None:
        super().__init__(name, durable=False)
        self._address = address
        client_class(address)
        self._lent = client is not None
        self._inflight = inflight or InflightBytes()
        self._clock_ms = clock_ms
        self._connect_seconds_max = connect_seconds_max
        self._threads = BlockingCalls(network_limits.MOONCAKE_THREADS_MAX, name=f"kvloom-{name}")
        self._client = client
        self._setting_up: asyncio.Task[Client] | None = None
        self._tried_at = float("-inf")
        self._under_way: set[asyncio.Task[Any]] = set()
        self._random = Random()  # noqa: S311 - spreads clients in time, no secret

    async def put(self, record: Record) -> None:
        """Insert or replace the object."""
        require_own_place(record)
        client = await self._ready()
        header = await asyncio.to_thread(encode_record_header, record)
        payload = bytes(record.payload) if isinstance(record.payload, bytearray) else record.payload
        name = self._named(record.storage_key)
        await self._finished(self._put(client, name, header, payload))

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Ask the master for the size, then have header and ranges written into a buffer of that size."""
        self._require_open()
        try:
            return await self._finished(self._get(await self._ready(), key, ranges))
        except InvalidData as error:
            return Corrupt(self.name, str(error))
        except StorageUnavailable as error:
            self._require_open()
            return Unavailable(self.name, str(error))

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """One question to the master."""
        client = await self._ready()
        names = [self._named(key) for key in keys]
        if not names:
            return []
        answers: list[int] = await self._threads.run(lambda: client.batch_is_exist(names))
        for answer in answers:
            self._checked("batch_is_exist", answer)
        return [answer == 1 for answer in answers]

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """One question to the master, then the headers of what is there."""
        found = await self.contains_many(keys)
        client = await self._ready()
        present = [(self._named(key), key) for key, there in zip(keys, found, strict=True) if there]
        live = {
            info.storage_key
            for info in await self._headers(client, present)
            if not is_expired(info.expires_at_ms, now_ms)
        }
        return [key in live for key in keys]

    async def delete(self, key: StorageKey) -> bool:
        """Remove the object, leased or not."""
        client = await self._ready()
        name = self._named(key)
        code: int = await self._threads.run(lambda: client.remove(name, True))
        if code in NOT_FOUND:
            return False
        self._checked("remove", code)
        return True

    async def delete_owner(self, owner: OwnerId) -> int:
        """One request to the master, which looks at all keys for it."""
        client = await self._ready()
        pattern = f"^{self._prefix(owner)}".replace(".", "\\.")
        removed: int = await self._threads.run(lambda: client.remove_by_regex(pattern, True))
        return self._checked("remove_by_regex", removed)

    async def ping(self) -> None:
        """Ask the master for an object that is not there."""
        client = await self._ready()
        name = self._named(StorageKey(bytes(KEY_BYTES)))
        self._checked("is_exist", await self._threads.run(lambda: client.is_exist(name)))

    async def close(self) -> None:
        """Wait a bounded time for calls under way, then close the client if none is left in it."""
        self._closed = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_CLOSE_SECONDS_MAX)
        client, self._client = self._client, None
        if client is not None and not self._lent and not self._under_way:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS_MAX):
                    await self._threads.run(client.close)
        self._threads.stop()

    async def _put(self, client: Client, name: str, header: bytes, payload: Buffer) -> None:
        for turn in range(_CONFLICTS_MAX):
            code: int = await self._threads.run(lambda: client.upsert_parts(name, header, payload))
            if code != _TAKEN_OVER:
                break
            await asyncio.sleep(self._random.uniform(0, 0.01 * (turn + 1)))
        if code == _FULL:
            raise StorageFull(f"mooncake has no room for {len(payload)} bytes")
        self._checked("upsert_parts", code)

    async def _get(self, client: Client, key: StorageKey, ranges: Sequence[ByteRange] | None) -> Outcome[Slice]:
        name = self._named(key)
        size_bytes: int = await self._threads.run(lambda: client.get_size(name))
        if size_bytes in NOT_FOUND:
            return Miss()
        self._checked("get_size", size_bytes)
        if not HEADER_BYTES <= size_bytes <= HEADER_BYTES + limits.RECORD_BYTES_MAX:
            raise InvalidData(f"an object of {size_bytes} bytes where a record is meant")
        payload_bytes = size_bytes - HEADER_BYTES
        asked = (ByteRange(0, payload_bytes),) if ranges is None else ranges
        clipped = [ByteRange(min(item.start, payload_bytes), min(item.stop, payload_bytes)) for item in asked]
        sizes = [HEADER_BYTES, *(max(0, item.stop - item.start) for item in clipped)]
        starts = [0, *(HEADER_BYTES + item.start for item in clipped)]
        async with self._inflight.hold(sum(sizes)):
            data = await self._threads.run(lambda: read_ranges(client, name, starts, sizes))
        if data is None:
            return Miss()
        header = parse_record_header(data[:HEADER_BYTES], record_bytes=size_bytes)
        info = header.info
        if info.storage_key != key:
            raise InvalidData("the record is of another chunk than the object's name says")
        if self._expired(info):
            await self._threads.run(lambda: client.remove(name, True))
            return Miss()
        parts: list[Buffer] = []
        place = HEADER_BYTES
        for size in sizes[1:]:
            parts.append(data[place : place + size])
            place += size
        if ranges is None:
            await asyncio.to_thread(check_payload, header, parts[0])
        return Hit(Slice(info, tuple(parts)), self.name)

    async def records(self, owner: OwnerId | None) -> AsyncIterator[RecordInfo]:
        """The master's list of all keys, over its HTTP port, and the header of each object of ours."""
        client = await self._ready()
        prefix = self._prefix(owner)
        page: list[tuple[str, StorageKey]] = []
        async for name in self._names():
            key = self._key(name) if name.startswith(prefix) else None
            if key is not None:
                page.append((name, key))
            if len(page) == _LISTED_AT_ONCE:
                for info in await self._headers(client, page):
                    yield info
                page = []
        for info in await self._headers(client, page):
            yield info

    async def _names(self) -> AsyncIterator[str]:
        """All keys of the store, a line each, by the master's HTTP port."""
        address = self._address
        url = f"http://{address.master.host}:{address.admin_port}/get_all_keys"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=10.0)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
                if answer.status != 200:
                    raise StorageUnavailable(f"{self.name}: {url} answered {answer.status}")
                rest = b""
                async for chunk in answer.content.iter_chunked(limits.STREAM_FRAME_BYTES):
                    *lines, rest = (rest + chunk).split(b"\n")
                    if len(rest) > _KEY_BYTES_MAX:
                        raise StorageUnavailable(f"{self.name}: {url} answered with something else than keys")
                    for line in lines:
                        yield line.decode("utf-8", "replace").strip()
                yield rest.decode("utf-8", "replace").strip()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise StorageUnavailable(f"{self.name}: {url}: {error}") from error

    async def _headers(self, client: Client, page: Sequence[tuple[str, StorageKey]]) -> list[RecordInfo]:
        """The records that ``page`` names, without those that are gone, past their time, or damaged."""
        infos: list[RecordInfo] = []
        for name, key in page:
            found = await self._finished(self._listed(client, name, key))
            if found is not None:
                infos.append(found)
        return infos

    async def _listed(self, client: Client, name: str, key: StorageKey) -> RecordInfo | None:
        data = await self._threads.run(lambda: read_ranges(client, name, [0], [HEADER_BYTES]))
        if data is None:
            return None
        try:
            record_bytes = HEADER_BYTES + int.from_bytes(data[88:96], "little")
            info = parse_record_header(data, record_bytes=record_bytes).info
        except InvalidData:
            return None
        return info if info.storage_key == key and not self._expired(info) else None

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` so that a cancellation lets it go on: a thread may be writing into its buffer."""
        return await asyncio.shield(self._started(work))

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._forgotten)
        return task

    def _forgotten(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, so that nobody is told of a failure nobody waits for

    async def _ready(self) -> Client:
        """The client, set up; one try at a time and one in a while, which goes on where its caller is cancelled."""
        self._require_open()
        if self._client is not None:
            return self._client
        if self._setting_up is None or self._setting_up.done():
            self._setting_up = self._started(self._connect())
        return await asyncio.shield(self._setting_up)

    async def _connect(self) -> Client:
        await self._reach_master()
        now = asyncio.get_running_loop().time()
        if now - self._tried_at < _SETUP_SECONDS_MIN:
            raise StorageUnavailable(f"{self.name}: the client could not be set up a moment ago")
        self._tried_at = now
        self._client = await self._threads.run(lambda: set_up_client(self._address))
        return self._client

    async def _reach_master(self) -> None:
        master = self._address.master
        try:
            async with asyncio.timeout(self._connect_seconds_max):
                _, writer = await asyncio.open_connection(master.host, master.port)
        except (OSError, TimeoutError) as error:
            raise StorageUnavailable(f"{self.name}: no master at {master}: {error or 'no answer'}") from error
        writer.close()

    def _checked(self, call: str, code: int) -> int:
        if code < 0:
            raise StorageUnavailable(f"{self.name}: {call} failed with error {code}")
        return code

    def _prefix(self, owner: OwnerId | None) -> str:
        return f"{self._address.prefix}:" + ("" if owner is None else f"{owner.hex()}:")

    def _named(self, key: StorageKey) -> str:
        return self._prefix(owner_of(key)) + key[OWNER_BYTES:].hex()

    def _key(self, name: str) -> StorageKey | None:
        owner, _, place = name.removeprefix(self._prefix(None)).partition(":")
        try:
            key = StorageKey(bytes.fromhex(owner) + bytes.fromhex(place))
        except ValueError:
            return None
        return key if len(key) == KEY_BYTES and self._named(key) == name else None

    def _expired(self, info: RecordInfo) -> bool:
        return is_expired(info.expires_at_ms, self._clock_ms())
