"""Rows out of measured questions, with bootstrap confidence intervals, and the table and plot of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvloom.daemon.figure import figure_saved_to

from .shards import Measured

__all__ = ["Row", "plot", "rows_of", "show", "verdict"]

RESAMPLES = 2000
_Group, _Line = tuple[str, str], tuple[str, float]
"""Model and data set; strategy and ratio."""
NAIVE, FULL, DEFAULT = "naive", "full", "default"
PUBLISHED = ("cacheblend", "cacheblend-gradual", "epic", "cache-craft", "query", "ape")
RATIOS_ALIKE = 0.02
GOALS = ((0.17, 0.90), (0.33, 0.97))
"""Token-layer cost, and what share of the gap is to be closed at no more than that."""


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy at one ratio over the questions of a data set: means, but the median of times.

    KL in nats, the mean over the answer's tokens; ``gap_closed`` is 1 less its quotient by that of ``naive``. The
    intervals are of 95 %, from a bootstrap over questions.
    """

    model: str
    dataset: str
    n: int
    strategy: str
    ratio: float
    token_layer_cost: float
    kl: float
    kl_ci95: tuple[float, float]
    gap_closed: float
    gap_closed_ci95: tuple[float, float]
    kl_first: float
    first_token_agreement: float
    answer_agreement: float
    score: float
    score_ci95: tuple[float, float]
    ttft_s: float
    ttft_ratio: float


def rows_of(measured: Sequence[Measured], seed: int = 0) -> list[Row]:
    """A row for each strategy and ratio of each model and data set, over the questions that all of them have."""
    groups: defaultdict[_Group, defaultdict[_Line, dict[int, Measured]]] = defaultdict(lambda: defaultdict(dict))
    for item in measured:
        groups[item.model, item.dataset][item.strategy, item.ratio][item.index] = item
    found = []
    for by_strategy in groups.values():
        shared = sorted(set.intersection(*(set(items) for items in by_strategy.values())))
        if not shared:
            continue
        picks = np.random.default_rng(seed).integers(0, len(shared), (RESAMPLES, len(shared)))
        tables = {key: [items[index] for index in shared] for key, items in by_strategy.items()}
        naive = next(items for items in tables.values() if items[0].strategy == NAIVE)
        full = next(items for items in tables.values() if items[0].strategy == FULL)
        found += [_row(items, naive, full, picks) for items in tables.values()]
    return found


def _row(items: Sequence[Measured], naive: Sequence[Measured], full: Sequence[Measured], picks: NDArray[Any]) -> Row:
    kl, floor = (np.array([item.outcome.kl for item in table]) for table in (items, naive))
    points = np.array([item.outcome.score for item in items])
    first = items[0]
    return Row(
        model=first.model,
        dataset=first.dataset,
        n=len(items),
        strategy=first.strategy,
        ratio=first.ratio,
        token_layer_cost=float(np.mean([item.outcome.token_layer_cost for item in items])),
        kl=float(kl.mean()),
        kl_ci95=_interval(kl[picks].mean(axis=1)),
        gap_closed=float(1.0 - kl.mean() / floor.mean()),
        gap_closed_ci95=_interval(1.0 - kl[picks].mean(axis=1) / floor[picks].mean(axis=1)),
        kl_first=float(np.mean([item.outcome.kl_first for item in items])),
        first_token_agreement=float(np.mean([item.outcome.first_agrees for item in items])),
        answer_agreement=float(np.mean([item.outcome.answer_agreement for item in items])),
        score=float(points.mean()),
        score_ci95=_interval(points[picks].mean(axis=1)),
        ttft_s=float(np.median([item.outcome.ttft_s for item in items])),
        ttft_ratio=float(
            np.median([one.outcome.ttft_s / item.outcome.ttft_s for one, item in zip(full, items, strict=True)])
        ),
    )


def _interval(samples: NDArray[Any]) -> tuple[float, float]:
    low, high = np.quantile(samples, (0.025, 0.975))
    return float(low), float(high)


