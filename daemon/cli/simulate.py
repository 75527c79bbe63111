"""``kvloom simulate``: what loading, recomputing and planning would do for a trace over a link."""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click
from rich.table import Table

from ...errors import ConfigError, InvalidData, InvalidRequest
from ...kvstore.atomic_file import replace_file
from ...kvstore.eviction_choice import DEFAULT_POLICY, PolicyName
from ..config import format_size, parse_size
from ..planner.request import Ability
from ..planner.simulate import (
    ENGINES,
    OPTIMUM,
    Bandwidth,
    ClassRow,
    Experiment,
    Outcome,
    Row,
    Scene,
    Synthetic,
    Workload,
    engine_figures,
    goals,
    limits,
    strategies_for,
    synthetic,
    utilisation,
)
from ..planner.simulate.bandwidth import recorded
from ..planner.simulate.link_spec import LINK_FORMS, parse_link
from ..planner.simulate.planned import STRATEGIES
from ..planner.simulate.traces import azure, mooncake, retrieval
from .console import examples, say
from .simulate_plot import plot_rows
from .tables import print_table

__all__ = ["Settings", "bandwidth_of", "simulate", "staged"]

_REQUESTS_DEFAULT: Final = 2000
_LOAD_MAX: Final = 0.95


@dataclass(frozen=True, slots=True)
class Settings:
    """What all runs of one call share."""

    engine: str
    ability: Ability
    level: str
    slo_s: float | None
    latency_s: float
    nodes: int | None
    nodes_per_link: int
    load: float
    requests: int
    capacity_bytes: int | None
    policy: str
    seed: int
    with_optimum: bool


@click.command(
    epilog=examples(
        "kvloom simulate --link step:10Gb,1Gb,5",
        "kvloom simulate mooncake_conversation_trace.jsonl --link congested:10Gb",
        "kvloom simulate musique_100.json --engine smollm2-cpu --link lte",
        "kvloom simulate --requests 100000 --nodes 200 --no-optimum --strategy kvloom",
    )
)
@click.argument("traces", nargs=-1, metavar="[TRACE]...")
@click.option(
    "--link",
    "links",
    multiple=True,
    default=("constant:10Gb",),
    show_default=True,
    help=f"{LINK_FORMS}, or a file of seconds,bytes_per_s.",
)
@click.option(
    "--strategy",
    "names",
    multiple=True,
    type=click.Choice(list(STRATEGIES)),
    metavar="NAME",
    help=f"One of {', '.join(STRATEGIES)}.  [default: all]",
)
@click.option("--engine", type=click.Choice(list(ENGINES)), default="llama3-8b-h100", show_default=True)
@click.option("--ability", type=click.Choice([item.value for item in Ability]), default="any_chunk", show_default=True)
@click.option("--level", default="standard", show_default=True, help="The coarsest level that may be used.")
@click.option("--slo", "slo_s", type=click.FloatRange(1e-3, 3600), help="Seconds to aim at.  [default: the engine's]")
@click.option("--latency-ms", type=click.FloatRange(0, 10_000), default=1.0, show_default=True)
@click.option("--nodes", type=click.IntRange(1, limits.SIMULATED_NODES_MAX), help="[default: as many as --load takes]")
@click.option("--nodes-per-link", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--load",
    type=click.FloatRange(0.01, _LOAD_MAX),
    default=0.5,
    show_default=True,
    help="How busy engines are that compute everything.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, limits.SIMULATED_REQUESTS_MAX),
    default=_REQUESTS_DEFAULT,
    show_default=True,
    help="At most so many.",
)
@click.option("--capacity", help="Of the store, as 20GB.  [default: everything fits]")
@click.option(
    "--policy", type=click.Choice([item.value for item in PolicyName]), default=DEFAULT_POLICY.value, show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--optimum/--no-optimum", "with_optimum", default=True, help="Reckon the bound too, which takes as long.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all rows here.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path, dir_okay=False), help="Draw them (.svg, .png).")
