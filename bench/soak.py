"""Hold a daemon under mixed load for a while, and say whether what it takes grows.

    python bench/soak.py --json soak.json                # an hour, of a quarter of a core
    python bench/soak.py --minutes 5 --operations 150

A daemon of its own, with less memory and less disk than is put into it: several tenants, one with a quota, put, read,
delete, pin, prefetch, look up and give up in the middle, over HTTP, gRPC and the Unix socket; beside them somebody
sends nonsense, leaves connections half open and subscribes to events without reading them; now and then keys are read
anew (SIGHUP) and a scrub is asked for. Whatever is read is compared with what was put.

Memory (what is the daemon's own, without the chunks that it shares), descriptors, threads and tasks are sampled, and a
robust line is put through what came after the first fifth and six minutes (the tiers have to fill and to be turned
over first). Flat is what grew over that
window by less than 2 % and a little room; the line per hour is printed too. At the end, without load, nothing may be
in flight, leased or inside. The exit status is 1 where something grew, is left, or was wrong.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from soak_bench.nonsense import Nonsense, Targets
from soak_bench.samples import GROWS, Fit, Sample, Sampler, as_table, fit
from soak_bench.traffic import EXPECTED, Memory, Tally, Worker

from kvloom.clients import AsyncKvloomClient, KvloomClient, RetryPolicy
from kvloom.clients.access import TOKEN_NAME
from kvloom.clients.discovery import DATA_DIR_VARIABLE, DaemonNote
from kvloom.errors import KvloomError

KVLOOM = (sys.executable, "-m", "kvloom.daemon.cli")
MEMORY, SSD = "128MiB", "512MiB"
TENANTS = ("alice", "bob", "carol")
QUOTA = '\n[tenants.carol]\nmemory_bytes = "16MiB"\nssd_bytes = "64MiB"\nrequests = 8\n'
EDGES = ("http", "grpc", "local")
WARM_UP_SHARE, WARM_UP_SECONDS, WARM_UP_SHARE_MAX = 0.2, 360.0, 0.5
"""What is left out of the line: a fifth, and six minutes, but never more than half."""
SETTLE_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """The daemon under load."""

    process: psutil.Process
    note: DaemonNote
    data_dir: Path
    keys: dict[str, str]
    log: list[str]

    @property
    def token(self) -> str:
        """What this user's own programs are known by."""
        return (self.data_dir / TOKEN_NAME).read_text()

    def metrics(self) -> str:
        """What a scrape says."""
        url = f"{self.note.endpoint.url}/metrics"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())


