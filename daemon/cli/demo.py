"""``kvloom demo``: the main job end to end, on a real model and real text, with what it measured."""

import json
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ...errors import MissingDependency
from ..config import format_size
from .console import examples
from .tables import print_table

__all__ = ["demo"]


@click.command(
    epilog=examples(
        "kvloom demo",
        "kvloom demo --json demo.json --plot demo.svg",
        "kvloom demo --from-json demo.json --plot demo.svg   # draw again, run nothing",
    )
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw them (.svg or .png).")
@click.option(
    "--from-json", "from_json", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Use these figures."
)
@click.option("--documents", "documents_max", type=click.IntRange(8, 60), default=60, help="At most.")
@click.option("--questions", "questions_max", type=click.IntRange(1, 14), default=14, help="At most.")
def demo(
    json_file: Path | None,
    plot_file: Path | None,
    from_json: Path | None,
    documents_max: int,
    questions_max: int,
) -> None:
    """Show what kvloom does, on a real model and real text, in a few minutes.

    Ingests the Python language reference with SmolLM2-135M into a daemon of its
    own (killed once on the way, and restarted), then answers questions over
    four retrieved documents each: by recomputing everything, by loading and
    blending the documents' KV, and by loading an exact prefix.
    """
    if from_json is not None:
        figures = json.loads(from_json.read_text())
    else:
        figures = _run(documents_max, questions_max)
        if json_file is not None:
            json_file.write_text(json.dumps(figures, indent=2) + "\n")
    _report(figures)
    if plot_file is not None:
        from ..demo.plot import plot_demo

        plot_demo(figures, plot_file)
        click.echo(f"drawn to {plot_file}")


def _run(documents_max: int, questions_max: int) -> dict[str, Any]:
    try:
        from ..demo.run import DemoSize, run_demo
    except ImportError as error:
        raise MissingDependency(f"the demo needs {error.name}: pip install 'kvloom[demo]', or make demo") from error
    with tempfile.TemporaryDirectory(prefix="kvloom-demo-") as work_dir, _Bars() as bars:
        size = DemoSize(documents_max=documents_max, questions_max=questions_max)
        return run_demo(Path(work_dir), bars, size=size).to_json()


class _Bars:
    """Progress bars on standard error, one per step."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def step(self, text: str, total: int = 0) -> None:
        """Finish the step before and begin one."""
        self._finish()
        self._task = self._progress.add_task(text, total=total or 1)

    def advance(self, text: str = "") -> None:
        """One part of the step is done."""
        if self._task is not None:
            self._progress.advance(self._task)

    def _finish(self) -> None:
        if self._task is not None:
            total = self._progress.tasks[self._task].total
            completed = self._progress.tasks[self._task].completed
            # A step that was cut short (the kill) keeps the count it reached.
            self._progress.update(self._task, total=completed or total, completed=completed or total)


def _report(figures: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("way")
    for name in ("TTFT", "faster", "first token same", "first 20 same", "KL (nats)"):
        table.add_column(name, justify="right")
    table.add_row("recompute everything", f"{1000 * figures['ttft_s']['recompute']:.0f} ms", "1.0×", "", "", "")
    for way, label in (("blend", "load and blend"), ("prefix", "load exact prefix")):
        table.add_row(
            label,
            f"{1000 * figures['ttft_s'][way]:.0f} ms",
            f"{figures['speedup'][way]:.1f}×",
            f"{figures['agreement']['first_token'][way]:.0%}",
            f"{figures['agreement']['first_20'][way]:.0%}",
            f"{figures['kl'][way]:.2g}",
        )
    click.echo(
        f"\n{figures['model']}: {figures['questions']} questions over 4 of {figures['documents']} documents, "
        f"{figures['context_tokens']:.0f} tokens of context each\n"
    )
    print_table(table)
    kill = figures["killed_in_mid_ingest"]
    click.echo(
        f"\nstored: {figures['bytes_per_token']:.0f} bytes per token at level standard, "
        f"{figures['bytes_per_token_bf16'] / figures['bytes_per_token']:.1f}× smaller than bf16 "
        f"({figures['bits_per_value']:.2f} bits per value)"
        f"\nkilled (SIGKILL) in mid-ingest: {kill['found']} of {kill['acknowledged']} acknowledged chunks found intact"
        f"\nquestions answered by another process than the one that ingested: {figures['daemon_restarted']}"
    )
    for name, tier in figures["tiers"].items():
        click.echo(f"{name} tier: {tier['records']} chunks, {format_size(tier['used_bytes'])}")
