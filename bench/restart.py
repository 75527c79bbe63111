"""Restart a daemon under clients that go on, and measure what they see: how long it is away, and how soon it is warm.

    python bench/restart.py --json restart.json
    python bench/restart.py --mib 2048 --rounds 1

A daemon is filled, then stopped (SIGTERM) and started again on the same port and the same data directory, while
blocking clients read, look up and put over HTTP. Twice: with the note of what was in memory, and without it, as after
a crash.
``drain``: from the signal to the end of the process. ``start``: from the start of the new one until it serves.
``away``: the longest time in which no read was a hit. ``warm``: from serving until as much is in memory as was before.
Anything but hits, misses, "unavailable" and puts to be repeated is a fault, and ends with status 1.
"""

import argparse
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from soak_bench.traffic import NOISE

from kvloom.clients import KvloomClient
from kvloom.clients.discovery import DATA_DIR_VARIABLE, DaemonNote
from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.daemon.warm_start import WARM_FILE
from kvloom.errors import DaemonUnavailable, KvloomError, Overloaded
from kvloom.kvstore.key import ContentKey
from kvloom.kvstore.outcome import Hit, Miss, Throttled, Unavailable
from kvloom.kvstore.tier import Ack

KVLOOM = (sys.executable, "-m", "kvloom.daemon.cli")
MIB = 1024**2
LAYOUT = Layout.uniform(layers=4, kv_heads=2, head_dim=16)
READERS, PAUSE_SECONDS = 2, 0.004
WAIT_SECONDS = 120.0
WARM_SHARE = 0.8
"""A restarted daemon fills its memory to this share of its limit; so much is put in here, too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One restart."""

    noted: bool
    chunks: int
    mib: int
    drain_s: float
    start_s: float
    away_s: float
    warm_s: float | None
    memory_share: float
    longest_call_ms: float
    hits: int
    misses: int
    unavailable: int
    puts: int
    puts_repeated: int
    faults: int


