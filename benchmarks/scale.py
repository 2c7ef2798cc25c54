"""Volumes larger than what a task may hold, from store to store: time, memory, error.

Both rounds are written as OME-Zarr, chunk by chunk, by a process of its own; then ``tilereg
register`` runs as a user would start it, with two workers, and the memory of all its processes
is added up while it does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.processes import CommandCost, folder_bytes, run_command, run_tilereg
from benchmarks.results_files import Ledger, Options, number, say, table
from tilereg.io.ome_zarr import create_image, open_image
from tilereg.io.tables import read_spots
from tilereg.io.transforms import read_transform
from tilereg.metrics import NccSums, field_error, inside_hull
from tilereg.synthetic import BenchmarkPair, benchmark_pair
from tilereg.windows import Reader, iter_windows

VOLUMES = ("tissue", "thick_large")
SMALL = ((40, 200, 200), 260)
FIELD, SEED = "polynomial_small", 0
WORKERS = 2
LIMIT = 4_000_000_000
"""Bytes that all processes together may hold."""

Volume = str | tuple[tuple[int, int, int], int]
_ROUNDS = ("reference.ome.zarr", "moving.ome.zarr")
_WRITTEN = (1, 2, 2)  # chunks that are computed and written at once
_JUDGED = (64, 512, 512)  # voxels that are compared at once
_GRID = 24  # points an axis of the grid that judges the field


def run(options: Options) -> dict[str, Any]:
    """Register each volume; what an earlier start has measured is kept."""
    volumes: dict[str, Volume] = (
        {"small": SMALL} if options.small else {name: name for name in options.only or VOLUMES}
    )
    ledger = Ledger(options.cache / "scale.jsonl")
    ledger.drop(options.redo)
    done = {row["volume"]: row for row in ledger.rows()}
    for name, volume in volumes.items():
        if name not in done:
            done[name] = ledger.add(measure(name, volume))
    return {
        "field": FIELD,
        "seed": SEED,
        "workers": WORKERS,
        "limit_bytes": LIMIT,
        "runs": [done[name] for name in volumes],
    }


def measure(name: str, volume: Volume) -> dict[str, Any]:
    """Write a pair, register it, judge the result; leave nothing on disk."""
    pair = benchmark_pair(volume, FIELD, SEED)
    with tempfile.TemporaryDirectory(prefix="tilereg-scale-") as place:
        folder = Path(place)
        _check_disk(folder, pair)
        say(f"{name}: writing {2 * pair.grid.size / 1e9:.3g} gigavoxels")
        making = _write_in_a_process(volume, folder)
        say(f"{name}: registering")
        cost = run_tilereg(
            "register", *(str(folder / name) for name in _ROUNDS), str(folder / "run"),
            "--workers", str(WORKERS), "--quiet",
        )  # fmt: skip
        say(f"{name}: {cost.seconds:.0f} s, {cost.peak_memory_bytes / 1e9:.3g} GB; judging")
        return {
            "method": "tilereg",
            "volume": name,
            "shape": list(pair.grid.shape),
            "gigavoxels": pair.grid.size / 1e9,
            "true_spots": len(pair.spots),
            "making": _without_timeline(making),
            "register": cost.as_dict(),
            "is_within_limit": cost.peak_memory_bytes <= LIMIT,
            **_judge(pair, folder),
        }


def write_pair(pair: BenchmarkPair, folder: Path) -> None:
    """Write both rounds chunk by chunk; nothing larger than a few chunks is held."""
    for name, read in zip(_ROUNDS, (pair.read_reference, pair.read_moving), strict=True):
        writer = create_image(
            folder / name, grid=pair.grid, dtype=np.uint8, name=name.split(".")[0]
        )
        size = np.multiply(writer.unit_shape(), _WRITTEN)
        for unit in iter_windows(pair.grid.shape, [int(n) for n in size]):
            writer.write(unit.window, read(unit.window))
        for level in range(1, len(writer.level_grids)):
            for unit in writer.units(level):
                writer.downsample(level, unit.window)
        writer.finish()


def _write_in_a_process(volume: Volume, folder: Path) -> CommandCost:
    """Write both rounds in a process of its own, so that its memory is known."""
    return run_command([sys.executable, "-m", "benchmarks.scale", json.dumps(volume), str(folder)])


def _check_disk(folder: Path, pair: BenchmarkPair) -> None:
    """Refuse to begin where three volumes with their pyramids may not fit."""
    needed = 4 * pair.grid.size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"'{folder}' has {free / 1e9:.3g} GB free and {needed / 1e9:.3g} GB are needed. Set "
            "TMPDIR to a folder with more room."
        )


def _judge(pair: BenchmarkPair, folder: Path) -> dict[str, Any]:
    """Hold a finished run against the truth."""
    result = folder / "run"
    qc = json.loads((result / "qc.json").read_text())
    transform = read_transform(result / "transform.ome.zarr")
    visible = pair.spots[pair.visible(pair.spots)]
    axes = [np.linspace(0, n - 1, min(n, _GRID)) for n in pair.grid.shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = grid[inside_hull(grid, visible) & pair.visible(grid)]
    errors = {}
    for group, points in (("spots", visible), ("grid_inside", inside)):
        error = field_error(transform, pair.true_map, points, pair.grid.spacing)
        errors[group] = {
            "count": error.count,
            "median": error.median_voxels,
            "p95": error.p95_voxels,
            "max": error.max_voxels,
        }
    images = [open_image(folder / name).reader() for name in _ROUNDS]
    registered = open_image(result / "registered.ome.zarr").reader()
    return {
        "errors": errors,
        "ncc_before": _ncc(images[0], images[1]),
        "ncc_after": _ncc(images[0], registered),
        "stages": qc["stages"],
        "spots": [len(read_spots(result / f"spots_{r}.parquet")) for r in ("fixed", "moving")],
        "pairs": qc["matches"]["pairs"],
        "fold_share": qc["field"]["fold_share"],
        "warnings": qc["warnings"],
        "input_bytes": sum(folder_bytes(folder / name) for name in _ROUNDS),
        "registered_bytes": folder_bytes(result / "registered.ome.zarr"),
        "transform_bytes": folder_bytes(result / "transform.ome.zarr"),
    }


def _ncc(a: Reader, b: Reader) -> float:
    """Return the correlation of two volumes, read block by block."""
    sums = NccSums()
    for unit in iter_windows(a.shape, _JUDGED):
        sums = sums.add(a.read(unit.window), b.read(unit.window))
    return sums.ncc


def _without_timeline(cost: CommandCost) -> dict[str, Any]:
    """Return the cost of a command in few numbers."""
    return {k: v for k, v in cost.as_dict().items() if k != "timeline"}


def tables(figures: dict[str, Any]) -> str:
    """Return what came out, the memory, and the time of every stage."""
    runs = figures["runs"]
    kind = runs[0]["register"]["memory_kind"]
    return "\n".join(
        [
            "# From store to store\n",
            f"`tilereg register` with {figures['workers']} workers and default settings, "
            f"deformation `{figures['field']}`. Errors in voxels, at the reference's spots that "
            "the moving image shows as well and on a grid inside their hull. NCC is over all "
            "voxels.\n",
            _result_table(runs),
            f"Memory of all processes together ({kind}, sampled; RSS counts pages that processes "
            "share once for each) and what they read and wrote through system calls:\n",
            _memory_table(runs, figures["limit_bytes"]),
            "Seconds of each stage, and the most resident memory of all processes in it:\n",
            _stage_table(runs),
        ]
    )


def _result_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return what came out, a line a volume."""
    head = ["volume", "gigavoxels a round", "spots", "found", "pairs", "spots: median", "95 %",
            "max", "grid: median", "95 %", "NCC before", "after", "folds", "transform"]  # fmt: skip
    lines = []
    for run in runs:
        spots, grid = run["errors"]["spots"], run["errors"]["grid_inside"]
        lines.append(
            [
                f"`{run['volume']}` {'x'.join(map(str, run['shape']))}",
                number(run["gigavoxels"]),
                f"{run['true_spots']:,}",
                " and ".join(f"{n:,}" for n in run["spots"]),
                f"{run['pairs']:,}",
                *(number(spots[k]) for k in ("median", "p95", "max")),
                *(number(grid[k]) for k in ("median", "p95")),
                f"{run['ncc_before']:.3f}",
                f"{run['ncc_after']:.3f}",
                number(run["fold_share"]),
                _size(run["transform_bytes"]),
            ]
        )
    return table(head, lines)


