"""Seven MERFISH rounds through beads and through the cell stain: do the two drifts agree?

The intensity's own answer is unwhitened phase correlation of the cell stain: whitening makes the
fixed pattern of the bead channel's background answer zero.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.registration import phase_cross_correlation

from benchmarks.processes import run_tilereg
from benchmarks.results_files import Options, require_data, table
from tilereg.io.ome_zarr import open_image
from tilereg.io.transforms import read_transform

CENTRE = np.array([[6.9, 6.9]])
"""Middle of the field of view, micrometre."""


def run(options: Options) -> dict[str, Any]:
    """Register seven rounds through two channels; compare them, and intensity correlation."""
    folder = require_data(options, "merfish")
    reference = _plane(folder / "round0.ome.zarr", "cell_488")
    spacing = np.array(open_image(folder / "round0.ome.zarr").grid.spacing)
    rows = []
    for number in range(1, 2 if options.small else 8):
        moving = folder / f"round{number}.ome.zarr"
        drift = {}
        for channel in ("beads_561", "cell_488"):
            with tempfile.TemporaryDirectory() as place:
                run_tilereg(
                    "register", str(folder / "round0.ome.zarr"), str(moving), f"{place}/run",
                    "--channel", channel, "--quiet",
                )  # fmt: skip
                transform = read_transform(f"{place}/run/transform.ome.zarr")
            drift[channel] = ((transform(CENTRE) - CENTRE)[0] / spacing).tolist()
        shift, _, _ = phase_cross_correlation(
            reference, _plane(moving, "cell_488"), upsample_factor=50, normalization=None
        )
        gap = float(np.linalg.norm(np.subtract(drift["beads_561"], drift["cell_488"])))
        rows.append({"round": number, **drift, "correlation": (-shift).tolist(), "gap_px": gap})
    return {"rounds": rows, "largest_gap_px": max(r["gap_px"] for r in rows)}


def tables(figures: dict[str, Any]) -> str:
    """Return a line a round."""
    head = ["round", "beads (px)", "cell stain (px)", "stain, by intensity (px)", "gap (px)"]
    lines = []
    for row in figures["rounds"]:
        pairs = [row[k] for k in ("beads_561", "cell_488", "correlation")]
        cells = [f"{y:.2f}, {x:.2f}" for y, x in pairs]
        lines.append([str(row["round"]), *cells, f"{row['gap_px']:.2f}"])
    return table(head, lines)


def _plane(path: Path, channel: str) -> NDArray[np.float64]:
    """Read one channel of a 2D image."""
    reader = open_image(path).reader(channel=channel)
    return reader.read(reader.grid.window).astype(np.float64)
