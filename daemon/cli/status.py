"""``kvloom status``: what the daemon and its tiers hold."""

import click
from rich.table import Table

from ...clients import KvloomClient, wire
from ...kvstore.tier import UNBOUNDED_BYTES
from ..config import format_size
from .console import address_option, examples, json_option, print_json
from .tables import print_table, since

__all__ = ["status"]


@click.command(epilog=examples("kvloom status", "kvloom status --json | jq '.tiers[].used_bytes'"))
@address_option
@json_option
def status(address: str | None, as_json: bool) -> None:
    """What the daemon and its tiers hold and have done since it started."""
    with KvloomClient(address) as client:
        stats = client.stats()
        endpoint = client.endpoint
    if as_json:
        print_json(stats)
        return
    click.echo(
        f"kvloom {stats.version} at {endpoint} (pid {stats.pid}): {stats.phase}, up {since(stats.uptime_seconds)}"
    )
    print_table(_tiers(stats))
    reads = stats.hits + stats.misses
    rate = f" ({stats.hits / reads:.0%} hits)" if reads else ""
    dirty = format_size(stats.dirty_bytes)
    click.echo(f"puts: {stats.puts:,}, reads: {reads:,}{rate}, profiles: {stats.profiles}, not yet on disk: {dirty}")
    click.echo(f"namespace: {stats.namespace}, codec of lossy levels: {stats.codec}")
    policies = ", ".join(f"{tier.name} {tier.eviction}" for tier in stats.tiers if tier.eviction)
    click.echo(f"eviction: {policies}")


def _tiers(stats: wire.DaemonStats) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tier")
    for name in ("used", "limit", "full", "chunks", "hits", "evicted", "damaged"):
        table.add_column(name, justify="right")
    for pool in stats.pools:
        table.add_row(
            f"gpu ({pool.device}, pid {pool.pid})",
            format_size(pool.used_bytes),
            format_size(pool.limit_bytes),
            f"{pool.used_bytes / pool.limit_bytes:.0%}",
            f"{pool.chunks:,}",
            f"{pool.hits:,}",
            f"{pool.evictions:,}",
            "0",
        )
    for tier in stats.tiers:
        unbounded = tier.limit_bytes == UNBOUNDED_BYTES
        table.add_row(
            tier.name,
            "-" if unbounded else format_size(tier.used_bytes),
            "-" if unbounded else format_size(tier.limit_bytes),
            "-" if unbounded else f"{tier.used_bytes / tier.limit_bytes:.0%}",
            "-" if unbounded else f"{tier.records:,}",
            f"{tier.hits:,}",
            f"{tier.evictions:,}",
            f"[red]{tier.corrupt:,}[/red]" if tier.corrupt else "0",
        )
    return table
