"""``kvloom rm``: forget chunks."""

from dataclasses import dataclass

import click

from ...clients import KvloomClient
from .chunk_keys import resolve_key
from .console import ExitCode, Stop, address_option, examples, json_option, print_json, say

__all__ = ["rm"]


@dataclass(frozen=True, slots=True)
class _Removed:
    key: bytes
    deleted: bool


@click.command(epilog=examples("kvloom rm 3fa9c1d2", "kvloom ls 3fa9 --full | xargs kvloom rm"))
@click.argument("keys", nargs=-1, required=True)
@address_option
@json_option
def rm(keys: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Forget the chunks KEYS (all of their digits, or enough of them) on every tier."""
    removed: list[_Removed] = []
    with KvloomClient(address) as client:
        for text in keys:
            key = resolve_key(client, text)
            removed.append(_Removed(key, client.delete(key)))
    if as_json:
        print_json(tuple(removed))
    else:
        for item in removed:
            say(f"{item.key.hex()[:12]}  {'forgotten' if item.deleted else 'was not stored'}")
    if not all(item.deleted for item in removed):
        raise Stop(ExitCode.NOT_FOUND)
