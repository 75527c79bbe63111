"""The daemon as a process: opens the tiers, serves, and on SIGTERM or SIGINT drains, writes what is dirty, and ends."""

import asyncio
import ipaddress
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from .. import __version__, limits
from ..clients.access import TOKEN_NAME
from ..clients.discovery import DaemonNote, Endpoint
from ..clients.local_wire import socket_path
from ..errors import ConfigError
from ..kvstore.atomic_file import replace_file
from ..kvstore.eviction import POLICIES
from ..kvstore.keyring import Keyring
from ..kvstore.memory.tier import MemoryTier
from ..kvstore.namespace import load_or_create_root_secret
from ..kvstore.network import open_network_tier, parse_network
from ..kvstore.profiles import ProfileShelves
from ..kvstore.quota import QuotaPolicy
from ..kvstore.ssd.files import DirectoryLock
from ..kvstore.ssd.scrub import Scrubber
from ..kvstore.ssd.tier import SsdTier
from ..kvstore.tier import RecordInfo, Tier
from ..kvstore.tiered.cascade import CascadeLimits
from ..kvstore.tiered.stats import StoreObserver
from ..kvstore.tiered.store import StoreRules, TieredStore
from ..kvstore.wrappers.encrypt import EncryptTier
from .access_setup import credentials_file, http_token, load_tenants
from .admission import Admission
from .allocator import giving_back
from .authenticator import Authenticator
from .config import DaemonConfig, HttpAuth, format_size
from .config_sources import unknown_variables
from .credentials import Credentials
from .events import EventHub
from .http_server import bind_http, serve_http
from .journal import Journal, sampling
from .local_api import bind_local, serve_local
from .logs import configure_logs
from .metrics import Metrics
from .notify import Notifier
from .observer import DaemonObserver
from .passed_socket import passed_listener
from .planner.measured import MeasuredLinks
from .scrubbing import AskedScrub
from .service import Service
from .tenants import TenantTable
from .tls import load_certificates, server_context
from .traces import exporting_traces
from .warm_start import warmed

if TYPE_CHECKING:
    from .grpc_server import RunningGrpc

__all__ = ["RunningDaemon", "open_daemon", "run_daemon"]

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
    reload: asyncio.Event
    """Set it to have the credentials read anew at once."""