@dataclass
class Seen:
    """What the clients saw; hits with their moments and tiers."""

    counts: Counter[str] = field(default_factory=Counter)
    hits: list[tuple[float, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    longest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, seconds: float) -> None:
        """One call has ended."""
        with self.lock:
            self.counts[what] += 1
            self.longest = max(self.longest, seconds)


def make_chunk(key: ContentKey) -> bytes:
    """A container of a mebibyte."""
    writer = ContainerWriter(LAYOUT, tokens=16, first_position=0, content_key=key)
    for index, (layer, kind) in enumerate((layer, kind) for layer in range(4) for kind in Kind):
        start = (index * 4001 + key[0] * 97) % (len(NOISE) - MIB)
        writer.put(EXACT, layer, kind, NOISE[start : start + MIB // 8])
    return writer.commit()


def start(data_dir: Path, port: int, mib: int) -> subprocess.Popen[bytes]:
    """A daemon on ``port``; returns at once."""
    sizes = ("--memory", f"{int(mib / WARM_SHARE * 1.1)}MiB", "--ssd", f"{3 * mib + 256}MiB")
    command = [*KVLOOM, "serve", "--port", str(port), "--data-dir", str(data_dir), "--log-level", "error", *sizes]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def wait_ready(data_dir: Path, process: subprocess.Popen[bytes], address: str) -> float:
    """The moment at which it serves."""
    deadline = time.monotonic() + WAIT_SECONDS
    with KvloomClient(address, data_dir=data_dir, local=False) as client:
        while time.monotonic() < deadline:
            note = DaemonNote.read(data_dir)
            if note is not None and note.pid == process.pid:
                try:
                    if client.health().phase == "ready":
                        return time.monotonic()
                except DaemonUnavailable:
                    pass
            time.sleep(0.005)
    raise SystemExit("the daemon does not serve")


def go_on(act: str, address: str, data_dir: Path, keys: list[ContentKey], seen: Seen, stop: threading.Event) -> None:
    """Read, look up or put until told to stop."""
    chance = random.Random(act)
    with KvloomClient(address, data_dir=data_dir, local=False) as client:
        while not stop.is_set():
            began = time.perf_counter()
            try:
                if act == "get":
                    what = read(client, chance.choice(keys), seen)
                elif act == "exists":
                    what = f"exists {client.exists([chance.choice(keys)])[0]}"
                else:
                    key = ContentKey(os.urandom(32))
                    client.put(key, make_chunk(key), ack=Ack.MEMORY, ttl_seconds=2.0)
                    what = "put"
            except (DaemonUnavailable, Overloaded):
                what = f"{act} again"
            except KvloomError as error:
                seen.faults.append(f"{act}: {error!r}")
                return
            seen.note(what, time.perf_counter() - began)
            time.sleep(PAUSE_SECONDS if act != "put" else 0.1)


def read(client: KvloomClient, key: ContentKey, seen: Seen) -> str:
    """One read; what became of it."""
    found = client.get(key)
    if isinstance(found, Hit):
        seen.hits.append((time.monotonic(), found.tier))
        return "hit"
    if not isinstance(found, Miss | Unavailable | Throttled):
        seen.faults.append(f"get: {found}")
    return type(found).__name__.lower()


def restart(mib: int, *, noted: bool) -> Row:
    """Fill a daemon, restart it under load, and say what was seen."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        data_dir, address = Path(folder) / "data", f"127.0.0.1:{port}"
        os.environ[DATA_DIR_VARIABLE] = str(data_dir)
        process = start(data_dir, port, mib)
        try:
            wait_ready(data_dir, process, address)
            keys = [ContentKey(os.urandom(32)) for _ in range(mib)]
            with KvloomClient(address, data_dir=data_dir, local=False) as client:
                for key in keys:
                    client.put(key, make_chunk(key), ack=Ack.DISK)
                before = in_memory(client)
            seen, stop = Seen(), threading.Event()
            threads = [
                threading.Thread(target=go_on, args=(act, address, data_dir, keys, seen, stop))
                for act in (*["get"] * READERS, "exists", "put")
            ]
            for thread in threads:
                thread.start()
            time.sleep(2.0)
            told = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_SECONDS)
            ended = time.monotonic()
            if not noted:
                (data_dir / WARM_FILE).unlink()
            process = start(data_dir, port, mib)
            ready = wait_ready(data_dir, process, address)
            with KvloomClient(address, data_dir=data_dir, local=False) as client:
                warm = wait_warm(client, 0.95 * before, ready + (60 if noted else 5))
            time.sleep(max(0.0, ready + 5 - time.monotonic()))
            stop.set()
            for thread in threads:
                thread.join()
        finally:
            process.terminate()
            process.wait()
    moments = [moment for moment, _ in seen.hits]
    after = [tier for moment, tier in seen.hits if ready < moment < ready + 5]
    return Row(
        noted,
        len(keys),
        mib,
        round(ended - told, 2),
        round(ready - ended, 2),
        round(max(later - earlier for earlier, later in pairwise(moments)), 2),
        None if warm is None else round(warm - ready, 2),
        round(after.count("memory") / max(1, len(after)), 3),
        round(seen.longest * 1000, 1),
        seen.counts["hit"],
        seen.counts["miss"],
        seen.counts["unavailable"] + seen.counts["throttled"],
        seen.counts["put"],
        seen.counts["put again"],
        len(seen.faults),
    )


def in_memory(client: KvloomClient) -> int:
    """Chunks in the memory tier."""
    return next(tier.records for tier in client.stats().tiers if tier.name == "memory")


def wait_warm(client: KvloomClient, wanted: float, ends: float) -> float | None:
    """The moment at which so many chunks are in memory; ``None`` where that does not come."""
    while time.monotonic() < ends:
        if in_memory(client) >= wanted:
            return time.monotonic()
        time.sleep(0.02)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="chunks of a mebibyte that are stored")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for _ in range(options.rounds):
        for noted in (True, False):
            rows.append(restart(options.mib, noted=noted))
            print("  ".join(f"{name} {value}" for name, value in asdict(rows[-1]).items()), flush=True)
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        record = {"machine": machine, "at": time.strftime("%Y-%m-%d"), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if any(row.faults for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
