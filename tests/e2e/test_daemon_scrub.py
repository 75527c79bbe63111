"""``kvloom scrub`` against real daemons: what it reads, what it finds, and who may ask."""

import json
import os

import pytest

from kvloom.codec.level import EXACT
from kvloom.kvstore.tier import Ack

COUNT = 6


@pytest.fixture
def chunks(container_bytes):
    keys = [os.urandom(32) for _ in range(COUNT)]
    return {key: container_bytes([EXACT], content_key=key, segment_bytes=20_000, seed=key[0]) for key in keys}


@pytest.fixture
def filled(start_daemon, chunks):
    """A daemon whose chunks are on its disk; it was started anew, so that none is in memory."""
    daemon = start_daemon("--memory", "16MiB", "--ssd", "64MiB")
    with daemon.client() as client:
        for key, data in chunks.items():
            client.put(key, data, ack=Ack.DISK)
    daemon.stop()
    return daemon.start()


def test_all_records_are_read_and_counted(filled, chunks):
    assert b"no scrub was asked for" in filled.run("scrub", "--status").stderr
    result = filled.run("scrub", "--wait", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["number"], report["running"], report["records"], report["damaged"]) == (1, False, COUNT, 0)
    assert report["size_bytes"] >= sum(map(len, chunks.values()))
    assert json.loads(filled.run("scrub", "--status", "--json").stdout) == report
    shown = filled.run("scrub", "--wait")
    assert (shown.returncode, shown.stdout) == (0, b"")
    assert f"{COUNT} records, ".encode() in shown.stderr
    assert b"0 damaged" in shown.stderr
    begun = json.loads(filled.run("scrub", "--json").stdout)  # and does not wait
    assert begun["number"] == 3


def test_what_is_damaged_is_found_counted_and_gone(start_daemon, chunks):
    """The background scrub has had its first round, of nothing, and pauses for a minute: it does not find it first."""
    daemon = start_daemon("--memory", "16MiB", "--ssd", "64MiB")
    folder = daemon.data_dir / "chunks"
    while not (folder / "scrub").exists():
        pass
    with daemon.client() as client:
        for key, data in chunks.items():
            client.put(key, data, ack=Ack.DISK)
        victim, data = next(iter(chunks.items()))
        changed = 0
        for path in folder.glob("*.log"):
            if (place := path.read_bytes().find(data[-64:])) >= 0:
                with path.open("r+b") as file:
                    file.seek(place)
                    file.write(bytes(64))
                changed += 1
        assert changed == 1
        result = daemon.run("scrub", "--wait", "--json")
        report = json.loads(result.stdout)
        assert (result.returncode, report["records"], report["damaged"]) == (1, COUNT, 1)
        assert {tier.name: tier.corrupt for tier in client.stats().tiers}["ssd"] == 1
        assert client.info(victim).chunk.tiers == ("memory",)
        assert b"1 damaged and deleted" in daemon.run("scrub", "--status").stderr
        assert daemon.run("scrub", "--wait").returncode == 0


def test_it_needs_a_tier_on_disk_a_daemon_and_scope_admin(start_daemon):
    daemon = start_daemon("--memory", "16MiB", "--ssd", "off")
    for arguments in ((), ("--wait",), ("--status",)):
        result = daemon.run("scrub", *arguments)
        assert (result.returncode, result.stderr.count(b"\n")) == (3, 1)
        assert b"no SSD tier" in result.stderr
    made = json.loads(daemon.run("keys", "create", "--tenant", "acme", "--json").stdout)
    daemon.signal(1)
    while daemon.ask("GET", "/tenant", Authorization=f"Bearer {made['key']}").status == 401:
        pass  # until the daemon has taken the key over
    refused = daemon.run("scrub", KVLOOM_API_KEY=made["key"])
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"admin" in refused.stderr
    assert daemon.run("scrub", "--address", "127.0.0.1:1").returncode == 4
    assert daemon.run("scrub", "--sometime").returncode == 2
