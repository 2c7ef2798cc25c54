"""Coherent Point Drift as other packages have it, and the published recipe around it.

All run on clouds that are centred and scaled to unit deviation, as Myronenko & Song do; their
settings and tolerances depend on the unit. Width, weight and outlier share are the best for all
deformations of the benchmark together, found by trying widths of 0.25 to 2, weights of 0.1 to 20
and outlier shares of 0.1 to 0.6 on two seeds of each: no default would have done as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks.cases import nearest_pairs
from benchmarks.methods.neighbours import robust_affine
from benchmarks.methods.scene import Floats, PointMap, Recovered, Scene, Unavailable
from benchmarks.splines import fit_robust_spline
from tilereg.sampling import farthest_points

TOLERANCE = 1e-9
ITERATIONS = 100
BETA, ALPHA, W = 0.5, 10.0, 0.3
SAMPLED = 2000
LOW_RANK_ABOVE = 1000
_MOST_BYTES = 8e9


@dataclass(frozen=True)
class Unit:
    """The change to clouds of mean zero and unit deviation, one scale for both."""

    fixed_centre: Floats
    moving_centre: Floats
    scale: float

    @classmethod
    def of(cls, fixed: Floats, moving: Floats) -> Unit:
        """Take the unit from the clouds."""
        return cls(fixed.mean(axis=0), moving.mean(axis=0), float(fixed.std(axis=0).max()))

    def fixed(self, points: Floats) -> Floats:
        """Change fixed points."""
        return (points - self.fixed_centre) / self.scale

    def moving(self, points: Floats) -> Floats:
        """Change moving points."""
        return (points - self.moving_centre) / self.scale

    def back(self, points: Floats) -> Floats:
        """Change moving points back."""
        return points * self.scale + self.moving_centre


def pycpd(scene: Scene) -> Recovered:
    """Run pycpd, affine then deformable, on all spots."""
    return Recovered(map=_pycpd_map(scene.fixed, scene.moved))


def recipe(scene: Scene) -> Recovered:
    """Sample both clouds, match the samples with CPD, fit radial basis functions to the pairs."""
    samples = [c[farthest_points(c, min(SAMPLED, len(c)))] for c in (scene.fixed, scene.moved)]
    moved = _pycpd_map(*samples)(samples[0])
    ours, theirs = nearest_pairs(moved, samples[1], np.inf)
    map_, kept = fit_robust_spline(samples[0][ours], samples[1][theirs])
    return Recovered(map=map_, details={"pairs": int(kept.sum()), "sampled": len(samples[0])})


def biocpd(scene: Scene) -> Recovered:
    """Run biocpd's deformable drift, low rank and k-d tree, after a robust affine.

    Its own affine step multiplies by the transposed matrix (1.3.0), so it gets ours.
    """
    affine = robust_affine(scene.fixed, scene.moved)
    unit, source, drift = fit_biocpd(affine(scene.fixed), scene.moved)
    weights = np.asarray(drift.W, dtype=np.float64)
    if drift.low_rank:
        # What the low rank leaves out of the kernel must not act at other points.
        weights = drift.Q @ (drift.Q.T @ weights)
    kernel = _kernel_map(source, weights, BETA)
    return Recovered(
        map=lambda points: unit.back(kernel(unit.moving(affine(points)))),
        details={"iterations": drift.iteration, "beta": BETA, "alpha": ALPHA, "w": W},
    )


def fit_biocpd(fixed: Floats, moving: Floats, **settings: Any) -> tuple[Unit, Floats, Any]:
    """Run biocpd's deformable drift on clouds that lie in about the same place.

    Returns the unit, the fixed cloud in it, and biocpd's registration, whose `TY` is that cloud
    moved. Settings replace those above.
    """
    from biocpd import DeformableRegistration

    unit = Unit.of(moving, moving)
    source = unit.moving(fixed)
    asked = {
        "alpha": ALPHA,
        "beta": BETA,
        "w": W,
        "low_rank": len(source) > LOW_RANK_ABOVE,
        "low_rank_method": "pivoted_cholesky",
    }
    drift = DeformableRegistration(
        X=unit.moving(moving),
        Y=source,
        tolerance=TOLERANCE,
        max_iterations=ITERATIONS,
        dtype=np.float64,
        **(asked | settings),
    )
    drift.register()
    return unit, source, drift


def probreg(scene: Scene) -> Recovered:
    """Run probreg's CPD, affine then nonrigid."""
    unit, affine, moved, fine = fit_probreg(scene.fixed, scene.moved)
    kernel = _kernel_map(moved, np.asarray(fine.w), BETA)
    return Recovered(map=lambda p: unit.back(kernel(affine.transform(unit.fixed(p)))))


