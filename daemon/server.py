"""The daemon as a process: opens the tiers, serves, and on SIGTERM or SIGINT drains, writes what is dirty, and ends."""

import asyncio
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from .. import __version__, limits
from ..clients.discovery import DaemonNote, Endpoint
from ..clients.local_wire import socket_path
from ..errors import ConfigError
from ..kvstore.eviction import POLICIES
from ..kvstore.key import ContentKey
from ..kvstore.keyring import Keyring
from ..kvstore.memory.tier import MemoryTier
from ..kvstore.namespace import derive_namespace, load_or_create_root_secret, load_root_secret
from ..kvstore.network import open_network_tier, parse_network
from ..kvstore.profiles import ProfileShelves
from ..kvstore.quota import Quota, QuotaPolicy, Quotas
from ..kvstore.ssd.files import DirectoryLock
from ..kvstore.ssd.scrub import Scrubber
from ..kvstore.ssd.tier import SsdTier
from ..kvstore.tier import RecordInfo, Tier
from ..kvstore.tiered.cascade import CascadeLimits
from ..kvstore.tiered.stats import StoreObserver
from ..kvstore.tiered.store import StoreRules, TieredStore
from ..kvstore.wrappers.encrypt import EncryptTier
from .admission import Admission
from .authenticator import Authenticator
from .caller import ALL_SCOPES, Caller
from .config import DaemonConfig, format_size
from .http_api import HttpApi
from .http_connection import GuardedProtocol
from .local_api import bind_local, serve_local
from .logs import configure_logs
from .metrics import Metrics
from .service import Service

__all__ = ["RunningDaemon", "open_daemon", "run_daemon"]

NAMESPACE: Final = "default"
_CLOSE_SECONDS_MAX: Final = 1.0
_SPARE_FILES: Final = 256 + limits.SSD_SEGMENTS_MAX
_LEASED_SHARE: Final = 2
"""Local clients may hold half of the memory tier mapped: it takes no new records where they do."""
_log = structlog.get_logger("kvloom.daemon")


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that serves at ``endpoint``."""

    endpoint: Endpoint
    service: Service
    authenticator: Authenticator


async def run_daemon(config: DaemonConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second Ctrl-C ends the process at once."""
    configure_logs(config.log_format, config.log_level)
    _raise_open_files_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_daemon(config):
        await stop.wait()
        loop.remove_signal_handler(signal.SIGINT)
    _log.info("stopped")


@asynccontextmanager
async def open_daemon(config: DaemonConfig) -> AsyncIterator[RunningDaemon]:
    """Open everything and serve while the context lasts; leaving it drains, flushes and closes.

    Raises :class:`ConfigError` where the port or the data directory is in use or cannot be used.
    """
    async with AsyncExitStack() as stack:
        _prepare_directory(config.data_dir)
        stack.callback(DirectoryLock(config.data_dir).release)
        listener = stack.enter_context(_bind(config.host, config.port))
        ssd = await asyncio.to_thread(_open_ssd, config) if config.ssd_bytes else None
        if ssd is not None:
            stack.push_async_callback(ssd.close)  # where the store cannot be opened; otherwise that has closed it
        store = await _open_store(config, ssd)
        stack.push_async_callback(store.close)
        secret = await asyncio.to_thread(_root_secret, config)
        namespace = derive_namespace(secret, NAMESPACE, codec=config.codec, ttl_seconds=config.ttl_seconds)
        authenticator = Authenticator(Caller(namespace, ALL_SCOPES, "local"), open_to_all=True)
        shelves = ProfileShelves(config.data_dir / "profiles", namespace.owner)
        await shelves.known(namespace)
        admission = Admission()
        service = Service(store, shelves, admission, dirty_bytes_max=config.dirty_bytes_max)
        await store.start()
        if ssd is not None:
            await stack.enter_async_context(_scrubbing(ssd, store, config))
        service.open()
        await stack.enter_async_context(_serve_http(service, authenticator, listener))
        local = bind_local(socket_path(config.data_dir))
        if local is not None:
            stack.callback(socket_path(config.data_dir).unlink, missing_ok=True)
            stack.enter_context(local)
            leased_bytes_max = config.memory_bytes // _LEASED_SHARE
            await stack.enter_async_context(
                serve_local(service, authenticator, local, leased_bytes_max=leased_bytes_max)
            )
        endpoint = Endpoint(*listener.getsockname()[:2])
        path = None if local is None else str(socket_path(config.data_dir))
        DaemonNote(endpoint, os.getpid(), __version__, path).write(config.data_dir)
        stack.callback(DaemonNote.path(config.data_dir).unlink, missing_ok=True)
        stack.push_async_callback(_drain, admission, store)
        _log.info(
            "ready",
            address=str(endpoint),
            data_dir=str(config.data_dir),
            memory=format_size(config.memory_bytes),
            ssd=format_size(config.ssd_bytes),
            eviction=str(config.eviction),
            network="none" if config.network is None else str(parse_network(config.network)),
            version=__version__,
        )
        if config.network is not None and config.root_secret is None:
            _log.warning("no root secret is configured: other daemons cannot find what this one puts into the network")
        if not config.ssd_bytes:
            _log.warning("no SSD tier: chunks are lost when the daemon ends")
        yield RunningDaemon(endpoint, service, authenticator)


