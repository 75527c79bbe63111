"""``kvloom top``: watch a daemon at work."""

import time

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...clients import KvloomClient, wire
from ...errors import DaemonUnavailable
from ..config import format_size
from ..rates import DaemonRates, TenantRates, TierRates, rates_between
from .console import SecondsRange, address_option, examples, json_option, print_json
from .tables import print_table, since

__all__ = ["screen", "top"]

_BAR = 10
_FULL = 0.95
_TENANTS_SHOWN = 12
_WIDE_COLUMNS = 132
"""A narrower terminal goes without the columns that say least."""


@click.command(
    epilog=examples("kvloom top", "kvloom top --interval 0.5", "kvloom top --once --json | jq '.tiers[].fill'")
)
@address_option
@click.option(
    "--interval",
    type=SecondsRange(0.1, 60.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look: 0.1 to 60.",
)
@click.option("--once", is_flag=True, help="Look twice, an interval apart, print what happened between, and end.")
@json_option
def top(address: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch the daemon: how full its tiers are, what each answers, and which tenants keep it busy.

    Ends with Ctrl-C. Needs scope admin. With --json, one line of JSON per look.
    """
    with KvloomClient(address) as client:
        if once:
            before = client.stats()
            time.sleep(interval)
            rates = rates_between(before, client.stats())
            if as_json:
                print_json(rates)
            else:
                for part in _parts(rates, str(client.endpoint)):
                    print_table(part) if isinstance(part, Table) else click.echo(part.plain)
            return
        if as_json:
            _stream(client, interval)
        else:
            _watch(client, interval)


def _stream(client: KvloomClient, interval: float) -> None:
    before: wire.DaemonStats | None = None
    while True:
        now = client.stats()
        click.echo(wire.encode(rates_between(before, now)).decode())
        before = now
        time.sleep(interval)


def _watch(client: KvloomClient, interval: float) -> None:
    """Draw over the whole terminal until interrupted; a daemon that goes away may come back."""
    before: wire.DaemonStats | None = client.stats()
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        while True:
            try:
                now = client.stats()
            except DaemonUnavailable as error:
                before = None
                live.update(Text(f"{error}\nlooking again every {interval:g} s", style="bold red"), refresh=True)
            else:
                rates = rates_between(before, now)
                live.update(screen(rates, str(client.endpoint), columns=live.console.width), refresh=True)
                before = now
            time.sleep(interval)


def screen(rates: DaemonRates, where: str, *, columns: int) -> RenderableType:
    """One look, as a terminal of ``columns`` shows it."""
    return Group(*_parts(rates, where, wide=columns >= _WIDE_COLUMNS))


def _parts(rates: DaemonRates, where: str, *, wide: bool = True) -> tuple[Text | Table, ...]:
    head = Text(f"kvloom {rates.version} at {where} (pid {rates.pid}): ", style="bold")
    head.append(rates.phase, style="green" if rates.phase == "ready" else "yellow")
    head.append(f", up {since(rates.uptime_seconds)}")
    work = Text(
        f"puts {rates.puts_per_second:,.1f}/s ({_speed(rates.put_bytes_per_second)})   "
        f"gets {rates.gets_per_second:,.1f}/s ({_speed(rates.read_bytes_per_second)})   "
        f"hits {_percent(rates.hit_rate)} now, {_percent(rates.hit_rate_since_start)} since the start"
    )
    held = Text(
        f"inside: {rates.requests_inflight} requests, "
        f"{format_size(rates.bytes_inflight)} of {format_size(rates.bytes_inflight_max)}   "
        f"not yet on disk: {format_size(rates.dirty_bytes)}   pinned: {format_size(rates.pinned_bytes)}"
    )
    return head, work, held, Text(), _tiers(rates.tiers, wide=wide), Text(), _tenants(rates.tenants)


def _tiers(tiers: tuple[TierRates, ...], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tier", no_wrap=True)
    table.add_column("fill", no_wrap=True)
    more = ("limit", "chunks", "hits/s", "waiting") if wide else ()
    for name in ("used", "read", "written", "reads", "evicted/s", "errors/s", *more):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("breaker", no_wrap=True)
    for tier in tiers:
        bounded = tier.limit_bytes is not None
        more_cells = (
            "-" if tier.limit_bytes is None else format_size(tier.limit_bytes),
            f"{tier.chunks:,}" if bounded else "-",
            f"{tier.hits_per_second:,.1f}",
            format_size(tier.dirty_bytes),
        )
        table.add_row(
            tier.name,
            "" if tier.fill is None else _bar(tier.fill),
            format_size(tier.used_bytes) if bounded else "-",
            _speed(tier.read_bytes_per_second),
            _speed(tier.written_bytes_per_second),
            _percent(tier.hit_share),
            f"{tier.evictions_per_second:,.1f}",
            Text(f"{tier.errors_per_second:,.1f}", style="red" if tier.errors_per_second else ""),
            *(more_cells if wide else ()),
            Text("OPEN", style="bold red") if tier.breaker == "open" else tier.breaker,
        )
    return table


def _tenants(tenants: tuple[TenantRates, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tenant")
    for name in ("held", "puts/s", "put", "gets/s", "read", "hits"):
        table.add_column(name, justify="right")
    for tenant in tenants[:_TENANTS_SHOWN]:
        table.add_row(
            tenant.name,
            format_size(tenant.used_bytes),
            f"{tenant.puts_per_second:,.1f}",
            _speed(tenant.put_bytes_per_second),
            f"{tenant.gets_per_second:,.1f}",
            _speed(tenant.read_bytes_per_second),
            _percent(tenant.hit_rate),
        )
    if len(tenants) > _TENANTS_SHOWN:
        table.add_row(f"and {len(tenants) - _TENANTS_SHOWN} more")
    return table


def _bar(fill: float) -> Text:
    whole = round(min(1.0, fill) * _BAR)
    style = "yellow" if fill >= _FULL else "green"
    bar = Text("█" * whole, style=style)
    bar.append("░" * (_BAR - whole), style="dim")
    return bar.append(f" {fill:4.0%}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _speed(bytes_per_second: float) -> str:
    return f"{format_size(bytes_per_second)}/s"
