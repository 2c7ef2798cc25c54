"""Matching of spot clouds alone, from a thousand to millions of spots, beside other packages.

Every method runs in a process of its own, on one thread, after a small run that pays for imports
and compilation. Errors are those of the map at all fixed spots, whether they have a partner or
not, against the true map. tilereg gets the clouds as they are; biocpd gets them aligned by the
true affine, and the others within the few degrees that they can start from. The engines of tilereg
beside `cpd` get what it gets. biocpd runs with its pivoted Cholesky decomposition of 300 columns;
`biocpd:default rank` with the method that it takes by itself (300 eigenvectors of a dense kernel,
which 100,000 spots have no room for), `biocpd:1000` with 1,000 columns. `tilereg:tiles` matches
tile by tile.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.cases import Floats
from benchmarks.cloud_worker import ENGINES, METHODS, PEERS
from benchmarks.processes import CommandError, run_command
from benchmarks.results_files import Ledger, Options, number, save_figure, say, table
from benchmarks.single_thread import ONE_THREAD
from benchmarks.spot_clouds import CloudSpec, SpotClouds, make_clouds
from benchmarks.summaries import Row, grouped, middle, spread, values

SEEDS, SLOW_SEEDS = 5, 1
SIZES = (1000, 2000, 5000, 10_000, 100_000, 1_000_000, 3_000_000)
SMALL_SIZES = (600,)
LIMITS = {1000: 0.135, 2000: 0.117, 5000: 0.09, 10_000: 0.082, 100_000: 0.068, 1_000_000: 0.071}
"""Root mean square error, voxels, with the true pairs and the true kernel: localisation alone."""
HARDER: dict[str, dict[str, Any]] = {
    "bumps of 20 over 80": {"bump": 20.0, "width": 80.0},
    "bumps of 30 over 100": {"bump": 30.0, "width": 100.0},
    "overlap 0.5": {"overlap": 0.5},
    "overlap 0.3": {"overlap": 0.3},
    "overlap 0.2": {"overlap": 0.2},
    "rotation 180 about the first axis": {"rotation": 180.0, "axis": (1.0, 0.0, 0.0)},
    "rotation 180 about the second axis": {"rotation": 180.0, "axis": (0.0, 1.0, 0.0)},
    "rotation 180 about the last axis": {"rotation": 180.0, "axis": (0.0, 0.0, 1.0)},
}
HARDER_SIZE = 10_000
ENGINE_SIZES, ENGINE_OVERLAPS = (1000, 5000), (0.75, 0.4)
SMALL_ENGINES = ("tilereg:icp",)
ENGINES_AT_LIMIT = "engines, overlap 0.75"
"""The clouds of the engines that are those of the sizes."""

# Seconds of these methods grow with the square of the spots or faster.
_MOST_SPOTS = {"pycpd": 2000, "probreg": 2000, "biocpd": 100_000}
# Sizes at which other ways to run a method are looked at.
_VARIED = {
    "biocpd:default rank": (10_000,),
    "biocpd:1000": (100_000,),
    "tilereg:tiles": (1_000_000, 3_000_000),
}
# From so many spots on a run takes minutes.
_MANY = {
    "tilereg": 1_000_000,
    "tilereg:tiles": 1_000_000,
    "biocpd": 100_000,
    "biocpd:default rank": 10_000,
    "biocpd:1000": 100_000,
    "tilereg:probreg": 5000,
}
_TIME_LIMIT = 1800.0


@dataclass(frozen=True)
class Task:
    """A pair of clouds and who matches them."""

    name: str
    spec: CloudSpec
    methods: tuple[str, ...]

    @property
    def key(self) -> str:
        """The same text for the same clouds."""
        return f"{self.name} {self.spec.count} {self.spec.seed}"


def run(options: Options) -> dict[str, Any]:
    """Match every pair with every method that can; what is there already is kept."""
    ledger = Ledger(options.cache / f"clouds{'-small' if options.small else ''}.jsonl")
    ledger.drop(options.redo)
    done = {(row["case"], row["method"]): row for row in ledger.rows()}
    rows = []
    for task in _tasks(options):
        left = [method for method in task.methods if (task.key, method) not in done]
        if left:
            with tempfile.TemporaryDirectory(prefix="tilereg-clouds-") as place:
                clouds = make_clouds(task.spec)
                truth = clouds.map(clouds.fixed)
                job = Path(place) / "job.npz"
                aligned = clouds.map.affine(clouds.fixed)
                np.savez(job, fixed=clouds.fixed, aligned=aligned, moving=clouds.moving)
                for method in left:
                    row = _row(task, method) | _measured(job, method, truth, clouds, options)
                    done[task.key, method] = ledger.add(row)
                    say(
                        f"{method} {task.key}: {row['status']} rms {number(row.get('rms'))} "
                        f"voxel, {number(row.get('cpu_seconds'))} CPU s {row['reason']}"
                    )
        rows += [done[task.key, method] for method in task.methods]
    return {"limits": LIMITS, "runs": rows}


def _tasks(options: Options) -> Iterator[Task]:
    """Yield what is to be matched: all sizes, then what is harder, then for the engines."""
    if unknown := [name for name in options.methods if name not in METHODS]:
        raise SystemExit(f"Unknown method '{unknown[0]}'. Known: {', '.join(METHODS)}.")
    known = ("sizes", *HARDER, "engines")
    if unknown := [name for name in options.only if name not in known]:
        raise SystemExit(f"Unknown clouds '{unknown[0]}'. Known: {', '.join(known)}.")
    seeds = options.seeds or (1 if options.small else SEEDS)
    small = ("sizes", next(iter(HARDER)), "engines")
    for name in options.only or (small if options.small else known):
        for title, spec in _specs(name, small=options.small):
            for seed in range(seeds):
                here = _methods(name, spec.count, seed, options)
                if here:
                    yield Task(title, replace(spec, seed=seed), here)


def _specs(name: str, *, small: bool) -> Iterator[tuple[str, CloudSpec]]:
    """Yield the clouds of a section and their titles."""
    if name == "engines":
        for overlap in ENGINE_OVERLAPS[:1] if small else ENGINE_OVERLAPS:
            for count in SMALL_SIZES if small else ENGINE_SIZES:
                yield f"engines, overlap {overlap}", CloudSpec(count, overlap=overlap)
        return
    sizes = SMALL_SIZES if small else SIZES if name == "sizes" else (HARDER_SIZE,)
    for count in sizes:
        yield name, CloudSpec(count, **HARDER.get(name, {}))


def _methods(name: str, count: int, seed: int, options: Options) -> tuple[str, ...]:
    """Return who matches a pair of clouds of a section."""
    is_short = options.small and not options.methods
    if name == "engines":
        able = ("tilereg", *(SMALL_ENGINES if is_short else ENGINES))
    elif name == "sizes":
        varied = tuple(method for method, counts in _VARIED.items() if count in counts)
        able = ("tilereg",) if is_short else (*PEERS, *varied)
    else:
        # The others start from nearly aligned clouds, without a search.
        able = ("tilereg",) if is_short else ("tilereg", "biocpd")
    seeds = options.seeds or (1 if options.small else SEEDS)
    slow_seeds = options.slow_seeds or SLOW_SEEDS
    return tuple(
        method
        for method in able
        if (not options.methods or method in options.methods)
        and count <= _MOST_SPOTS.get(method, count)
        and seed < (slow_seeds if count >= _MANY.get(method, count + 1) else seeds)
    )


def _row(task: Task, method: str) -> Row:
    """Name a run."""
    spec = task.spec
    return {
        "case": task.key,
        "method": method,
        "name": task.name,
        "count": spec.count,
        "seed": spec.seed,
    }


def _measured(
    job: Path, method: str, truth: Floats, clouds: SpotClouds, options: Options
) -> dict[str, Any]:
    """Run a method in a process of its own, and judge where it puts the fixed spots."""
    answer = job.with_name("answer.npz")
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.cloud_worker", str(job), method, str(answer)]
    limit = options.time_limit or _TIME_LIMIT
    try:
        run_command(command, environment={**ONE_THREAD, "NUMBA_NUM_THREADS": "1"}, time_limit=limit)
    except CommandError as error:
        return {"status": "failed", "reason": str(error).splitlines()[-1]}
    with np.load(answer) as found:
        if "unavailable" in found:
            return {"status": "unavailable", "reason": str(found["unavailable"])}
        told = {name: found[name].item() for name in found.files if name != "moved"}
        moved = found["moved"]
    error = np.linalg.norm(moved - truth, axis=1)
    paired = clouds.partner >= 0
    return {
        "status": "ok",
        "reason": "" if told.get("status", "ok") == "ok" else "It says so itself.",
        "rms": float(np.sqrt((error**2).mean())),
        "median": float(np.median(error)),
        "p95": float(np.percentile(error, 95)),
        "rms_paired": float(np.sqrt((error[paired] ** 2).mean())),
        **told,
    }


def tables(figures: dict[str, Any]) -> str:
    """Return errors and costs by number of spots, and what is harder."""
    rows = figures["runs"]
    limits = {int(count): limit for count, limit in figures["limits"].items()}
    parts = [
        "# Clouds of spots\n",
        f"{(__doc__ or '').split(chr(10), 2)[2].strip()} Errors in voxels, a median over the "
        "seeds and, in brackets, the smallest and largest; localisation noise 0.3 voxel an axis "
        "in both clouds, 75 % of the spots have a partner, bumps of 10 voxels over 150, mean "
        "distance of neighbours 12. The limit is what localisation leaves with the true pairs "
        "and the true kernel. Memory is what the process takes beside the clouds.\n",
    ]
    head = ["spots", "limit", "method", "runs", "rms", "/ limit", "median", "95 %", "CPU s",
            "of tilereg's", "MB"]  # fmt: skip
    lines = []
    for (name, count), group in grouped(rows, "name", "count").items():
        if name == "sizes":
            lines += _lines(group, f"{count:,}", limits.get(count))
    parts.append(table(head, lines))
    for title, is_here in (
        ("Harder", lambda name: name in HARDER),
        ("Engines", lambda name: name.startswith("engines")),
    ):
        lines = []
        for (name, count), group in grouped(rows, "name", "count").items():
            if is_here(name):
                limit = limits.get(count) if name == ENGINES_AT_LIMIT else None
                lines += _lines(group, f"{name}, {count:,}", limit)
        if lines:
            parts += [f"## {title}\n", table(["clouds", *head[1:]], lines)]
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        parts.append("## Runs without a result\n")
        parts += [f"* `{row['method']}` {row['case']}: {row['reason']}\n" for row in failed]
    return "\n".join(parts)


def _lines(group: Sequence[Row], name: str, limit: float | None) -> list[list[str]]:
    """Return a line a method."""
    ours = middle([row for row in group if row["method"] == "tilereg"], "cpu_seconds")
    lines = []
    for (method,), here in grouped(group, "method").items():
        good = [row for row in here if row["status"] == "ok"]
        if not good:
            continue
        rms, cpu = middle(good, "rms"), middle(good, "cpu_seconds")
        lines.append(
            [
                name,
                number(limit),
                f"`{method}`",
                str(len(good)),
                spread(good, "rms"),
                number(rms / limit if rms is not None and limit else None),
                number(middle(good, "median")),
                number(middle(good, "p95")),
                spread(good, "cpu_seconds", 2),
                number(cpu / ours if cpu is not None and ours else None),
                number((middle(good, "memory_bytes") or 0) / 1e6),
            ]
        )
    return lines


def figures(found: dict[str, Any], folder: Path) -> None:
    """Draw CPU time, memory and error against the number of spots."""
    rows = [row for row in found["runs"] if row["name"] == "sizes" and row["status"] == "ok"]
    if not rows:
        return
    panels = (
        ("cpu_seconds", "CPU seconds", 1.0),
        ("memory_bytes", "memory beside the clouds (MB)", 1e6),
        ("rms", "root mean square error (voxel)", 1.0),
    )
    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    for axis, (key, title, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        for (method,), group in grouped(rows, "method").items():
            counts = sorted({row["count"] for row in group})
            middles = [
                np.median(values([r for r in group if r["count"] == c], key)) / unit for c in counts
            ]
            width = 2.4 if method == "tilereg" else 1.4
            axis.plot(counts, middles, marker="o", label=method, linewidth=width)
        if key == "rms":
            limits = {int(c): v for c, v in found["limits"].items()}
            axis.plot(list(limits), list(limits.values()), "k--", linewidth=1, label="limit")
        axis.set(xscale="log", yscale="log", xlabel="spots of either cloud", ylabel=title)
        axis.grid(visible=True, which="major", alpha=0.3)
    figure.axes[0].legend(fontsize=9)
    save_figure(figure, folder / "clouds_sizes.png")
