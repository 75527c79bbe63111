"""Measure loading against recomputing over real links, and what the simulator says of the same.

    sudo python bench/links.py --json docs/measurements/links.json --plot docs/planner_links.svg

A real daemon (TLS, keys) in one network namespace; SmolLM2 in float32 on one thread with the RAG pipeline's prefix
path in another; between them a veth pair with ``tc tbf`` on what the daemon sends: constant rates, a step between two
every few seconds, so in mid-stream too, and a proxy that stalls or resets connections. A prompt has 4 chunks of 128
tokens that are stored at levels ``standard`` and ``exact``, and about 60 tokens behind them. Strategies take turns:
compute everything, load everything ``exact``, load everything at ``standard``, and kvloom, which asks the planner and
may load either. On each link kvloom begins without knowledge of it and first asks a few times uncounted, for the
planner to learn it.

``ttft_simulated_s`` is the mean that ``daemon/planner/simulate`` gives for the very requests, at the times when they
were asked, with prefill measured before and after the link, and sizes, decoding and latency at the beginning of this
run. It knows no connections that break.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "security"))

from certificates import Authority
from line_process import LineProcess
from links_bench.namespaces import DAEMON_ADDRESS, FRAME_SHARE, Link, connected
from links_bench.predicted import Asked, predict, scene_of

from kvloom.daemon.figure import figure_saved_to
from kvloom.daemon.planner.simulate import Bandwidth, Scene
from kvloom.daemon.planner.simulate.bandwidth import constant, step

HERE = Path(__file__).parent
PORT, PROXY_PORT = 7117, 7118
SETS, CHUNKS, CHUNK_TOKENS = 3, 4, 128
STRATEGIES = ("always-recompute", "always-load-raw", "always-load-level", "kvloom")
STALL_EVERY_S, STALL_S = 0.5, 0.1
RAW_SECONDS_MAX = 3.0
"""Where loading everything exact takes longer than this, it is asked once."""
SILENCE_SECONDS_MAX = 300
MODELS = Path(platformdirs.user_cache_dir("kvloom", appauthor=False)) / "models"
SCOPES = ("read", "write", "admin")


@dataclass(frozen=True, slots=True)
class LinkKind:
    """A link to measure on; with ``low_bits_per_s`` it changes between the two every ``seconds``."""

    name: str
    bits_per_s: float
    low_bits_per_s: float | None = None
    seconds: float = 0.0
    fault: str | None = None

    def bandwidth(self) -> Bandwidth | None:
        """As the simulator takes it; ``None`` for what it does not know."""
        rate = self.bits_per_s / 8 * FRAME_SHARE
        if self.low_bits_per_s is not None:
            return step(rate, self.low_bits_per_s / 8 * FRAME_SHARE, self.seconds)
        if self.fault == "stalls":
            return Bandwidth((0.0, STALL_EVERY_S - STALL_S, STALL_EVERY_S), (rate, 0.0))
        return constant(rate) if self.fault is None else None


LINKS = (
    LinkKind("5 Mb/s", 5e6),
    LinkKind("20 Mb/s", 20e6),
    LinkKind("50 Mb/s", 50e6),
    LinkKind("200 Mb/s", 200e6),
    LinkKind("500 Mb/s", 500e6),
    LinkKind("2 Gb/s", 2e9),
    LinkKind("step 50, 2 Mb/s", 50e6, 2e6, 3.0),
    LinkKind("50 Mb/s, stalls", 50e6, fault="stalls"),
    LinkKind("50 Mb/s, resets", 50e6, fault="resets"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy on one link; ``bytes`` are those that came over it, a mean per request."""

    link: str
    strategy: str
    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    bytes: float
    loaded_chunks: float
    ttft_simulated_s: float | None
    simulated_over_real: float | None


class Process:
    """The engine in its namespace, asked one thing at a time."""

    def __init__(self, link: Link, options: dict[str, Any]) -> None:
        command = [sys.executable, str(HERE / "links_bench/engine.py"), json.dumps(options)]
        environ = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        inside = link.inside(link.engine, *command)
        self._process = LineProcess(inside, environ=environ, seconds_max=SILENCE_SECONDS_MAX)

    def ask(self, **told: Any) -> Any:
        """Its answer."""
        self._process.tell(told)
        return self._process.line()

    def close(self) -> None:
        """Let it end."""
        self._process.close()


