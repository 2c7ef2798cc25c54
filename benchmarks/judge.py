"""Judge a recovered map by the truth, and a registered image by the reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Floats, Truth
from tilereg.metrics import score_images

MOVED = 1.0
"""A spot counts as moved if the true map moves it by more than this, in voxels."""

FOUND = 1.0
"""A spot counts as found if the map puts it nearer than this to its place, in voxels."""


def judge_map(truth: Truth, predicted: Floats) -> dict[str, Any]:
    """Return the errors, in voxels, of a map that sends ``truth.points`` to `predicted`.

    Groups of points: the reference's spots that are visible in the moving image (``spots``),
    those of them that are moved (a local deformation leaves most where they are, and then the
    median over all says nothing), those inside and outside the hull of the spots that both images
    show, and the same for the points of a regular grid (``grid_...``). ``found`` is the share of
    the spots that both images show which the map puts within one voxel of their true place: a
    definition that does not ask how, or whether, a method pairs spots.
    """
    error = np.linalg.norm(predicted - truth.true, axis=1)
    displacement = np.linalg.norm(truth.true - truth.points, axis=1)
    grid = ~truth.is_spot
    groups = {
        "spots": truth.is_spot,
        "spots_moved": truth.is_spot & (displacement > MOVED),
        "spots_inside": truth.is_spot & truth.is_inside,
        "spots_outside": truth.is_spot & ~truth.is_inside,
        "grid": grid,
        "grid_inside": grid & truth.is_inside,
        "grid_outside": grid & ~truth.is_inside,
    }
    shared = error[truth.is_shared]
    return {
        **{name: _summary(error[mask]) for name, mask in groups.items()},
        "found": float((shared < FOUND).mean()) if len(shared) else None,
    }


def judge_image(
    reference: NDArray[Any], image: NDArray[Any], before: NDArray[Any]
) -> dict[str, float]:
    """Return the image similarities; `before` is the moving image as it was."""
    return asdict(score_images(reference, image, before))


def _summary(error: Floats) -> dict[str, Any]:
    """Return median, 95th percentile, maximum and count of (K,) errors."""
    if len(error) == 0:
        return {"median": None, "p95": None, "max": None, "count": 0}
    return {
        "median": float(np.median(error)),
        "p95": float(np.percentile(error, 95)),
        "max": float(error.max()),
        "count": len(error),
    }
