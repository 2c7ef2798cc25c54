"""What the published pairs do not stress: one axis at a time, for every family of deformations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, product, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import curves
from benchmarks.cases import Case, Volume
from benchmarks.judge import FOUND, MOVED
from benchmarks.methods import METHODS, choose
from benchmarks.results_files import Ledger, Options, number, table
from benchmarks.running import Plan, run_plan
from benchmarks.summaries import COSTS, Row, grouped, middle, reasons, value
from tilereg.synthetic import BenchmarkVariant

FIELDS = ("polynomial_small", "gaussian_large", "multi_point")
"""One deformation of each family."""
SMALL_VOLUME = ((16, 128, 128), 80)
SMALL_METHODS = ("identity", "mutual-nn-affine", "tilereg", "spline-oracle")
SMALL_AXES = ("drop_out", "z_step")
LEFT_OUT = ("demons-pyramid", "true-field")
SEEDS, SLOW_SEEDS = 3, 1
GOOD = 0.5
"""A method holds where its median error at the moved spots is at most this, in voxels."""

# A hundred times as many spots as published fill `medium` with forty thousand, which nothing but
# tilereg matches: this volume has the same depth and density, and a quarter of the area.
_DENSE_VOLUME = ((32, 256, 256), 100)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One way of making the pairs harder."""

    about: str
    """What is changed, with its unit."""
    values: tuple[float, ...]
    """From easy to hard, the first as published or nearest to it."""
    variant: Callable[[float], BenchmarkVariant]
    volume: Volume = "medium"
    is_log: bool = False
    """Whether the curve has a logarithmic abscissa."""


AXES: dict[str, Axis] = {
    "density": Axis(
        about="factor on the number of spots (volume 32 x 256 x 256, 100 spots at 1)",
        values=(1, 3, 10, 30, 100),
        variant=lambda v: BenchmarkVariant(density=v),
        volume=_DENSE_VOLUME,
        is_log=True,
    ),
    "drop_out": Axis(
        about="share of spots that each image misses, and as many spurious ones",
        values=(0, 0.1, 0.3, 0.5),
        variant=lambda v: BenchmarkVariant(drop_out=v, spurious=v),
    ),
    "jitter": Axis(
        about="deviation of the moving spots from the field, voxel an axis",
        values=(0, 0.1, 0.25, 0.5, 1),
        variant=lambda v: BenchmarkVariant(jitter=v),
    ),
    "noise": Axis(
        about="noise over amplitude, every image its own (published: 0.035)",
        values=(0.035, 0.1, 0.2, 0.33),
        variant=lambda v: BenchmarkVariant(amplitude_to_noise=1 / v, own_noise=True),
    ),
    "displacement": Axis(
        about="largest displacement in median distances of neighbours",
        values=(0.25, 0.5, 1, 2),
        variant=lambda v: BenchmarkVariant(displacement=v),
        is_log=True,
    ),
    "rotation": Axis(
        about="rotation about z, degrees",
        values=(0, 5, 10, 20, 45, 90, 180),
        variant=lambda v: BenchmarkVariant(rotation=v),
    ),
    "z_step": Axis(
        about="voxel's length in z over that in y and x",
        values=(1, 2, 3, 6),
        variant=lambda v: BenchmarkVariant(z_step=v),
    ),
    "jump": Axis(
        about="jump between fields of view, voxels",
        values=(0, 2, 4, 8),
        variant=lambda v: BenchmarkVariant(jump=v),
    ),
    "subpixel": Axis(
        about="spots at voxels (0) or between them (1)",
        values=(0, 1),
        variant=lambda v: BenchmarkVariant(subpixel=bool(v)),
    ),
}


