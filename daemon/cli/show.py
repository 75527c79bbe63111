"""``kvloom show``: what is stored under one key."""

import time

import click
from rich.table import Table

from ...clients import KvloomClient
from ..config import format_size
from .chunk_keys import resolve_key
from .console import address_option, examples, json_option, print_json
from .tables import print_table, since

__all__ = ["show"]


@click.command(epilog=examples("kvloom show 3fa9c1d2", "kvloom show 3fa9c1d2 --json"))
@click.argument("key")
@address_option
@json_option
def show(key: str, address: str | None, as_json: bool) -> None:
    """What is stored under KEY (all of its digits, or enough of them): levels, sizes, tiers."""
    with KvloomClient(address) as client:
        detail = client.info(resolve_key(client, key))
    if as_json:
        print_json(detail)
        return
    chunk = detail.chunk
    last = detail.first_position + detail.tokens - 1
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("key", chunk.key.hex())
    table.add_row("tokens", f"{detail.tokens}, at positions {detail.first_position} to {last}")
    table.add_row(
        "cache", f"{detail.layers} layers of {detail.dtype}, {format_size(detail.raw_bytes)} as the engine holds it"
    )
    ratio = detail.raw_bytes / chunk.payload_bytes
    table.add_row(
        "stored", f"{format_size(chunk.payload_bytes)} ({ratio:.1f} times smaller) on {', '.join(chunk.tiers)}"
    )
    for item in detail.levels:
        table.add_row(f"  {item.level}", format_size(item.payload_bytes))
    table.add_row("age", since(time.time() - chunk.stored_at_ms / 1000))
    if detail.codec is not None:
        table.add_row("codec", detail.codec)
    if detail.profile_digest is not None:
        table.add_row("profile", detail.profile_digest.hex())
    print_table(table)
