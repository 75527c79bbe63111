import json
import logging

import pytest
import structlog

from kvloom.daemon.config import LogFormat, LogLevel
from kvloom.daemon.logs import configure_logs


@pytest.fixture(autouse=True)
def restore():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_line_is_one_json_object_with_the_request_it_belongs_to(capsys):
    configure_logs(LogFormat.JSON, LogLevel.INFO)
    structlog.contextvars.bind_contextvars(request_id="abc")
    structlog.get_logger("kvloom").info("ready", address="127.0.0.1:1")
    structlog.get_logger("kvloom").debug("not written")
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        structlog.get_logger("kvloom").error("failed", exc_info=error)
    logging.getLogger("some.library").warning("it said %s", "this")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["ready", "failed", "it said this"]
    assert [line["level"] for line in lines] == ["info", "error", "warning"]
    assert list(lines[0])[:3] == ["timestamp", "level", "event"]
    assert lines[0]["address"] == "127.0.0.1:1"
    assert "ValueError: two" in lines[1]["exception"]
    assert all(line["request_id"] == "abc" for line in lines)


def test_a_traceback_on_a_terminal_shows_no_variables(capsys):
    configure_logs(LogFormat.CONSOLE, LogLevel.INFO)

    def fail(salt):
        raise ValueError("no")

    try:
        fail("salt-of-a-tenant")
    except ValueError as error:
        structlog.get_logger("kvloom").error("failed", exc_info=error)
    written = capsys.readouterr().err
    assert "ValueError: no" in written
    assert "salt-of-a-tenant" not in written.replace('fail("salt-of-a-tenant")', "")