def run(options: Options) -> dict[str, Any]:
    """Register the pairs of every axis with every method."""
    names = _axes(options)
    fields = FIELDS[:1] if options.small else FIELDS
    default = SMALL_METHODS if options.small else tuple(m for m in METHODS if m not in LEFT_OUT)
    methods = choose(options.methods, default)
    seeds = options.seeds or (1 if options.small else SEEDS)
    slow_seeds = options.slow_seeds or min(seeds, SLOW_SEEDS)
    work, places = [], []
    for seed, name, field in product(range(seeds), names, fields):
        axis = AXES[name]
        # Methods that take minutes run on one family, so that this ends today.
        slow = seed < slow_seeds and field == fields[0]
        here = tuple(m for m in methods if slow or not METHODS[m].is_slow)
        for v in axis.values[:2] if options.small else axis.values:
            volume = SMALL_VOLUME if options.small else axis.volume
            case = Case(volume=volume, field=field, seed=seed, variant=axis.variant(v))
            work.append((case, here))
            places += [(name, v)] * len(here)
    ledger = Ledger(options.cache / "hard.jsonl")
    ledger.drop(options.redo)
    rows = run_plan(
        Plan(
            work=work,
            ledger=ledger,
            time_limit=options.time_limit or 240.0,
            with_images=False,
        )
    )
    runs = [{**r, "axis": a, "value": v} for r, (a, v) in zip(rows, places, strict=True)]
    return {
        "axes": {name: AXES[name].about for name in names},
        "fields": fields,
        "seeds": seeds,
        "good": GOOD,
        "summary": _summary(runs),
        "holds_until": holds_until(runs),
        "runs": runs,
    }


def _axes(options: Options) -> tuple[str, ...]:
    """Return the axes that were asked for."""
    unknown = [name for name in options.only if name not in AXES]
    if unknown:
        raise SystemExit(f"Unknown axis '{unknown[0]}'. Known: {', '.join(AXES)}.")
    return options.only or (SMALL_AXES if options.small else tuple(AXES))


