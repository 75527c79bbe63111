"""The wall clock jumps, by hours and by years, forwards and back: nothing fails, nothing that is gone comes back."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from kvloom import errors
from kvloom.codec.level import EXACT
from kvloom.daemon.authenticator import Authenticator
from kvloom.daemon.config import ConfigText, resolve_config
from kvloom.daemon.machine import probe_machine
from kvloom.daemon.server import open_daemon
from kvloom.kvstore.tier import Ack

HOUR = 3600.0
YEARS = 30 * 366 * 86_400.0


class WallClock:
    """``time.time_ns`` with something added."""

    def __init__(self, monkeypatch) -> None:
        real = time.time_ns
        self.ahead_seconds = 0.0
        monkeypatch.setattr(time, "time_ns", lambda: real() + int(self.ahead_seconds * 1e9))


@pytest.fixture
def clock(monkeypatch):
    return WallClock(monkeypatch)


@pytest.fixture
async def running(clock, tmp_path):
    text = ConfigText(port="0", data_dir=str(tmp_path / "data"), memory="16MiB", ssd="64MiB")
    async with open_daemon(resolve_config(text, probe_machine(text.directory()))) as running:
        yield running


async def read(running, key):
    async with running.service.reading(running.authenticator.local, key) as chunk:
        return b"".join(chunk.parts)


async def test_what_expires_is_gone_after_a_jump_ahead_and_what_does_not_stays(clock, running, container_bytes):
    service, me = running.service, running.authenticator.local
    short, kept = os.urandom(32), os.urandom(32)
    data = {key: container_bytes([EXACT], content_key=key) for key in (short, kept)}
    await service.put(me, short, data[short], ack=Ack.DISK, ttl_seconds=HOUR)
    await service.put(me, kept, data[kept], ack=Ack.DISK)
    clock.ahead_seconds = HOUR - 60
    assert await read(running, short) == data[short]
    clock.ahead_seconds = HOUR + 60
    with pytest.raises(errors.NotFound):
        await read(running, short)
    assert await service.exists(me, [short, kept]) == [False, True]
    await service._store.keep_up()  # frees what has expired
    clock.ahead_seconds = 0.0
    with pytest.raises(errors.NotFound):
        await read(running, short)
    clock.ahead_seconds = YEARS
    assert await read(running, kept) == data[kept]


async def test_a_jump_back_keeps_what_would_have_expired_and_takes_puts(clock, running, container_bytes):
    service, me = running.service, running.authenticator.local
    before, after = os.urandom(32), os.urandom(32)
    data = {key: container_bytes([EXACT], content_key=key) for key in (before, after)}
    await service.put(me, before, data[before], ack=Ack.DISK, ttl_seconds=HOUR)
    clock.ahead_seconds = -YEARS
    await service.put(me, after, data[after], ack=Ack.DISK, ttl_seconds=HOUR)
    await service.put(me, before, data[before], ack=Ack.DISK)  # stored in the future, says what lies there
    for key in (before, after):
        assert await read(running, key) == data[key]
    assert {item.key for item in (await service.list_chunks(me, limit=10, prefix="")).chunks} == {before, after}
    assert await service.delete(me, after)
    assert await service.exists(me, [before, after]) == [True, False]


async def test_pins_end_with_the_clock_and_never_hold_for_ever(clock, running, container_bytes):
    service, me = running.service, running.authenticator.local
    key = os.urandom(32)
    await service.put(me, key, container_bytes([EXACT], content_key=key), ack=Ack.MEMORY)
    pinned = await service.pin(me, [key], lease_seconds=60)
    clock.ahead_seconds = HOUR
    await service._store.keep_up()
    assert service.tenant(me).pinned_bytes == 0
    assert not service.release(me, pinned.lease)
    clock.ahead_seconds = -HOUR
    again = await service.pin(me, [key], lease_seconds=60)
    assert again.pinned == (True,)
    assert service.release(me, again.lease)


async def test_a_scrub_and_a_drain_do_not_mind(clock, running, container_bytes):
    service, me = running.service, running.authenticator.local
    key = os.urandom(32)
    await service.put(me, key, container_bytes([EXACT], content_key=key), ack=Ack.DISK, ttl_seconds=HOUR)
    clock.ahead_seconds = -YEARS
    service.start_scrub(me)
    async with asyncio.timeout(60):
        while service.scrub_report(me).running:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert service.scrub_report(me).damaged == 0


def test_a_key_holds_by_the_clock_whichever_way_that_jumps(tmp_path):
    command = [sys.executable, "-m", "kvloom.daemon.cli", "keys", "create", "--tenant", "acme", "--expires", "90d"]
    environ = {**os.environ, "KVLOOM_DATA_DIR": str(tmp_path)}
    made = json.loads(subprocess.run([*command, "--json"], env=environ, capture_output=True, check=True).stdout)["key"]
    config = resolve_config(ConfigText(data_dir=str(tmp_path)), probe_machine(tmp_path))
    from kvloom.daemon.access_setup import credentials_file, load_tenants

    now = [datetime.now(UTC)]
    found = Authenticator(load_tenants(config, credentials_file(config)), token=None, now=lambda: now[0])
    assert found.by_key(made).tenant == "acme"
    for days, holds in ((91, False), (1, True), (-3650, True), (3650, False)):
        now[0] = datetime.now(UTC) + timedelta(days=days)
        if holds:
            assert found.by_key(made).tenant == "acme"
        else:
            with pytest.raises(errors.Unauthenticated):
                found.by_key(made)
