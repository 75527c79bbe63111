"""``kvloom scrub``: have a running daemon verify all that it has on disk."""

import time

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ...clients import KvloomClient
from ...clients.scrubs import ScrubReport
from ...errors import DaemonUnavailable
from ..config import format_size
from .console import ExitCode, Stop, address_option, examples, json_option, print_json, say
from .tables import since

__all__ = ["scrub"]

_POLL_SECONDS = 0.25


@click.command(epilog=examples("kvloom scrub --wait", "kvloom scrub", "kvloom scrub --status --json"))
@click.option("--wait", is_flag=True, help="Show how far it has come, until it is done.")
@click.option("--status", is_flag=True, help="Begin none; say how far the last one has come.")
@address_option
@json_option
def scrub(wait: bool, status: bool, address: str | None, as_json: bool) -> None:
    """Have the daemon read all of its SSD tier and verify it, while it serves.

    Damaged chunks are deleted: they are misses from then on. Where a scrub is under way already, that one is meant.
    Needs a key with scope admin. Exit code 1 where something was damaged or the disk failed. The daemon does the same
    by itself, slowly, over and over.
    """
    with KvloomClient(address) as client:
        report = client.scrub_report() if status else client.start_scrub()
        if wait and report.running:
            report = _watched(client, report)
    if as_json:
        print_json(report)
    else:
        say(_summary(report))
    if not report.running and (report.damaged or report.failure is not None):
        raise Stop(ExitCode.FAILED)


def _watched(client: KvloomClient, report: ScrubReport) -> ScrubReport:
    """The report at the end; meanwhile a bar on the terminal, if there is one."""
    columns = (TextColumn("scrub"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    number = report.number
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("scrub", total=report.total_bytes)
        while report.running:
            time.sleep(_POLL_SECONDS)
            report = client.scrub_report()
            if report.number != number:
                raise DaemonUnavailable("the daemon was started anew before the scrub was done")
            progress.update(bar, completed=report.size_bytes, total=max(report.total_bytes, report.size_bytes))
    return report


def _summary(report: ScrubReport) -> str:
    if report.number == 0:
        return "no scrub was asked for since the daemon started"
    seen = f"{report.records:,} records, {format_size(report.size_bytes)}"
    if report.running:
        return f"scrub under way: {seen} of {format_size(report.total_bytes)} read, {report.damaged} damaged"
    summary = f"{seen} verified in {since(report.seconds)}, {report.damaged} damaged and deleted"
    return summary if report.failure is None else f"scrub ended early: {report.failure}; {summary}"
