"""Writes down which engine's features were shown by which tests: ``pytest --compatibility FILE``.

A test says what it shows with ``@pytest.mark.feature(ENGINE, FEATURE, package=DISTRIBUTION, how=HOW)``: ``package``'s
installed version is the engine's, ``how`` says on what it was shown. The file keeps one record per test, so that
runs in several environments, or of some tests, add up to one file. ``.ci/compatibility.py`` makes a page of it. Tests
may run in processes of their own (``pytest -n``): what they show comes with their reports.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

__all__ = ["Shown"]

OUTCOMES = pytest.StashKey[dict[str, "Shown"]]()


@dataclass(frozen=True, slots=True)
class Shown:
    """What became of one test of a feature; ``reason`` says why it was skipped."""

    engine: str
    version: str
    feature: str
    how: str
    test: str
    outcome: str
    reason: str = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", type=Path, metavar="FILE", help="write which features of which engine work")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}
    config.pluginmanager.register(_Collector(config.stash[OUTCOMES]))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _described(engine: str, feature: str, *, package: str, how: str) -> tuple[str, str, str, str]:
    return engine, _version(package), feature, how


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A report says what its phase of a test shows."""
    report = yield
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    shown = []
    for marker in item.iter_markers("feature"):
        described = _described(*marker.args, **marker.kwargs)
        shown.append(asdict(Shown(*described, item.nodeid.partition("[")[0], report.outcome, reason)))
    report.shown = shown
    return report


_WORSE = ("passed", "skipped", "failed")
"""A parametrised test has shown what all of its cases have."""


class _Collector:
    """What the reports of a session have shown."""

    def __init__(self, outcomes: dict[str, Shown]) -> None:
        self._outcomes = outcomes

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Every phase counts: a test whose fixture fails, or cannot be ended, has shown nothing."""
        for fields in getattr(report, "shown", ()):
            shown = Shown(**fields)
            place = f"{shown.test} {shown.engine} {shown.feature}"
            before = self._outcomes.get(place)
            if before is None or _WORSE.index(before.outcome) < _WORSE.index(shown.outcome):
                self._outcomes[place] = shown


def pytest_sessionfinish(session: pytest.Session) -> None:
    file: Path | None = session.config.getoption("--compatibility")
    outcomes = session.config.stash[OUTCOMES]
    if file is None or not outcomes or hasattr(session.config, "workerinput"):
        return
    kept = json.loads(file.read_text()) if file.exists() else []
    now = {(shown.engine, shown.feature, shown.test) for shown in outcomes.values()}
    records = [record for record in kept if (record["engine"], record["feature"], record["test"]) not in now]
    records += [asdict(shown) for shown in outcomes.values()]
    records.sort(key=lambda record: (record["engine"].casefold(), record["feature"], record["test"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
