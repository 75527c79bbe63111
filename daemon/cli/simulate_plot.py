"""Mean time to first token of each strategy over that of the optimum: a panel per trace, a group of bars per link."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..figure import figure_saved_to
from ..planner.simulate import Row

__all__ = ["plot_rows"]

_COLOURS: Final = {
    "always-recompute": "#9aa5ab",
    "always-load-raw": "#c9b18a",
    "always-load-level": "#b07d12",
    "cachegen": "#7a5195",
    "bidirectional": "#d1495b",
    "kvloom": "#2f6fde",
}
_RATIO_SHOWN_MAX: Final = 4.0


def plot_rows(rows: Sequence[Row], path: Path) -> None:
    """Draw ``rows`` to ``path`` (``.svg`` or ``.png``). Raises as :func:`figure_saved_to` does."""
    panels = list(dict.fromkeys((row.trace, row.engine, row.ability) for row in rows))
    with figure_saved_to(path, width_in=9.5, height_in=0.6 + 2.1 * len(panels)) as figure:
        _draw(figure, rows, panels)


def _draw(figure: Any, rows: Sequence[Row], panels: Sequence[tuple[str, str, str]]) -> None:
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for panel, where in zip(axes, panels, strict=True):
        here = [row for row in rows if (row.trace, row.engine, row.ability) == where]
        links = list(dict.fromkeys(row.link for row in here))
        base = {row.link: row.ttft_mean_s for row in here if row.strategy == "optimum"}
        names = [name for name in _COLOURS if any(row.strategy == name for row in here)]
        width = 0.8 / max(len(names), 1)
        for index, name in enumerate(names):
            found = {row.link: row.ttft_mean_s for row in here if row.strategy == name}
            heights = [found[link] / base[link] if link in found and link in base else 0.0 for link in links]
            places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(links))]
            panel.bar(places, heights, width, label=name, color=_COLOURS[name], zorder=2)
            for place, height in zip(places, heights, strict=True):
                if height > _RATIO_SHOWN_MAX:
                    panel.text(place, _RATIO_SHOWN_MAX, f"{height:.0f}×", ha="center", va="bottom", fontsize=5.5)
        panel.axhline(1.0, color="#333", linewidth=0.8, zorder=3)
        panel.set_ylim(0, _RATIO_SHOWN_MAX * 1.06)
        panel.set_xticks(range(len(links)), labels=links, fontsize=7.5)
        panel.set_title(", ".join(where), fontsize=9, loc="left")
        panel.grid(axis="y", color="#ddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supylabel("mean TTFT over the optimum's", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
