"""S3 and what speaks like it as a tier: one object per record, ``prefix/owner/place``, both halves of the storage key.

An object is the record as it lies on disk: header, payload. So a range of the payload is a range of the object, what
is one owner's is one prefix (to list, to count, to delete, to grant), and an object says by itself what it is. All
ranges of one read carry ``If-Match``: they are of one version, or the read starts again. Requests are ``obstore``'s.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import S3Store

from ... import limits
from ...codec.container import ByteRange
from ...errors import InvalidData, StorageUnavailable
from .. import network_limits
from ..key import KEY_BYTES, OwnerId, StorageKey
from ..outcome import Corrupt, Hit, Miss, Outcome, Unavailable
from ..record import HEADER_BYTES, RecordHeader, check_payload, encode_record_header, parse_record_header
from ..tier import NEVER, Buffer, Record, RecordInfo, Slice, Usage, is_expired
from ..wrappers.throttle import InflightBytes
from .address import S3Address
from .s3_object import attributes, cut, frames, key_of, object_path, spans
from .shared import SharedTier, require_own_place

__all__ = ["TTL_DAYS", "S3Tier"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
TTL_DAYS: Final = (1, 7, 30, 90, 365)
"""The classes of lifetimes: an object that expires is tagged ``kvloom-ttl-days`` with the first that is long enough."""
_DAY_MS: Final = 24 * 3600 * 1000
_LEAD_BYTES_MAX: Final = 1024 * 1024
"""So far into the payload the request for the header reads on, where something is wanted there."""
_REPLACED_MAX: Final = 4
_CONCURRENCY: Final = 32
_LIST_OBJECTS: Final = 1000
_VERSIONS_KEPT: Final = 4096
_FAILURES: Final = (BaseError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class _Version:
    """One version of an object whose header was verified."""

    tag: str
    header: RecordHeader


class _ReplacedError(Exception):
    """The object is not the version that was asked for any more."""


class S3Tier(SharedTier):
    """Endpoint, region and credentials are those of the ``AWS_*`` variables. Belongs to one event loop.

    ``options`` go over what the environment says, by obstore's names (``endpoint``, ``access_key_id``, …).
    """

    def __init__(
        self,
        address: S3Address,
        *,
        inflight: InflightBytes | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        options: Mapping[str, Any] | None = None,
        connect_seconds_max: float = 2.0,
        request_seconds_max: float = 60.0,
        part_bytes: int = network_limits.S3_PART_BYTES,
        name: str = "s3",
    ) -> None:
        super().__init__(name, durable=True)
        self._store = S3Store(
            address.bucket,
            prefix=address.prefix,
            config=dict(options or {}),  # type: ignore[arg-type]  # obstore checks the names itself
            client_options={
                "connect_timeout": timedelta(seconds=connect_seconds_max),
                "timeout": timedelta(seconds=request_seconds_max),
                "allow_http": True,  # an endpoint is http only where its URL says so
            },
            retry_config={"max_retries": 0},  # retrying is RetryTier's, once
        )
        self._inflight = inflight or InflightBytes()
        self._clock_ms = clock_ms
        self._part_bytes = part_bytes
        self._versions: OrderedDict[StorageKey, _Version] = OrderedDict()

    async def put(self, record: Record) -> None:
        """Store the object, in parts where it is large; it appears whole or not at all."""
        self._require_open()
        require_own_place(record)
        header = await asyncio.to_thread(encode_record_header, record)
        size_bytes = HEADER_BYTES + len(record.payload)
        whole = size_bytes <= self._part_bytes
        body: Buffer | Iterable[Buffer] = (
            b"".join((header, record.payload)) if whole else frames(header, record.payload)
        )
        await self._asked(
            obstore.put_async(
                self._store,
                object_path(record.storage_key),
                body,
                attributes=attributes(record.info),
                tags=self._tags(record),
                use_multipart=not whole,
                chunk_size=self._part_bytes,
                max_concurrency=network_limits.S3_REQUESTS_PER_OBJECT_MAX,
            )
        )
        self._versions.pop(record.storage_key, None)

    async def get(self, key: StorageKey, ranges: Sequence[ByteRange] | None = None) -> Outcome[Slice]:
        """Read the header with what stands next to it, then the rest; only the rest where the version is known."""
        self._require_open()
        try:
            for _ in range(_REPLACED_MAX):
                try:
                    return await (self._whole(key) if ranges is None else self._ranges(key, ranges))
                except _ReplacedError:
                    self._versions.pop(key, None)
        except FileNotFoundError:
            self._versions.pop(key, None)
            return Miss()
        except InvalidData as error:
            return Corrupt(self.name, str(error))
        except _FAILURES as error:
            self._require_open()
            return Unavailable(self.name, _told(error))
        return Unavailable(self.name, "the object is being replaced over and over")

    async def contains_many(self, keys: Sequence[StorageKey]) -> list[bool]:
        """One request per key, a bounded number at once."""
        self._require_open()
        present = await _gathered([partial(self._exists, key) for key in dict.fromkeys(keys)])
        found = dict(zip(dict.fromkeys(keys), present, strict=True))
        return [found[key] for key in keys]

    async def contains_live(self, keys: Sequence[StorageKey], now_ms: int) -> list[bool]:
        """Read the headers: a request per key here, too."""
        self._require_open()
        infos = await _gathered([partial(self._listed, key) for key in keys])
        return [info is not None and not is_expired(info.expires_at_ms, now_ms) for info in infos]

    async def delete(self, key: StorageKey) -> bool:
        """Forget the object."""
        self._require_open()
        self._versions.pop(key, None)
        if not await self._exists(key):
            return False
        await self._asked(obstore.delete_async(self._store, object_path(key)))
        return True

    async def usage(self, owner: OwnerId) -> Usage:
        """By the listing alone; expired objects count for as long as they take room."""
        sizes = [size_bytes async for page in self._pages(owner) for _, size_bytes in page]
        return Usage(len(sizes), sum(sizes) - HEADER_BYTES * len(sizes))

    async def delete_owner(self, owner: OwnerId) -> int:
        """Delete everything under the owner's prefix, a thousand objects per request."""
        deleted = 0
        pages = [page async for page in self._pages(owner)]
        for page in pages:
            await self._asked(obstore.delete_async(self._store, [object_path(key) for key, _ in page]))
            deleted += len(page)
        self._versions.clear()
        return deleted

    async def ping(self) -> None:
        """Ask for an object that is not there."""
        self._require_open()
        await self._exists(StorageKey(bytes(KEY_BYTES)))

    async def close(self) -> None:
        """Refuse what comes from now on; connections end with the object."""
        self._closed = True

    async def _whole(self, key: StorageKey) -> Outcome[Slice]:
        data, version = await self._fetch(key, None, None)
        info = version.header.info
        if self._expired(info):
            return Miss()
        payload = memoryview(data)[HEADER_BYTES:]
        await asyncio.to_thread(check_payload, version.header, payload)
        return Hit(Slice(info, (payload,)), self.name)

    async def _ranges(self, key: StorageKey, ranges: Sequence[ByteRange]) -> Outcome[Slice]:
        version, lead = self._versions.get(key), b""
        if version is None:
            near = [item.stop for item in ranges if item.start < _LEAD_BYTES_MAX and item.start < item.stop]
            lead_bytes = HEADER_BYTES + min(max(near, default=0), _LEAD_BYTES_MAX)
            fetched, version = await self._fetch(key, ByteRange(0, lead_bytes), None)
            lead = bytes(memoryview(fetched)[HEADER_BYTES:])
        info = version.header.info
        if self._expired(info):
            return Miss()
        clipped = [ByteRange(item.start, max(item.start, min(item.stop, info.payload_bytes))) for item in ranges]
        needed = spans([item for item in clipped if item.stop > max(item.start, len(lead))])
        held: list[tuple[int, memoryview]] = [(0, memoryview(lead))]
        fetches = [partial(self._span, key, span, version) for span in needed]
        held += [(span.start, memoryview(data)) for span, data in zip(needed, await _gathered(fetches), strict=True)]
        return Hit(Slice(info, tuple(cut(held, item) for item in clipped)), self.name)

    async def _span(self, key: StorageKey, span: ByteRange, version: _Version) -> Buffer:
        data, _ = await self._fetch(key, ByteRange(HEADER_BYTES + span.start, HEADER_BYTES + span.stop), version)
        if len(memoryview(data)) != span.stop - span.start:
            raise InvalidData(f"{len(memoryview(data))} bytes came where {span.stop - span.start} were asked for")
        return data

    async def _fetch(
        self, key: StorageKey, wanted: ByteRange | None, version: _Version | None
    ) -> tuple[Buffer, _Version]:
        """Bytes ``wanted`` of the object, of ``version`` where one is named; else they begin with the header."""
        options: Any = {}
        if wanted is not None:
            options["range"] = (wanted.start, wanted.stop)
        if version is not None:
            options["if_match"] = version.tag
        try:
            answer = await obstore.get_async(self._store, object_path(key), options=options)
            start, stop = answer.range
            size_bytes = answer.meta["size"]
            most = size_bytes if wanted is None else wanted.stop - wanted.start
            if not HEADER_BYTES <= size_bytes <= HEADER_BYTES + limits.RECORD_BYTES_MAX or stop - start > most:
                raise InvalidData(f"an object of {size_bytes} bytes, of which {stop - start} came, {most} expected")
            async with self._inflight.hold(stop - start):
                data: Buffer = memoryview(await answer.buffer_async())
        except PreconditionError as error:
            raise _ReplacedError from error
        if version is None:
            header = parse_record_header(data, record_bytes=size_bytes)
            if header.info.storage_key != key:
                raise InvalidData("the record is of another chunk than the object's name says")
            version = _Version(answer.meta["e_tag"] or "", header)
            if version.tag:
                self._remember(key, version)
        return data, version

    async def _exists(self, key: StorageKey) -> bool:
        try:
            await obstore.head_async(self._store, object_path(key))
        except FileNotFoundError:
            return False
        except _FAILURES as error:
            raise StorageUnavailable(f"{self.name}: {_told(error)}") from error
        return True

    async def _asked(self, request: Coroutine[Any, Any, T]) -> T:
        try:
            return await request
        except _FAILURES as error:
            raise StorageUnavailable(f"{self.name}: {_told(error)}") from error

    async def records(self, owner: OwnerId | None) -> AsyncIterator[RecordInfo]:
        """List the bucket under the prefix and read the header of each object: a request each."""
        async for page in self._pages(owner):
            for info in await _gathered([partial(self._listed, key) for key, _ in page]):
                if info is not None:
                    yield info

    async def _listed(self, key: StorageKey) -> RecordInfo | None:
        """The record by its header, or ``None`` where it is gone, is past its time, or does not hold."""
        found = await self.get(key, ())
        match found:
            case Hit(value=value):
                return value.info
            case Corrupt(detail=detail):
                _log.warning("%s tier: damaged object left out of a listing: %s", self.name, detail)
            case Unavailable(detail=detail):
                raise StorageUnavailable(f"{self.name}: {detail}")
        return None

    async def _pages(self, owner: OwnerId | None) -> AsyncIterator[list[tuple[StorageKey, int]]]:
        """Keys and object sizes, page by page; objects with other names are not ours."""
        self._require_open()
        prefix = None if owner is None else owner.hex()
        try:
            async for page in obstore.list(self._store, prefix=prefix, chunk_size=_LIST_OBJECTS):
                self._require_open()
                named = ((key_of(item["path"]), item["size"]) for item in page)
                yield [(key, size_bytes) for key, size_bytes in named if key is not None]
        except _FAILURES as error:
            raise StorageUnavailable(f"{self.name}: {_told(error)}") from error

    def _expired(self, info: RecordInfo) -> bool:
        return is_expired(info.expires_at_ms, self._clock_ms())

    def _tags(self, record: Record) -> dict[str, str] | None:
        if record.expires_at_ms == NEVER:
            return None
        days = (record.expires_at_ms - self._clock_ms()) / _DAY_MS
        return {"kvloom-ttl-days": str(next((item for item in TTL_DAYS if item >= days), TTL_DAYS[-1]))}

    def _remember(self, key: StorageKey, version: _Version) -> None:
        self._versions[key] = version
        self._versions.move_to_end(key)
        if len(self._versions) > _VERSIONS_KEPT:
            self._versions.popitem(last=False)


async def _gathered(requests: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """The results in order, a bounded number under way; the first failure ends the others."""
    turns = asyncio.Semaphore(_CONCURRENCY)

    async def one(request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with turns:
            return await request()

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _told(error: BaseException) -> str:
    """What went wrong, on one line; obstore's messages go on with where in its source."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
