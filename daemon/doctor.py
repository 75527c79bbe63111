"""What is usually misconfigured, found before it is felt; each finding comes with the fix."""

import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import psutil

from .. import __version__
from ..clients import KvloomClient
from ..clients.access import API_KEY_VARIABLE
from ..clients.discovery import DaemonNote
from ..clients.wire import DaemonStats
from ..codec.entropy import native
from ..errors import ConfigError, Forbidden, KvloomError, Unauthenticated
from .authenticator import utc_now
from .config import format_size
from .config_sources import Layer, gather, unknown_variables
from .credentials_file import CREDENTIALS_NAME, CredentialsFile
from .machine import Machine, cgroup_memory_limit_bytes
from .settings import ConfigText

__all__ = ["Finding", "State", "diagnose"]

_DISK_FREE_BYTES_LOW = 1024**3
_OPEN_FILES_LOW = 4096
_MEMORY_SHARE_HIGH = 0.75
_KEY_ENDS_SOON = timedelta(days=7)
_CLOCK_SLACK_SECONDS = 300.0
_EPOCH_2024_SECONDS = 1_704_067_200.0
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs")
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
_SHARED_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_WITHOUT_HUGE_PAGES = ("never", "deny")


class State(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it where it is not fine."""

    check: str
    state: State
    detail: str
    fix: str = ""


def diagnose(address: str | None, data_dir: Path, machine: Machine, environ: Mapping[str, str]) -> list[Finding]:
    """Run every check against the daemon, the machine and the environment of this process; blocking, bounded."""
    stats, daemon = _daemon(address, data_dir)
    findings = [daemon, _native()]
    findings += _directory(data_dir)
    findings += [_disk(stats, data_dir, machine), _memory(stats, machine), _open_files(machine), _huge_pages()]
    findings.append(_clock(data_dir))
    if stats is not None:
        policies = ", ".join(f"{tier.name}: {tier.eviction}" for tier in stats.tiers if tier.eviction)
        findings.append(Finding("eviction", State.OK, policies))
    findings += [_keys(data_dir, environ), *_settings(environ, machine)]
    return findings


def _daemon(address: str | None, data_dir: Path) -> tuple[DaemonStats | None, Finding]:
    note = DaemonNote.read(data_dir)
    try:
        with KvloomClient(address) as client:
            stats = client.stats()
    except (Unauthenticated, Forbidden) as error:
        fix = f"set {API_KEY_VARIABLE} to a key with scope admin: kvloom keys create --tenant NAME --scope admin"
        return None, Finding("daemon", State.WARNING, str(error), fix)
    except KvloomError as error:
        fix = "start one: kvloom serve"
        if note is not None and not psutil.pid_exists(note.pid):
            fix = f"the daemon that wrote {DaemonNote.path(data_dir)} (pid {note.pid}) is gone; start one: kvloom serve"
        return None, Finding("daemon", State.PROBLEM, str(error), fix)
    where = f"{stats.version} at {client.endpoint}, pid {stats.pid}, {stats.phase}"
    if stats.version != __version__:
        fix = "restart the daemon after an upgrade, so that both are the same version"
        return stats, Finding("daemon", State.WARNING, f"{where}; this command is {__version__}", fix)
    return stats, Finding("daemon", State.OK, where)


def _native() -> Finding:
    if native.AVAILABLE:
        return Finding("native coder", State.OK, native.DESCRIPTION)
    fix = "install a C++ compiler (Debian: apt install g++), then reinstall kvloom from source"
    return Finding("native coder", State.WARNING, native.DESCRIPTION, fix)


def _directory(data_dir: Path) -> list[Finding]:
    if not data_dir.exists():
        detail = f"{data_dir} does not exist yet; the daemon makes it"
        return [Finding("data directory", State.OK, detail)]
    status = data_dir.stat()
    findings: list[Finding] = []
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        fix = f"chown -R $USER {data_dir}"
        findings.append(Finding("data directory", State.PROBLEM, f"{data_dir} is not writable by this user", fix))
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        fix = f"chmod 700 {data_dir}"
        findings.append(
            Finding("data directory", State.WARNING, f"{data_dir} has mode {mode:03o}: others can look in", fix)
        )
    system = _file_system(data_dir)
    if system.startswith(_NETWORK_FILE_SYSTEMS):
        fix = "use a local disk: kvloom serve --data-dir DIR"
        findings.append(
            Finding("data directory", State.PROBLEM, f"{data_dir} is on {system}: the SSD tier needs a local disk", fix)
        )
    if system in _MEMORY_FILE_SYSTEMS:
        fix = "use a disk: kvloom serve --data-dir DIR"
        findings.append(Finding("data directory", State.WARNING, f"{data_dir} is on {system}: lost at reboot", fix))
    return findings or [Finding("data directory", State.OK, f"{data_dir} on {system}, private")]


def _file_system(path: Path) -> str:
    """The type of the file system that ``path`` lies on: ``ext4``, ``nfs4``, ``tmpfs``."""
    resolved = path.resolve()
    mounts = [item for item in psutil.disk_partitions(all=True) if resolved.is_relative_to(item.mountpoint)]
    return str(max(mounts, key=lambda item: len(item.mountpoint)).fstype) if mounts else "unknown"


def _disk(stats: DaemonStats | None, data_dir: Path, machine: Machine) -> Finding:
    free = machine.disk_free_bytes
    detail = f"{format_size(free)} free beside {format_size(machine.own_disk_bytes)} of kvloom's"
    room = 0 if stats is None else sum(max(0, t.limit_bytes - t.used_bytes) for t in stats.tiers if t.name == "ssd")
    if free < _DISK_FREE_BYTES_LOW:
        return Finding("disk", State.PROBLEM, detail, f"free some space on the disk of {data_dir}, or lower --ssd")
    if room > free:
        detail += f", but the SSD tier may still grow by {format_size(room)}"
        return Finding("disk", State.WARNING, detail, f"lower the limit: kvloom serve --ssd {free // 2 // 1024**2}MiB")
    return Finding("disk", State.OK, detail)


def _memory(stats: DaemonStats | None, machine: Machine) -> Finding:
    limit = cgroup_memory_limit_bytes()
    bounded = limit is not None and limit <= machine.memory_total_bytes
    whose = "control group's limit" if bounded else "machine's memory"
    total = format_size(machine.memory_total_bytes)
    detail = f"{format_size(machine.memory_available_bytes)} of {total} available ({whose})"
    used = 0 if stats is None else sum(tier.limit_bytes for tier in stats.tiers if tier.name == "memory")
    if used > machine.memory_total_bytes * _MEMORY_SHARE_HIGH:
        detail += f"; the memory tier may take {format_size(used)}"
        fix = f"lower it: kvloom serve --memory {machine.memory_total_bytes // 2 // 1024**2}MiB"
        return Finding("memory", State.WARNING, detail, fix)
    return Finding("memory", State.OK, detail)


def _open_files(machine: Machine) -> Finding:
    detail = f"{machine.open_files_max} files and connections at once"
    if machine.open_files_max < _OPEN_FILES_LOW:
        return Finding("open files", State.WARNING, detail, f"ulimit -n {_OPEN_FILES_LOW} before starting the daemon")
    return Finding("open files", State.OK, detail)


def _huge_pages() -> Finding:
    """Whether the memory tier, which asks for huge pages, gets them: first reads of a mapping fault in every page."""
    try:
        chosen = re.search(r"\[(\w+)\]", _SHARED_HUGE_PAGES.read_text())
    except OSError:
        return Finding("huge pages", State.OK, "this kernel has none for shared memory")
    mode = "unknown" if chosen is None else chosen[1]
    detail = f"{mode} for shared memory"
    if mode in _WITHOUT_HUGE_PAGES:
        fix = f"echo advise | sudo tee {_SHARED_HUGE_PAGES}, at each boot, before the daemon starts"
        return Finding("huge pages", State.WARNING, f"{detail}: the memory tier's are of 4 KiB", fix)
    return Finding("huge pages", State.OK, detail)


def _keys(data_dir: Path, environ: Mapping[str, str]) -> Finding:
    """Whether the credentials file holds, and whether its keys do for another week."""
    path = Path(environ.get("KVLOOM_CREDENTIALS") or data_dir / CREDENTIALS_NAME).expanduser()
    if not path.exists():
        return Finding("keys", State.OK, f"no {path}: only programs of this user are served")
    try:
        known = CredentialsFile(path).read().keys.values()
    except ConfigError as error:
        return Finding("keys", State.PROBLEM, str(error), "until then the daemon does not start, or keeps older keys")
    now = utc_now()
    valid = [key for key in known if key.state(now) == "valid"]
    ending = [key for key in valid if key.expires is not None and key.expires - now < _KEY_ENDS_SOON]
    detail = f"{len(valid)} of {len(known)} keys in {path} hold"
    if ending:
        names = ", ".join(f"{key.key_id} of {key.tenant}" for key in ending[:5])
        fix = "make others before: kvloom keys create --tenant NAME"
        return Finding("keys", State.WARNING, f"{detail}; within a week end: {names}", fix)
    return Finding("keys", State.OK, detail)


def _clock(data_dir: Path) -> Finding:
    now = time.time()
    newest = max((item.stat().st_mtime for item in data_dir.iterdir()), default=0.0) if data_dir.is_dir() else 0.0
    fix = "set the clock (timedatectl set-ntp true); ages and expiry are wrong until then"
    if now < _EPOCH_2024_SECONDS:
        return Finding("clock", State.PROBLEM, f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}", fix)
    if newest > now + _CLOCK_SLACK_SECONDS:
        return Finding("clock", State.WARNING, f"files in {data_dir} are {newest - now:.0f} s in the future", fix)
    return Finding("clock", State.OK, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _settings(environ: Mapping[str, str], machine: Machine) -> list[Finding]:
    """Whether a daemon would start with what file and environment say, and what of it nobody reads."""
    findings: list[Finding] = []
    try:
        gathered = gather(ConfigText(), environ)
        gathered.resolve(machine)
    except ConfigError as error:
        fix = "kvloom config explain shows where each setting comes from"
        return [Finding("settings", State.PROBLEM, str(error), fix)]
    secret = gathered.origins["network"].layer is Layer.FILE
    if gathered.file is not None and secret and stat.S_IMODE(gathered.file.stat().st_mode) & 0o077:
        detail = f"{gathered.file} names the network store, maybe with a password, and others may read it"
        findings.append(Finding("settings", State.WARNING, detail, f"chmod 600 {gathered.file}"))
    for name, hint in unknown_variables(environ).items():
        findings.append(Finding("environment", State.WARNING, f"{name} is not a variable of kvloom", hint))
    said = sum(origin.layer is not Layer.DEFAULT for origin in gathered.origins.values())
    return findings or [
        Finding("settings", State.OK, f"{said} said, in {gathered.file or 'no file'} and the environment")
    ]
