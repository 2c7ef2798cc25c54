"""Methods that pair nearest neighbours: alone, after an affine, after RANSAC, again and again."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.spatial import cKDTree
from skimage.measure import ransac as skimage_ransac
from skimage.transform import AffineTransform

from benchmarks.cases import nearest_pairs
from benchmarks.methods.scene import Floats, PointMap, Recovered, Scene
from benchmarks.splines import fit_robust_spline, fit_spline, spacing_of

_ROUNDS = 30
_SOFTER = (1e3, 1e2, 1e1, 1.0)


def plain(scene: Scene) -> Recovered:
    """Pair mutual nearest neighbours as the spots lie, and fit a spline that drops outliers."""
    return _paired(scene, lambda points: points)


def after_affine(scene: Scene) -> Recovered:
    """Pair mutual nearest neighbours after a robust affine."""
    return _paired(scene, robust_affine(scene.fixed, scene.moved))


def ransac(scene: Scene) -> Recovered:
    """Find an affine that many mutual nearest neighbours share, then pair again and fit."""
    ours, theirs = nearest_pairs(scene.fixed, scene.moved, np.inf)
    spacing = spacing_of(scene.fixed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns where a sample of four spots is degenerate.
        model, inliers = skimage_ransac(
            (scene.fixed[ours], scene.moved[theirs]),
            _Affine,
            min_samples=4,
            residual_threshold=0.25 * spacing,
            max_trials=2000,
            rng=0,
        )
    if model is None or inliers is None:
        return Recovered(map=lambda points: points, status="no registration")
    matrix = model.params
    found = _paired(scene, lambda points: points @ matrix[:3, :3].T + matrix[:3, 3])
    return Recovered(map=found.map, details={**found.details, "inliers": int(inliers.sum())})


def icp(scene: Scene) -> Recovered:
    """Iterate closest points: an affine first, then splines that get softer."""
    map_ = robust_affine(scene.fixed, scene.moved)
    for smoothing in _SOFTER:
        for _ in range(2):
            ours, theirs = _near_pairs(map_(scene.fixed), scene.moved)
            map_ = fit_spline(scene.fixed[ours], scene.moved[theirs], smoothing=smoothing)
    return _paired(scene, map_)


def robust_affine(fixed: Floats, moving: Floats) -> PointMap:
    """Iterate mutual nearest neighbours and an affine of Tukey weights, from the identity on."""
    solution = np.vstack([np.zeros((1, 3)), np.eye(3)])
    design = np.column_stack([np.ones(len(fixed)), fixed])
    for _ in range(_ROUNDS):
        moved = design @ solution
        ours, theirs = nearest_pairs(moved, moving, np.inf)
        if len(ours) < 5:
            break
        gap = np.linalg.norm(moved[ours] - moving[theirs], axis=1)
        limit = 4.685 * max(float(np.median(gap)), 1e-6)
        root = np.clip(1 - (gap / limit) ** 2, 0, None)
        new = np.linalg.lstsq(design[ours] * root[:, None], moving[theirs] * root[:, None])[0]
        change = float(np.abs(design @ (new - solution)).max())
        solution = new
        if change < 1e-4:
            break
    return lambda points: solution[0] + points @ solution[1:]


def _near_pairs(moved: Floats, moving: Floats) -> tuple[np.ndarray, ...]:
    """Return mutual nearest neighbours but for those far from the median distance."""
    distance = cKDTree(moving).query(moved)[0]
    return nearest_pairs(moved, moving, 3 * max(float(np.median(distance)), 1e-6))


def _paired(scene: Scene, start: PointMap) -> Recovered:
    """Pair mutual nearest neighbours once after a first map, and fit the robust spline."""
    ours, theirs = nearest_pairs(start(scene.fixed), scene.moved, np.inf)
    map_, kept = fit_robust_spline(scene.fixed[ours], scene.moved[theirs])
    return Recovered(map=map_, details={"pairs": int(kept.sum())})


class _Affine(AffineTransform):
    """An affine map in three dimensions: RANSAC makes its models without arguments."""

    def __init__(self, matrix=None, **keywords):  # type: ignore[no-untyped-def]
        super().__init__(matrix, **{"dimensionality": 3, **keywords})
