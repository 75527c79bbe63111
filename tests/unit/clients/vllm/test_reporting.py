"""What things took reaches the daemon, in bounded reports and behind everybody's back; links are never forgotten."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from blake3 import blake3

from kvloom import limits
from kvloom.clients.plan_wire import EngineReport, LoadSample, PrefillSample
from kvloom.clients.vllm.load_job import ChunkTimes
from kvloom.clients.vllm.reporting import Reporter
from kvloom.codec.level import EXACT
from kvloom.errors import StorageUnavailable
from kvloom.kvstore.key import ContentKey

WAIT_SECONDS = 60.0
KEY = ContentKey(blake3(b"declined").digest())


@dataclass
class Daemon:
    reports: list[EngineReport] = field(default_factory=list)
    probed: list[ContentKey] = field(default_factory=list)
    now: float = 0.0
    away: bool = False
    probing: threading.Event = field(default_factory=threading.Event)

    def send(self, report: EngineReport) -> int:
        self.reports.append(report)
        if self.away:
            raise StorageUnavailable("the tests' daemon is away")
        return 1

    def probe(self, key: ContentKey) -> LoadSample | None:
        self.probed.append(key)
        self.probing.set()
        return LoadSample("ssd", 1000, 0.5)


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def reporter(daemon: Daemon) -> Iterator[Reporter]:
    made = Reporter(
        "engine", EXACT, daemon.send, daemon.probe, pause_seconds=0.001, probe_seconds=10.0, clock=lambda: daemon.now
    )
    yield made
    made.close(WAIT_SECONDS)


def test_everything_that_is_noted_is_reported_once(daemon: Daemon, reporter: Reporter) -> None:
    reporter.note_prefills([PrefillSample(100, 0, 1.0)])
    reporter.note_loads([ChunkTimes("ssd", 500, 0.1, 2, 4000, 0.01), ChunkTimes(None, 700, 0.1, 1, 4000, 0.02)])
    reporter.note_outcome(b"plan", 0.3)
    assert reporter.flush(WAIT_SECONDS)
    assert {report.engine for report in daemon.reports} == {"engine"}
    assert [item.tokens for report in daemon.reports for item in report.prefills] == [100]
    loads = [item for report in daemon.reports for item in report.loads]
    assert loads == [LoadSample("ssd", 500, 0.1, 2)]  # over a link that nobody named nothing is learnt
    assert [item.seconds for report in daemon.reports for item in report.decodes] == [0.01, 0.02]
    assert [item.ttft_seconds for report in daemon.reports for item in report.outcomes] == [0.3]


def test_a_report_is_never_longer_than_a_daemon_takes(daemon: Daemon, reporter: Reporter) -> None:
    reporter.note_prefills([PrefillSample(number + 1, 0, 1.0) for number in range(2000)])
    reporter.note_loads([ChunkTimes("ssd", 500, 0.1, 2, 4000, 0.01)] * 2000)
    assert reporter.flush(WAIT_SECONDS)
    for report in daemon.reports:
        count = len(report.prefills) + len(report.loads) + len(report.decodes) + len(report.outcomes)
        assert count <= limits.PLAN_SAMPLES_MAX
    assert max(item.tokens for report in daemon.reports for item in report.prefills) == 2000


def test_a_daemon_that_is_away_stops_nobody(daemon: Daemon, reporter: Reporter) -> None:
    daemon.away = True
    reporter.note_outcome(b"plan", 0.3)
    assert reporter.flush(WAIT_SECONDS)
    daemon.away = False
    reporter.note_outcome(b"plan", 0.4)
    assert reporter.flush(WAIT_SECONDS)
    assert daemon.reports[-1].outcomes[0].ttft_seconds == 0.4


def test_what_was_declined_is_read_when_nothing_was_loaded_for_long(daemon: Daemon, reporter: Reporter) -> None:
    reporter.note_declined(KEY)
    reporter.note_outcome(b"plan", 0.3)
    assert reporter.flush(WAIT_SECONDS)
    assert daemon.probed == []
    daemon.now = 10.0
    assert daemon.probing.wait(WAIT_SECONDS)
    assert daemon.probed == [KEY]
    reporter.close(WAIT_SECONDS)
    assert LoadSample("ssd", 1000, 0.5) in [item for report in daemon.reports for item in report.loads]


def test_a_load_makes_reading_needless(daemon: Daemon, reporter: Reporter) -> None:
    reporter.note_declined(KEY)
    reporter.note_loads([ChunkTimes("ssd", 500, 0.1, 1, 4000, 0.01)])
    daemon.now = 100.0
    reporter.note_outcome(b"plan", 0.3)
    assert reporter.flush(WAIT_SECONDS)
    assert daemon.probed == []


def test_what_is_left_at_the_end_is_sent(daemon: Daemon) -> None:
    reporter = Reporter("engine", EXACT, daemon.send, daemon.probe, pause_seconds=1000.0)
    reporter.note_outcome(b"first", 0.1)
    assert reporter.flush(WAIT_SECONDS)
    reporter.note_outcome(b"last", 0.2)
    reporter.close(WAIT_SECONDS)
    assert [item.plan for report in daemon.reports for item in report.outcomes] == [b"first", b"last"]
