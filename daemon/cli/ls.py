"""``kvloom ls``: list stored chunks."""

import time

import click
from rich.table import Table

from ... import limits
from ...clients import KvloomClient
from ..config import format_size
from .console import address_option, examples, json_option, print_json, say
from .tables import print_table, since

__all__ = ["ls"]


@click.command(epilog=examples("kvloom ls", "kvloom ls 3fa9", "kvloom ls --full --limit 1000"))
@click.argument("prefix", default="")
@click.option(
    "--limit", type=click.IntRange(1, limits.LIST_CHUNKS_MAX), default=limits.LIST_CHUNKS_DEFAULT, show_default=True
)
@click.option("--full", is_flag=True, help="Print whole keys; 12 digits name a chunk well enough elsewhere.")
@address_option
@json_option
def ls(prefix: str, limit: int, full: bool, address: str | None, as_json: bool) -> None:
    """List stored chunks, those whose key begins with PREFIX, in no particular order."""
    with KvloomClient(address) as client:
        found = client.list_chunks(limit=limit, prefix=prefix)
    if as_json:
        print_json(found)
        return
    if full:
        for entry in found.chunks:
            click.echo(entry.key.hex())
    else:
        now_ms = time.time() * 1000
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("key")
        table.add_column("size", justify="right")
        table.add_column("stored", justify="right")
        table.add_column("on")
        for entry in found.chunks:
            age = since((now_ms - entry.stored_at_ms) / 1000)
            table.add_row(entry.key.hex()[:12], format_size(entry.payload_bytes), f"{age} ago", ", ".join(entry.tiers))
        print_table(table)
    if found.truncated:
        say(f"the first {len(found.chunks)}; there are more (--limit)")
    elif not found.chunks:
        say("no chunks")
