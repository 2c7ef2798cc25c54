"""Cells of ascidian embryos in arbitrary poses: who is whose namesake, without the names?

Two embryos are never the same: they differ by any rotation, by up to a fifth in size, and
smoothly; their left and right are alike. Cells whose name occurs once in both frames count.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from benchmarks.cases import Floats, Stopwatch
from benchmarks.results_files import Options, number, require_data, table
from tilereg.matching import match_spots

PAIRS = (
    (("Pm02", 20), ("Pm03", 31)),
    (("Pm02", 20), ("Pm05", 29)),
    (("Pm02", 20), ("Pm08", 21)),
    (("Pm02", 40), ("Pm03", 58)),
)


@dataclass(frozen=True)
class Embryo:
    """Cells of one frame: (N, 3) places, axes z, y, x, and names, None where one occurs twice."""

    cells: Floats
    names: list[str | None]

    @classmethod
    def read(cls, path: Path, frame: int) -> Embryo:
        """Read a table with the columns t, x, y, z and name."""
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["t"]) == frame]
        counts = Counter(row["name"] for row in rows)
        names = [row["name"] if counts[row["name"]] == 1 else None for row in rows]
        return cls(np.array([[float(row[k]) for k in "zyx"] for row in rows]), names)


def run(options: Options) -> dict[str, Any]:
    """Match every pair with default settings."""
    folder = require_data(options, "embryos")
    rows = []
    for (one, frame), (other, late) in PAIRS[: 1 if options.small else None]:
        fixed = Embryo.read(folder / f"{one}.csv", frame)
        moving = Embryo.read(folder / f"{other}.csv", late)
        clock = Stopwatch()
        match = match_spots(fixed.cells, moving.cells)
        cost = clock.cost
        row_of = {name: row for row, name in enumerate(moving.names) if name is not None}
        shared = [row for row, name in enumerate(fixed.names) if name in row_of]
        partner = np.array([row_of[fixed.names[row] or ""] for row in shared])
        paired = dict(
            zip(
                match.correspondences.fixed_index.tolist(),
                match.correspondences.moving_index.tolist(),
                strict=True,
            )
        )
        is_right = [paired.get(r) == p for r, p in zip(shared, partner, strict=True)]
        nearest = cKDTree(moving.cells).query(match.transform(fixed.cells[shared]))[1]
        rows.append(
            {
                "pair": f"{one}@{frame}, {other}@{late}",
                "cells": [len(fixed.cells), len(moving.cells)],
                "shared": len(shared),
                "status": match.status,
                "pairs": len(match.correspondences),
                "right": float(np.mean(is_right)),
                "nearest_right": float((nearest == partner).mean()),
                "cpu_seconds": cost.cpu_seconds,
            }
        )
    return {"pairs": rows}


def tables(figures: dict[str, Any]) -> str:
    """Return a line a pair."""
    head = ["embryos", "cells", "named in both", "status", "paired with their namesake",
            "namesake nearest", "CPU s"]  # fmt: skip
    lines = [
        [
            row["pair"],
            ", ".join(map(str, row["cells"])),
            str(row["shared"]),
            row["status"],
            f"{100 * row['right']:.1f} %",
            f"{100 * row['nearest_right']:.1f} %",
            number(row["cpu_seconds"], 2),
        ]
        for row in figures["pairs"]
    ]
    return table(head, lines)
