"""Dots of 41 seqFISH+ hybridisations against the reference beads: the shift of each, and its error.

Nearly a hundred beads are in every hybridisation, among up to a thousand dots that are not in the
reference. The authors give the shift of each with a standard error of about 0.01 pixel.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Floats, Stopwatch
from benchmarks.results_files import Options, number, require_data, table
from tilereg.matching import match_spots

CLOSE = 0.05
"""Pixels."""


def run(options: Options) -> dict[str, Any]:
    """Match every hybridisation with default settings."""
    folder = require_data(options, "seqfish")
    beads = _places(_read(folder / "reference_beads.csv"))
    dots = _read(folder / "dots.csv")
    rows = []
    for offset in _read(folder / "offsets.csv")[: 3 if options.small else None]:
        here = _places([row for row in dots if row["hyb"] == offset["hyb"]])
        clock = Stopwatch()
        match = match_spots(beads, here)
        cost = clock.cost
        shift = np.median(match.transform(beads) - beads, axis=0)
        error = float(np.linalg.norm(shift - _places([offset])[0]))
        rows.append(
            {
                "hybridisation": int(offset["hyb"]),
                "dots": len(here),
                "status": match.status,
                "model": match.model,
                "pairs": len(match.correspondences),
                "evidence": match.evidence,
                "shift": shift.tolist(),
                "error_px": error if match.is_ok else None,
                "cpu_seconds": cost.cpu_seconds,
            }
        )
    errors = [row["error_px"] for row in rows if row["error_px"] is not None]
    return {
        "beads": len(beads),
        "close": sum(error <= CLOSE for error in errors),
        "found": len(errors),
        "median_error_px": float(np.median(errors)),
        "hybridisations": rows,
    }


def tables(figures: dict[str, Any]) -> str:
    """Return a summary and a line a hybridisation."""
    rows = figures["hybridisations"]
    head = ["hybridisation", "dots", "status", "model", "pairs", "shift y, x (px)", "error (px)"]
    lines = [
        [
            str(row["hybridisation"]),
            str(row["dots"]),
            row["status"],
            row["model"],
            str(row["pairs"]),
            f"{row['shift'][0]:.2f}, {row['shift'][1]:.2f}",
            number(row["error_px"], 2),
        ]
        for row in rows
    ]
    return (
        f"{figures['beads']} beads; {figures['close']} of {len(rows)} hybridisations within "
        f"{CLOSE} pixel of the authors' shift, {figures['found']} found; median error "
        f"{number(figures['median_error_px'], 2)} pixel.\n\n{table(head, lines)}"
    )


def _read(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _places(rows: list[dict[str, str]]) -> Floats:
    """Return (N, 2) places, axes y, x."""
    return np.array([[float(row["y"]), float(row["x"])] for row in rows])
