"""``kvloom config``: what the settings are, where each was said, and a file to begin with."""

import os
from pathlib import Path

import click
from rich.table import Table

from ...errors import ConfigError
from ..config_file import commented_example
from ..config_sources import CONFIG_VARIABLE, Layer, default_config_path, explain, gather, unknown_variables
from ..machine import probe_machine
from ..settings import ConfigText
from .console import examples, json_option, print_json, say
from .setting_options import config_option, setting_options
from .tables import print_table

__all__ = ["config"]


@click.group(
    epilog=examples(
        "kvloom config init                   # a commented file, to begin with",
        "kvloom config explain                # what holds, and where it was said",
        "kvloom config explain --memory 8GiB  # what this flag would come to",
        "kvloom config explain --json         # for programs",
    )
)
def config() -> None:
    """Show the daemon's settings, and where each of them comes from.

    Flags beat environment variables, these beat the configuration file, and that beats the defaults, which fit the
    machine.
    """


@config.command("explain", epilog=examples("kvloom config explain --json | jq '.[] | select(.layer != \"default\")'"))
@setting_options
@json_option
def explain_settings(as_json: bool, config_file: str | None, **flags: str | None) -> None:
    """Show each setting's value, and where it was said.

    Takes the flags of 'kvloom serve'. Passwords are not shown.
    """
    gathered = gather(ConfigText(**flags), os.environ, file=config_file)
    rows = explain(gathered, probe_machine(gathered.text.directory()))
    if as_json:
        print_json(tuple(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("setting", "value", "said in", "default", "limits"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = "dim" if row.layer is Layer.DEFAULT else None
        table.add_row(row.name, row.value, row.source, row.default, row.limits, style=style)
    print_table(table)
    say(f"configuration file: {gathered.file or f'none ({default_config_path()} would be read)'}")
    for name, hint in unknown_variables(os.environ).items():
        say(f"{name} is not a variable of kvloom; {hint}")


@config.command(epilog=examples("kvloom config init --config /etc/kvloom/kvloom.toml"))
@config_option
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(config_file: str | None, force: bool) -> None:
    """Write a file to begin with.

    It names every setting, commented out, with its limits and its default. Only its owner can read it (mode 0600).
    """
    named = config_file or os.environ.get(CONFIG_VARIABLE)
    path = Path(named).expanduser() if named else default_config_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if force:
        path.unlink(missing_ok=True)
    try:
        # Exclusive, and private from the start: the file may come to hold a password.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:  # noqa: PTH123
            stream.write(commented_example())
    except FileExistsError:
        raise ConfigError(f"{path} is there already: --force replaces it") from None
    say(f"made {path}")
