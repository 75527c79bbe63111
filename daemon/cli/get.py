"""``kvloom get``: read a chunk into a file."""

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from ...clients import KvloomClient, wire
from ...codec.level import Level, parse_level
from ...errors import DaemonUnavailable, InvalidData, InvalidRequest, KvloomError, LevelNotStored, Overloaded
from ...kvstore.key import ContentKey
from ...kvstore.outcome import Corrupt, Hit, Miss, Throttled, Unavailable
from ..config import format_size
from .chunk_keys import resolve_key
from .console import address_option, examples, json_option, print_json, say

__all__ = ["get"]


@dataclass(frozen=True, slots=True)
class _Got:
    key: bytes
    file: str
    container_bytes: int
    tokens: int
    levels: tuple[Level, ...]
    tier: str


@click.command(
    epilog=examples(
        "kvloom get 3fa9c1d2 -o chunk.kvlc",
        "kvloom get 3fa9c1d2 --level standard -o small.kvlc",
        "kvloom get 3fa9c1d2 --layers 0-3 > first-layers.kvlc",
    )
)
@click.argument("key")
@click.option("-o", "--output", metavar="FILE", default="-", help="Where to write it; '-' is standard output.")
@click.option("--level", metavar="LEVEL", help="Only what this level needs: draft, economy, standard, fine or exact.")
@click.option("--layers", metavar="A-B", help="Only these layers, both included; lossy levels: in whole blocks.")
@address_option
@json_option
def get(key: str, output: str, level: str | None, layers: str | None, address: str | None, as_json: bool) -> None:
    """Read the chunk KEY (all of its digits, or enough of them) as a container file."""
    if output == "-" and (sys.stdout.isatty() or as_json):
        raise InvalidRequest("a container is binary: name a file with -o FILE")
    wanted = None if level is None else parse_level(level)
    with KvloomClient(address) as client:
        content_key = resolve_key(client, key)
        outcome = client.get(content_key, level=wanted, layers=None if layers is None else wire.parse_layers(layers))
        if not isinstance(outcome, Hit):
            raise _reason(client, content_key, wanted, outcome)
    data, header = outcome.value.data, outcome.value.header
    if output == "-":
        sys.stdout.buffer.write(data)
    else:
        Path(output).write_bytes(data)
    if as_json:
        print_json(_Got(content_key, output, len(data), header.tokens, header.levels, outcome.tier))
    else:
        levels = ", ".join(str(item) for item in header.levels)
        say(f"{header.tokens} tokens, {format_size(len(data))}, {levels}, from {outcome.tier}")


def _reason(
    client: KvloomClient, key: ContentKey, level: Level | None, outcome: Miss | Corrupt | Throttled | Unavailable
) -> KvloomError:
    """Why there is nothing to write; a miss is of the whole chunk, or only of that level of it."""
    match outcome:
        case Miss():
            stored = ", ".join(item.level.name for item in client.info(key).levels)
            return LevelNotStored(f"chunk {key.hex()[:12]} is not stored at level {level}; stored: {stored}")
        case Corrupt():
            return InvalidData(f"chunk {key.hex()[:12]} is damaged: {outcome.detail}")
        case Throttled():
            return Overloaded(f"daemon is busy; try again in {outcome.retry_seconds:.0f} s")
        case Unavailable():
            return DaemonUnavailable(outcome.detail)
