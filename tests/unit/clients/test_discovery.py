import json

import pytest

from kvloom.clients.discovery import (
    DaemonNote,
    Endpoint,
    data_directory,
    find_daemon,
    find_local_socket,
    parse_address,
)
from kvloom.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:9", Endpoint("127.0.0.1", 9)),
        ("localhost", Endpoint("localhost", 7117)),
        ("http://localhost:80/", Endpoint("localhost", 80)),
        ("https://kv.example:7117", Endpoint("kv.example", 7117, secure=True)),
        ("[::1]:7000", Endpoint("::1", 7000)),
    ],
)
def test_addresses_people_write_are_understood(text, endpoint):
    assert parse_address(text) == endpoint
    assert parse_address(endpoint.url) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":7117",
        "host:port",
        "host:99999",
        "ftp://host",
        "https://host/path",
        "http://host/path",
        "u@host",
        "[::1",
    ],
)
def test_an_address_that_is_none_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="address"):
        parse_address(text)


def test_note_survives_a_round_trip_and_is_private(tmp_path):
    note = DaemonNote(Endpoint("::1", 4711), 12, "0.1.0")
    note.write(tmp_path)
    note.write(tmp_path)
    assert DaemonNote.read(tmp_path) == note
    assert DaemonNote.path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["daemon.json"]


@pytest.mark.parametrize("content", [None, "", "nonsense", "[]", "{}", json.dumps({"host": "a", "port": "x"})])
def test_a_note_that_cannot_be_read_is_no_note(tmp_path, content):
    if content is not None:
        DaemonNote.path(tmp_path).write_text(content)
    assert DaemonNote.read(tmp_path) is None
    assert find_daemon(environ={}, data_dir=tmp_path) == Endpoint("127.0.0.1", 7117)


def test_an_explicit_address_beats_the_environment_beats_the_note(tmp_path):
    DaemonNote(Endpoint("127.0.0.1", 1), 12, "0.1.0").write(tmp_path)
    environ = {"KVLOOM_ADDRESS": "127.0.0.1:2"}
    assert find_daemon("127.0.0.1:3", environ=environ, data_dir=tmp_path).port == 3
    assert find_daemon(environ=environ, data_dir=tmp_path).port == 2
    assert find_daemon(environ={}, data_dir=tmp_path).port == 1
    assert find_daemon(environ={"KVLOOM_DATA_DIR": str(tmp_path)}).port == 1


def test_the_data_directory_follows_the_environment(tmp_path):
    assert data_directory({"KVLOOM_DATA_DIR": str(tmp_path)}) == tmp_path
    assert data_directory({}).name == "kvloom"


def test_the_local_socket_is_that_of_the_daemon_asked_for(tmp_path):
    endpoint = Endpoint("127.0.0.1", 7000)
    assert find_local_socket(endpoint, environ={}, data_dir=tmp_path) is None
    DaemonNote(endpoint, 1, "0.1").write(tmp_path)
    assert find_local_socket(endpoint, environ={}, data_dir=tmp_path) is None
    DaemonNote(endpoint, 1, "0.1", str(tmp_path / "daemon.sock")).write(tmp_path)
    assert DaemonNote.read(tmp_path).local == str(tmp_path / "daemon.sock")
    assert find_local_socket(endpoint, environ={}, data_dir=tmp_path) == tmp_path / "daemon.sock"
    assert find_local_socket(endpoint, environ={"KVLOOM_DATA_DIR": str(tmp_path)}) == tmp_path / "daemon.sock"
    assert find_local_socket(Endpoint("10.0.0.1", 7000), environ={}, data_dir=tmp_path) is None
    assert find_local_socket(Endpoint("127.0.0.1", 7001), environ={}, data_dir=tmp_path) is None