def _memory_table(runs: Sequence[dict[str, Any]], limit: int) -> str:
    """Return time and memory, a line a volume."""
    head = ["volume", "seconds", "CPU s", f"peak (at most {_size(limit)})", "RSS",
            "processes at the peak", "read", "written", "input on disk",
            "writing the input: peak"]  # fmt: skip
    lines = [
        [
            f"`{run['volume']}`",
            number(cost["seconds"]),
            number(cost["cpu_seconds"]),
            _size(cost["peak_memory_bytes"]) + ("" if run["is_within_limit"] else " **over**"),
            _size(cost["peak_rss_bytes"]),
            ", ".join(_size(n) for n in sorted(cost["processes_at_peak"], reverse=True)),
            _size(cost["read_bytes"]),
            _size(cost["written_bytes"]),
            _size(run["input_bytes"]),
            _size(run["making"]["peak_memory_bytes"]),
        ]
        for run in runs
        for cost in [run["register"]]
    ]
    return table(head, lines)


def _stage_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return time and memory of the stages, a line a stage."""
    lines = []
    for stage in dict.fromkeys(s["name"] for run in runs for s in run["stages"]):
        cells = [stage]
        for run in runs:
            here = [s for s in run["stages"] if s["name"] == stage]
            seconds = sum(s["seconds"] for s in here)
            cells += [
                number(seconds),
                _size(max((s["peak_memory_bytes"] for s in here), default=0)),
            ]
        lines.append(cells)
    head = ["stage"]
    for run in runs:
        head += [f"`{run['volume']}`: seconds", "memory"]
    return table(head, lines)


def _size(size: int) -> str:
    """Write a number of bytes."""
    return f"{number(size / 1e9)} GB" if size >= 1e9 else f"{number(size / 1e6)} MB"


def figures(found: dict[str, Any], folder: Path) -> None:
    """Draw the memory of all processes over time, a panel a volume."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = found["runs"]
    figure, axes = pyplot.subplots(
        1, len(runs), figsize=(5.5 * len(runs), 3.6), squeeze=False, layout="constrained"
    )
    for axis, run in zip(axes[0], runs, strict=True):
        seconds, held = zip(*run["register"]["timeline"], strict=True)
        axis.plot(seconds, np.divide(held, 1e9), color="tab:purple", lw=1)
        axis.axhline(found["limit_bytes"] / 1e9, color="0.5", ls="--", lw=1)
        axis.set(
            title=f"{run['volume']}, {run['gigavoxels']:.3g} gigavoxels a round",
            xlabel="seconds",
            ylabel="memory of all processes (GB)",
            ylim=(0, None),
        )
    figure.savefig(folder / "scale_memory.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Write a pair: what the benchmark starts as a process of its own."""
    parser = argparse.ArgumentParser(description="Write a pair of volumes as OME-Zarr.")
    parser.add_argument("volume", type=json.loads, help="a name, or [[z, y, x], spots], as JSON")
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    write_pair(benchmark_pair(chosen.volume, FIELD, SEED), chosen.folder)


if __name__ == "__main__":
    main()