async def _drain(admission: Admission, store: TieredStore) -> None:
    """Refuse what is new, let what is inside finish for a bounded time."""
    admission.drain()
    _log.info("draining", requests=admission.requests, dirty=format_size(store.stats().dirty_bytes))
    with suppress(TimeoutError):
        async with asyncio.timeout(limits.DRAIN_SECONDS_MAX):
            await admission.empty()
    if admission.requests:
        _log.warning("requests cut off", requests=admission.requests, seconds=limits.DRAIN_SECONDS_MAX)


@asynccontextmanager
async def _serve_http(service: Service, authenticator: Authenticator, listener: socket.socket) -> AsyncIterator[None]:
    metrics = Metrics(lambda: service.stats(authenticator.local))
    api = HttpApi(service, metrics, authenticator)
    runner = web.AppRunner(api.application(), shutdown_timeout=_CLOSE_SECONDS_MAX)
    await runner.setup()
    try:
        server = await asyncio.get_running_loop().create_server(_protocol_factory(runner), sock=listener)
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _protocol_factory(runner: web.AppRunner) -> Callable[[], GuardedProtocol]:
    loop = asyncio.get_running_loop()
    manager = runner.server
    if manager is None:
        raise RuntimeError("the runner is not set up")

    def make() -> GuardedProtocol:
        return GuardedProtocol(
            manager,
            loop=loop,
            keepalive_timeout=limits.KEEPALIVE_SECONDS_MAX,
            lingering_time=limits.REFUSED_BODY_SECONDS_MAX,
            max_line_size=limits.REQUEST_LINE_BYTES_MAX,
            max_headers=limits.REQUEST_HEADERS_MAX,
            max_field_size=limits.REQUEST_HEADER_BYTES_MAX,
            read_bufsize=limits.STREAM_FRAME_BYTES,
            auto_decompress=False,
        )

    return make


def _root_secret(config: DaemonConfig) -> bytes:
    """The one that is configured, or the daemon's own. Blocks."""
    if config.root_secret is not None:
        return load_root_secret(config.root_secret)
    return load_or_create_root_secret(config.data_dir / "root.secret")


def _open_ssd(config: DaemonConfig) -> SsdTier:
    return SsdTier.open(_chunks(config), config.ssd_bytes, policy=QuotaPolicy(POLICIES[config.eviction.ssd]))


def _chunks(config: DaemonConfig) -> Path:
    return config.data_dir / "chunks"


async def _open_store(config: DaemonConfig, ssd: SsdTier | None) -> TieredStore:
    tiers: list[Tier] = [MemoryTier(config.memory_bytes, policy=QuotaPolicy(POLICIES[config.eviction.memory]))]
    if ssd is not None:
        tiers.append(await asyncio.to_thread(_sealed, config, ssd))
    if config.network is not None:
        tiers.append(await asyncio.to_thread(open_network_tier, config.network))
    return TieredStore(
        tiers,
        clock_ms=lambda: time.time_ns() // 1_000_000,
        rules=StoreRules(
            CascadeLimits(config.dirty_bytes_max),
            config.ssd_admission,
            Quotas(Quota(limit_bytes=config.network_quota_bytes)),
        ),
        observer=_LoggingObserver(),
    )


def _sealed(config: DaemonConfig, tier: Tier) -> Tier:
    """``tier``, encrypted where the configuration asks for it."""
    if config.encryption_secret is None:
        return tier
    secret = load_or_create_root_secret(config.encryption_secret)
    return EncryptTier(tier, Keyring(config.data_dir / "keys", secret))


@asynccontextmanager
async def _scrubbing(ssd: SsdTier, store: TieredStore, config: DaemonConfig) -> AsyncIterator[None]:
    def note(info: RecordInfo) -> None:
        store.note_corrupt(ssd.name, info.content_key, "found by the scrub")

    scrubbing = asyncio.create_task(Scrubber(ssd, _chunks(config), on_damaged=note).run())
    try:
        yield
    finally:
        scrubbing.cancel()
        await asyncio.wait((scrubbing,))


class _LoggingObserver(StoreObserver):
    """Says in the log what the store survived; the counts are in the metrics."""

    def on_corrupt(self, tier: str, key: ContentKey, detail: str) -> None:
        _log.warning("damaged chunk", tier=tier, key=key.hex(), detail=detail)

    def on_tier_error(self, tier: str, operation: str, detail: str) -> None:
        _log.warning("tier failed", tier=tier, operation=operation, detail=detail)

    def on_write_behind_failed(self, key: ContentKey, detail: str) -> None:
        _log.error("chunk not written to disk", key=key.hex(), detail=detail)


def _prepare_directory(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data directory {data_dir} cannot be made: {(error.strerror or '').lower()}") from error
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"data directory {data_dir} cannot be written by this user")


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound and not yet listening: a port in use is found before the disk is touched."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"port {port} on {host} cannot be used: {reason}; --port 0 takes a free one") from error
    return listener


def _raise_open_files_limit() -> None:
    """Ask for as many open files as connections are allowed; the system may say less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.CONNECTIONS_MAX + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
