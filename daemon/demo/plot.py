"""Draw what the demo measured, as the README shows it: time to first token, and bytes per token."""

from pathlib import Path
from typing import Any

from ..figure import figure_saved_to

__all__ = ["plot_demo"]

_COLOURS = {"recompute": "#8a8f98", "blend": "#2f6fde", "prefix": "#1d9a6c"}
_LABELS = {"recompute": "recompute\nall", "blend": "load and\nblend", "prefix": "load exact\nprefix"}


def plot_demo(figures: dict[str, Any], path: Path) -> None:
    """Draw ``figures`` (:meth:`DemoResult.to_json`) to ``path``. Raises what :func:`figure_saved_to` raises."""
    with figure_saved_to(path, width_in=8.4, height_in=3.6) as figure:
        times, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_times(times, figures)
        _draw_sizes(sizes, figures)
        figure.suptitle(
            f"{figures['model']}: {figures['questions']} questions over 4 of {figures['documents']} documents, "
            f"{figures['context_tokens']:.0f} tokens of context each",
            fontsize=10,
        )


def _draw_times(axes: Any, figures: dict[str, Any]) -> None:
    for place, way in enumerate(_LABELS):
        every = [1000 * row["ttft_s"][way] for row in figures["rows"]]
        typical = 1000 * figures["ttft_s"][way]
        axes.bar(place, typical, width=0.62, color=_COLOURS[way], alpha=0.85)
        axes.plot([place] * len(every), every, "o", markersize=3, color="#222", alpha=0.45)
        times_faster = "" if way == "recompute" else f"\n{figures['speedup'][way]:.1f}× faster"
        axes.annotate(
            f"{typical:.0f} ms{times_faster}", (place, max(every)), (0, 5), textcoords="offset points", ha="center"
        )
    axes.set_xticks(range(len(_LABELS)), list(_LABELS.values()))
    axes.set_ylabel("time to first token, ms (bar: median)")
    axes.margins(y=0.22)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sizes(axes: Any, figures: dict[str, Any]) -> None:
    raw, stored = figures["bytes_per_token_bf16"] / 1024, figures["bytes_per_token"] / 1024
    for place, (value, colour) in enumerate(((raw, _COLOURS["recompute"]), (stored, _COLOURS["blend"]))):
        axes.bar(place, value, width=0.62, color=colour, alpha=0.85)
        axes.annotate(f"{value:.1f} KiB", (place, value), (0, 4), textcoords="offset points", ha="center")
    axes.annotate(
        f"{figures['bits_per_value']:.2f} bits per value", (1, stored), (0, 18), textcoords="offset points", ha="center"
    )
    axes.set_xticks((0, 1), ("raw bf16", "stored\n(standard)"))
    axes.set_ylabel("KV per token, KiB")
    axes.margins(y=0.22)
    axes.spines[["top", "right"]].set_visible(False)