@contextmanager
def daemon(link: Link, folder: Path, authority: Authority) -> Iterator[str]:
    """A daemon in its namespace, reached over the link; a key for it."""
    kvloom = (sys.executable, "-m", "kvloom.daemon.cli")
    pair, data = authority.sign("daemon", DAEMON_ADDRESS), folder / "data"
    environ = {**os.environ, "KVLOOM_DATA_DIR": str(data), "XDG_CONFIG_HOME": str(folder)}
    made = subprocess.run(
        [*kvloom, "keys", "create", "--tenant", "bench", "--json", *(f"--scope={name}" for name in SCOPES)],
        env=environ, check=True, capture_output=True, text=True,
    )  # fmt: skip
    serve = ("serve", "--host", DAEMON_ADDRESS, "--port", str(PORT), "--memory", "1GiB", "--ssd", "1GiB")
    tls = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key), "--log-format", "json")
    process = subprocess.Popen(
        link.inside(link.daemon, *kvloom, *serve, *tls), env=environ, stderr=subprocess.PIPE, text=True
    )
    try:
        said = []
        while (line := process.stderr.readline()) and '"ready"' not in line:
            said.append(line)
        if not line:
            sys.exit(f"the daemon did not start: {''.join(said)[-500:]}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield json.loads(made.stdout)["key"]
    finally:
        process.terminate()
        process.wait(SILENCE_SECONDS_MAX)


@contextmanager
def shaped(link: Link, kind: LinkKind) -> Iterator[tuple[str, float]]:
    """The link as ``kind`` says: which address to ask, and when it began (by the system's clock)."""
    stop, threads, proxy = threading.Event(), [], None
    began = np.ceil(time.time() / STALL_EVERY_S) * STALL_EVERY_S
    link.set_rate(kind.bits_per_s)
    if kind.low_bits_per_s is not None:

        def switch() -> None:
            turn = 0
            while not stop.wait(max(0.0, began + turn * kind.seconds - time.time())):
                link.set_rate(kind.low_bits_per_s if turn % 2 else kind.bits_per_s)
                turn += 1

        threads.append(threading.Thread(target=switch))
    elif kind.fault is not None:
        ends = (f"{DAEMON_ADDRESS}:{PROXY_PORT}", f"{DAEMON_ADDRESS}:{PORT}", kind.fault)
        command = link.inside(link.daemon, sys.executable, str(HERE / "links_bench/bad_proxy.py"), *ends)
        proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        proxy.stdout.readline()
    for thread in threads:
        thread.start()
    try:
        yield "direct" if kind.fault is None else "proxy", float(began)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        if proxy is not None:
            proxy.terminate()
            proxy.wait()


def measured(
    link: Link, kind: LinkKind, engine: Process, rounds: int, warm_up: int
) -> tuple[float, dict[str, list[dict[str, Any]]]]:
    """When the link began, and the answers of each strategy; kvloom's first ``warm_up`` are not to be counted."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in STRATEGIES}
    with shaped(link, kind) as (address, began):

        def ask(name: str, turn: int) -> None:
            told = {"strategy": name, "set": turn % SETS, "question": f"What follows from point {turn}?"}
            answers[name].append(engine.ask(do="ask", address=address, **told))

        for turn in range(warm_up):
            ask("kvloom", turn)
        for turn in range(rounds):
            for name in STRATEGIES:
                slow = answers[name] and name == "always-load-raw" and answers[name][-1]["ttft_s"] > RAW_SECONDS_MAX
                if not slow:
                    ask(name, turn)
    return began, answers


def row_of(
    kind: LinkKind, name: str, answers: Sequence[dict[str, Any]], began: float, scene: Scene, warm_up: int
) -> Row:
    """What was measured, beside what the simulator says."""
    skipped = warm_up if name == "kvloom" else 0
    bandwidth, simulated = kind.bandwidth(), None
    if bandwidth is not None:
        numbers = [turn % SETS for turn in range(warm_up)] if skipped else []
        numbers += [turn % SETS for turn in range(len(answers) - skipped)]
        asked = [
            Asked(max(0.0, item["began"] - began), number, item["prompt_tokens"] - CHUNKS * CHUNK_TOKENS)
            for item, number in zip(answers, numbers, strict=True)
        ]
        shape = {"sets": SETS, "chunks": CHUNKS, "chunk_tokens": CHUNK_TOKENS}
        simulated = statistics.mean(predict(scene, name, asked, bandwidth, **shape)[skipped:])
    counted = answers[skipped:]
    seconds = [item["ttft_s"] for item in counted]
    mean = statistics.mean(seconds)
    return Row(
        kind.name, name, len(counted), mean, float(np.median(seconds)), float(np.quantile(seconds, 0.95)),
        statistics.mean(item["bytes"] for item in counted), statistics.mean(item["loaded"] for item in counted),
        simulated, None if simulated is None else simulated / mean,
    )  # fmt: skip


def show(rows: Sequence[Row]) -> None:
    print(
        f"{'link':18}{'strategy':20}{'n':>4}{'TTFT ms':>9}{'p50':>8}{'p95':>8}{'MB':>8}{'chunks':>8}{'simulated':>11}"
    )
    for row in rows:
        simulated = "" if row.ttft_simulated_s is None else f"{1e3 * row.ttft_simulated_s:,.0f}"
        off = "" if row.simulated_over_real is None else f" ({row.simulated_over_real - 1:+.0%})"
        print(
            f"{row.link:18}{row.strategy:20}{row.requests:4d}{1e3 * row.ttft_mean_s:9,.0f}{1e3 * row.ttft_p50_s:8,.0f}"
            f"{1e3 * row.ttft_p95_s:8,.0f}{row.bytes / 1e6:8.2f}{row.loaded_chunks:8.1f}{simulated:>11}{off}"
        )


def plot(rows: Sequence[Row], path: Path) -> None:
    """A group of bars per link, the simulator's say as a line across each."""
    colours = dict(zip(STRATEGIES, ("#9aa5ab", "#c9b18a", "#b07d12", "#2f6fde"), strict=True))
    links = list(dict.fromkeys(row.link for row in rows))
    with figure_saved_to(path, width_in=9.5, height_in=3.4) as figure:
        axes = figure.subplots()
        width = 0.8 / len(STRATEGIES)
        for index, name in enumerate(STRATEGIES):
            mine = [row for row in rows if row.strategy == name]
            places = [links.index(row.link) + (index - 1.5) * width for row in mine]
            axes.bar(places, [row.ttft_mean_s for row in mine], width, label=name, color=colours[name], zorder=2)
            known = [
                (place, row.ttft_simulated_s) for place, row in zip(places, mine, strict=True) if row.ttft_simulated_s
            ]
            axes.hlines(
                [seconds for _, seconds in known], [place - width / 2 for place, _ in known],
                [place + width / 2 for place, _ in known], color="#222", linewidth=1.2, zorder=3,
                label="simulated" if index == len(STRATEGIES) - 1 else None,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xticks(range(len(links)), labels=[link.replace(", ", ",\n") for link in links], fontsize=7.5)
        axes.set_ylabel("mean TTFT, s", fontsize=9)
        axes.grid(axis="y", color="#ddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--plot", type=Path, help="draw it (.svg, .png)")
    parser.add_argument("--rounds", type=int, default=6, help="requests of each strategy on each link (default 6)")
    parser.add_argument("--warm-up", type=int, default=5, help="requests by which kvloom learns a link (default 5)")
    parser.add_argument("--link", action="append", choices=[kind.name for kind in LINKS], help="only these")
    parser.add_argument(
        "--models", type=Path, default=Path(platformdirs.user_cache_dir("kvloom", appauthor=False)) / "models"
    )
    parser.add_argument("--profile", type=Path, help="of the codec: read from here, or made and kept here")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    if os.geteuid() != 0:
        sys.exit("network namespaces and tc need root")
    kinds = [kind for kind in LINKS if asked.link is None or kind.name in asked.link]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, connected() as link:
        folder = Path(name)
        authority = Authority(folder)
        with daemon(link, folder, authority) as key:
            options = {
                "direct": f"https://{DAEMON_ADDRESS}:{PORT}", "proxy": f"https://{DAEMON_ADDRESS}:{PROXY_PORT}",
                "key": key, "ca": str(authority.ca), "received_file": link.received_file, "sets": SETS,
                "models": str(asked.models), "profile": None if asked.profile is None else str(asked.profile),
            }  # fmt: skip
            engine = Process(link, options)
            prepared = engine.ask(do="prepare")
            prefills = [engine.ask(do="prefills")]
            for kind in kinds:
                link.set_rate(None)
                engine.ask(do="forget", name=re.sub(r"[^0-9a-z]+", "-", kind.name.lower()))
                began, answers = measured(link, kind, engine, asked.rounds, asked.warm_up)
                prefills.append(engine.ask(do="prefills"))
                scene = scene_of(prepared, prefills[-2] + prefills[-1])
                rows += [row_of(kind, name, answers[name], began, scene, asked.warm_up) for name in STRATEGIES]
                show(rows[-len(STRATEGIES) :])
                if asked.json is not None:
                    record = {"prepared": prepared, "prefills": prefills, "rows": [asdict(row) for row in rows]}
                    asked.json.write_text(json.dumps(record, indent=1) + "\n")
            engine.close()
    print()
    show(rows)
    if asked.plot is not None:
        plot(rows, asked.plot)


if __name__ == "__main__":
    main()