async def run_daemon(config: DaemonConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second Ctrl-C ends the process at once. SIGHUP reads keys anew."""
    configure_logs(config.log_format, config.log_level)
    for name, hint in unknown_variables(os.environ).items():
        _log.warning("variable means nothing", variable=name, hint=hint)
    _raise_open_files_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = Notifier.from_environ(os.environ)
    async with notifier.beating(), exporting_traces(config.traces), open_daemon(config) as running:
        loop.add_signal_handler(signal.SIGHUP, running.reload.set)
        notifier.ready(f"serving at {running.endpoint}")
        await stop.wait()
        notifier.stopping("finishing requests, writing what is only in memory")
        loop.remove_signal_handler(signal.SIGINT)
    _log.info("stopped")


@asynccontextmanager
async def open_daemon(config: DaemonConfig) -> AsyncIterator[RunningDaemon]:
    """Open everything and serve while the context lasts; leaving it drains, flushes and closes.

    Raises :class:`ConfigError` where the port or the data directory is in use or cannot be used, and beyond loopback
    where there is no key.
    """
    async with AsyncExitStack() as stack:
        _prepare_directory(config.data_dir)
        stack.callback(DirectoryLock(config.data_dir).release)
        passed = passed_listener(os.environ, host=config.host)
        listener = stack.enter_context(passed or bind_http(config.host, config.port))
        tls = None if config.tls is None else await asyncio.to_thread(server_context, config.tls)
        file, token = credentials_file(config), http_token(config)
        authenticator = Authenticator(
            await asyncio.to_thread(load_tenants, config, file),
            token=token,
            open_to_all=config.http_auth is HttpAuth.OFF,
        )
        policies = _Policies.of(config, authenticator.tenants)
        ssd = await asyncio.to_thread(_open_ssd, config, policies) if config.ssd_bytes else None
        if ssd is not None:
            stack.push_async_callback(ssd.close)  # where the store cannot be opened; otherwise that has closed it
        hub, journal, links = EventHub(), Journal(), MeasuredLinks()
        observer = DaemonObserver(hub, journal, links)
        store = await _open_store(config, ssd, policies, authenticator.tenants, observer)
        stack.push_async_callback(store.close)
        shelves = ProfileShelves(config.data_dir / "profiles", authenticator.local.namespace.owner)
        await shelves.known(authenticator.local.namespace)
        admission = Admission(share_of=authenticator.share_of)
        await store.start()
        scrub = None if ssd is None else await stack.enter_async_context(_scrubbing(ssd, store, config))
        service = Service(
            store,
            shelves,
            admission,
            dirty_bytes_max=config.dirty_bytes_max,
            hub=hub,
            scrub=scrub,
            journal=journal,
            links=links,
        )
        await stack.enter_async_context(warmed(store, config.data_dir))
        service.open()
        metrics = Metrics(lambda: service.stats(authenticator.local))
        await stack.enter_async_context(sampling(journal.samples, lambda: service.stats(authenticator.local)))
        serving_http = serve_http(service, metrics, authenticator, listener, loopback=config.loopback, tls=tls)
        await stack.enter_async_context(serving_http)
        grpc = await _open_grpc(stack, config, service, metrics, authenticator)
        path = await _open_local(stack, config, service, authenticator)
        reload = asyncio.Event()
        renewing = _Renewing(config, authenticator, policies, store, tls, grpc)
        watch = file.watch(renewing.credentials, reload, renewing.certificates)
        await stack.enter_async_context(_watching(watch))
        await stack.enter_async_context(_watching(giving_back()))
        endpoint = _own_endpoint(listener, secure=tls is not None)
        if token is not None:
            replace_file(config.data_dir / TOKEN_NAME, token.encode())
            stack.callback((config.data_dir / TOKEN_NAME).unlink, missing_ok=True)
        note = DaemonNote(endpoint, os.getpid(), __version__, path, None if grpc is None else grpc.port)
        note.write(config.data_dir)
        stack.callback(DaemonNote.path(config.data_dir).unlink, missing_ok=True)
        stack.push_async_callback(_drain, admission, store, hub)
        if grpc is not None:
            stack.push_async_callback(grpc.drain)
        _say_ready(config, endpoint, authenticator.tenants, None if grpc is None else grpc.port)
        yield RunningDaemon(endpoint, service, authenticator, reload)


def _own_endpoint(listener: socket.socket, *, secure: bool) -> Endpoint:
    """Where programs on this machine reach the daemon."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return Endpoint(host, port, secure)


def _say_ready(config: DaemonConfig, endpoint: Endpoint, tenants: TenantTable, grpc_port: int | None) -> None:
    _log.info(
        "ready",
        address=str(endpoint) if config.loopback else f"{config.host}:{endpoint.port}",
        grpc_port=grpc_port,
        tls=config.tls is not None,
        keys=len(tenants.credentials.keys),
        data_dir=str(config.data_dir),
        memory=format_size(config.memory_bytes),
        ssd=format_size(config.ssd_bytes),
        eviction=str(config.eviction),
        network="none" if config.network is None else str(parse_network(config.network)),
        version=__version__,
    )
    shared_secret = config.root_secret is not None or tenants.credentials.namespace_secret is not None
    if config.network is not None and not shared_secret:
        _log.warning(
            "neither a root secret nor credentials are configured: "
            "other daemons cannot find what this one puts into the network"
        )
    if config.http_auth is HttpAuth.OFF:
        _log.warning("http_auth is off: every user of this machine can read and write what is stored")
    if not config.ssd_bytes:
        _log.warning("no SSD tier: chunks are lost when the daemon ends")


@asynccontextmanager
async def _watching(watch: Coroutine[None, None, None]) -> AsyncIterator[None]:
    watching = asyncio.create_task(watch)
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


@dataclass(frozen=True, slots=True)
class _Policies:
    """What the local tiers evict by, and so where quotas are kept."""

    memory: QuotaPolicy
    ssd: QuotaPolicy

    @classmethod
    def of(cls, config: DaemonConfig, tenants: TenantTable) -> "_Policies":
        return cls(
            QuotaPolicy(POLICIES[config.eviction.memory], tenants.memory_quotas()),
            QuotaPolicy(POLICIES[config.eviction.ssd], tenants.ssd_quotas()),
        )

    def check(self, tenants: TenantTable, config: DaemonConfig) -> None:
        """Raise :class:`ConfigError` unless the tiers can keep what is guaranteed."""
        tenants.memory_quotas().check_fits("memory", config.memory_bytes)
        tenants.ssd_quotas().check_fits("ssd", config.ssd_bytes)

    def replace(self, tenants: TenantTable) -> None:
        """Put the tenants' quotas in force."""
        self.memory.set_quotas(tenants.memory_quotas())
        self.ssd.set_quotas(tenants.ssd_quotas())


@dataclass(frozen=True, slots=True)
class _Renewing:
    """What a daemon reads anew while it runs."""

    config: DaemonConfig
    authenticator: Authenticator
    policies: _Policies
    store: TieredStore
    tls: ssl.SSLContext | None
    grpc: "RunningGrpc | None"

    def credentials(self, credentials: Credentials) -> None:
        """Put other keys and quotas in force; :class:`ConfigError`, and nothing changes, where they cannot be kept."""
        known = self.authenticator
        self.policies.check(replace(known.tenants, credentials=credentials), self.config)
        known.replace(credentials)
        self.policies.replace(known.tenants)
        self.store.set_shared_quotas(known.tenants.network_quotas())
        _log.info("credentials taken over", keys=len(credentials.keys), tenants=len(credentials.tenants))

    def certificates(self) -> None:
        """Secure the connections made from now on with the files as they are now, if they hold."""
        if self.tls is None or self.config.tls is None:
            return
        try:
            load_certificates(self.tls, self.config.tls)
            if self.grpc is not None:
                self.grpc.reload_certificates()
        except ConfigError as error:
            _log.error("certificates not taken over, those before stay", reason=str(error))


async def _drain(admission: Admission, store: TieredStore, hub: EventHub) -> None:
    """Refuse what is new, let what is inside finish for a bounded time."""
    admission.drain()
    hub.close()
    _log.info("draining", requests=admission.requests, dirty=format_size(store.stats().dirty_bytes))
    with suppress(TimeoutError):
        async with asyncio.timeout(limits.DRAIN_SECONDS_MAX):
            await admission.empty()
    if admission.requests:
        _log.warning("requests cut off", requests=admission.requests, seconds=limits.DRAIN_SECONDS_MAX)


async def _open_local(
    stack: AsyncExitStack, config: DaemonConfig, service: Service, authenticator: Authenticator
) -> str | None:
    """Serve the Unix socket; its path, None where there can be none."""
    path = socket_path(config.data_dir)
    local = bind_local(path)
    if local is None:
        return None
    stack.callback(path.unlink, missing_ok=True)
    stack.enter_context(local)
    leased_bytes_max = config.memory_bytes // _LEASED_SHARE
    await stack.enter_async_context(serve_local(service, authenticator, local, leased_bytes_max=leased_bytes_max))
    return str(path)


async def _open_grpc(
    stack: AsyncExitStack, config: DaemonConfig, service: Service, metrics: Metrics, authenticator: Authenticator
) -> "RunningGrpc | None":
    """Serve gRPC until ``stack`` is left, where that is configured; :class:`ConfigError` without the extra."""
    if config.grpc_port is None:
        return None
    try:
        from .grpc_server import serve_grpc  # here: most daemons run without it
    except ImportError as error:
        raise ConfigError("grpc_port needs the extra: pip install 'kvloom[grpc]'") from error
    serving = serve_grpc(service, metrics, authenticator, host=config.host, port=config.grpc_port, tls=config.tls)
    return await stack.enter_async_context(serving)


def _open_ssd(config: DaemonConfig, policies: _Policies) -> SsdTier:
    return SsdTier.open(_chunks(config), config.ssd_bytes, policy=policies.ssd)


def _chunks(config: DaemonConfig) -> Path:
    return config.data_dir / "chunks"


async def _open_store(
    config: DaemonConfig, ssd: SsdTier | None, policies: _Policies, tenants: TenantTable, observer: StoreObserver
) -> TieredStore:
    tiers: list[Tier] = [MemoryTier(config.memory_bytes, policy=policies.memory)]
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
            tenants.network_quotas(),
        ),
        observer=observer,
    )


