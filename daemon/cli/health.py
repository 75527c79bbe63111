"""``kvloom health``: whether a daemon serves, for probes that have no key."""

import os
from contextlib import suppress
from pathlib import Path

import click

from ...clients import KvloomClient, wire
from ...clients.discovery import DaemonNote
from ...clients.local_connection import LocalConnection
from ...clients.local_stream import LocalGone
from ...clients.local_wire import Hello, Kind
from ..admission import Phase
from ..config_sources import gather
from ..settings import ConfigText
from .console import ExitCode, Stop, address_option, examples, json_option, print_json

__all__ = ["health"]


@click.command(epilog=examples("kvloom health && echo serving", "kvloom health --address https://kv.example:7117"))
@address_option
@json_option
def health(address: str | None, as_json: bool) -> None:
    """Say whether the daemon serves: exit code 0 where it does, 1 where it starts or drains, 4 where there is none.

    Needs no key. Without an address the Unix socket in the data directory is asked, which no certificate stands
    before.
    """
    found = None if address is not None else _over_socket(gather(ConfigText(), os.environ).text.directory())
    if found is None:
        with KvloomClient(address) as client:
            found = client.health()
    if as_json:
        print_json(found)
    else:
        click.echo(f"kvloom {found.version} (pid {found.pid}): {found.phase}")
    if found.phase != Phase.READY:
        raise Stop(ExitCode.FAILED)


def _over_socket(directory: Path) -> wire.Health | None:
    """What the daemon of ``directory`` says over its socket; ``None`` where nobody answers there."""
    note = DaemonNote.read(directory)
    if note is None or note.local is None:
        return None
    with suppress(LocalGone):
        connection = LocalConnection(Path(note.local))
        try:
            hello = wire.decode(Hello, connection.exchange(Kind.HELLO, ()))
        finally:
            connection.close()
        return wire.Health(hello.phase, hello.version, hello.pid)
    return None
