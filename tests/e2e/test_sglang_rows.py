"""What the SGLang backend sends and asks, over real daemons: misses and bounded waits, never an exception."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from kvloom.clients.opaque import OpaqueRows
from kvloom.clients.sglang.exchange import RowExchange
from kvloom.clients.sglang.settings import HiCacheSettings
from kvloom.codec.container import Container
from kvloom.codec.layout import KvDtype
from kvloom.kvstore.key import ContentKey

ROW_BYTES, ROWS = 16 * 1024, 5
OPAQUE = OpaqueRows.of(ROW_BYTES, KvDtype.BFLOAT16)


@pytest.fixture
def names(rng: np.random.Generator) -> list[ContentKey]:
    return [ContentKey(rng.bytes(32)) for _ in range(ROWS)]


@pytest.fixture
def rows(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 256, ROW_BYTES, dtype=np.uint8) for _ in range(ROWS)]


@contextmanager
def exchange(daemon: Any, **settings: Any) -> Iterator[RowExchange]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
        made = RowExchange(HiCacheSettings(address=str(daemon.endpoint), **settings))
    try:
        yield made
    finally:
        made.close()


def encoder(rows: list[np.ndarray], names: list[ContentKey]) -> Callable[[int], bytes]:
    return lambda index: OPAQUE.encode([rows[index]], names[index])


def decoder(into: list[np.ndarray]) -> Callable[[int, Container], bool]:
    def decode(index: int, container: Container) -> bool:
        OPAQUE.decode_into(container, [into[index]])
        return True

    return decode


def test_rows_come_back_and_are_stored_once(daemon: Any, names: list[ContentKey], rows: list[np.ndarray]) -> None:
    with exchange(daemon) as rows_of:
        assert rows_of.stored(names) == [False] * ROWS
        assert rows_of.store(names, encoder(rows, names), None) == [True] * ROWS
        assert rows_of.stored(names) == [True] * ROWS
        assert rows_of.store(names, lambda index: pytest.fail(f"row {index} is stored"), None) == [True] * ROWS
        back = [np.zeros_like(row) for row in rows]
        assert rows_of.load(names, decoder(back)) == [True] * ROWS
        assert all(np.array_equal(one, other) for one, other in zip(back, rows, strict=True))


def test_after_a_row_that_is_missing_or_none_no_more_is_read(
    daemon: Any, names: list[ContentKey], rows: list[np.ndarray]
) -> None:
    with exchange(daemon) as rows_of:
        rows_of.store(names[:2], encoder(rows, names), None)
        rows_of.store(names[3:], lambda index: encoder(rows, names)(index + 3), None)
        back = [np.zeros_like(row) for row in rows]
        assert rows_of.load(names, decoder(back)) == [True, True, False, False, False]
        assert not back[3].any()
        assert rows_of.load(names[:2], lambda index, _: index != 0) == [False, False]


def test_a_frozen_daemon_costs_one_wait_and_answers_again_later(
    start_daemon: Callable[..., Any], names: list[ContentKey], rows: list[np.ndarray]
) -> None:
    daemon = start_daemon()
    back = [np.zeros_like(row) for row in rows]
    now = [0.0]

    def clock() -> float:
        return now[0] + time.monotonic()

    with exchange(daemon, lookup_seconds_max=1.0, load_seconds_max=1.0) as rows_of:
        rows_of._clock = rows_of._silence._clock = clock
        assert rows_of.store(names, encoder(rows, names), None) == [True] * ROWS
        daemon.signal(signal.SIGSTOP)
        assert rows_of.stored(names) == [False] * ROWS
        assert rows_of._silence.lasts
        began = time.monotonic()
        for _ in range(50):
            assert rows_of.load(names, decoder(back)) == [False] * ROWS
            assert rows_of.stored(names) == [False] * ROWS
        assert rows_of.store(names, lambda index: pytest.fail(f"row {index} is encoded"), None) == [False] * ROWS
        assert time.monotonic() - began < 50  # what waiting for each would take
        daemon.signal(signal.SIGCONT)
        now[0] += 3600.0
        assert rows_of.load(names, decoder(back)) == [True] * ROWS


def test_a_daemon_that_is_gone_costs_the_rows_and_nothing_else(
    start_daemon: Callable[..., Any], names: list[ContentKey], rows: list[np.ndarray]
) -> None:
    daemon = start_daemon()
    with exchange(daemon, load_seconds_max=60.0) as rows_of:
        assert rows_of.store(names, encoder(rows, names), None) == [True] * ROWS
        daemon.kill()
        assert rows_of.stored(names) == [False] * ROWS
        assert rows_of.load(names, lambda *_: pytest.fail("nothing came")) == [False] * ROWS
        assert rows_of.store(names, encoder(rows, names), None) == [False] * ROWS
        assert rows_of.clear() is False


def test_clear_forgets_this_tenants_rows(
    start_daemon: Callable[..., Any], names: list[ContentKey], rows: list[np.ndarray]
) -> None:
    with exchange(start_daemon()) as rows_of:
        rows_of.store(names, encoder(rows, names), None)
        assert rows_of.clear() is True
        assert rows_of.stored(names) == [False] * ROWS