def _sealed(config: DaemonConfig, tier: Tier) -> Tier:
    """``tier``, encrypted where the configuration asks for it."""
    if config.encryption_secret is None:
        return tier
    secret = load_or_create_root_secret(config.encryption_secret)
    return EncryptTier(tier, Keyring(config.data_dir / "keys", secret))


@asynccontextmanager
async def _scrubbing(ssd: SsdTier, store: TieredStore, config: DaemonConfig) -> AsyncIterator[AskedScrub]:
    """Scrub in the background while the context lasts; what it gives scrubs when asked to."""

    def note(info: RecordInfo) -> None:
        store.note_corrupt(ssd.name, info.content_key, "found by the scrub")

    asked = AskedScrub(ssd, _chunks(config), note)
    scrubbing = asyncio.create_task(Scrubber(ssd, _chunks(config), on_damaged=note).run())
    try:
        yield asked
    finally:
        await asked.close()
        scrubbing.cancel()
        await asyncio.wait((scrubbing,))


def _prepare_directory(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data directory {data_dir} cannot be made: {(error.strerror or '').lower()}") from error
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"data directory {data_dir} cannot be written by this user")


def _raise_open_files_limit() -> None:
    """Ask for as many open files as connections are allowed; the system may say less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.CONNECTIONS_MAX + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
