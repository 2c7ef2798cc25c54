"""What nothing can beat, and what everything must: oracles that know the truth, the identity."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Detections, nearest_pairs
from benchmarks.methods.scene import Floats, PointMap, Recovered, Scene
from benchmarks.splines import fit_spline

NOISE = 0.05
"""Localisation noise of the spline oracle, voxels an axis, in both images."""

_NEAR = 1.5


def identity(_: Scene) -> Recovered:
    """Move nothing."""
    return Recovered(map=lambda points: points)


def true_field(scene: Scene) -> Recovered:
    """Return the true map; where it has no answer, that of the nearest place that has one."""
    pair, spacing = scene.pair, scene.spacing

    def map_(points: Floats) -> Floats:
        return np.asarray(pair.true_map(points / spacing) * spacing)

    return Recovered(map=map_)


def spline_oracle(scene: Scene) -> Recovered:
    """Fit a spline to the true pairs, seen with localisation noise."""
    pair = scene.pair
    noisy = Detections.without_images(pair, NOISE)
    ours, theirs = pair.pairs.T
    map_ = fit_spline(noisy.fixed.positions[ours], noisy.moving.positions[theirs])
    return Recovered(map=map_, details={"pairs": len(ours)})


def detected_oracle(scene: Scene) -> Recovered:
    """Fit a spline to the spots that were detected in both images, truly paired."""
    pair = scene.pair
    of_fixed = _rows_of(pair.spots, scene.fixed / scene.spacing)
    of_moving = _rows_of(pair.moving_spots, scene.moved / scene.spacing)
    ours, theirs = of_fixed[pair.pairs[:, 0]], of_moving[pair.pairs[:, 1]]
    both = (ours >= 0) & (theirs >= 0)
    map_: PointMap = fit_spline(scene.fixed[ours[both]], scene.moved[theirs[both]])
    return Recovered(map=map_, details={"pairs": int(both.sum())})


def _rows_of(true: Floats, found: Floats) -> np.ndarray:
    """Return the row of the detected spot of every true one, -1 where there is none."""
    rows = np.full(len(true), -1, dtype=np.int64)
    ours, theirs = nearest_pairs(true, found, _NEAR)
    rows[ours] = theirs
    return rows
