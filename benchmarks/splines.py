"""The smoothing thin-plate spline of the point methods and of the oracles.

Everything is scipy's `RBFInterpolator` with the kernel r^2 log r and affine maps free; only the
smoothing is chosen here, by exact leave-one-out residuals from one decomposition.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from benchmarks.methods.scene import PointMap

Floats = NDArray[np.float64]

_SMOOTHINGS = np.logspace(-6, 4, 21)
# Above this, the smoothing is chosen on a part: it is a ratio of variances, not of counts.
_MOST_TO_CHOOSE = 1200
# Above this, every point is predicted from its nearest pairs alone.
_MOST_DENSE = 4000
_NEIGHBOURS = 150
_FEWEST = 6
# A wrong partner is another spot, so it is off by a good part of a spacing.
_OUTLIER_SPACINGS = 0.25
_OUTLIER_MEDIANS = 6.0


def fit_spline(fixed: Floats, moving: Floats, *, smoothing: float | None = None) -> PointMap:
    """Fit a smoothing thin-plate spline to (K, 3) pairs.

    The smoothing is the one with the least leave-one-out residual, unless it is given (in units
    of the mean distance of neighbours). Too few pairs give an affine map or a shift.
    """
    if len(fixed) < _FEWEST:
        return _simple(fixed, moving)
    centre, unit = fixed.mean(axis=0), spacing_of(fixed)
    x, shift = (fixed - centre) / unit, (moving - fixed) / unit
    if smoothing is None:
        smoothing = choose_smoothing(x, shift)
    spline = RBFInterpolator(
        x,
        shift,
        kernel="thin_plate_spline",
        smoothing=smoothing,
        neighbors=_NEIGHBOURS if len(x) > _MOST_DENSE else None,
    )
    return lambda points: points + unit * spline((points - centre) / unit)


def fit_robust_spline(fixed: Floats, moving: Floats) -> tuple[PointMap, NDArray[np.bool_]]:
    """Fit pairs of which some are wrong: those far from what the others predict are left out.

    Returns the map and which (K,) pairs were used.
    """
    keep = np.ones(len(fixed), dtype=bool)
    limit = np.inf
    for _ in range(5):
        if keep.sum() < 2 * _FEWEST:
            break
        residual = np.linalg.norm(_left_out(fixed[keep], moving[keep]), axis=1)
        spacing = spacing_of(moving[keep])
        limit = max(_OUTLIER_MEDIANS * float(np.median(residual)), _OUTLIER_SPACINGS * spacing)
        if (residual <= limit).all():
            break
        keep[np.flatnonzero(keep)[residual > limit]] = False
    map_ = fit_spline(fixed[keep], moving[keep])
    if keep.all():
        return map_, keep
    # Pairs that only the wrong ones beside them made look wrong come back.
    good = np.linalg.norm(map_(fixed) - moving, axis=1) <= limit
    return fit_spline(fixed[keep | good], moving[keep | good]), keep | good


def choose_smoothing(x: Floats, shift: Floats) -> float:
    """Return the smoothing of least leave-one-out residual."""
    if len(x) > _MOST_TO_CHOOSE:
        rows = np.random.default_rng(0).permutation(len(x))[:_MOST_TO_CHOOSE]
        x, shift = x[rows], shift[rows]
    residuals = _leave_one_out(x, shift)
    return float(min(_SMOOTHINGS, key=lambda s: float((residuals(s) ** 2).sum(1).mean())))


def _left_out(fixed: Floats, moving: Floats) -> Floats:
    """Return (K, 3) residuals of every pair, predicted from the others or from near ones."""
    if len(fixed) > _MOST_TO_CHOOSE:
        return _against_neighbours(fixed, moving)
    unit = spacing_of(fixed)
    x, shift = (fixed - fixed.mean(axis=0)) / unit, (moving - fixed) / unit
    residuals = _leave_one_out(x, shift)
    # The median is not led astray by the wrong pairs that are looked for.
    best = min(_SMOOTHINGS, key=lambda s: float(np.median((residuals(s) ** 2).sum(1))))
    return unit * residuals(best)


def _against_neighbours(fixed: Floats, moving: Floats) -> Floats:
    """Return (K, 3) differences of every shift from the median of those around it."""
    shift = moving - fixed
    near = cKDTree(fixed).query(fixed, k=13)[1][:, 1:]
    return np.asarray(shift - np.median(shift[near], axis=1))


def _leave_one_out(x: Floats, values: Floats) -> Callable[[float], Floats]:
    """Return a function of the smoothing that gives the (K, 3) leave-one-out residuals.

    With K the kernel, P = (1, x) and Z a basis of what P cannot reach, the residual is
    ``s Z (Z'KZ + s)^-1 Z' y``; divided by the same matrix's diagonal it is that of a fit without
    the point (Wahba 1990, section 4.2).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = cdist(x, x)
        kernel = np.where(distance > 0, distance**2 * np.log(distance), 0.0)
    affine = np.column_stack([np.ones(len(x)), x])
    basis = np.linalg.qr(affine, mode="complete")[0][:, affine.shape[1] :]
    energies, vectors = np.linalg.eigh(basis.T @ kernel @ basis)
    modes = basis @ vectors
    inner = modes.T @ values
    energies = np.maximum(energies, 0.0)

    def residuals(smoothing: float) -> Floats:
        weight = smoothing / (energies + smoothing)
        plain = modes @ (weight[:, None] * inner)
        leverage = (modes**2) @ weight
        return np.asarray(plain / np.maximum(leverage, 1e-12)[:, None])

    return residuals


def spacing_of(points: Floats) -> float:
    """Return the mean distance to the nearest other point."""
    distance = cKDTree(points).query(points, k=2)[0][:, 1]
    mean = float(distance.mean()) if len(points) > 1 else 1.0
    return mean if np.isfinite(mean) and mean > 0 else 1.0


def _simple(fixed: Floats, moving: Floats) -> PointMap:
    """Return the mean shift of few pairs; none without any."""
    shift = (moving - fixed).mean(axis=0) if len(fixed) else np.zeros(3)
    return lambda points: points + shift
