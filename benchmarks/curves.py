"""Curves of error and of share found against how hard a pair is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.methods import METHODS
from benchmarks.results_files import save_figure
from benchmarks.summaries import grouped

_PANELS = (
    ("errors.spots_moved.median", "median error (voxel)"),
    ("errors.spots_moved.p95", "95th percentile (voxel)"),
    ("errors.found", "share found within 1 voxel"),
)
# No grey and no black: those are the oracles' and tilereg's.
_COLOURS = ("tab:red", "salmon", "tab:olive", "tab:green", "tab:cyan", "tab:blue", "tab:purple",
            "tab:pink", "tab:brown", "tab:orange", "gold")  # fmt: skip
_LEAST = 5e-3  # voxels; smaller errors are drawn here


def style(method: str) -> dict[str, Any]:
    """Return how a method's curve looks: the same in every figure."""
    if method.startswith("tilereg"):
        return {"color": "black", "linewidth": 2.2, "zorder": 5, "marker": "o", "markersize": 4,
                "linestyle": "-" if method == "tilereg" else "--"}  # fmt: skip
    if METHODS[method].needs == "truth" or "oracle" in method:
        dashes = {"identity": ":", "spline-oracle": "--"}
        return {"color": "grey", "linewidth": 1.6, "linestyle": dashes.get(method, "-.")}
    others = [name for name in METHODS if METHODS[name].needs != "truth"]
    colour = _COLOURS[others.index(method) % len(_COLOURS)]
    return {"color": colour, "linewidth": 1.3, "marker": ".", "alpha": 0.9}


def draw_axis(rows: Sequence[dict[str, Any]], about: str, path: Path, *, is_log: bool) -> None:
    """Draw a column a deformation; from above median, 95th percentile and share found."""
    fields = list(dict.fromkeys(row["field"] for row in rows))
    figure = Figure(figsize=(3.9 * len(fields) + 2.2, 9.0), layout="constrained")
    axes = figure.subplots(3, len(fields), sharex=True, sharey="row", squeeze=False)
    for column, field in enumerate(fields):
        here = [row for row in rows if row["field"] == field]
        for (method,), group in grouped(here, "method").items():
            points = [row["value"] for row in group]
            for line, (key, _) in enumerate(_PANELS):
                found = np.array([np.nan if r[key] is None else r[key] for r in group], float)
                shown = found if line == 2 else np.maximum(found, _LEAST)
                axes[line, column].plot(points, shown, label=method, **style(method))
        axes[0, column].set_title(field, fontsize=11)
        _mark(axes[:, column], sorted({row["value"] for row in rows}), is_log)
    for line, (_, title) in enumerate(_PANELS):
        axes[line, 0].set_ylabel(title)
    for row_axis in axes[:2, 0]:
        plain_log(row_axis)
    axes[2, 0].set_ylim(-0.03, 1.03)
    figure.supxlabel(about, fontsize=11)
    figure.suptitle("errors at the spots that the true map moves by more than a voxel", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    save_figure(figure, path, dpi=90)


def plain_log(axis: Any) -> None:
    """Make the ordinate logarithmic, marked at 1, 2 and 5 times powers of ten."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _mark(axes: Any, values: list[float], is_log: bool) -> None:
    """Put ticks at the values and a line at half a voxel."""
    for axis in axes:
        if is_log:
            axis.set_xscale("log")
        axis.set_xticks(values, [f"{v:g}" for v in values])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.25)
    for axis in axes[:2]:
        axis.axhline(0.5, color="red", linewidth=0.7, linestyle=":")