def fit_probreg(fixed: Floats, moving: Floats, **settings: Any) -> tuple[Unit, Any, Floats, Any]:
    """Run probreg's CPD, affine then nonrigid, from clouds in any pose that it can start from.

    Returns the unit, the affine, the fixed cloud in the unit after it, and the nonrigid
    transformation of that. Settings, `beta` (a width) and `lmd`, replace those above.
    """
    try:
        from probreg import cpd
    except Exception as error:  # It fails in many ways where its viewers cannot be loaded.
        raise Unavailable(f"probreg does not import: {error}") from error
    unit = Unit.of(fixed, moving)
    source, target = unit.fixed(fixed), unit.moving(moving)
    shared = {"w": settings.pop("w", W), "maxiter": ITERATIONS, "tol": TOLERANCE}
    affine = cpd.registration_cpd(source, target, "affine", **shared).transformation
    moved = affine.transform(source)
    own = {"beta": BETA, "lmd": ALPHA} | settings
    # Its kernel is exp(-r^2 / (2 beta)): its beta is the square of a width.
    own["beta"] = own["beta"] ** 2
    fine = cpd.registration_cpd(moved, target, "nonrigid", **own, **shared).transformation
    return unit, affine, moved, fine


def _pycpd_map(fixed: Floats, moving: Floats) -> PointMap:
    """Return the map of pycpd's affine and deformable registration."""
    unit, affine, moved, drift = fit_pycpd(fixed, moving)
    kernel = _kernel_map(moved, drift.W, BETA)
    return lambda points: unit.back(kernel(unit.fixed(points) @ affine.B + affine.t))


def fit_pycpd(fixed: Floats, moving: Floats, **settings: Any) -> tuple[Unit, Any, Floats, Any]:
    """Run pycpd's affine and deformable registration.

    Returns the unit, the affine registration, the fixed cloud in the unit after it, and the
    deformable registration, whose `TY` is that cloud moved. Settings replace those above.
    """
    from pycpd import AffineRegistration, DeformableRegistration

    # Its kernel is made of four arrays of (N, N, D), its posterior of (N, M, D).
    needed = 8.0 * 3 * len(fixed) * (4 * len(fixed) + 2 * len(moving))
    if needed > _MOST_BYTES:
        raise MemoryError(f"pycpd would take {needed / 1e9:.0f} GB for {len(fixed)} spots.")
    unit = Unit.of(fixed, moving)
    source, target = unit.fixed(fixed), unit.moving(moving)
    shared = {
        "w": settings.pop("w", W), "max_iterations": ITERATIONS, "tolerance": TOLERANCE
    }  # fmt: skip
    affine = AffineRegistration(X=target, Y=source, **shared)
    affine.register()
    moved = source @ affine.B + affine.t
    own = {"alpha": ALPHA, "beta": BETA} | settings
    drift = DeformableRegistration(X=target, Y=moved, **own, **shared)
    drift.register()
    return unit, affine, moved, drift


def _kernel_map(source: Floats, weights: Floats, beta: float) -> PointMap:
    """Return ``x + sum_m exp(-|x - y_m|^2 / 2 beta^2) w_m`` (Myronenko & Song 2010, Eq. 20)."""

    def map_(points: Floats) -> Floats:
        result = np.array(points, dtype=np.float64)
        rows = max(1, 4_000_000 // max(1, len(source)))
        for start in range(0, len(points), rows):
            square = cdist(points[start : start + rows], source, "sqeuclidean")
            result[start : start + rows] += np.exp(-square / (2 * beta**2)) @ weights
        return result

    return map_
