import io

import pytest
from rich.console import Console

from kvloom.clients import tenancy, wire
from kvloom.daemon.cli.top import screen
from kvloom.daemon.rates import rates_between

TIERS = tuple(
    wire.TierStats(name, name != "memory", 2**33, 2**32, 12_345, 7, 700, 1, 2, 5, 6) for name in ("memory", "ssd")
)
TENANTS = tuple(tenancy.TenantStats(f"tenant-{number:02}", 1, 10, 2, 20, 3, 30, ()) for number in range(20))


def drawn(columns):
    stats = wire.DaemonStats(
        "0.1.0", 1, "ready", 2.5, "d", 3, 30, 300, 4, 400, 8, 9, 10, 11, 12, 13, TIERS, tenants=TENANTS
    )
    console = Console(file=io.StringIO(), width=columns, highlight=False)
    console.print(screen(rates_between(None, stats), "127.0.0.1:7117", columns=columns))
    return console.file.getvalue()


@pytest.mark.parametrize("columns", [90, 140, 200])
def test_no_number_is_cut_off(columns):
    text = drawn(columns)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    assert "█████░░░░░  50%" in text
    assert "kvloom 0.1.0 at 127.0.0.1:7117 (pid 1): ready" in text
    assert ("12,345" in text) is (columns >= 132)


def test_more_tenants_than_fit_are_counted():
    text = drawn(140)
    assert text.count("tenant-") == 12
    assert "and 8 more" in text
