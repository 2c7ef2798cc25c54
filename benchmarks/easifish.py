"""The EASI-FISH pair: correlation where there is tissue, time, memory.

Started twice, so that the second run finds compiled code.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import run_tilereg
from benchmarks.results_files import Options, require_data, table
from tilereg.io.ome_zarr import open_image
from tilereg.io.transforms import read_transform
from tilereg.metrics import NccSums
from tilereg.transform import Transform
from tilereg.warping import warp_array

TISSUE_FROM = 21
"""First plane that holds tissue."""


def run(options: Options) -> dict[str, Any]:
    """Register the pair twice; judge the correlation where there is tissue, z index > 20."""
    folder = require_data(options, "easifish")
    paths = [folder / "round1.ome.zarr", folder / "round2.ome.zarr"]
    with tempfile.TemporaryDirectory() as place:
        for _ in range(2):
            shutil.rmtree(Path(place) / "run", ignore_errors=True)
            cost = run_tilereg("register", *map(str, paths), f"{place}/run", "--quiet")
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
    mask[:TISSUE_FROM] = False
    reference = fixed.read(fixed.grid.window)
    unmoved = warp_array(image, Transform.identity(3), like=fixed.grid, grid=moving.grid)
    return {
        "ncc_before": NccSums().add(reference, unmoved, mask).ncc,
        "ncc_after": NccSums().add(reference, after, mask).ncc,
        "fold_share": qc["field"]["fold_share"],
        "pairs": qc["matches"]["pairs"],
        "held_out_median_voxel": qc["residual"]["held_out"]["median_voxel"],
        "peak_memory_bytes": qc["peak_memory_bytes"],
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
    }


def tables(figures: dict[str, Any]) -> str:
    """Return a line a figure."""
    return table(["figure", "value"], [[name, f"{v:.4g}"] for name, v in figures.items()])
