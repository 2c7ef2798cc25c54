"""Five synthetic pairs through the whole of `tilereg demo`, judged inside the hull."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results_files import Options, table
from tilereg.demo import demo


def run(options: Options) -> dict[str, Any]:
    """Register the pairs; judge the field at the spots inside the hull."""
    rows = []
    for seed in range(options.seeds or (1 if options.small else 5)):
        with tempfile.TemporaryDirectory() as folder:
            result = demo(Path(folder) / "demo", seed=seed)
        error, qc = result.error, result.run.qc
        rows.append(
            {
                "seed": seed,
                "median_voxel": error.median_voxels,
                "p95_voxel": error.p95_voxels,
                "max_voxel": error.max_voxels,
                "median_um": error.median,
                "p95_um": error.p95,
                "before_median_voxel": result.initial_error.median_voxels,
                "pairs": qc["matches"]["pairs"],
                "seconds": sum(stage["seconds"] for stage in qc["stages"]),
                "peak_memory_bytes": qc["peak_memory_bytes"],
            }
        )
    return {"runs": rows}


def tables(figures: dict[str, Any]) -> str:
    """Return a line a seed."""
    head = ["seed", "median (voxel)", "95 % (voxel)", "median (um)", "95 % (um)", "pairs"]
    lines = []
    for row in figures["runs"]:
        numbers = [row[k] for k in ("median_voxel", "p95_voxel", "median_um", "p95_um")]
        lines.append([str(row["seed"]), *[f"{v:.3f}" for v in numbers], str(row["pairs"])])
    return table(head, lines)