def show(rows: Sequence[Row]) -> None:
    """Print the rows as Markdown, one table per model and data set."""
    for model, dataset in dict.fromkeys((row.model, row.dataset) for row in rows):
        block = [row for row in rows if (row.model, row.dataset) == (model, dataset)]
        print(f"\n{dataset}, {model}, {block[0].n} questions\n")
        print(
            "| strategy | ratio | cost | KL [95 %] | gap closed [95 %] | first token | answer | score [95 %] | sooner |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for row in block:
            kl, gap, points = (
                f"{value:{form}} [{low:{form}}, {high:{form}}]"
                for value, (low, high), form in (
                    (row.kl, row.kl_ci95, ".4f"),
                    (100 * row.gap_closed, [100 * end for end in row.gap_closed_ci95], ".0f"),
                    (row.score, row.score_ci95, ".3f"),
                )
            )
            print(
                f"| {row.strategy} | {row.ratio:.2f} | {row.token_layer_cost:.3f} | {kl} | {gap} % | "
                f"{row.first_token_agreement:.0%} | {row.answer_agreement:.0%} | {points} | {row.ttft_ratio:.1f}× |"
            )


def verdict(rows: Sequence[Row]) -> None:
    """Print how the default stands to the published rules at each ratio, and to the goals."""
    for panel in dict.fromkeys((row.model, row.dataset) for row in rows):
        block = [row for row in rows if (row.model, row.dataset) == panel]
        print(f"\n{panel[1]}, {panel[0]}:")
        for row in (row for row in block if row.strategy == DEFAULT):
            near = [other for other in block if other.ratio == 0.0 or abs(other.ratio - row.ratio) <= RATIOS_ALIKE]
            best = min(
                (other for other in near if other.strategy in PUBLISHED), key=lambda other: other.kl, default=None
            )
            if best is not None:
                rival = f"{best.kl:.4f} ({best.strategy} at {best.ratio:g})"
                print(f"  at {row.ratio:g} KL {row.kl:.4f}; the best of the published rules {rival}")
        for cost, share in GOALS:
            within = [row.gap_closed for row in block if row.strategy == DEFAULT and row.token_layer_cost <= cost]
            if within:
                met = "met" if max(within) >= share else "not met"
                print(f"  {max(within):.0%} of the gap at a cost of at most {cost:g} (goal {share:.0%}): {met}")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw KL over token-layer cost, a panel per model and data set. Raises what :func:`figure_saved_to` raises."""
    panels = list(dict.fromkeys((row.model, row.dataset) for row in rows))
    names = [name for name in dict.fromkeys(row.strategy for row in rows) if name != FULL]
    with figure_saved_to(path, width_in=1.2 + 3.6 * len(panels), height_in=4.6) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            block = [row for row in rows if (row.model, row.dataset) == panel]
            for number, name in enumerate(names):
                _draw(axes, [row for row in block if row.strategy == name], name, f"C{number}")
            axes.set_yscale("log")
            axes.set_title(f"{panel[1]}, {panel[0]}, {block[0].n} questions", fontsize=10)
            axes.set_xlabel("token-layers computed, of full prefill's")
            axes.grid(which="both", alpha=0.2)
        figure.axes[0].set_ylabel("KL from full prefill, nats")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8.5, frameon=False)


def _draw(axes: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    line = sorted(rows, key=lambda row: row.token_layer_cost)
    around = np.array([[row.kl - row.kl_ci95[0], row.kl_ci95[1] - row.kl] for row in line])
    ours = name == "default"
    axes.errorbar(
        [row.token_layer_cost for row in line],
        [row.kl for row in line],
        yerr=around.T.clip(min=0.0),
        label=name,
        color=colour,
        marker="o" if ours else "s",
        markersize=4.5,
        linewidth=2.4 if ours else 1.1,
        elinewidth=0.6,
    )
