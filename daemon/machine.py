"""What this machine can give: memory (the control group's limit included), free disk, open files."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..errors import ConfigError

__all__ = ["Machine", "cgroup_memory_limit_bytes", "probe_machine", "require_linux"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """A snapshot. ``own_disk_bytes`` is what the data directory occupies already: it may be used again."""

    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    own_disk_bytes: int
    open_files_max: int


def require_linux(platform: str = sys.platform) -> None:
    """Raise :class:`ConfigError` where a daemon cannot run: memory that is lent to other processes is Linux's own."""
    if not platform.startswith("linux"):
        raise ConfigError(
            f"the daemon runs on Linux, this is {platform}; clients work here, over HTTP and gRPC: "
            "set KVLOOM_URL to a daemon elsewhere"
        )


def probe_machine(data_dir: Path) -> Machine:
    """Look at the machine and at the file system that ``data_dir`` is, or would be, on. Reads only."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit = cgroup_memory_limit_bytes()
    if limit is not None and limit < total:
        used = psutil.Process().memory_info().rss
        total, available = limit, min(available, max(0, limit - used))
    disk = psutil.disk_usage(str(_nearest_existing(data_dir)))
    import resource  # which not every system has, and help does without

    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(total, available, int(disk.free), _occupied_bytes(data_dir), open_files)


def cgroup_memory_limit_bytes() -> int | None:
    """The memory limit of this process's control group (version 2 or 1), or ``None`` where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits_found: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if not controllers:
            base, name = _CGROUP_ROOT / relative, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = _CGROUP_ROOT / "memory" / relative, "memory.limit_in_bytes"
        else:
            continue
        for directory in (base, *base.parents):
            limits_found.extend(_read_limit(directory / name))
            if directory == _CGROUP_ROOT:
                break
    return min(limits_found, default=None)


def _read_limit(path: Path) -> list[int]:
    try:
        text = path.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []


def _nearest_existing(path: Path) -> Path:
    for candidate in (path, *path.parents):
        if candidate.exists():
            return candidate
    return Path("/")


def _occupied_bytes(directory: Path) -> int:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(Path(root) / name).st_blocks * 512
            except OSError:
                continue
    return total
