"""``kvloom keys``: make, list and revoke the keys by which tenants are told apart."""

import json
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.table import Table

from ...kvstore.namespace import load_root_secret
from ..access_setup import ROOT_SECRET_NAME
from ..caller import Scope
from ..config import parse_ttl
from ..config_sources import gather
from ..credentials import ApiKey, new_key
from ..credentials_file import CREDENTIALS_NAME, CredentialsFile
from ..settings import ConfigText
from .console import examples, json_option, say
from .tables import print_table, since

__all__ = ["keys"]

_file_option = click.option(
    "--credentials",
    metavar="FILE",
    help="The credentials file.  [default: $KVLOOM_CREDENTIALS, or credentials.toml in the data directory]",
)


@click.group(
    epilog=examples(
        "kvloom keys create --tenant acme                      # may read and write",
        "kvloom keys create --tenant acme --scope read --expires 90d",
        "kvloom keys create --tenant ops --scope admin --note 'Prometheus'",
        "kvloom keys list                                      # --json for programs",
        "kvloom keys revoke 3f9ac41b07d2",
    )
)
def keys() -> None:
    """Make, list and revoke API keys.

    A key belongs to a tenant, whose chunks nobody else sees, and allows some of read, write and admin. A daemon that is
    running takes a change over by itself.
    """


@keys.command(epilog=examples("kvloom keys create --tenant acme --scope read --expires 90d --note vllm"))
@click.option("--tenant", required=True, metavar="NAME", help="Whose chunks the key opens: 1 to 64 of a-z 0-9 . _ -")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it allows; give it again for more.  [default: read and write]",
)
@click.option("--expires", metavar="TIME", default="never", show_default=True, help="After 12h, 90d or never.")
@click.option("--note", metavar="TEXT", default="", help="What it is for.")
@_file_option
@json_option
def create(
    tenant: str, scopes: tuple[str, ...], expires: str, note: str, credentials: str | None, as_json: bool
) -> None:
    """Make a key and print it, this once: only its digest is kept."""
    now = _now()
    seconds = parse_ttl("expires", expires)
    made = new_key(
        secrets.token_bytes(38),
        tenant=tenant,
        scopes=[Scope(scope) for scope in scopes] or [Scope.READ, Scope.WRITE],
        now=now,
        expires=None if seconds is None else now + timedelta(seconds=seconds),
        note=note,
    )
    file = _file(credentials)
    is_new = not file.path.exists()
    file.add(made, _own_secret() if is_new else None)
    if as_json:
        click.echo(json.dumps({"key": made.text, **_record(made.key, now)}, indent=2))
        return
    if is_new:
        say(f"made {file.path}; give the same file to every daemon of one network store")
    say(f"key {made.key.key_id} of tenant {tenant}, {_until(made.key, now)}; it is shown this once:")
    click.echo(made.text)


@keys.command("list")
@_file_option
@json_option
def list_keys(credentials: str | None, as_json: bool) -> None:
    """List keys: whose they are, what they allow, and whether they hold."""
    file, now = _file(credentials), _now()
    found = sorted(file.read().keys.values(), key=lambda key: (key.tenant, key.created))
    if as_json:
        click.echo(json.dumps([_record(key, now) for key in found], indent=2))
        return
    if not found:
        say(f"no keys in {file.path}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "tenant", "scopes", "made", "state", "note"):
        table.add_column(name)
    for key in found:
        age = since((now - key.created).total_seconds())
        holds = key.state(now) == "valid"
        state = _until(key, now) if holds else f"[red]{key.state(now)}[/red]"
        scopes = ", ".join(scope for scope in Scope if scope in key.scopes)
        table.add_row(key.key_id, key.tenant, scopes, f"{age} ago", state, key.note)
    print_table(table)


@keys.command()
@click.argument("key_id", metavar="KEY")
@_file_option
def revoke(key_id: str, credentials: str | None) -> None:
    """Revoke KEY, the 12 digits that `kvloom keys list` shows, for good."""
    if key_id.startswith("kvl_"):
        key_id = key_id.split("_")[1]
    if _file(credentials).revoke(key_id, _now()):
        say(f"key {key_id} is revoked; daemons refuse it within seconds")
    else:
        say(f"key {key_id} was revoked before")


def _file(credentials: str | None) -> CredentialsFile:
    settings = gather(ConfigText(credentials=credentials), os.environ).text
    path = settings.credentials
    return CredentialsFile(Path(path).expanduser() if path else settings.directory() / CREDENTIALS_NAME)


def _own_secret() -> bytes | None:
    """The secret of the daemon here, so that it finds what it has stored; None where it has none yet."""
    path = gather(ConfigText(), os.environ).text.directory() / ROOT_SECRET_NAME
    return load_root_secret(path) if path.exists() else None


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _until(key: ApiKey, now: datetime) -> str:
    if key.expires is None:
        return "valid"
    return f"valid for {since((key.expires - now).total_seconds())}"


def _record(key: ApiKey, now: datetime) -> dict[str, object]:
    return {
        "id": key.key_id,
        "tenant": key.tenant,
        "scopes": [scope.value for scope in Scope if scope in key.scopes],
        "created": key.created.isoformat(),
        "expires": None if key.expires is None else key.expires.isoformat(),
        "state": key.state(now),
        "note": key.note,
    }
