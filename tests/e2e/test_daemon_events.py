"""KV events of a real daemon, as a router reads them."""

import http.client
import json
import os

import pytest

from kvloom.codec.level import EXACT


class Stream:
    """One subscription over a connection of its own."""

    def __init__(self, daemon, **headers):
        self._connection = http.client.HTTPConnection(daemon.endpoint.host, daemon.endpoint.port, timeout=30)
        given = {**daemon.key, **{name.replace("_", "-"): value for name, value in headers.items()}}
        self._connection.request("GET", "/events", headers=given)
        self.response = self._connection.getresponse()
        if self.response.status == 200:
            assert self.response.readline() == b": alive\n"  # subscribed from here on
            self.response.readline()

    def next(self):
        """The name, the number and the data of the next event; None at the end."""
        lines = []
        while line := self.response.readline():
            if line == b"\n" and lines:
                break
            if not line.startswith(b":") and line != b"\n":
                lines.append(line.decode().rstrip("\n").split(": ", 1))
        fields = dict(lines)
        return None if not fields else (fields["event"], int(fields["id"]), json.loads(fields["data"]))

    def close(self):
        self._connection.close()


@pytest.fixture
def daemon(start_daemon):
    """One of each test's own: of what others have put, events may still come."""
    return start_daemon()


@pytest.fixture
def stream(daemon):
    stream = Stream(daemon)
    yield stream
    stream.close()


def test_a_router_sees_what_is_stored_where_and_what_is_forgotten(daemon, stream, container_bytes):
    assert stream.response.headers["Content-Type"] == "text/event-stream"
    parent, key = os.urandom(32), os.urandom(32)
    data = container_bytes([EXACT], content_key=key, first_position=5)
    target = f"/chunks/{key.hex()}"
    assert daemon.ask("PUT", f"{target}?ack=disk", data, kvloom_parent=parent.hex()).status == 201
    seen = [stream.next() for _ in range(2)]
    assert [(name, number) for name, number, _ in seen] == [("BlockStored", 1), ("BlockStored", 2)]
    assert {event["medium"]: event["tier"] for _, _, event in seen} == {"disk": "ssd", "cpu": "memory"}
    for _, _, event in seen:
        assert event["block_hashes"] == [key.hex()]
        assert event["parent_block_hash"] == parent.hex()
        assert (event["block_size"], event["start"], event["size_bytes"]) == (5, 5, len(data))
    daemon.ask("DELETE", target)
    seen = [stream.next() for _ in range(2)]
    assert [(name, event["block_hashes"]) for name, _, event in seen] == [("BlockRemoved", [key.hex()])] * 2
    assert {event["medium"] for _, _, event in seen} == {"disk", "cpu"}


def test_another_tenants_events_are_not_seen(daemon, stream, container_bytes):
    made = json.loads(daemon.run("keys", "create", "--tenant", "elsewhere", "--json").stdout)
    daemon.signal(1)
    theirs, mine = os.urandom(32), os.urandom(32)
    while daemon.ask("GET", "/tenant", Authorization=f"Bearer {made['key']}").status == 401:
        pass  # until the daemon has taken the key over
    foreign = container_bytes([EXACT], content_key=theirs)
    key = f"Bearer {made['key']}"
    assert daemon.ask("PUT", f"/chunks/{theirs.hex()}", foreign, Authorization=key).status == 201
    daemon.ask("PUT", f"/chunks/{mine.hex()}", container_bytes([EXACT], content_key=mine))
    assert stream.next()[2]["block_hashes"] == [mine.hex()]


def test_a_stream_that_was_resumed_says_that_it_has_lost_something(daemon):
    stream = Stream(daemon, Last_Event_ID="17")
    assert stream.next() == ("EventsLost", 1, {"count": None})
    stream.close()


def test_a_stream_needs_a_key_and_ends_when_the_daemon_drains(start_daemon):
    daemon = start_daemon("--memory", "16MiB", "--ssd", "0")
    assert daemon.ask("GET", "/events", Authorization="Bearer kvl_nobody").status == 401
    assert daemon.ask("GET", "/events?since=1").status == 400
    stream = Stream(daemon)
    assert daemon.stop() == 0
    assert stream.next() is None
    stream.close()