def _summary(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Return medians over the seeds."""
    paths = ("errors.spots_moved.median", "errors.spots_moved.p95", "errors.spots.median",
             "errors.spots.p95", "errors.grid_inside.median", "errors.found",
             "total_seconds", "true_fold_share", "detections.fixed.recall",
             "detections.moving.recall")  # fmt: skip
    return [
        {
            "axis": axis,
            "field": field,
            "method": method,
            "value": v,
            "runs": len(group),
            "ok": sum(row["status"] == "ok" for row in group),
            **{path: middle(group, path) for path in paths},
        }
        for (axis, field, method, v), group in grouped(
            runs, "axis", "field", "method", "value"
        ).items()
    ]


def holds_until(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, a method and axis, at which values the median error is good.

    `until` is the last value before the first that is not good; None where the first is not.

    A value counts if the median over the seeds of the median error at the moved spots is at most
    `GOOD`; a run without a result, or of a method that found no registration, does not.
    """
    found = []
    for (field, method, axis), group in grouped(runs, "field", "method", "axis").items():
        points = {v: _is_good(here) for (v,), here in grouped(group, "value").items()}
        before = list(takewhile(points.__getitem__, points))
        found.append(
            {
                "field": field,
                "method": method,
                "axis": axis,
                "good": [v for v, good in points.items() if good],
                "tried": list(points),
                "until": before[-1] if before else None,
            }
        )
    return found


def _is_good(runs: Sequence[Row]) -> bool:
    """Whether the median error is good; a run without a registration counts as the worst."""
    path = "errors.spots_moved.median"
    errors = [value(row, path) if row["status"] == "ok" else None for row in runs]
    return float(np.median([np.inf if e is None else e for e in errors])) <= GOOD


def tables(figures: dict[str, Any]) -> str:
    """Return what breaks where, and then every axis in figures."""
    axes, rows = figures["axes"], figures["summary"]
    parts = [
        "# Harder pairs\n",
        f"One axis at a time, {figures['seeds']} seeds (one for demons, on the first deformation "
        "alone). Errors in voxels at the reference's spots that the true map moves by more than "
        f"{MOVED:g} voxel, medians over the seeds: a bump leaves most spots where they are, and "
        "the identity would look well at those. `found`: "
        f"share of the spots of both images that the map puts within {FOUND:g} voxel.\n",
        "## What breaks where\n",
        f"The values tried at which the median error is at most {GOOD} voxel (most runs must have "
        "given a registration); a dash: at none.\n",
        *[f"* **{name}**: {about}" for name, about in axes.items()],
        "",
    ]
    for field in figures["fields"]:
        parts += [f"### {field}\n", _breaks_table(figures, field)]
    for name, about in axes.items():
        parts += [f"## {name}: {about}\n"]
        for field in figures["fields"]:
            here = [r for r in rows if (r["axis"], r["field"]) == (name, field)]
            parts += [f"### {field}\n", _axis_table(here)]
    failed = reasons(figures["runs"])
    if failed:
        parts += ["## Runs without a result\n", failed]
    parts += ["## Cost\n", _cost_table(figures["runs"])]
    return "\n".join(parts)


def _breaks_table(figures: dict[str, Any], field: str) -> str:
    """Return the last good values, a line a method and a column an axis."""
    axes = list(figures["axes"])
    found = [f for f in figures["holds_until"] if f["field"] == field]
    lines = []
    for (method,), group in grouped(found, "method").items():
        by_axis = {f["axis"]: f for f in group}
        lines.append([f"`{method}`", *[_ranges(by_axis.get(axis)) for axis in axes]])
    return table(["method", *axes], lines)


def _ranges(found: dict[str, Any] | None) -> str:
    """Write the values at which a method holds: 'all', a dash, or from where to where."""
    if found is None:
        return ""
    if not found["good"] or found["good"] == found["tried"]:
        return "all" if found["good"] else "-"
    runs = [
        [v for v, _ in run]
        for good, run in groupby(((v, v in found["good"]) for v in found["tried"]), itemgetter(1))
        if good
    ]
    return ", ".join(f"{r[0]:g} - {r[-1]:g}" if len(r) > 1 else f"{r[0]:g}" for r in runs)


def _axis_table(rows: Sequence[Row]) -> str:
    """Return median error, 95th percentile and share found, a column a value."""
    points = list(dict.fromkeys(r["value"] for r in rows))
    lines = []
    for (method,), group in grouped(rows, "method").items():
        by_value = {r["value"]: r for r in group}
        lines.append([f"`{method}`", *[_cell(by_value.get(v)) for v in points]])
    folds = {r["value"]: r["true_fold_share"] for r in rows}
    head = [f"{v:g}" + (f" (folds: {number(folds[v])})" if folds[v] else "") for v in points]
    return table(["median / 95 % / found", *head], lines)


def _cell(row: Row | None) -> str:
    """Write one value of one method."""
    if row is None:
        return ""
    if row["errors.spots_moved.median"] is None:
        return "no result"
    figures = [row[f"errors.{k}"] for k in ("spots_moved.median", "spots_moved.p95", "found")]
    text = " / ".join(number(v, 2) for v in figures)
    return text if row["ok"] == row["runs"] else f"{text} ({row['ok']} of {row['runs']} ok)"


def _cost_table(runs: Sequence[Row]) -> str:
    """Return medians and maxima of the costs of all runs of a method."""
    lines = [
        [f"`{method}`", *[write(group) for _, write in COSTS]]
        for (method,), group in grouped(runs, "method").items()
    ]
    return table(["method", *[title for title, _ in COSTS]], lines)


def figures(found: dict[str, Any], folder: Path) -> None:
    """Draw a figure an axis: errors and share found against the value."""
    for name, about in found["axes"].items():
        rows = [row for row in found["summary"] if row["axis"] == name]
        curves.draw_axis(rows, about, folder / f"hard_{name}.png", is_log=AXES[name].is_log)