def simulate(
    traces: tuple[str, ...],
    links: tuple[str, ...],
    names: tuple[str, ...],
    engine: str,
    ability: str,
    level: str,
    slo_s: float | None,
    latency_ms: float,
    nodes: int | None,
    nodes_per_link: int,
    load: float,
    requests: int,
    capacity: str | None,
    policy: str,
    seed: int,
    with_optimum: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Compare strategies on traces of requests and on links.

    A TRACE is a file of Mooncake (.jsonl) or Azure (.csv), a file of questions with passages (.json), or
    'synthetic', the default. Everything is simulated: nothing is loaded, stored or computed.
    """
    settings = Settings(
        engine,
        Ability(ability),
        level,
        slo_s,
        latency_ms / 1e3,
        nodes,
        nodes_per_link,
        load,
        requests,
        None if capacity is None else parse_size("capacity", capacity),
        policy,
        seed,
        with_optimum,
    )
    chosen = strategies_for(settings.ability, names or tuple(STRATEGIES))
    rows: list[Row] = []
    classes: list[ClassRow] = []
    for trace in traces or ("synthetic",):
        workload, scene = staged(trace, settings)
        for link in links:
            experiment = Experiment(
                workload,
                scene,
                Path(link).stem if Path(link).is_file() else link,
                bandwidth_of(link, seed),
                settings.capacity_bytes,
                policy,
                seed,
            )
            for name in chosen:
                outcome = _told(experiment, name, with_optimum)
                rows.append(outcome.row)
                classes += outcome.classes
                if outcome.optimum_row is not None and name == chosen[-1]:
                    rows.append(outcome.optimum_row)
    print_table(_table(rows))
    if json_file is not None:
        replace_file(json_file, _record(settings, rows, classes))
    if plot_file is not None:
        plot_rows(rows, plot_file)


def _told(experiment: Experiment, name: str, with_optimum: bool) -> Outcome:
    """Run it, and say how far it is and what it took: a million requests are minutes."""
    what, count = f"{experiment.workload.name} over {experiment.link}: {name}", len(experiment.workload)
    began = time.process_time()

    def progress(arrived: int) -> None:
        say(f"{what}, {arrived:,} of {count:,} requests, {time.process_time() - began:,.0f} s of a core")

    outcome = experiment.run(name, STRATEGIES[name], with_optimum=with_optimum, progress=progress)
    say(f"{what}, {count:,} requests in {time.process_time() - began:,.1f} s of a core")
    return outcome


def _record(settings: Settings, rows: list[Row], classes: list[ClassRow]) -> bytes:
    record = {
        "settings": asdict(settings),
        "goals": [asdict(item) for item in goals(rows, classes)],
        "rows": [asdict(row) for row in rows],
        "classes": [asdict(row) for row in classes],
    }
    return (json.dumps(record, indent=1) + "\n").encode()


def staged(trace: str, settings: Settings) -> tuple[Workload, Scene]:
    """The workload of a trace, and engines enough for it (or a pace that the engines asked for can keep)."""
    engine = engine_figures(settings.engine)
    if settings.slo_s is not None:
        engine = replace(engine, slo_s=settings.slo_s)
    coarsest = engine.levels.index(engine.level(settings.level))
    workload, paced = _workload(trace, settings)
    workload = workload.head(settings.requests)
    scene = Scene(
        engine,
        engine.levels[coarsest:],
        settings.ability,
        settings.nodes or 1,
        settings.nodes_per_link,
        settings.latency_s,
    )
    busy = utilisation(workload, scene)
    if settings.nodes is None and not paced:
        scene = replace(scene, nodes=min(max(math.ceil(busy / settings.load), 1), limits.SIMULATED_NODES_MAX))
    elif paced:
        scene = replace(scene, nodes=settings.nodes or 4)
        workload = workload.paced(settings.load * scene.nodes / busy)
    return workload, scene


def _workload(trace: str, settings: Settings) -> tuple[Workload, bool]:
    """A workload, and whether its arrivals are ours to pace."""
    if trace == "synthetic":
        return synthetic(Synthetic(settings.requests, per_second=1.0), settings.seed), True
    path = Path(trace)
    if not path.is_file():
        raise InvalidRequest(f"trace {trace!r} is neither a file nor 'synthetic'")
    size = path.stat().st_size
    if size > limits.SIMULATED_TRACE_BYTES_MAX:
        most = format_size(limits.SIMULATED_TRACE_BYTES_MAX)
        raise InvalidRequest(f"trace {trace} has {format_size(size)}, the limit is {most}")
    name = path.stem
    if path.suffix == ".jsonl":
        return mooncake(name.removesuffix("_trace"), path.read_text().splitlines()), False
    if path.suffix == ".csv":
        return azure(name, path.read_text().splitlines()), False
    passages = _passages(path)
    return retrieval(name, passages, requests=settings.requests, per_second=1.0, seed=settings.seed), True


def _passages(path: Path) -> list[list[str]]:
    """The passages of each question, from a list of records with ``ctxs`` of ``title`` and ``text`` (MuSiQue)."""
    try:
        rows = json.loads(path.read_text())
        return [[f"{item['title']}\n{item['text']}" for item in row["ctxs"]] for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidData(f"{path} is not a list of questions with 'ctxs' of 'title' and 'text'") from error


def bandwidth_of(link: str, seed: int) -> Bandwidth:
    """A link by its form, or from a file."""
    path = Path(link)
    if path.is_file():
        if path.stat().st_size > limits.SIMULATED_TRACE_BYTES_MAX:
            raise ConfigError(f"{link} is larger than {format_size(limits.SIMULATED_TRACE_BYTES_MAX)}")
        return recorded(path.read_text().splitlines())
    return parse_link(link, seed)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trace", "link", "strategy"):
        table.add_column(name)
    for name in ("TTFT ms", "p50", "p95", "p99", "in time", "MB", "engine ms", "loss", "loaded", "of optimum"):
        table.add_column(name, justify="right")
    for row in rows:
        times = (row.ttft_mean_s, row.ttft_p50_s, row.ttft_p95_s, row.ttft_p99_s)
        table.add_row(
            row.trace,
            row.link,
            row.strategy,
            *(f"{1e3 * value:,.1f}" for value in times),
            f"{row.slo_attainment:.1%}",
            f"{row.bytes / 1e6:,.1f}",
            f"{1e3 * row.gpu_s:,.1f}",
            f"{row.quality_loss:.5f}",
            "" if row.strategy == OPTIMUM else f"{row.loaded_share:.0%}",
            f"{row.optimum_ratio:.3f}" if row.optimum_ratio else "",
        )
    return table
