"""Rate-distortion plots of the quality rows: KL over bits per value, a panel per kind of text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvloom.daemon.figure import figure_saved_to

from .quality import QualityRow

_STYLES = {
    "kvloom": ("#2f6fde", "o", 2.4),
    "kvloom-generic": ("#1d9a6c", "o", 1.8),
    "kvloom-single-rate": ("#2f6fde", "", 1.0),
    "cachegen": ("#d1495b", "s", 1.8),
    "turboquant": ("#b07d12", "^", 1.3),
    "kivi": ("#7a5195", "D", 1.3),
    "kvquant": ("#ef8354", "v", 1.3),
    "gear": ("#5c6b73", "P", 1.3),
    "zipcache": ("#8d99ae", "X", 1.3),
    "mikv": ("#a3a36b", "<", 1.3),
}
"""Colour, marker, line width; what is not here (``raw``, ``kvloom-exact``) has no place in a plot of what is lost."""
_BITS_MAX = 6.5
_KL_MIN, _KL_MAX = 1e-3, 2.0
_TARGET = (0.005, 0.03)
"""Where schemes are compared at equal KL: shaded."""


def plot_quality(rows: Sequence[QualityRow], path: Path) -> None:
    """Draw ``rows`` to ``path`` (``.svg`` or ``.png``). Raises what :func:`figure_saved_to` raises."""
    texts = list(dict.fromkeys(row.text for row in rows))
    with figure_saved_to(path, width_in=1.2 + 3.6 * len(texts), height_in=4.6) as figure:
        panels = figure.subplots(1, len(texts), sharex=True, sharey=True, squeeze=False)[0]
        for panel, text in zip(panels, texts, strict=True):
            _draw(panel, [row for row in rows if row.text == text and row.scheme in _STYLES])
            panel.set_title(text, fontsize=10)
            panel.set_xlabel("bits per value, all counted")
        panels[0].set_ylabel("KL divergence from the unquantised cache, nats")
        pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels]
        named = {label: line for panel_pairs in pairs for line, label in panel_pairs}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=6, fontsize=8.5, frameon=False)
        figure.suptitle(f"{rows[0].model}, contexts of each text: {rows[0].contexts}", fontsize=11)


def _draw(panel: Any, rows: Sequence[QualityRow]) -> None:
    panel.axhspan(*_TARGET, color="#2f6fde", alpha=0.07, linewidth=0)
    for scheme, (colour, marker, width) in _STYLES.items():
        for variant in dict.fromkeys(row.variant for row in rows if row.scheme == scheme):
            points = sorted(
                (row for row in rows if (row.scheme, row.variant) == (scheme, variant) and row.kl > 0),
                key=lambda row: row.bits_per_value,
            )
            panel.plot(
                [row.bits_per_value for row in points],
                [row.kl for row in points],
                color=colour,
                marker=marker or None,
                markersize=4.5,
                linewidth=width,
                linestyle="-" if marker else (0, (2, 2)),
                label=f"{scheme} ({variant} bins)" if scheme == "cachegen" else scheme,
                alpha=0.55 if variant == "layer" else 1.0,
                zorder=3 if scheme.startswith("kvloom") else 2,
            )
    panel.set_yscale("log")
    panel.set_xlim(0.0, _BITS_MAX)
    panel.set_ylim(_KL_MIN, _KL_MAX)
    panel.grid(which="major", color="#ddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
