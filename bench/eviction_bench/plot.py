"""The seconds saved over the capacity, a panel per trace."""

from collections.abc import Sequence
from pathlib import Path

from kvloom.daemon.figure import figure_saved_to

from .result import Row

__all__ = ["plot_rows"]

_STYLES = {
    "gittins": ("#2f6fde", "o", 2.4, "-"),
    "lru": ("#5c6b73", "s", 1.5, "-"),
    "s3-fifo": ("#b07d12", "^", 1.5, "-"),
    "w-tinylfu": ("#7a5195", "D", 1.5, "-"),
    "gdsf": ("#d1495b", "v", 1.5, "-"),
    "belady": ("#333333", "", 1.2, "--"),
    "flow bound": ("#999999", "", 1.2, ":"),
}
"""Colour, marker, line width, dashes; other rows are not drawn."""


def plot_rows(rows: Sequence[Row], path: Path) -> None:
    """Draw ``rows`` to ``path`` (``.svg`` or ``.png``). Raises what :func:`figure_saved_to` raises."""
    traces = list(dict.fromkeys(row.trace for row in rows))
    with figure_saved_to(path, width_in=1.2 + 3.4 * len(traces), height_in=4.2) as figure:
        panels = figure.subplots(1, len(traces), squeeze=False)[0]
        for panel, trace in zip(panels, traces, strict=True):
            for policy, (colour, marker, width, dashes) in _STYLES.items():
                points = [row for row in rows if (row.trace, row.policy, row.hints) == (trace, policy, "none")]
                panel.plot(
                    [row.capacity_percent for row in points],
                    [100 * row.saved_share for row in points],
                    color=colour,
                    marker=marker or None,
                    markersize=4,
                    linewidth=width,
                    linestyle=dashes,
                    label=policy,
                    zorder=3 if policy == "gittins" else 2,
                )
            panel.set_xscale("log")
            panel.set_xticks([1, 2, 5, 10, 30], labels=["1", "2", "5", "10", "30"])
            panel.minorticks_off()
            panel.set_title(trace, fontsize=10)
            panel.set_xlabel("capacity, % of unique blocks")
            panel.set_ylim(bottom=0)
            panel.grid(which="major", color="#ddd", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("prefill seconds saved, % of all")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8.5, frameon=False)
