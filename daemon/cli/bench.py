"""``kvloom bench``: what the user's own daemon and disk do, beside what the machine can do at best."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ...clients import KvloomClient
from ...clients.discovery import data_directory
from ...codec.container import ContainerWriter, Kind, parse_header
from ...codec.header import write_header
from ...codec.layout import Layout
from ...codec.level import EXACT
from ...errors import ConfigError, StorageUnavailable
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Hit
from ...kvstore.tier import Ack
from ..config import format_size
from .console import SecondsRange, address_option, examples, json_option, print_json
from .tables import print_table

__all__ = ["bench"]

KIB: Final = 1024
SIZES: Final = (256 * KIB, 4096 * KIB)
CLIENTS: Final = (1, 4)
_CHUNKS_READ: Final = 8
_LAYERS: Final = 8
_COPY_BYTES: Final = 64 * KIB * KIB
_COPIES_MAX: Final = 1000
_ROW_BYTES_MAX: Final = 256 * KIB * KIB
"""What one row writes at most: the daemon's own chunks should not be evicted by a measurement."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; the columns are those of ``bench/store.py``. Times are of one operation."""

    what: str
    subject: str
    value_bytes: int
    clients: int
    mb_per_s: float
    p50_ms: float
    p99_ms: float


@click.command(epilog=examples("kvloom bench", "kvloom bench --seconds 5 --json > bench.json"))
@click.option(
    "--seconds", type=SecondsRange(0.05, 60), default=1.0, show_default=True, help="How long each row is measured."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where raw disk writes are measured.  [default: the data directory]",
)
@address_option
@json_option
def bench(seconds: float, directory: Path | None, address: str | None, as_json: bool) -> None:
    """Measure your running daemon and its disk.

    Puts and gets containers of random bytes, which do not compress, under random keys, and removes them again. A get
    includes the client's verification of every byte. Raw lines are what this machine does without kvloom.
    """
    folder = directory or data_directory(os.environ)
    with Progress(disable=as_json or not sys.stderr.isatty(), transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(SIZES) * (3 * len(CLIENTS) + 1) + 1)
        rows: list[Row] = []
        for row in _measure(address, folder, seconds):
            rows.append(row)
            progress.advance(task)
    if as_json:
        print_json(tuple(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "subject"):
        table.add_column(name)
    for name in ("value", "clients", "MB/s", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = (f"{row.mb_per_s:,.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}")
        table.add_row(row.what, row.subject, format_size(row.value_bytes), str(row.clients), *figures)
    print_table(table)


def _measure(address: str | None, folder: Path, seconds: float) -> Iterator[Row]:
    for value_bytes in SIZES:
        for count in CLIENTS:
            clients = [_BenchClient(address, value_bytes) for _ in range(count)]
            try:
                for what, subject, operation in (
                    ("put", "kvloom, ack=disk", _BenchClient.put_on_disk),
                    ("put", "kvloom, ack=memory", _BenchClient.put_in_memory),
                    ("get", "kvloom", _BenchClient.get),
                ):
                    yield _row(what, subject, value_bytes, _side_by_side(clients, operation, seconds))
            finally:
                for client in clients:
                    client.close()
        yield _raw_write(folder, value_bytes, seconds)
    yield _memory_copy(seconds)


class _BenchClient:
    """One connection, and the chunks it has put: each put is of a new chunk, as a prefill's would be."""

    def __init__(self, address: str | None, value_bytes: int) -> None:
        self._client = KvloomClient(address)
        self._client.health()
        layout = Layout.uniform(layers=_LAYERS, kv_heads=1, head_dim=64)
        writer = ContainerWriter(layout, tokens=1, first_position=0)
        for layer in range(_LAYERS):
            for kind in Kind:
                writer.put(EXACT, layer, kind, os.urandom(value_bytes // _LAYERS // len(Kind)))
        self._container = bytearray(writer.commit())
        self._header = parse_header(self._container)
        self._keys: list[ContentKey] = []
        self.operations_max = _ROW_BYTES_MAX // value_bytes

    def put_on_disk(self, _: int) -> None:
        """Store a new chunk durably."""
        self._put(Ack.DISK)

    def put_in_memory(self, _: int) -> None:
        """Store a new chunk, as fast as the daemon takes it."""
        self._put(Ack.MEMORY)

    def get(self, turn: int) -> None:
        """Read the chunks put, in turn; anything but a hit ends the benchmark."""
        outcome = self._client.get(self._keys[-1 - turn % min(_CHUNKS_READ, len(self._keys))])
        if not isinstance(outcome, Hit):
            raise StorageUnavailable(f"a chunk put a moment ago cannot be read: {outcome}")

    def close(self) -> None:
        """Forget every chunk put, and disconnect."""
        for key in self._keys:
            self._client.delete(key)
        self._client.close()

    def _put(self, ack: Ack) -> None:
        key = ContentKey(os.urandom(32))
        header = write_header(replace(self._header, content_key=key), self._header.segments)
        self._container[: len(header)] = header
        self._keys.append(key)
        self._client.put(key, self._container, ack=ack)


def _side_by_side(
    clients: Sequence[_BenchClient], operation: Callable[[_BenchClient, int], None], seconds: float
) -> list[list[float]]:
    """The times of ``operation`` on every client, all at work at once."""

    def run(client: _BenchClient) -> list[float]:
        operation(client, 0)
        return _timed(lambda turn: operation(client, turn), seconds, client.operations_max // len(clients))

    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(run, clients))


def _raw_write(folder: Path, value_bytes: int, seconds: float) -> Row:
    """Sequential writes to a file, each made durable before the next."""
    value = os.urandom(value_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="bench-", dir=folder))
    except OSError as error:
        raise ConfigError(f"raw writes cannot be measured in {folder}: {error.strerror}") from error
    try:
        with (place / "raw").open("wb", buffering=0) as file:

            def write(_: int) -> None:
                file.write(value)
                os.fdatasync(file.fileno())

            write(0)
            times = _timed(write, seconds, _ROW_BYTES_MAX // value_bytes)
    finally:
        shutil.rmtree(place)
    return _row("put", "raw write and fdatasync", value_bytes, [times])


def _memory_copy(seconds: float) -> Row:
    source = np.ones(_COPY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    times = _timed(lambda _: np.copyto(target, source), min(seconds, 1.0), _COPIES_MAX)
    return _row("get", "memory copy", _COPY_BYTES, [times])


def _timed(operation: Callable[[int], None], seconds: float, operations_max: int) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < operations_max:
        before = time.perf_counter()
        operation(len(times))
        after = time.perf_counter()
        times.append(after - before)
        if after >= end:
            break
    return times


def _row(what: str, subject: str, value_bytes: int, times: list[list[float]]) -> Row:
    """``times`` of each client; the rate is the sum of their rates, as they ran side by side."""
    rate = sum(value_bytes * len(own) / sum(own) for own in times) / 1e6
    p50, p99 = (float(item) * 1e3 for item in np.percentile(np.concatenate(times), (50, 99)))
    return Row(what, subject, value_bytes, len(times), round(rate, 1), round(p50, 3), round(p99, 3))