@contextmanager
def running_daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon with tenants, its keys, and the lines of its log that are warnings or worse."""
    data_dir = folder / "data"
    os.environ[DATA_DIR_VARIABLE] = str(data_dir)
    keys = {}
    for tenant in TENANTS:
        made = subprocess.run(
            [*KVLOOM, "keys", "create", "--tenant", tenant, "--json"], check=True, capture_output=True, text=True
        )
        keys[tenant] = json.loads(made.stdout)["key"]
    credentials = data_dir / "credentials.toml"
    credentials.write_text(credentials.read_text() + QUOTA)
    options = ("--memory", MEMORY, "--ssd", SSD, "--log-format", "json", "--log-level", "warning")
    command = [*KVLOOM, "serve", "--port", "0", "--grpc-port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    threading.Thread(target=follow, args=(process, log), daemon=True).start()
    try:
        deadline = time.monotonic() + 60
        while (note := DaemonNote.read(data_dir)) is None or note.pid != process.pid:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the daemon did not start: {''.join(log)[-500:]}")
            time.sleep(0.05)
        yield Daemon(psutil.Process(process.pid), note, data_dir, keys, log)
    finally:
        process.terminate()
        process.wait()


def follow(process: subprocess.Popen[str], log: list[str]) -> None:
    """Keep what the daemon logs; errors are shown as they come."""
    for line in process.stderr or ():
        log.append(line)
        if is_error(line):
            print(line.rstrip(), flush=True)


def is_error(line: str) -> bool:
    """Whether a line of the log is an error or worse."""
    return '"level": "error"' in line or '"level": "critical"' in line


async def load(daemon: Daemon, tally: Tally, seconds: float, operations: float, samples: list[Sample]) -> None:
    """Everything at once for ``seconds``; a sample every few of them."""
    note, every = daemon.note, max(0.5, min(5.0, seconds / 200))
    with KvloomClient(str(note.endpoint), data_dir=daemon.data_dir, local=False) as watching:
        sampler = Sampler(daemon.process, watching, daemon.metrics)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            running = []
            workers = len(TENANTS) * len(EDGES) + 1
            for key in daemon.keys.values():
                memory = Memory()
                for edge in EDGES:
                    address = f"grpc://127.0.0.1:{note.grpc_port}" if edge == "grpc" else str(note.endpoint)
                    options = {"data_dir": daemon.data_dir, "local": edge == "local", "retries": RetryPolicy(2, 1.0)}
                    client = AsyncKvloomClient(address, api_key=key, **options)
                    await stack.enter_async_context(client)
                    worker = Worker(client, memory, tally, edge)
                    running.append(group.create_task(worker.run(workers / operations)))
            targets = Targets(note.endpoint, f"127.0.0.1:{note.grpc_port}", str(note.local), daemon.keys["bob"])
            running.append(group.create_task(Nonsense(targets, tally).run(workers / operations)))
            running.append(group.create_task(operate(daemon, watching, tally)))
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                await asyncio.sleep(every)
                try:
                    samples.append(await asyncio.to_thread(sampler.take))
                except (OSError, KvloomError, psutil.Error) as error:
                    tally.counts[f"sample missed: {type(error).__name__}"] += 1
                    continue
                if len(samples) % 12 == 0:
                    show(samples[-1])
            for task in running:
                task.cancel()
        samples.append(await settled(sampler))


async def operate(daemon: Daemon, client: KvloomClient, tally: Tally) -> None:
    """What an operator does now and then."""
    while True:
        await asyncio.sleep(random.uniform(5, 15))
        daemon.process.send_signal(signal.SIGHUP)
        try:
            report = await asyncio.to_thread(client.start_scrub)
        except EXPECTED as error:
            tally.counts[f"scrub not asked for: {error.code}"] += 1
            continue
        tally.counts["scrubs"] = report.number
        if report.damaged:
            tally.fault(f"the scrub found {report.damaged} damaged records")


async def settled(sampler: Sampler) -> Sample:
    """The daemon once nobody asks anything and nothing waits, or after a minute."""
    ends = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        sample = await asyncio.to_thread(sampler.take)
        if not left_over(sample) or time.monotonic() > ends:
            return sample
        await asyncio.sleep(0.5)


def left_over(sample: Sample) -> list[str]:
    """What is still there that should not be."""
    return [name for name in ("requests", "inflight_mb", "leases", "pinned_mb", "dirty_mb") if getattr(sample, name)]


def show(record: Sample | Fit) -> None:
    """One line."""
    print("  ".join(f"{name} {value}" for name, value in asdict(record).items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--operations", type=float, default=30.0, help="begun a second, by all clients together")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tally = Tally()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, running_daemon(Path(folder)) as daemon:
        asyncio.run(load(daemon, tally, options.minutes * 60, options.operations, samples))
        alive = daemon.process.is_running()
    end = samples.pop()
    seconds = options.minutes * 60
    warm = min(max(WARM_UP_SHARE * seconds, WARM_UP_SECONDS), WARM_UP_SHARE_MAX * seconds)
    window = [sample for sample in samples if sample.seconds >= warm]
    fits = [fit(window, what) for what in GROWS]
    for item in fits:
        show(item)
    errors = [line for line in daemon.log if is_error(line)]
    verdict = {
        "flat": all(item.flat for item in fits),
        "left": left_over(end),
        "faults": tally.faults,
        "log_errors": errors[:20],
        "alive": alive,
    }
    print(json.dumps({"counts": dict(sorted(tally.counts.items())), **verdict}, indent=1))
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        record = {
            "machine": machine,
            "at": time.strftime("%Y-%m-%d"),
            "minutes": options.minutes,
            "operations_per_second": options.operations,
            "window_seconds": [window[0].seconds, window[-1].seconds],
            "limits": {"memory": MEMORY, "ssd": SSD},
            "fits": [asdict(item) | {"flat": item.flat} for item in fits],
            **verdict,
            "counts": dict(sorted(tally.counts.items())),
            "end": asdict(end),
            "samples": as_table(samples),
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if not verdict["flat"] or verdict["left"] or tally.faults or errors or not alive:
        sys.exit(1)


if __name__ == "__main__":
    main()
