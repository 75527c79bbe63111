"""What a backend costs: bytes written to the disk, CPU time; and what makes it start from the disk again."""

import os
import time
from pathlib import Path

from .backends import Backend, ProductBackend

__all__ = ["cpu_seconds", "drop_caches", "forget_lists", "index_seconds", "written_to_disk"]


def written_to_disk(helper: int | None = None) -> int:
    """Bytes that this process, and ``helper``, had written to the disk."""
    wrote = 0
    for process in ("self", helper):
        for line in Path(f"/proc/{process}/io").read_text().splitlines() if process is not None else ():
            if line.startswith("write_bytes:"):
                wrote += int(line.split()[1])
    return wrote


def cpu_seconds(helper: int | None = None) -> float:
    """CPU time of this process, and ``helper``."""
    return time.process_time() + (0.0 if helper is None else task_seconds(f"/proc/{helper}"))


def task_seconds(task: str) -> float:
    """CPU time of one thread."""
    return int(Path(task, "schedstat").read_text().split()[0]) / 1e9


def index_seconds(backend: Backend) -> float:
    """CPU time that the index takes by itself: its thread and its process."""
    helper = getattr(backend, "helper", None)
    if helper is None or not isinstance(backend, ProductBackend):
        return 0.0
    thread = backend._tier._index._thread.native_id
    return task_seconds(f"/proc/self/task/{thread}") + task_seconds(f"/proc/{helper}")


def drop_caches(directory: Path) -> None:
    """Have the files of ``directory`` read from the disk again."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def forget_lists(directory: Path) -> None:
    """What a crash that lost every list would leave."""
    for path in directory.glob("*.list"):
        path.unlink()
