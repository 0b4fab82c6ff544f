"""Two pictures of a solver comparison: errors per set and method as bars, and how often intervals hold the truth.

Knows the results of `solver_comparison.compare_outcomes` and matplotlib; knows no solver. Fixed colours and sizes, so
that equal results give equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dto_pipeline.lab.solver_comparison import METHODS

_COLOURS = ("#b9b9b9", "#e0a458", "#4f7cac", "#9bb8d3", "#2a9d5c", "#8d6cab")  # of METHODS
_WHATS = {"z": "#2a9d5c", "pairs": "#4f7cac", "height": "#e0a458"}
_ERRORS = {
    "depth_error": "absolute z error [m]",
    "pair_depth_error": "pairwise depth error [m]",
    "height_error": "height error [m]",
}
_WIDTH = 0.14  # of a bar; sets are 1 apart


def draw_errors(results: Mapping[str, Any], path: Path) -> None:
    """Bars of absolute z, pairwise depth and height error [m] per set, one colour per method, as PNG."""
    figure = Figure((2 + len(results), 9), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(len(_ERRORS), sharex=True), _ERRORS.items(), strict=True):
        for slot, (method, colour) in enumerate(zip(METHODS, _COLOURS, strict=True)):
            tall = [numbers["methods"][method][key] for numbers in results.values()]
            places = [place + (slot - (len(METHODS) - 1) / 2) * _WIDTH for place in range(len(results))]
            axes.bar(places, tall, _WIDTH, color=colour, label=method)
        axes.set_title(title, loc="left")
        axes.grid(axis="y", alpha=0.4)
        axes.set_xticks(range(len(results)), [name.replace(" ", "\n") for name in results])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(METHODS))
    _save(figure, path)


def draw_coverage(results: Mapping[str, Any], path: Path) -> None:
    """Share of truths inside an interval against what the interval says, a ring per set, as PNG; the line is honest."""
    figure = Figure((5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999")
    for slot, (what, colour) in enumerate(_WHATS.items()):
        points = [found for numbers in results.values() for found in numbers["coverage"][what].items()]
        x = [float(level) + 0.02 * (slot - 1) for level, _ in points]
        axes.plot(x, [share for _, share in points], "o", mfc="none", color=colour, label=what)
    axes.set_xticks([0.5, 0.8, 0.95], ["50 %", "80 %", "95 %"])
    axes.set(xlim=(0, 1.05), ylim=(0, 1.02), xlabel="interval", ylabel="truths inside the interval")
    axes.legend(loc="lower right")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=80, metadata={"Software": None})
