"""How well and how fast `tilereg register` does its main job.

    python benchmarks/registration.py demo                  five synthetic pairs with known truth
    python benchmarks/registration.py easifish --data D     the EASI-FISH pair below D/easifish
    python benchmarks/registration.py merfish --data D      seven MERFISH rounds below D/merfish

Every run is a process of its own, started twice so that the second finds compiled code. Writes
``benchmarks/results/NAME.json`` and ``NAME.md``; the README's figures are from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from skimage.registration import phase_cross_correlation

from tilereg.demo import demo
from tilereg.io.ome_zarr import open_image
from tilereg.io.transforms import read_transform
from tilereg.metrics import NccSums
from tilereg.transform import Transform
from tilereg.warping import warp_array

RESULTS = Path(__file__).parent / "results"


def run_cli(*arguments: str) -> dict[str, float]:
    """Run `tilereg` in a process of its own; return wall and CPU seconds and peak bytes."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tilereg", *arguments], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu}


def bench_demo(_: Path | None) -> tuple[dict[str, Any], list[list[str]]]:
    """Register five synthetic pairs; judge the field at the spots inside the hull."""
    rows = []
    for seed in range(5):
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
    table = [["seed", "median (voxel)", "95 % (voxel)", "median (um)", "95 % (um)", "pairs"]]
    for row in rows:
        figures = [row[k] for k in ("median_voxel", "p95_voxel", "median_um", "p95_um")]
        table.append([str(row["seed"]), *[f"{v:.3f}" for v in figures], str(row["pairs"])])
    return {"runs": rows}, table


def bench_easifish(data: Path | None) -> tuple[dict[str, Any], list[list[str]]]:
    """Register the pair twice; judge the correlation where there is tissue, z index > 20."""
    folder = _data(data, "easifish")
    paths = [folder / "round1.ome.zarr", folder / "round2.ome.zarr"]
    with tempfile.TemporaryDirectory() as place:
        for _ in range(2):
            shutil.rmtree(Path(place) / "run", ignore_errors=True)
            cost = run_cli("register", *map(str, paths), f"{place}/run", "--quiet")
        qc = json.loads((Path(place) / "run/qc.json").read_text())
        transform = read_transform(f"{place}/run/transform.ome.zarr")
        registered = open_image(f"{place}/run/registered.ome.zarr").reader()
        after = registered.read(registered.grid.window)
    fixed, moving = (open_image(p).reader() for p in paths)
    image = moving.read(moving.grid.window)
    inside = warp_array(
        np.ones(image.shape, np.uint8), transform, like=fixed.grid, grid=moving.grid, order=0
    )
    mask = inside > 0
    mask[:21] = False
    reference = fixed.read(fixed.grid.window)
    unmoved = warp_array(image, Transform.identity(3), like=fixed.grid, grid=moving.grid)
    figures = {
        "ncc_before": NccSums().add(reference, unmoved, mask).ncc,
        "ncc_after": NccSums().add(reference, after, mask).ncc,
        "fold_share": qc["field"]["fold_share"],
        "pairs": qc["matches"]["pairs"],
        "held_out_median_voxel": qc["residual"]["held_out"]["median_voxel"],
        "peak_memory_bytes": qc["peak_memory_bytes"],
        **cost,
    }
    return figures, [["figure", "value"], *[[k, f"{v:.4g}"] for k, v in figures.items()]]


def bench_merfish(data: Path | None) -> tuple[dict[str, Any], list[list[str]]]:
    """Register seven rounds through two channels; compare the two, and intensity correlation.

    The intensity's own answer is unwhitened phase correlation of the cell stain: whitening makes
    the fixed pattern of the bead channel's background answer zero.
    """
    folder = _data(data, "merfish")
    centre = np.array([[6.9, 6.9]])
    rows = []
    reference = _plane(folder / "round0.ome.zarr", "cell_488")
    spacing = np.array(open_image(folder / "round0.ome.zarr").grid.spacing)
    for number in range(1, 8):
        moving = folder / f"round{number}.ome.zarr"
        drift = {}
        for channel in ("beads_561", "cell_488"):
            with tempfile.TemporaryDirectory() as place:
                run_cli(
                    "register", str(folder / "round0.ome.zarr"), str(moving), f"{place}/run",
                    "--channel", channel, "--quiet",
                )  # fmt: skip
                transform = read_transform(f"{place}/run/transform.ome.zarr")
            drift[channel] = ((transform(centre) - centre)[0] / spacing).tolist()
        shift, _, _ = phase_cross_correlation(
            reference, _plane(moving, "cell_488"), upsample_factor=50, normalization=None
        )
        gap = float(np.linalg.norm(np.subtract(drift["beads_561"], drift["cell_488"])))
        rows.append({"round": number, **drift, "correlation": (-shift).tolist(), "gap_px": gap})
    table = [["round", "beads (px)", "cell stain (px)", "stain, by intensity (px)", "gap (px)"]]
    for row in rows:
        pairs = [row[k] for k in ("beads_561", "cell_488", "correlation")]
        table.append(
            [str(row["round"]), *[f"{y:.2f}, {x:.2f}" for y, x in pairs], f"{row['gap_px']:.2f}"]
        )
    return {"rounds": rows, "largest_gap_px": max(r["gap_px"] for r in rows)}, table


def _plane(path: Path, channel: str) -> np.ndarray:
    """Read one channel of a 2D image."""
    reader = open_image(path).reader(channel=channel)
    return reader.read(reader.grid.window).astype(np.float64)


def _data(data: Path | None, name: str) -> Path:
    """Return the folder of a data set, or say that it is missing."""
    if data is None or not (data / name).is_dir():
        raise SystemExit(f"The '{name}' benchmark needs its data: give --data FOLDER.")
    return data / name


def main() -> None:
    """Run one benchmark and write its results."""
    benchmarks = {"demo": bench_demo, "easifish": bench_easifish, "merfish": bench_merfish}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=benchmarks)
    parser.add_argument("--data", type=Path, default=None)
    chosen = parser.parse_args()
    figures, table = benchmarks[chosen.name](chosen.data)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    content = json.dumps({"machine": machine, **figures}, indent=1)
    (RESULTS / f"{chosen.name}.json").write_text(content + "\n")
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|" + "---|" * len(table[0]))
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{chosen.name}.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
