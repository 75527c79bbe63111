"""How verbs print for people: tables and times."""

from typing import Final

import click
from rich.console import Console
from rich.table import Table

__all__ = ["print_table", "since"]

_PIPE_COLUMNS: Final = 160


def print_table(table: Table) -> None:
    """A table on standard output: as wide as the terminal, or as it needs where there is none (a pipe, a file)."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())  # columns are padded; what is copied from a terminal should not be


def since(seconds: float) -> str:
    """A length of time for a person: ``4 s``, ``3 min``, ``5.2 h``, ``12 days``."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
