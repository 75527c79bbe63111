"""``kvloom fsck``: check the chunks on disk while no daemon uses them."""

import asyncio
from pathlib import Path

import click

from ..config import format_size
from .console import ExitCode, Stop, examples, json_option, print_json, say

__all__ = ["fsck"]

_SPARE_BYTES = 1024**3
"""Repairing makes lists anew and writes deletions: room for that, so that nothing is evicted."""


@click.command(epilog=examples("kvloom fsck ~/.local/share/kvloom", "kvloom fsck --repair /data/kvloom/chunks"))
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repair", is_flag=True, help="Delete damaged records, so that they are misses at once.")
@json_option
def fsck(directory: Path, repair: bool, as_json: bool) -> None:
    """Read every byte of the SSD tier in DIRECTORY (a data directory, or its chunks) and verify it.

    Changes nothing without --repair. Exit code 1 where something is damaged.
    """
    from ...kvstore.ssd.fsck import check_directory  # here: --help needs none of it

    chunks = directory / "chunks"
    directory = chunks if chunks.is_dir() else directory
    report = check_directory(directory)
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            click.echo(f"{finding.file} at {finding.offset}: {finding.detail}")
        say(
            f"{report.segments} segments, {report.records} records, {format_size(report.size_bytes)} verified, "
            f"{len(report.findings)} damaged"
        )
    if repair and report.findings:
        taken_bytes = sum(path.stat().st_size for path in directory.iterdir())
        deleted = asyncio.run(_repair(directory, 2 * taken_bytes + _SPARE_BYTES))
        say(f"{deleted} damaged records deleted, lists made anew")
    elif report.findings:
        raise Stop(ExitCode.FAILED)


async def _repair(directory: Path, limit_bytes: int) -> int:
    """Open the tier, which drops what has no frame any more, and scrub it once; how many records were deleted."""
    from ...kvstore.ssd.scrub import Scrubber
    from ...kvstore.ssd.tier import SsdTier

    tier = await asyncio.to_thread(SsdTier.open, directory, limit_bytes)
    try:
        return (await Scrubber(tier, directory).once()).damaged
    finally:
        await tier.close()
