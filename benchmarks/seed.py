"""The published benchmark: every deformation on `medium`, every method, judged by the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import inspection
from benchmarks.cases import Case
from benchmarks.judge import MOVED
from benchmarks.methods import METHODS, choose
from benchmarks.results_files import Ledger, Options, number, table
from benchmarks.running import Plan, run_plan
from benchmarks.summaries import (
    Row,
    field_table,
    grouped,
    image_table,
    middle,
    reasons,
    spread,
    worst,
)
from tilereg.synthetic import BENCHMARK_FIELDS

TITLE = "The published benchmark"
SMALL_VOLUME = ((16, 128, 128), 80)
SMALL_METHODS = ("identity", "mutual-nn-affine", "tilereg", "spline-oracle", "true-field")
SEEDS, SLOW_SEEDS = 20, 3
JUDGED = ("tilereg",)


def run(options: Options) -> dict[str, Any]:
    """Register every pair with every method."""
    unknown = [name for name in options.only if name not in BENCHMARK_FIELDS]
    if unknown:
        raise SystemExit(f"Unknown preset '{unknown[0]}'. Known: {', '.join(BENCHMARK_FIELDS)}.")
    fields = options.only or (("polynomial_small",) if options.small else tuple(BENCHMARK_FIELDS))
    methods = choose(options.methods, SMALL_METHODS if options.small else tuple(METHODS))
    seeds = options.seeds or (1 if options.small else SEEDS)
    slow_seeds = options.slow_seeds or min(seeds, SLOW_SEEDS)
    volume = SMALL_VOLUME if options.small else "medium"
    ledger = Ledger(options.cache / "seed.jsonl")
    ledger.drop(options.redo)
    work = []
    for seed in range(max(seeds, slow_seeds)):
        here = tuple(m for m in methods if seed < (slow_seeds if METHODS[m].is_slow else seeds))
        work += [(Case(volume=volume, field=field, seed=seed), here) for field in fields]
    rows = run_plan(
        Plan(
            work=work,
            ledger=ledger,
            time_limit=options.time_limit or 900.0,
            keep=inspection.keeper(options.cache / "projections"),
        )
    )
    return {
        "volume": volume,
        "seeds": seeds,
        "slow_seeds": slow_seeds,
        "methods": {name: METHODS[name].about for name in methods},
        "summary": _summary(rows),
        "verdicts": verdicts(rows),
        "runs": rows,
    }


def _summary(rows: list[Row]) -> list[dict[str, Any]]:
    """Return medians over the seeds, an entry a deformation and method."""
    paths = [f"errors.{g}.{s}" for g in ("spots", "spots_moved", "grid_inside", "grid_outside")
             for s in ("median", "p95", "max")]  # fmt: skip
    paths += ["errors.found", "total_seconds", "total_cpu_seconds", "memory_bytes"]
    scores = ("ncc", "ssim", "iou_99", "iou_995", "mad_bright", "match_rate")
    paths += [f"image.{key}" for key in scores]
    return [
        {
            "field": field,
            "method": method,
            "runs": len(group),
            "ok": sum(row["status"] == "ok" for row in group),
            **{path: middle(group, path) for path in paths},
            "worst_spots_median": worst(group, "errors.spots.median"),
            "worst_spots_p95": worst(group, "errors.spots.p95"),
        }
        for (field, method), group in grouped(rows, "field", "method").items()
    ]


def verdicts(rows: list[Row]) -> list[dict[str, Any]]:
    """Hold tilereg's figures against the goals: medians over the seeds of each method.

    At the reference's spots a median error of at most 0.12 voxel and a 95th percentile of at
    most 0.5; on the grid inside the hull at most 1.2 times the spline oracle's; NCC within 0.02
    of the true field's; CPU time, which a busy machine changes little, at most a tenth of the
    demons'.
    """
    found = []
    groups = grouped(rows, "field", "method")
    for (field, method), group in groups.items():
        if method not in JUDGED:
            continue
        others = {name: here for (f, name), here in groups.items() if f == field}
        inside = middle(group, "errors.grid_inside.median")
        oracles = [middle(others.get(name, []), "errors.grid_inside.median")
                   for name in ("spline-oracle", "detected-oracle")]  # fmt: skip
        demons = others.get("demons", [])
        alike = [r for r in group if r["seed"] in {d["seed"] for d in demons}]
        found.append(
            {
                "field": field,
                "method": method,
                "spots_median": middle(group, "errors.spots.median"),
                "spots_p95": middle(group, "errors.spots.p95"),
                "spots_median_worst_seed": worst(group, "errors.spots.median"),
                "spots_p95_worst_seed": worst(group, "errors.spots.p95"),
                "grid_inside_median": inside,
                "of_spline_oracle": _ratio(inside, oracles[0]),
                "of_detected_oracle": _ratio(inside, oracles[1]),
                "ncc_below_true_field": _difference(
                    middle(others.get("true-field", []), "image.ncc"), middle(group, "image.ncc")
                ),
                "share_of_demons_time": _ratio(
                    middle(alike, "total_cpu_seconds"), middle(demons, "total_cpu_seconds")
                ),
            }
        )
    return found


def _ratio(a: float | None, b: float | None) -> float | None:
    """Return a / b where there are both."""
    return None if a is None or not b else a / b


def _difference(a: float | None, b: float | None) -> float | None:
    """Return a - b where there are both."""
    return None if a is None or b is None else a - b


def tables(figures: dict[str, Any]) -> str:
    """Return the summary, and two tables a deformation."""
    rows, fields = figures["runs"], list(dict.fromkeys(r["field"] for r in figures["runs"]))
    volume = figures["volume"]
    parts = [
        f"# {TITLE}\n",
        f"Volume `{volume}`. Errors of the recovered field in voxels, fixed to moving. A cell is "
        f"the median over the seeds ({figures['seeds']}; {figures['slow_seeds']} for demons) and, "
        "in brackets, the smallest and largest. Points: the reference's spots that the moving "
        "image shows as well, and a regular grid, inside and outside the hull of the spots that "
        "both show. `found`: share of the spots of both images that the map puts within one "
        "voxel. Time is from two images in memory to the registered image, and point methods are "
        "charged for the detection; memory is what the method's process takes beside the images "
        "and without the detection. BLAS runs with one thread. As published, the moving image's "
        "noise is the reference's, deformed: errors of detection in both are alike, and methods "
        "can be closer to the truth than the spline oracle, whose noise (0.05 voxel in both) is "
        "independent.\n",
        "## Summary\n",
        "Median error at the spots, 95th percentile in brackets:\n",
        _overview(rows, fields, "spots"),
        f"The same at the spots that the deformation moves by more than {MOVED:g} voxel. A bump "
        "leaves most spots where they are, and the median over all is blind to it:\n",
        _overview(rows, fields, "spots_moved"),
        "## Goals\n",
        _verdict_table(figures["verdicts"]),
    ]
    for field in fields:
        here = [row for row in rows if row["field"] == field]
        parts += [f"## {field}\n", field_table(here), image_table(here)]
    failed = reasons(rows)
    if failed:
        parts += ["## Runs without a result\n", failed]
    parts += ["## Methods\n", *[f"* `{k}`: {v}\n" for k, v in figures["methods"].items()]]
    return "\n".join(parts)


def _overview(rows: list[Row], fields: list[str], group: str) -> str:
    """Return the error of a group of points, a line a method and a column a deformation."""
    lines = []
    for (method,), runs in grouped(rows, "method").items():
        cells = []
        for field in fields:
            here = [row for row in runs if row["field"] == field]
            median, p95 = (middle(here, f"errors.{group}.{k}") for k in ("median", "p95"))
            cells.append(f"{number(median)} ({number(p95)})")
        lines.append([f"`{method}`", *cells, spread(runs, "total_cpu_seconds", 2)])
    return table(["method", *fields, "CPU seconds"], lines)


def _verdict_table(found: list[dict[str, Any]]) -> str:
    """Return tilereg's figures beside the goals."""
    head = ["deformation", "method", "spots: median (<= 0.12)", "95 % (<= 0.5)",
            "grid inside / spline oracle (<= 1.2)", "/ detected oracle",
            "NCC below true field's (<= 0.02)", "of demons' CPU time (<= 0.1)"]  # fmt: skip
    lines = [
        [
            v["field"],
            f"`{v['method']}`",
            f"{number(v['spots_median'])} (worst seed {number(v['spots_median_worst_seed'])})",
            f"{number(v['spots_p95'])} (worst seed {number(v['spots_p95_worst_seed'])})",
            number(v["of_spline_oracle"]),
            number(v["of_detected_oracle"]),
            number(v["ncc_below_true_field"], 2),
            number(v["share_of_demons_time"], 2),
        ]
        for v in found
    ]
    return table(head, lines)


def figures(found: dict[str, Any], folder: Path) -> None:
    """Draw the errors of all methods, and the inspection figures from the kept projections."""
    inspection.draw_errors(found["runs"], folder / "seed_errors.png")
    inspection.draw_inspections(found["runs"], folder / "cache" / "projections", folder)
